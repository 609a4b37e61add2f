"""A run as it is seen while it learns: read from its journal and its pictures, and from nothing
else, so it does not matter who began it."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from variegate.recipe import Guard, Recipe
from variegate.report.record import Panel, Point, RunRecord
from variegate.run import Run

Tone = Literal["good", "warn", "bad", "unsure"]
LEARNT_FROM = ("low", "middle")  # noise at which a subject is learnt; high noise is its layout
MOST_POINTS = 400  # of one curve on the page
MOST_ROWS = 12  # of the film
LAST = 3  # looks that "how sure" goes by
RECENT = 40  # steps that the time left goes by


@dataclass(frozen=True)
class Dial:
    """The variety of one kind of prompt at the last look, as a share of the base's.

    low, high: over the last few looks. warning, alarm: the guard's lines.
    """

    of: str  # "trigger" or "class"
    value: float
    low: float
    high: float
    looks: int
    warning: float
    alarm: float

    @property
    def tone(self) -> Tone:
        if self.value >= self.warning:
            return "good"
        return "warn" if self.value >= self.alarm else "bad"


@dataclass(frozen=True)
class Clock:
    """Where a run stands: steps done and asked for, seconds left of learning (None: unknown)."""

    step: int
    of: int
    left: float | None
    pace: float | None

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.of) if self.of else 0.0


@dataclass(frozen=True)
class Event:
    """A line of what happened. kind: ease, rewind, stop, kept, note, finish."""

    kind: str
    step: int | None
    text: str


def dials(record: RunRecord) -> list[Dial]:
    """The dials, the one nearest to its alarm first."""
    if record.journal is None:
        return []
    plan = Guard.model_validate(_guard_of(record))
    found = []
    for of, warning, alarm in (
        ("trigger", plan.trigger_warning, plan.trigger_alarm),
        ("class", plan.class_warning, plan.class_alarm),
    ):
        points = record.journal.curves.get(f"one_step_variety.{of}", [])
        if points:
            last = [p.value for p in points[-LAST:]]
            found.append(
                Dial(of, points[-1].value, min(last), max(last), len(last), warning, alarm)
            )
    return sorted(found, key=lambda d: (d.value - d.warning) / (d.warning - d.alarm))


def _guard_of(record: RunRecord) -> dict[str, Any]:
    table = (record.recipe or {}).get("guard")
    known = table if isinstance(table, dict) else {}
    try:
        Guard.model_validate(known)
    except ValueError:  # a recipe of another version
        return {}
    return known


def clock(record: RunRecord) -> Clock:
    table = (record.recipe or {}).get("optimizer")
    of = table.get("steps", 0) if isinstance(table, dict) else 0
    times = step_times(record.folder)
    step = times[-1][0] if times else 0
    gaps = [b[1] - a[1] for a, b in pairwise(times) if b[0] == a[0] + 1]
    recent = [g for g in gaps[-RECENT:] if g >= 0]
    # The mean, since looks and panels take their time now and then; without its wildest gap, which
    # is a machine that slept.
    pace = statistics.fmean(sorted(recent)[:-1]) if len(recent) > 4 else None
    of = of if isinstance(of, int) else 0
    left = pace * (of - step) if pace is not None and of else None
    return Clock(step, of, left, pace)


def step_times(folder: Path) -> list[tuple[int, float]]:
    """Each step that counts, and when it was noted."""
    file = Run.journal_in(folder)
    try:
        facts = file.stat()
    except OSError:
        return []
    return list(_step_times(folder, facts.st_mtime_ns, facts.st_size))


@lru_cache(maxsize=512)
def _step_times(folder: Path, changed: int, size: int) -> tuple[tuple[int, float], ...]:
    """changed, size: what the journal was, so that it is read again when it is not that."""
    found: list[tuple[int, float]] = []
    with contextlib.suppress(OSError, TypeError, ValueError, KeyError):
        for line in Run(folder, Recipe()).read_journal("step"):
            found.append((int(line["step"]), float(line["time"])))
    return tuple(found)


def events(record: RunRecord) -> list[Event]:
    """What the guard did and what was noted, latest first."""
    found = []
    with contextlib.suppress(OSError, TypeError, ValueError):
        for line in Run(record.folder, Recipe()).read_journal():
            kind, step = line.get("kind"), line.get("step")
            step = step if isinstance(step, int) else None
            if kind == "order":
                found.append(Event(str(line.get("do")), step, str(line.get("reason", ""))))
            elif kind == "note":
                found.append(Event("note", step, str(line.get("text", ""))))
            elif kind in ("kept", "finish", "extend"):
                told = line.get("stopped_because") or line.get("text") or line.get("path") or ""
                found.append(Event(str(kind), step, str(told)))
    return found[::-1]


def curves(record: RunRecord) -> dict[str, Any]:
    """The three plots: numbers only, each as [steps, one list per line]."""
    known = record.journal.curves if record.journal else {}
    lines = {
        "variety": [known.get(f"one_step_variety.{of}", []) for of in ("trigger", "class")],
        "likeness": [_learnt(known)],
        "loss": [known.get("loss", [])],
    }
    return {name: _table([_thinned(line) for line in found]) for name, found in lines.items()}


def _learnt(known: dict[str, list[Point]]) -> list[Point]:
    """How much of what the base got wrong about the pictures is gone: 0 at the start."""
    for of in ("held_out", "train"):
        bands = [known[n] for band in LEARNT_FROM if (n := f"loss_vs_base.{of}.{band}") in known]
        if bands:
            return [
                Point(group[0].step, 1 - statistics.fmean(p.value for p in group))
                for group in zip(*bands, strict=False)
            ]
    return []


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_POINTS:
        return points
    stride = -(-len(points) // MOST_POINTS)
    return [
        Point(chunk[-1].step, statistics.fmean(p.value for p in chunk))
        for start in range(0, len(points), stride)
        if (chunk := points[start : start + stride])
    ]


def _table(lines: Sequence[Sequence[Point]]) -> list[list[Any]]:
    steps = sorted({p.step for line in lines for p in line})
    values = [{p.step: round(p.value, 5) for p in line} for line in lines]
    return [list(steps), *([line.get(s) for s in steps] for line in values)]


@dataclass(frozen=True)
class Film:
    """Pictures at fixed seeds: a column for each prompt and seed, the base's row first, then the
    looks, latest first."""

    prompts: tuple[tuple[str, int], ...]  # each prompt and how many columns it has
    rows: tuple[tuple[int, tuple[Path | None, ...]], ...]


def film(record: RunRecord, *, columns: int = 6) -> Film | None:
    if not record.panels:
        return None
    keys: dict[tuple[str, int | None], None] = {}
    for sample in record.panels[-1].samples:
        keys[(sample.prompt, sample.seed)] = None
    shown = _evenly(list(keys), columns)
    prompts: dict[str, int] = {}
    for prompt, _ in shown:
        prompts[prompt] = prompts.get(prompt, 0) + 1
    base, looks = record.panels[:1], record.panels[1:]
    if record.panels[0].step:
        base, looks = (), record.panels
    chosen = _latest(list(looks), MOST_ROWS)
    rows = tuple((p.step, _row(p, shown)) for p in [*base, *reversed(chosen)])
    return Film(tuple(prompts.items()), rows)


def _evenly(keys: list[tuple[str, int | None]], most: int) -> list[tuple[str, int | None]]:
    """At most so many columns, of every prompt the same number of seeds."""
    prompts = list(dict.fromkeys(p for p, _ in keys))[:most]
    each = max(1, most // max(1, len(prompts)))
    return [k for p in prompts for k in [k for k in keys if k[0] == p][:each]]


def _latest(looks: list[Panel], most: int) -> list[Panel]:
    """The latest looks, and of the earlier ones a few that lie evenly."""
    if len(looks) <= most:
        return looks
    late, early = looks[-most // 2 :], looks[: -most // 2]
    stride = len(early) / (most - len(late))
    return [early[int(i * stride)] for i in range(most - len(late))] + late


def _row(panel: Panel, shown: Sequence[tuple[str, int | None]]) -> tuple[Path | None, ...]:
    found = {(s.prompt, s.seed): s.file for s in panel.samples}
    return tuple(found.get(key) for key in shown)


@dataclass(frozen=True)
class Stage:
    """What a job said last: what it is at, how far, and of how much."""

    phase: str
    done: int
    total: int
    rest: str


_LINE = re.compile(r"^(?P<phase>[^\d]*?)(?:\s{2}|\s)(?P<done>\d+)/(?P<total>\d+)(?P<rest>.*)$")


def stage_of(log: Sequence[str]) -> Stage | None:
    """What a job is at, from the last line that tells it.

    >>> stage_of(["train  12/40  2.0/s  15 s left"])
    Stage(phase='train', done=12, total=40, rest='2.0/s  15 s left')
    """
    for line in reversed(log[-20:]):
        if match := _LINE.match(line):
            told = match["rest"].strip()
            return Stage(match["phase"].strip(), int(match["done"]), int(match["total"]), told)
    return Stage(log[-1].strip()[:200], 0, 0, "") if log else None


def as_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
