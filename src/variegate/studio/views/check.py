"""Check a LoRA: any file, nobody's training needed; the verdict, and a repair where one helps."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from variegate.errors import RunError, VariegateError
from variegate.images.captions import clean
from variegate.report.numbers import headline_numbers
from variegate.report.page import chips
from variegate.report.text import number
from variegate.studio.desk import read_json, write_json
from variegate.studio.frame import Form, NotHere, Refused, Studio, found, go, page
from variegate.studio.incoming import TooLarge, receive
from variegate.studio.jobs import Job
from variegate.studio.views.cards import sides
from variegate.studio.views.runs import download, framed
from variegate.studio.watching import stage_of

MOST_FILE = 8 * 2**30
FACTS = ("family", "format", "kind", "layers", "rank", "alpha")
MOST_METADATA = 40


def listing(studio: Studio, request: Request, form: Form) -> Response:
    made = [
        (studio.desk.id_of(p), facts_of(p), _verdict(studio, p))
        for p in studio.desk.places("checks")
    ]
    return page(studio, request, "checks.html", checks=made[:60])


async def upload(request: Request) -> Response:
    studio: Studio = request.app.state.studio
    told = clean(unquote(request.headers.get("x-file-name", "")))[:120] or "adapter"
    arriving = studio.desk.home / ".incoming" / uuid.uuid4().hex
    try:
        await receive(request, arriving, most=MOST_FILE)
        place = await run_in_threadpool(_take, studio, arriving, told)
    except TooLarge as error:
        return JSONResponse(
            {"file": told, "why": studio.words("faults.too_large", most=error)}, 413
        )
    except ClientDisconnect:
        return Response(status_code=400)
    except (VariegateError, Refused) as error:
        return JSONResponse({"file": told, "why": str(error)}, 422)
    finally:
        arriving.unlink(missing_ok=True)
    return JSONResponse({"file": told, "taken": 1, "go": f"/check/{studio.desk.id_of(place)}"})


def _take(studio: Studio, file: Path, told: str) -> Path:
    with file.open("rb") as stream:
        head = stream.read(9)
    # A safetensors file is the length of its header, then the header, which is JSON.
    if len(head) < 9 or head[8:9] != b"{" or int.from_bytes(head[:8], "little") > 100_000_000:
        raise Refused(studio.words("check.no_safetensors"))
    place = studio.desk.new_place("checks")
    file.replace(place / "adapter.safetensors")
    write_json(place / ".check.json", {"name": told})
    title = studio.words("jobs.inspect", name=told)
    words = ["inspect", str(place / "adapter.safetensors")]
    studio.desk.jobs.add(words, title=title, lane="desk", about=str(place))
    return place


def from_run(studio: Studio, request: Request, form: Form) -> Response:
    """A run's adapter as one to check: its file linked, with what its recipe says of it."""
    place = found(studio.desk.run(request.path_params["run"]))
    file = place.folder / "adapter.safetensors"
    if not file.is_file():
        raise NotHere
    recipe = studio.desk.record(place.folder).recipe or {}
    facts = {
        "trigger": str(recipe.get("trigger") or ""),
        "noun": str(recipe.get("class_noun") or ""),
        "base": str(recipe.get("base") or ""),
        "images": str(recipe.get("images") or ""),
    }
    return _begin(studio, file, {"name": place.name, **facts})


def from_blend(studio: Studio, request: Request, form: Form) -> Response:
    """A blend as a file to check."""
    place = found(studio.desk.place("blends", request.path_params["blend"]))
    file = place / "blend.safetensors"
    if not file.is_file():
        raise NotHere
    names = read_json(place / ".blend.json").get("names")
    told = " + ".join(map(str, names)) if isinstance(names, list) else "blend"
    return _begin(studio, file, {"name": told[:120]})


def _begin(studio: Studio, file: Path, facts: dict[str, str]) -> Response:
    made = studio.desk.new_place("checks")
    _link(file, made / "adapter.safetensors")
    write_json(made / ".check.json", facts)
    title = studio.words("jobs.inspect", name=facts["name"])
    words = ["inspect", str(made / "adapter.safetensors")]
    studio.desk.jobs.add(words, title=title, lane="desk", about=str(made))
    return go(f"/check/{studio.desk.id_of(made)}")


def _link(file: Path, at: Path) -> None:
    try:
        os.link(file, at)
    except OSError:
        shutil.copyfile(file, at)


def one(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "check.html", **_context(studio, _place(studio, request)))


def state(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "check_state.html", **_context(studio, _place(studio, request)))


def measure(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    trigger, noun = form.get("trigger", "").strip()[:100], form.get("noun", "").strip()[:100]
    base = form.get("base", "").strip()[:500] or "pocket"
    preset = form.get("preset", "quick")
    if preset not in ("quick", "standard", "thorough"):
        raise NotHere
    facts = facts_of(place)
    _keep(place, trigger=trigger, noun=noun, base=base, set=form.get("set", ""))
    words = ["measure", str(place / "adapter.safetensors"), "--base", base, "--preset", preset]
    words += _words(studio, place, trigger, noun, form)
    if form.get("style"):
        words.append("--style")
    words += ["--out", str(place / "verdict")]
    title = studio.words("jobs.measure", name=facts["name"])
    _add(studio, place, words, title)
    return go(f"/check/{studio.desk.id_of(place)}")


def repair(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    facts = facts_of(place)
    price = form.get("price", "0.1")
    if price not in ("0.02", "0.05", "0.1"):
        raise NotHere
    trigger, noun = str(facts.get("trigger") or ""), str(facts.get("noun") or "")
    words = ["repair", str(place / "adapter.safetensors")]
    words += ["--base", str(facts.get("base") or "pocket"), "--price", price]
    words += _words(studio, place, trigger, noun, {"set": str(facts.get("set") or "")})
    words += ["--out", str(place / "repaired.safetensors")]
    title = studio.words("jobs.repair", name=facts["name"])
    _add(studio, place, words, title)
    return go(f"/check/{studio.desk.id_of(place)}")


def _words(studio: Studio, place: Path, trigger: str, noun: str, form: Form) -> list[str]:
    words: list[str] = []
    if trigger:
        words += ["--trigger", trigger]
    if noun:
        words += ["--class", noun]
    if chosen := form.get("set"):
        pictures = studio.desk.set(chosen)
        if pictures is not None:
            words += ["--train-images", str(pictures.folder)]
    elif (images := str(facts_of(place).get("images") or "")) and Path(images).is_dir():
        words += ["--train-images", images]
    if encoder := studio.desk.settings().get("encoder"):
        words += ["--encoder", str(encoder)]
    return words


def _add(studio: Studio, place: Path, words: list[str], title: str) -> None:
    jobs = studio.desk.jobs
    if any(not j.over for j in jobs.of(place, words[0])):
        raise Refused(studio.words("live.already"))
    jobs.add(words, title=title, lane="device", about=str(place))


def run_page(studio: Studio, request: Request, form: Form) -> Response:
    """The page of the verdict, or that of the repair."""
    place = _place(studio, request)
    which = {"verdict": "verdict/report.html", "repair": "repaired.html"}
    return framed(place / found(which.get(request.path_params["which"])))


def repaired(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    stem = str(facts_of(place)["name"]).removesuffix(".safetensors")
    return download(place / "repaired.safetensors", f"{stem}-repaired.safetensors")


def facts_of(place: Path) -> dict[str, Any]:
    """What is known of a check: name, trigger, noun, base, set."""
    return {"name": "adapter", **read_json(place / ".check.json")}


def _keep(place: Path, **facts: str) -> None:
    write_json(place / ".check.json", read_json(place / ".check.json") | facts)


def _place(studio: Studio, request: Request) -> Path:
    return found(studio.desk.place("checks", request.path_params["check"]))


def _verdict(studio: Studio, place: Path) -> Any:
    try:
        return studio.desk.record(place / "verdict").verdict
    except RunError:
        return None


def _context(studio: Studio, place: Path) -> dict[str, Any]:
    jobs, facts = studio.desk.jobs, facts_of(place)
    latest: dict[str, Job] = {}
    for job in jobs.of(place):
        latest.setdefault(job.verb, job)
    inspected = jobs.answer(latest["inspect"]) if "inspect" in latest else None
    inside = (inspected or {}).get("metadata")
    metadata = inside if isinstance(inside, dict) else {}
    active = next((j for j in latest.values() if not j.over), None)
    verdict = _verdict(studio, place)
    trigger = facts.get("trigger", str(metadata.get("modelspec.trigger_phrase") or ""))
    mended = jobs.answer(latest["repair"]) if "repair" in latest else None
    return {
        "id": studio.desk.id_of(place),
        "facts": facts,
        "inspected": inspected if inspected and "error" not in inspected else None,
        "told": [
            (name, number(inspected[name]))
            for name in FACTS
            if inspected and inspected.get(name) is not None
        ],
        "metadata": [(str(k), str(v)[:300]) for k, v in list(metadata.items())[:MOST_METADATA]],
        "trigger": trigger,
        "noun": facts.get("noun", ""),
        "base": facts.get("base") or studio.desk.settings().get("base") or "pocket",
        "sets": [(studio.desk.id_of(s.folder), s.name) for s in studio.desk.sets()],
        "chosen": facts.get("set", ""),
        "active": active,
        "stage": stage_of(jobs.log(active)) if active and active.state == "running" else None,
        "latest": latest,
        "verdict": verdict,
        "chips": chips(verdict),
        "numbers": headline_numbers(verdict) if verdict else [],
        "sides": sides(studio, studio.desk.record(place / "verdict")) if verdict else [],
        "mended": mended if mended and "error" not in mended else None,
        "has_file": (place / "repaired.safetensors").is_file(),
        "has_page": (place / "verdict" / "report.html").is_file(),
        "has_repair_page": (place / "repaired.html").is_file(),
    }
