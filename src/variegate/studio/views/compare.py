"""Checkpoints and strengths side by side, votes without names, and the point that is recommended.

The pictures are drawn by `sample`, a job for each cell, so that a grid can be stopped and gone on
with. Votes are JSON lines `{"a", "b", "winner"}` of points as `pick` names them.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.errors import NoSpace
from variegate.report.pictures import spread
from variegate.report.record import RunRecord, inside
from variegate.studio.desk import RunPlace, read_json
from variegate.studio.frame import Form, NotHere, Refused, Studio, found, go, number_in, page
from variegate.studio.jobs import Job
from variegate.studio.views.runs import framed

STRENGTHS = (0.6, 0.8, 1.0)
MOST_CHECKPOINTS = 4
SEEDS = 2
MOST_NEAREST = 12


@dataclass(frozen=True)
class Cell:
    """One checkpoint at one strength. name: what votes call it; pictures: as shown ids."""

    name: str
    step: int
    strength: float
    pictures: tuple[str, ...]
    job: Job | None


def compare(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    return page(studio, request, "compare.html", **_context(studio, place))


def grid(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "compare_grid.html", **_context(studio, _place(studio, request)))


def draw(studio: Studio, request: Request, form: Form) -> Response:
    """Ask for the grid; cells that are drawn or asked for are left as they are."""
    place = _place(studio, request)
    record = studio.desk.record(place.folder)
    steps = _steps(place.folder)
    if not steps:
        raise Refused(studio.words("compare.no_checkpoints"))
    prompts = [line.strip()[:300] for line in form.get("prompts", "").splitlines() if line.strip()]
    if not prompts:
        raise Refused(studio.words("compare.no_prompt"))
    count = int(number_in(form, "checkpoints", 1, MOST_CHECKPOINTS, 3))
    home = _home(studio, place)
    home.mkdir(parents=True, exist_ok=True)
    recipe = record.recipe or {}
    chosen = spread(steps, count) if count > 1 else steps[-1:]
    _plan_of(home, prompts[:4], chosen)
    jobs = studio.desk.jobs
    for step in chosen:
        for strength in STRENGTHS:
            out = _cell(home, step, strength)
            if any(not j.over for j in jobs.of(out, "sample")) or _drawn(out, prompts[:4]):
                continue
            file = place.folder / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors"
            words = ["sample", "--base", str(recipe.get("base") or "pocket")]
            words += ["--adapter", str(file), "--strength", f"{strength:g}"]
            words += [w for prompt in prompts[:4] for w in ("--prompt", prompt)]
            sampling = recipe.get("sampling")
            for option, key in (("--steps", "steps"), ("--guidance", "guidance_scale")):
                if isinstance(sampling, dict) and key in sampling:
                    words += [option, str(sampling[key])]
            words += ["--seeds", str(SEEDS), "--out", str(out)]
            title = studio.words("jobs.cell", name=place.name, step=step, strength=f"{strength:g}")
            jobs.add(words, title=title, lane="device", about=str(out))
    return page(studio, request, "compare_grid.html", **_context(studio, place))


def ballot(studio: Studio, request: Request, form: Form) -> Response:
    """Two cells, nobody says which; the same prompt and seed on both sides."""
    context = _context(studio, _place(studio, request))
    return page(studio, request, "compare_vote.html", pair=_pair(context), **context)


def vote(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    context = _context(studio, place)
    names = {cell.name for row in context["rows"] for cell in row if cell.pictures}
    a, b, winner = form.get("a", ""), form.get("b", ""), form.get("winner", "")
    if a not in names or b not in names or winner not in ("a", "b", "tie"):
        raise NotHere
    line = {"a": a, "b": b, "winner": {"a": a, "b": b}.get(winner, "tie"), "time": time.time()}
    try:
        with _votes_file(studio, place).open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise NoSpace(f"the vote cannot be kept: {error.strerror or error}") from error
    context = _context(studio, place)
    return page(studio, request, "compare_vote.html", pair=_pair(context), **context)


def pick(studio: Studio, request: Request, form: Form) -> Response:
    """Let `pick` search for the best point, with the votes there are."""
    place = _place(studio, request)
    if "pick" not in studio.verbs:
        raise NotHere
    if any(not j.over for j in studio.desk.jobs.of(place.folder, "pick")):
        raise Refused(studio.words("live.already"))
    words = ["pick", str(place.folder)]
    if _votes_file(studio, place).is_file():
        words += ["--votes", str(_votes_file(studio, place))]
    title = studio.words("jobs.pick", name=place.name)
    studio.desk.jobs.add(words, title=title, lane="device", about=str(place.folder))
    return go(f"/runs/{place.id}/compare")


def picked_page(studio: Studio, request: Request, form: Form) -> Response:
    """The page that `pick` wrote, if its answer names one inside the run's folder."""
    place = _place(studio, request)
    answer = _picked(studio, place)[0] or {}
    file = Path(str(answer.get("page", "")))
    if not file.is_file() or not file.resolve().is_relative_to(place.folder.resolve()):
        raise NotHere
    return framed(file)


def _place(studio: Studio, request: Request) -> RunPlace:
    return found(studio.desk.run(request.path_params["run"]))


def _home(studio: Studio, place: RunPlace) -> Path:
    return studio.desk.home / "compared" / place.id


def _cell(home: Path, step: int, strength: float) -> Path:
    return home / f"step-{step:06d}-{strength:g}"


def _votes_file(studio: Studio, place: RunPlace) -> Path:
    return _home(studio, place) / "votes.jsonl"


def _steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are there, without the empty one at the start."""
    names = [p.parent.name[5:] for p in (folder / "checkpoints").glob("step-*/adapter.safetensors")]
    return sorted(int(n) for n in names if n.isdigit() and int(n) > 0)


def _plan_of(home: Path, prompts: list[str], steps: list[int]) -> None:
    (home / "plan.json").write_text(json.dumps({"prompts": prompts, "steps": steps}))


def _drawn(out: Path, prompts: list[str]) -> bool:
    return [p for p, _ in _samples(out)] == [p for p in prompts for _ in range(SEEDS)]


def _samples(out: Path) -> list[tuple[str, Path]]:
    """The pictures of a cell with their prompts, in order."""
    try:
        lines = (out / "metadata.jsonl").read_text(encoding="utf8").splitlines()
        told = [json.loads(line) for line in lines if line.strip()]
        return [
            (str(t["prompt"]), file)
            for t in told
            if (file := inside(out.resolve(), str(t["file_name"]))) and file.is_file()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _context(studio: Studio, place: RunPlace) -> dict[str, Any]:
    record, home = studio.desk.record(place.folder), _home(studio, place)
    plan = read_json(home / "plan.json")
    prompts = [str(p) for p in plan.get("prompts", ())]
    guidance = _guidance(record)
    jobs = {j.about: j for j in reversed(studio.desk.jobs.all()) if j.verb == "sample"}
    rows = []
    for step in plan.get("steps", ()):
        row = []
        for strength in STRENGTHS:
            out = _cell(home, int(step), strength)
            shown = [studio.desk.show(f) for p, f in _samples(out) if p in prompts]
            name = f"step-{int(step):06d}@{strength:g}@{guidance:g}"
            row.append(Cell(name, int(step), strength, tuple(shown), jobs.get(str(out))))
        rows.append(row)
    picked, picking = _picked(studio, place)
    working = any(c.job and not c.job.over for row in rows for c in row) or bool(picking)
    return {
        "id": place.id,
        "place": place,
        "rows": rows,
        "prompts": prompts or _first_prompts(record),
        "strengths": STRENGTHS,
        "steps": _steps(place.folder),
        "most": MOST_CHECKPOINTS,
        "working": working,
        "ready": sum(1 for row in rows for c in row if c.pictures) >= 2,
        "votes": _count(_votes_file(studio, place)),
        "picked": picked,
        "picking": picking,
        "nearest": _nearest(studio, record),
    }


def _picked(studio: Studio, place: RunPlace) -> tuple[dict[str, Any] | None, Job | None]:
    made = studio.desk.jobs.of(place.folder, "pick")
    active = next((j for j in made if not j.over), None)
    done = next((j for j in made if j.state == "done"), None)
    return (studio.desk.jobs.answer(done) if done else None), active


def _guidance(record: RunRecord) -> float:
    sampling = (record.recipe or {}).get("sampling")
    value = sampling.get("guidance_scale") if isinstance(sampling, dict) else None
    return float(value) if isinstance(value, int | float) else 7.5


def _first_prompts(record: RunRecord) -> list[str]:
    recipe = record.recipe or {}
    trigger, noun = str(recipe.get("trigger") or ""), str(recipe.get("class_noun") or "")
    plain = f"a photo of {trigger}" if recipe.get("base") != "pocket" else f"a {trigger}"
    return [plain] if trigger else [f"a {noun}"] if noun else []


def _pair(context: dict[str, Any]) -> dict[str, Any] | None:
    cells = [c for row in context["rows"] for c in row if c.pictures]
    if len(cells) < 2:
        return None
    # Chance decides who meets whom and on which side: nothing is to be read off the order.
    a, b = random.sample(cells, 2)
    at = random.randrange(min(len(a.pictures), len(b.pictures)))
    return {"a": a.name, "b": b.name, "left": a.pictures[at], "right": b.pictures[at]}


def _count(votes: Path) -> int:
    try:
        return sum(1 for line in votes.read_text(encoding="utf8").splitlines() if line.strip())
    except OSError:
        return 0


def _nearest(studio: Studio, record: RunRecord) -> list[dict[str, Any]]:
    """Samples of the verdict beside the training picture that each comes nearest to."""
    listed, home = record.evidence.get("nearest"), record.folder.resolve()
    made: list[dict[str, Any]] = []
    for pair in listed if isinstance(listed, list) else ():
        if not isinstance(pair, dict) or len(made) == MOST_NEAREST:
            continue
        sample = inside(home, str(pair.get("sample", "")))
        train = Path(str(pair.get("train", "")))
        if sample is None or not train.is_file():
            continue
        made.append(
            {
                "sample": studio.desk.show(sample),
                "train": studio.desk.show(train),
                "copy": bool(pair.get("copy")),
            }
        )
    return made
