"""Let the machine try settings: which keep variety, and at what likeness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate import recipes
from variegate.recipe import Recipe
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
from variegate.studio.views.runs import download, framed
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
MOST_TOLD = 6  # lines on what mattered
MOST_RUNS = 100  # that a search can begin from


@dataclass(frozen=True)
class Search:
    """A search at a glance."""

    job: Job
    stage: Stage | None
    answer: dict[str, Any] | None
    front: list[dict[str, Any]]
    told: list[str]


def listing(studio: Studio, request: Request, form: Form) -> Response:
    _refuse_without(studio)
    sets = [(studio.desk.id_of(s.folder), s) for s in studio.desk.sets() if s.count()]
    runs = [r for r in studio.desk.runs() if (r.folder / "recipe.toml").is_file()][:MOST_RUNS]
    return page(
        studio,
        request,
        "tune.html",
        sets=sets,
        runs=runs,
        ranges=RANGES,
        first=FIRST,
        **_searches(studio),
    )


def searches(studio: Studio, request: Request, form: Form) -> Response:
    """The searches alone, which the page asks for while one goes on."""
    _refuse_without(studio)
    return page(studio, request, "tune_searches.html", **_searches(studio))


def _searches(studio: Studio) -> dict[str, Any]:
    found = []
    for job in (j for j in studio.desk.jobs.all() if j.verb == "tune"):
        answer = studio.desk.jobs.answer(job) if job.state == "done" else None
        stage = stage_of(studio.desk.jobs.log(job)) if job.state == "running" else None
        told = answer.get("effects_told") if answer else None
        lines = [str(line) for line in told][:MOST_TOLD] if isinstance(told, list) else []
        found.append(Search(job, stage, answer, _front(answer) if answer else [], lines))
    return {"searches": found, "working": any(not s.job.over for s in found)}


def start(studio: Studio, request: Request, form: Form) -> Response:
    _refuse_without(studio)
    pictures = found(studio.desk.set(form.get("set", "")))
    if not pictures.trigger or not pictures.noun:
        raise Refused(studio.words("tune.needs_words"))
    chosen = [RANGES[name] for name in RANGES if form.get(f"range:{name}")]
    if not chosen:
        raise Refused(studio.words("tune.needs_ranges"))
    given = {"images": str(pictures.folder), "trigger": pictures.trigger}
    given["class_noun"] = pictures.noun
    recipe = _beginning(studio, form.get("from", ""), given)
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
    words += ["--replicates", str(int(number_in(form, "replicates", 1, 4, 2)))]
    if encoder := studio.desk.settings().get("encoder"):
        words += ["--encoder", str(encoder)]
    words += ["--out", str(out / "search")]
    title = studio.words("jobs.tune", name=pictures.name)
    studio.desk.jobs.add(words, title=title, lane="device", about=str(out))
    return go("/tune")


def _beginning(studio: Studio, run: str, given: dict[str, str]) -> Recipe:
    """What is varied: the recipe of a run that was chosen, else what a plan would ask for.

    Raises: RecipeError when a range does not fit it.
    """
    if run:
        theirs = str(found(studio.desk.run(run)).folder / "recipe.toml")
        return recipes.read(theirs, settings=(), **given)
    base = str(studio.desk.settings().get("base") or "pocket")
    return recipe_of(settings_of("thing", 0, base), base, **given)


def search_page(studio: Studio, request: Request, form: Form) -> Response:
    """The page that a search wrote, if it lies in the studio's home."""
    return framed(_own(studio, _search(studio, request)[1].get("page")))


def adapter(studio: Studio, request: Request, form: Form) -> Response:
    """The adapter of what a search recommends, of the training in the middle."""
    job, answer = _search(studio, request)
    told = answer.get("recommended")
    file = _own(studio, told.get("adapter") if isinstance(told, dict) else None)
    name = folder_name(job.title, lambda n: False)
    return download(file, f"{name}.safetensors")


def _search(studio: Studio, request: Request) -> tuple[Job, dict[str, Any]]:
    _refuse_without(studio)
    job = found(studio.desk.jobs.get(request.path_params["job"]))
    if job.verb != "tune":
        raise NotHere
    return job, studio.desk.jobs.answer(job) or {}


def _own(studio: Studio, told: Any) -> Path:
    """A file that an answer names, if it lies where searches do."""
    file, home = Path(str(told or "")), (studio.desk.home / "tunes").resolve()
    if not file.is_file() or not file.resolve().is_relative_to(home):
        raise NotHere
    return file


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
