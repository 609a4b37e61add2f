"""Let the machine try settings: which keep variety, and at what likeness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.run import write_atomically
from variegate.studio.frame import (
    Form,
    NotHere,
    Refused,
    Studio,
    folder_name,
    found,
    go,
    number_in,
    page,
)
from variegate.studio.jobs import Job
from variegate.studio.planning import recipe_of, settings_of
from variegate.studio.views.runs import framed
from variegate.studio.watching import Stage, stage_of

# What an artist can let it try, by name in the texts: the words of --range.
RANGES = {
    "size": "adapter.rank=4,16,64",
    "rate": "optimizer.lr=5e-5..1e-3:log",
    "length": "optimizer.steps=200,400,800",
    "hold": "strategies.stay_near=on,off",
    "words": "strategies.caption_scene=on,off",
}
FIRST = ("size", "hold")
MOST_POINTS = 12


@dataclass(frozen=True)
class Search:
    """A search at a glance."""

    job: Job
    stage: Stage | None
    answer: dict[str, Any] | None
    front: list[dict[str, Any]]


def listing(studio: Studio, request: Request, form: Form) -> Response:
    _refuse_without(studio)
    jobs = [j for j in studio.desk.jobs.all() if j.verb == "tune"]
    searches = [
        Search(
            j,
            stage_of(studio.desk.jobs.log(j)) if j.state == "running" else None,
            answer := studio.desk.jobs.answer(j) if j.state == "done" else None,
            _front(answer) if answer else [],
        )
        for j in jobs
    ]
    sets = [(studio.desk.id_of(s.folder), s) for s in studio.desk.sets() if s.count()]
    return page(
        studio, request, "tune.html", sets=sets, ranges=RANGES, first=FIRST, searches=searches
    )


def start(studio: Studio, request: Request, form: Form) -> Response:
    _refuse_without(studio)
    pictures = found(studio.desk.set(form.get("set", "")))
    if not pictures.trigger or not pictures.noun:
        raise Refused(studio.words("tune.needs_words"))
    chosen = [RANGES[name] for name in RANGES if form.get(f"range:{name}")]
    if not chosen:
        raise Refused(studio.words("tune.needs_ranges"))
    base = str(studio.desk.settings().get("base") or "pocket")
    given = {"images": str(pictures.folder), "trigger": pictures.trigger}
    given["class_noun"] = pictures.noun
    recipe = recipe_of(settings_of("thing", 0, base), base, **given)
    home = studio.desk.home / "tunes"
    home.mkdir(exist_ok=True)
    name = folder_name(pictures.name, lambda n: (home / n).exists())
    out = home / name
    out.mkdir()
    file = out / "asked.toml"
    write_atomically(file, recipe.to_toml().encode())
    words = ["tune", str(file)]
    words += [w for each in chosen for w in ("--range", each)]
    words += ["--trials", str(int(number_in(form, "trials", 2, 200, 12)))]
    words += ["--out", str(out / "search")]
    title = studio.words("jobs.tune", name=pictures.name)
    studio.desk.jobs.add(words, title=title, lane="device", about=str(out))
    return go("/tune")


def search_page(studio: Studio, request: Request, form: Form) -> Response:
    """The page that a search wrote, if it lies in the studio's home."""
    _refuse_without(studio)
    job = found(studio.desk.jobs.get(request.path_params["job"]))
    file = Path(str((studio.desk.jobs.answer(job) or {}).get("page", "")))
    home = (studio.desk.home / "tunes").resolve()
    if job.verb != "tune" or not file.is_file() or not file.resolve().is_relative_to(home):
        raise NotHere
    return framed(file)


def _front(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The points that none beats in both: settings, likeness and variety with their ranges."""
    listed = answer.get("front")
    wanted = ("settings", "likeness", "variety")
    return [
        point
        for point in (listed if isinstance(listed, list) else ())
        if isinstance(point, dict) and all(key in point for key in wanted)
    ][:MOST_POINTS]


def _refuse_without(studio: Studio) -> None:
    if "tune" not in studio.verbs:
        raise NotHere
