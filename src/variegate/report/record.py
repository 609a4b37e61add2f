"""A run folder as the report reads it: every file optional, everything bounded, no torch.

Files come from other programs and other people, so each is parsed once, here. What cannot be
read becomes a sentence in `RunRecord.gaps` instead of an error.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from variegate.errors import RunError
from variegate.measurement import Measurement, Verdict, measurement_from_json
from variegate.recipe import Recipe
from variegate.run import Run

MOST_BYTES = 64 * 2**20  # of one file: a journal of a long run stays far below
OF_TRAINING = ("recipe.toml", "journal.jsonl", "audit.json")
KNOWN_FILES = (*OF_TRAINING, "verdict.json", "samples")


@dataclass(frozen=True)
class Sample:
    """One drawn picture; `file` is None when its line names nothing inside the folder."""

    file: Path | None
    name: str
    prompt: str
    seed: int | None
    group: str


@dataclass(frozen=True)
class Point:
    """One noted value of one curve."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """Pictures drawn while training, at one step; step 0 is the base."""

    step: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Journal:
    """The journal's lines by what the page does with them.

    started is None for a run that was resumed, since the pause between is no work. intruders: how
    many the last checkpoint had in each layer, most first. panels: step and folder of each.
    """

    curves: dict[str, list[Point]]  # "loss", "terms_<name>", and every probe by its name
    better: dict[str, str]
    notes: tuple[str, ...]
    intruders: tuple[tuple[str, int], ...] = ()
    panels: tuple[tuple[int, str], ...] = ()
    started: Any = None
    ended: Any = None
    stopped_because: str | None = None
    last_step: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds; an absent part is None or empty and has a sentence in `gaps`."""

    folder: Path
    recipe: dict[str, Any] | None
    recipe_text: str
    journal: Journal | None
    verdict: Verdict | None
    base: tuple[Sample, ...]
    adapter: tuple[Sample, ...]
    audit: dict[str, Any] | None
    evidence: dict[str, Any]
    panels: tuple[Panel, ...] = ()
    gaps: dict[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether it is a training run's folder and not that of a measurement alone."""
        return any((self.folder / name).exists() for name in OF_TRAINING)


def read_record(folder: Path) -> RunRecord:
    """What the folder holds.

    Raises: RunError when there is no such folder, or when nothing in it belongs to a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"no run at {folder}: no such folder; give the folder that --out named")
    if not any((folder / name).exists() for name in KNOWN_FILES):
        raise RunError(
            f"{folder} is not a run: found none of {', '.join(KNOWN_FILES)}; "
            "give the folder that --out named"
        )
    gaps: dict[str, str] = {}
    recipe, recipe_text = _read_recipe(folder, gaps)
    verdict = _read_verdict(folder, gaps)
    journal = _read_journal(folder, gaps)
    return RunRecord(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_text,
        journal=journal,
        verdict=verdict,
        base=_read_samples(folder / "samples" / "base", "base", gaps),
        adapter=_read_samples(folder / "samples" / "adapter", "adapter", gaps),
        audit=_read_table(folder / "audit.json", "audit", gaps),
        evidence=_read_table(folder / "evidence.json", "evidence", gaps) or {},
        panels=_read_panels(folder, journal.panels if journal else ()),
        gaps=gaps,
    )


class _Unreadable(Exception):
    """Why a file could not be used, as the end of a sentence."""


def _read_text(file: Path) -> str:
    try:
        if not file.is_file():
            raise _Unreadable("is missing")
        if file.stat().st_size > MOST_BYTES:
            raise _Unreadable(f"is larger than {MOST_BYTES >> 20} MB and was not read")
        return file.read_text(encoding="utf8", errors="replace")
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror or error}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"is not JSON: {error}") from error


def _read_table(file: Path, part: str, gaps: dict[str, str]) -> dict[str, Any] | None:
    try:
        data = _read_json(file)
        if not isinstance(data, dict):
            raise _Unreadable(f"holds {type(data).__name__} where a table was expected")
        return data
    except _Unreadable as gap:
        gaps[part] = f"{file.name} {gap}."
        return None


def _read_recipe(folder: Path, gaps: dict[str, str]) -> tuple[dict[str, Any] | None, str]:
    text = ""
    try:
        text = _read_text(folder / "recipe.toml")
        return tomllib.loads(text), text
    except _Unreadable as gap:
        gaps["recipe"] = f"recipe.toml {gap}."
    except tomllib.TOMLDecodeError as error:
        gaps["recipe"] = f"recipe.toml is not TOML: {error}."
    return None, text


def _read_verdict(folder: Path, gaps: dict[str, str]) -> Verdict | None:
    try:
        return Verdict.from_json(_read_json(folder / "verdict.json"))
    except _Unreadable as gap:
        gaps["verdict"] = f"verdict.json {gap}."
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        gaps["verdict"] = f"verdict.json does not hold a verdict: {error!r}."
    return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The JSON tables of a file of lines; a torn or foreign line is left out."""
    tables = []
    for line in _read_text(file).split("\n"):
        try:
            table = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(table, dict):
            tables.append(table)
    return tables


def _whole(number: Any) -> int | None:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return int(number) if is_number and math.isfinite(number) else None


def _finite(number: Any) -> float | None:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return float(number) if is_number and math.isfinite(number) else None


def _read_journal(folder: Path, gaps: dict[str, str]) -> Journal | None:
    try:
        if not (folder / "journal.jsonl").is_file():
            raise _Unreadable("is missing")
        # The run knows which lines a restart took back; its recipe plays no part in that.
        lines = Run(folder, Recipe()).read_journal()
    except _Unreadable as gap:
        gaps["journal"] = f"journal.jsonl {gap}."
        return None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        gaps["journal"] = f"journal.jsonl cannot be read: {error}."
        return None
    curves: dict[str, list[Point]] = {}
    better: dict[str, str] = {}
    finish: dict[str, Any] = {}
    for line in lines:
        kind = line.get("kind")
        if kind == "step":
            _note_step(line, curves)
        elif kind in ("probe", "intruders"):
            _note_probe(line, curves, better)
        elif kind == "finish":
            finish = line
    curves = {name: sorted(points, key=lambda p: p.step) for name, points in curves.items()}
    steps = [points[-1].step for points in curves.values()]
    starts = [line.get("time") for line in lines if line.get("kind") == "start"]
    return Journal(
        curves=curves,
        better=better,
        notes=tuple(
            f"Step {x.get('step')}, the guard: {x.get('reason', '')}"
            if x.get("kind") == "order"
            else str(x.get("text", ""))
            for x in lines
            if x.get("kind") in ("note", "order")
        ),
        intruders=_intruders([line for line in lines if line.get("kind") == "intruders"]),
        panels=tuple(
            (step, str(line.get("path", "")))
            for line in lines
            if line.get("kind") == "panel" and (step := _whole(line.get("step"))) is not None
        ),
        started=starts[0] if len(starts) == 1 else None,
        ended=finish.get("time"),
        stopped_because=str(finish["stopped_because"]) if "stopped_because" in finish else None,
        last_step=_whole(finish.get("step")) or (max(steps) if steps else None),
    )


def _note_step(line: dict[str, Any], curves: dict[str, list[Point]]) -> None:
    step = _whole(line.get("step"))
    if step is None:
        return
    terms = line.get("terms")
    named = {f"terms_{k}": v for k, v in terms.items()} if isinstance(terms, dict) else {}
    for name, number in {"loss": line.get("loss"), **named}.items():
        if (value := _finite(number)) is not None:
            curves.setdefault(name, []).append(Point(step, value))


def _note_probe(
    line: dict[str, Any], curves: dict[str, list[Point]], better: dict[str, str]
) -> None:
    measurements = line.get("measurements")
    for data in measurements if isinstance(measurements, list) else ():
        try:
            m = measurement_from_json(data)
        except (KeyError, TypeError, ValueError):
            continue
        step = _whole(line.get("step"))
        if not isinstance(m, Measurement) or step is None or _finite(m.value) is None:
            continue
        curves.setdefault(str(m.name), []).append(
            Point(step, float(m.value), _finite(m.low), _finite(m.high))
        )
        better[str(m.name)] = str(m.better)


def _intruders(lines: list[dict[str, Any]]) -> tuple[tuple[str, int], ...]:
    layers = lines[-1].get("layers") if lines else None
    named = layers.items() if isinstance(layers, dict) else ()
    found = [(str(name), count) for name, n in named if (count := _whole(n))]
    return tuple(sorted(found, key=lambda each: -each[1]))


def _read_panels(folder: Path, noted: tuple[tuple[int, str], ...]) -> tuple[Panel, ...]:
    """The panels whose folder is still there, by step; one step's last note counts."""
    home, found = folder.resolve(), {}
    for step, path in noted:
        place = inside(home, path)
        samples = _read_samples(place, "panel", {}) if place is not None else ()
        if samples:
            found[step] = Panel(step, samples)
    return tuple(found[step] for step in sorted(found))


def read_samples(folder: Path) -> tuple[Sample, ...]:
    """The samples that a folder lists; none where it lists none."""
    return _read_samples(folder, "samples", {})


def _read_samples(folder: Path, side: str, gaps: dict[str, str]) -> tuple[Sample, ...]:
    try:
        lines = _lines(folder / "metadata.jsonl")
    except _Unreadable as gap:
        gaps[side] = f"samples/{side}/metadata.jsonl {gap}."
        return ()
    if not lines:
        gaps[side] = f"samples/{side}/metadata.jsonl names no pictures."
    home = folder.resolve()
    return tuple(_sample(line, home) for line in lines)


def _sample(line: dict[str, Any], home: Path) -> Sample:
    name = str(line.get("file_name", ""))
    return Sample(
        file=inside(home, name),
        name=name,
        prompt=str(line.get("prompt", line.get("text", ""))),
        seed=_whole(line.get("seed")),
        group=str(line.get("group") or ""),
    )


def inside(home: Path, name: str) -> Path | None:
    """The file of that name under a resolved folder; None when the name leads out of it."""
    try:
        file = (home / name).resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    return file if file.is_relative_to(home) and file != home else None
