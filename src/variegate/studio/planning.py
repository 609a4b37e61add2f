"""What a run will be asked, made from three cards, one slider and the drawer of all entries.

A card is a shipped recipe with settings on top; the slider turns a few settings that are written
down here; the drawer is the recipe's own schema. All of it ends as words of the command line, so
what the studio begins can be begun again without it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomlkit
from pydantic import BaseModel

from variegate import recipes
from variegate.errors import RecipeError
from variegate.plugins import Entry
from variegate.recipe import ADAPTER_KINDS, Recipe, Strategies
from variegate.report.page import strategy_words
from variegate.report.record import RunRecord
from variegate.studio import costs
from variegate.studio.desk import Desk
from variegate.studio.jobs import Job
from variegate.studio.watching import step_times

CARDS: dict[str, tuple[str, ...]] = {
    # A parting, a mole, a raised hand: people are not the same in the mirror.
    "person": ("strategies.flip=off",),
    "thing": (),
    # A look is the whole picture, ground and all: nothing is cut out, moved or weighed less.
    "style": (
        "strategies.masked_loss=off",
        "strategies.zoom_shift=off",
        "strategies.new_background=off",
        "strategies.caption_scene=off",
    ),
}
# People are not the same in the mirror; `face` is one, whatever else it may be.
PEOPLE = frozenset(
    (
        *("person", "people", "man", "men", "woman", "women", "boy", "girl", "child", "kid"),
        *("baby", "face", "portrait", "human", "lady", "gentleman", "guy", "actor", "actress"),
    )
)
LEVELS = (-2, -1, 0, 1, 2)  # from flexible to exact
STEPS_AT = {-2: 0.6, -1: 0.8, 0: 1.0, 1: 1.25, 2: 1.5}  # of the recipe's steps
HOLD_AT = {-2: 2.0, -1: 1.5, 0: 1.0, 1: 0.7, 2: 0.4}  # of the weight that holds to the base
# Where audit calls a set small and thin (`audit.variety`), in effectively different pictures.
FEW, THIN = 5, 10
ENOUGH = 8  # earlier runs that an estimate goes by
HIDDEN = ("base", "images", "trigger", "class_noun", "panels")  # asked for above the drawer
ALIKE = 0.5  # of the pictures count as different, below which they are much alike
Risk = Literal["low", "medium", "high"]


def settings_of(card: str, level: int, base: str) -> list[str]:
    """The settings of a card and a place of the slider, for the recipe of a base."""
    shipped = recipes.read(recipes.default_for(base))
    known = shipped.strategies.model_dump()
    chosen = [s for s in CARDS[card] if known.get(s.split(".")[1].partition("=")[0]) is not None]
    if level:
        steps = round(shipped.optimizer.steps * STEPS_AT[level])
        chosen.append(f"optimizer.steps={steps}")
        if shipped.strategies.stay_near is not None:
            weight = shipped.strategies.stay_near.weight * HOLD_AT[level]
            chosen.append(f"strategies.stay_near.weight={weight:g}")
    return ["panels=on", "guard.mode=autopilot", *chosen]


def resolution_of(base: str) -> int:
    """Pixels that a base of that name is trained at, as far as a name tells it."""
    if base in ("", "pocket"):
        return 64
    return 1024 if re.search(r"xl|stable-diffusion-3", base, re.IGNORECASE) else 512


def recipe_of(settings: Sequence[str], base: str, **given: Any) -> Recipe:
    """The whole recipe.

    Raises: RecipeError with all its faults.
    """
    return recipes.read(
        recipes.default_for(base), settings=tuple(settings), base=base or None, **given
    )


def asks_for(words: Sequence[str], folder: Path) -> bool:
    """Whether the words of a plan ask for the very run that lies in a folder, so that the same
    words go on with it."""
    verb, pictures, *options = (*words, "", "")
    if verb not in ("trial", "train") or not pictures or pictures.startswith("--"):
        return False
    asked = list(zip(options[::2], options[1::2], strict=False))
    told = dict(asked)
    base = told.get("--base", "")
    if base and base != "pocket" and Path(base).exists():
        base = str(Path(base).resolve())  # as the command line keeps it
    try:
        return Recipe.read(folder / "recipe.toml") == recipe_of(
            [value for option, value in asked if option == "--set"],
            base,
            images=str(Path(pictures).resolve()),
            trigger=told.get("--trigger"),
            class_noun=told.get("--class"),
        )
    except (RecipeError, OSError):
        return False


@dataclass(frozen=True)
class Field:
    """One entry of the drawer. kind: "number", "choice", "switch" or "text"."""

    path: str
    label: str
    kind: str
    value: str
    told: str
    choices: tuple[str, ...] = ()
    least: str = ""
    most: str = ""
    whole: bool = False
    edited: bool = False


@dataclass(frozen=True)
class Group:
    """A table of the recipe. on: of a strategy, whether its table is present."""

    name: str
    title: str
    told: str
    fields: tuple[Field, ...]
    on: bool | None = None
    edited: bool = False


def drawer(recipe: Recipe, edited: Mapping[str, str]) -> tuple[list[Group], list[Group]]:
    """The tables of the recipe, and its strategies; `edited` has what was changed, by path."""
    plain = [n for n in Recipe.model_fields if n not in HIDDEN and not _is_table(recipe, n)]
    general = Group("general", "general", "", tuple(_fields(recipe, "", plain, edited)))
    tables = [
        _table(name, getattr(recipe, name), edited)
        for name in Recipe.model_fields
        if name not in (*HIDDEN, "strategies") and _is_table(recipe, name)
    ]
    strategies = [_strategy(n, recipe, edited) for n in Strategies.model_fields]
    return [general, *tables], sorted(strategies, key=lambda g: not g.on)


def _is_table(recipe: Recipe, name: str) -> bool:
    return isinstance(getattr(recipe, name), BaseModel)


def _table(name: str, entry: BaseModel, edited: Mapping[str, str]) -> Group:
    told = (type(entry).__doc__ or "").strip().split("\n\n")[0]
    fields = tuple(_fields(entry, f"{name}.", list(type(entry).model_fields), edited))
    return Group(name, name, told, fields, edited=any(f.edited for f in fields))


def _strategy(name: str, recipe: Recipe, edited: Mapping[str, str]) -> Group:
    there = getattr(recipe.strategies, name)
    kinds = get_args(Strategies.model_fields[name].annotation)
    entry = next(k for k in kinds if isinstance(k, type) and issubclass(k, Entry))
    path = f"strategies.{name}"
    on = edited.get(path, "on" if there is not None else "off") == "on"
    example = there if there is not None else entry()
    fields = tuple(_fields(example, f"{path}.", list(entry.model_fields), edited))
    title, purpose = strategy_words(name)
    return Group(path, title, purpose, fields, on, path in edited or any(f.edited for f in fields))


def _fields(
    entry: BaseModel, prefix: str, names: Iterable[str], edited: Mapping[str, str]
) -> Iterable[Field]:
    schema = type(entry).model_json_schema()
    for name in names:
        shape = _resolved(schema["properties"].get(name, {}), schema)
        path, value = f"{prefix}{name}", getattr(entry, name)
        choices = tuple(str(c) for c in shape.get("enum", ()))
        if path == "adapter.kind":
            choices = tuple(ADAPTER_KINDS)
        elif "const" in shape:
            continue
        numeric = shape.get("type") in ("number", "integer")
        yield Field(
            path=path,
            label=name.replace("_", " "),
            kind="choice"
            if choices
            else "switch"
            if shape.get("type") == "boolean"
            else "number"
            if numeric
            else "text",
            value=edited.get(path, _written(value)),
            told=shape.get("description", ""),
            choices=choices,
            least=str(shape.get("minimum", "")),
            most=str(shape.get("maximum", "")),
            whole=shape.get("type") == "integer",
            edited=path in edited,
        )


def _resolved(shape: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The shape of an entry without references and without the null of what may be left out."""
    told = shape.get("description")
    if "$ref" in shape:
        shape = schema["$defs"][shape["$ref"].rsplit("/", 1)[1]]
    for choice in shape.get("anyOf", ()):
        if choice.get("type") != "null":
            shape = {**_resolved(choice, schema)}
            break
    return shape | ({"description": told} if told else {})


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return str(kind) if kind else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, dict):
        return tomlkit.item(value).as_string().strip()
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- what to expect ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """How likely a collapse is, from the pictures alone; `because` are names of reasons, and
    `what` is what the pictures are: well, few, sharing or alike."""

    risk: Risk
    different: float
    usable: int
    because: tuple[str, ...]
    what: Literal["well", "few", "sharing", "alike"]


def forecast(audit: Mapping[str, Any]) -> Forecast | None:
    """What an audit lets us expect; None when it has no usable picture or no number."""
    different, usable = audit.get("effective_images"), audit.get("usable")
    if not isinstance(different, int | float) or not isinstance(usable, int) or usable < 1:
        return None
    listed = audit.get("limited_by")
    shared = tuple(str(s) for s in listed) if isinstance(listed, list) else ()
    alike = different < ALIKE * usable
    risk: Risk = "low"
    if different < FEW and (alike or shared):
        risk = "high"
    elif different < THIN or shared:
        risk = "medium"
    because = shared[:2] or (("few",) if different < THIN else ())
    what: Literal["well", "few", "sharing", "alike"] = "well"
    if risk != "low":
        what = "alike" if alike else "sharing" if shared else "few"
    return Forecast(risk, float(different), usable, because, what)


@dataclass(frozen=True)
class Range:
    """A number that earlier runs on this machine had, and the least and most of them; runs: how
    many, 0 where it was counted instead."""

    typical: float
    least: float
    most: float
    runs: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take, by earlier runs on this base here, or where there was none (runs is 0)
    as counted; None where neither tells."""

    seconds: Range | None
    disk: Range | None
    memory: Range | None
    free: int


def estimate(
    desk: Desk, recipe: Recipe, *, free: int, pictures: int, speeds: Mapping[str, Any] | None
) -> Estimate:
    """By earlier runs on the same base in this home, since machines differ; before there is one, by
    what was counted for its family and the speeds that the doctor found here."""
    paces, after = list[float](), list[float]()
    sizes, peaks = list[float](), list[float]()
    for place in desk.runs():
        if len(paces) == ENOUGH:
            break
        record = desk.record(place.folder)
        if not record.recipe or record.recipe.get("base", "pocket") != recipe.base:
            continue
        times = step_times(place.folder)
        if (pace := _pace(times)) is None:
            continue
        paces.append(pace)
        sizes.append(float(_size(record)))
        jobs = desk.jobs.of(place.folder, "trial", "train")
        if peak := max((j.peak for j in jobs), default=0):
            peaks.append(float(peak))
        # One that went on from a checkpoint tells only a part of what a run takes.
        whole = next((j for j in jobs if j.state == "done" and _learnt_all(j, times)), None)
        if whole is not None and whole.began and whole.ended and record.verdict:
            after.append(max(0.0, whole.ended - whole.began - pace * times[-1][0]))
    # Without what loading, drawing and measuring take, the time of the steps is not the run's.
    rest = statistics.median(after) if after else None
    whole_times = [p * recipe.optimizer.steps + rest for p in paces] if rest is not None else []
    known = (_range(whole_times), _range(sizes), _range(peaks))
    if all(known):
        return Estimate(*known, free)
    rough = costs.guess(recipe, speeds, pictures=pictures)
    guessed = (rough.seconds, rough.disk, rough.memory) if rough else (None, None, None)
    seconds, disk, memory = (k or _counted(r) for k, r in zip(known, guessed, strict=True))
    return Estimate(seconds, disk, memory, free)


def _counted(rough: costs.Rough | None) -> Range | None:
    return Range(rough.typical, rough.least, rough.most, 0) if rough else None


def _range(values: Sequence[float]) -> Range | None:
    if not values:
        return None
    return Range(statistics.median(values), min(values), max(values), len(values))


def _pace(times: Sequence[tuple[int, float]]) -> float | None:
    """Seconds of a step, looks and drawing between them included."""
    if len(times) < 10:
        return None
    return (times[-1][1] - times[0][1]) / (len(times) - 1)


def _learnt_all(job: Job, times: Sequence[tuple[int, float]]) -> bool:
    """Whether every step of a run was done by this job."""
    began, ended = job.began or 0.0, job.ended or 0.0
    return began <= times[0][1] and times[-1][1] <= ended


def _size(record: RunRecord) -> int:
    return sum(f.stat().st_size for f in record.folder.rglob("*") if f.is_file())
