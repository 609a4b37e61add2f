"""Several adapters as one: chosen, weighed, blended, and checked like any other file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.studio.desk import read_json, write_json
from variegate.studio.frame import Form, Refused, Studio, found, go, number_in, page
from variegate.studio.views.check import facts_of
from variegate.studio.views.runs import download
from variegate.studio.watching import stage_of

METHODS = ("soup", "ties", "svd")
MOST_MEMBERS = 8


@dataclass(frozen=True)
class Member:
    """An adapter that can be blended."""

    id: str
    name: str
    file: Path


def listing(studio: Studio, request: Request, form: Form) -> Response:
    made = [
        (studio.desk.id_of(p), read_json(p / ".blend.json"), (p / "blend.safetensors").is_file())
        for p in studio.desk.places("blends")
    ]
    return page(
        studio, request, "blends.html", members=_members(studio), methods=METHODS, blends=made[:40]
    )


def make(studio: Studio, request: Request, form: Form) -> Response:
    chosen = [(m, form[f"weight:{m.id}"]) for m in _members(studio) if form.get(f"in:{m.id}")]
    if not 2 <= len(chosen) <= MOST_MEMBERS:
        raise Refused(studio.words("blend.choose_two", most=MOST_MEMBERS))
    weights = [number_in({"w": text}, "w", 0.0, 2.0, 1.0) for _, text in chosen]
    method = form.get("method", "soup")
    if method not in METHODS:
        raise Refused(studio.words("faults.not_here"))
    place = studio.desk.new_place("blends")
    names = [m.name for m, _ in chosen]
    write_json(place / ".blend.json", {"names": names, "weights": weights, "method": method})
    words = ["blend", *(str(m.file) for m, _ in chosen), "--out", str(place / "blend.safetensors")]
    words += ["--weights", ",".join(f"{w:g}" for w in weights), "--method", method]
    title = studio.words("jobs.blend", name=", ".join(names))
    studio.desk.jobs.add(words, title=title, lane="device", about=str(place))
    return go(f"/blend/{studio.desk.id_of(place)}")


def one(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "blend.html", **_context(studio, _place(studio, request)))


def state(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "blend_state.html", **_context(studio, _place(studio, request)))


def file(studio: Studio, request: Request, form: Form) -> Response:
    return download(_place(studio, request) / "blend.safetensors", "blend.safetensors")


def _place(studio: Studio, request: Request) -> Path:
    return found(studio.desk.place("blends", request.path_params["blend"]))


def _context(studio: Studio, place: Path) -> dict[str, Any]:
    jobs = studio.desk.jobs.of(place, "blend")
    job = jobs[0] if jobs else None
    facts = read_json(place / ".blend.json")
    answer = studio.desk.jobs.answer(job) if job and job.state == "done" else None
    return {
        "id": studio.desk.id_of(place),
        "names": list(
            zip(map(str, facts.get("names", ())), facts.get("weights", ()), strict=False)
        ),
        "method": str(facts.get("method", "")),
        "job": job,
        "stage": stage_of(studio.desk.jobs.log(job)) if job and job.state == "running" else None,
        "answer": answer,
        "there": (place / "blend.safetensors").is_file(),
    }


def _members(studio: Studio) -> list[Member]:
    desk, found = studio.desk, list[Member]()
    for run in desk.runs()[:100]:
        at = run.folder / "adapter.safetensors"
        if at.is_file():
            found.append(Member(desk.id_of(at), run.name, at))
    for place in desk.places("checks")[:100]:
        for name, said in (("adapter", "{}"), ("repaired", studio.words("blend.repaired"))):
            at = place / f"{name}.safetensors"
            if at.is_file():
                told = said.format(facts_of(place)["name"])
                found.append(Member(desk.id_of(at), told, at))
    return found
