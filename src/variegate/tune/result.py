"""What the trials of a search come to: as numbers with intervals, a front, a point to take, and the
sentences that say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from variegate.errors import RequestError
from variegate.tune.book import Book, Kept
from variegate.tune.effects import effects, told
from variegate.tune.front import Limit, front, hypervolume, knee, neighbours, thinned
from variegate.tune.point import FRESH
from variegate.tune.ranges import Value

if TYPE_CHECKING:
    from variegate.tune.search import Search

Figures = Sequence[Mapping[str, Any]]  # of each training seed, measurements by name
VARIETIES = ("variety_vs_base", "trigger_variety_vs_base")


@dataclass(frozen=True)
class Number:
    """A mean over training seeds: low and high are the means of their intervals (None where a seed
    has none), seeds what each had."""

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """Settings and what they gave. others: the measurements that limits are on; missing: why one
    was not had."""

    number: int
    values: dict[str, Value]
    likeness: Number
    variety: Number
    others: dict[str, Number]
    missing: dict[str, str]
    labels: tuple[str, ...]

    @property
    def point(self) -> tuple[float, float]:
        return (self.likeness.value, self.variety.value)

    def broken(self, limits: Sequence[Limit]) -> dict[str, float]:
        """How far past each line it is; what was not measured breaks none."""
        numbers = {"likeness": self.likeness, **self.others}
        return {
            limit.measurement: limit.broken(numbers[limit.measurement].value)
            for limit in limits
            if limit.measurement in numbers
        }

    def keeps(self, limits: Sequence[Limit]) -> bool:
        return all(past <= 0 for past in self.broken(limits).values())


def trial_of(number: int, values: Mapping[str, Value], figures: Figures) -> Trial:
    """A trial of what its pictures measured.

    Variety is the mean of that of class and of trigger prompts, each no more than 1: more than the
    base has is no gain. Raises: RequestError when likeness or variety could not be measured, since
    then nothing can be compared.
    """
    missing = {
        name: str(found["why"])
        for one in figures
        for name, found in one.items()
        if name != "labels" and "value" not in found
    }
    for names in (("likeness",), VARIETIES):
        if all(name in missing for name in names):
            raise RequestError(
                f"trials cannot be compared: {names[0]} could not be measured, {missing[names[0]]}"
            )
    known = [name for name in VARIETIES if name not in missing]
    parts = [_number(name, figures, most=1.0) for name in known]
    return Trial(
        number,
        dict(values),
        _number("likeness", figures),
        _mean_of(parts),
        {
            name: _number(name, figures)
            for name in ("copy_rate", "adherence_vs_base", "class_retention")
            if name not in missing
        },
        missing,
        tuple(dict.fromkeys(label for one in figures for label in one.get("labels", ()))),
    )


def fresh_of(trial: Trial, figures: Figures) -> Trial:
    """The same settings as other pictures have them."""
    return trial_of(trial.number, trial.values, figures)


def ends_well(kept: Kept) -> bool:
    return not kept.failed and not kept.repeats and kept.state == "complete"


def _number(name: str, figures: Figures, *, most: float = float("inf")) -> Number:
    values = [min(most, float(one[name]["value"])) for one in figures]
    ends = []
    for end in ("low", "high"):
        found = [one[name].get(end) for one in figures]
        known = [min(most, float(e)) for e in found if e is not None]
        ends.append(float(np.mean(known)) if len(known) == len(values) else None)
    return Number(float(np.mean(values)), ends[0], ends[1], tuple(values))


def _mean_of(parts: Sequence[Number]) -> Number:
    def mean(ends: Sequence[float | None]) -> float | None:
        known = [e for e in ends if e is not None]
        return float(np.mean(known)) if len(known) == len(ends) else None

    seeds = tuple(float(np.mean(column)) for column in zip(*(p.seeds for p in parts), strict=True))
    return Number(
        float(np.mean([p.value for p in parts])),
        mean([p.low for p in parts]),
        mean([p.high for p in parts]),
        seeds,
    )


def finalists(trials: Sequence[Trial], limits: Sequence[Limit], *, most: int) -> list[Trial]:
    """Of the trials that keep to all limits, those of the front that span it best."""
    able = [trial for trial in trials if trial.keeps(limits)]
    return [able[i] for i in thinned([trial.point for trial in able], most)]


# --- the document -------------------------------------------------------------------------------


def summary(
    asked: Search,
    book: Book,
    trials: Sequence[Trial],
    fresh: Mapping[int, Trial],
    *,
    out: Path,
    name: str,
    command: str,
) -> dict[str, Any]:
    """All that `tune --json` prints and the page shows."""
    limits = asked.limits
    able = [trial for trial in trials if trial.keeps(limits)]
    candidates = [fresh[t.number] for t in able if t.number in fresh]
    sound = [trial for trial in candidates if trial.keeps(limits)]
    shown = sound or ([] if fresh else able)
    best = [shown[i] for i in front([trial.point for trial in shown])]
    scouts = book.kept("scout")
    kept = book.kept("trial")
    mattered = _mattered(asked, trials)
    return {
        "study": name,
        "out": str(out.resolve()),
        "command": command,
        "asked": {
            **asked.told(),
            "trials": asked.trials,
            "scouts": asked.scouts,
            "limits": [limit.told() for limit in limits],
        },
        "trials": {
            "measured": len(trials),
            "given_up": sum(k.state == "pruned" and not (k.repeats or k.failed) for k in scouts),
            "failed": [
                {"settings": _settings(asked, k.values), "why": k.failed}
                for k in (*scouts, *kept)
                if k.failed
            ],
            "seconds": round(sum(k.seconds for k in (*scouts, *kept)), 1),
        },
        "points": [_point(asked, trial, out) for trial in trials],
        "front": [_point(asked, trial, out, fresh=bool(fresh)) for trial in best],
        "measured_anew": bool(fresh),
        "flattered": _flattered(trials, fresh),
        "hypervolume": hypervolume([trial.point for trial in able]),
        "hypervolume_anew": hypervolume([t.point for t in sound]) if fresh else None,
        "recommended": _recommended(asked, best, out, fresh=bool(fresh)),
        "why_none": _why_none(asked, trials, able, fresh, sound),
        "effects": [] if isinstance(mattered, str) else [e.to_json() for e in mattered],
        "effects_told": [mattered] if isinstance(mattered, str) else [told(e) for e in mattered],
        "unmeasured": dict(sorted({m for t in trials for m in t.missing.items()})),
        "notes": asked.space.notes(asked.recipe),
    }


def _settings(asked: Search, values: Mapping[str, Value]) -> list[str]:
    return list(asked.space.settings(values, asked.recipe))


def _point(asked: Search, trial: Trial, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """One trial, with its runs and adapters by training seed."""
    runs = [
        out / "runs" / asked.space.recipe(trial.values, asked.recipe, seed=asked.recipe.seed + i).id
        for i in range(asked.replicates)
    ]
    broken = {name: past for name, past in trial.broken(asked.limits).items() if past > 0}
    return {
        "number": trial.number,
        "settings": _settings(asked, trial.values),
        "values": dict(trial.values),
        "likeness": asdict(trial.likeness),
        "variety": asdict(trial.variety),
        **{name: asdict(number) for name, number in trial.others.items()},
        "labels": list(trial.labels),
        "broken": broken,
        "runs": [str(run.resolve()) for run in runs],
        "adapters": [str((run / "adapter.safetensors").resolve()) for run in runs],
        "samples": [str(((run / FRESH if fresh else run) / "samples").resolve()) for run in runs],
    }


def _recommended(
    asked: Search, best: Sequence[Trial], out: Path, *, fresh: bool
) -> dict[str, Any] | None:
    if not best:
        return None
    points = [trial.point for trial in best]
    at = knee(points)
    taken = best[at]
    reasons = [
        f"of the {len(best)} on the front it has the largest product of likeness "
        f"({taken.likeness.value:.2f}) and variety ({taken.variety.value:.2f}), that is the most "
        "of both together"
        if len(best) > 1
        else f"no other trial that keeps to the limits has as much likeness "
        f"({taken.likeness.value:.2f}) or as much variety ({taken.variety.value:.2f})"
    ]
    for towards, i in neighbours(points, at).items():
        other = best[i]
        gained = abs(getattr(other, towards).value - getattr(taken, towards).value)
        lost_of = "variety" if towards == "likeness" else "likeness"
        lost = abs(getattr(other, lost_of).value - getattr(taken, lost_of).value)
        sure = _apart(getattr(other, lost_of), getattr(taken, lost_of))
        reasons.append(
            f"the next towards more {towards} (trial {other.number}) gains {gained:.2f} of it for "
            f"{lost:.2f} of {lost_of}"
            + ("" if sure else ", which these pictures cannot tell apart")
        )
    if not fresh:
        reasons.append("these are the pictures that it was chosen by, so they flatter it")
    return {
        **_point(asked, taken, out, fresh=fresh),
        "adapter": str(_best_seed(asked, taken, out)),
        "reason": "; ".join(reasons) + ".",
    }


def _best_seed(asked: Search, trial: Trial, out: Path) -> Path:
    """The adapter of the seed in the middle: the best one would flatter the settings."""
    products = [
        max(0.0, a) * b for a, b in zip(trial.likeness.seeds, trial.variety.seeds, strict=True)
    ]
    order = sorted(range(len(products)), key=lambda i: products[i])
    seed = asked.recipe.seed + order[(len(order) - 1) // 2]
    run = out / "runs" / asked.space.recipe(trial.values, asked.recipe, seed=seed).id
    return (run / "adapter.safetensors").resolve()


def _apart(a: Number, b: Number) -> bool:
    """Whether two intervals leave a gap."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high


def _flattered(trials: Sequence[Trial], fresh: Mapping[int, Trial]) -> dict[str, float] | None:
    """By how much the search thought better of its front than fresh pictures do."""
    pairs = [(trial, fresh[trial.number]) for trial in trials if trial.number in fresh]
    if not pairs:
        return None
    return {
        name: float(np.mean([getattr(a, name).value - getattr(b, name).value for a, b in pairs]))
        for name in ("likeness", "variety")
    }


def _why_none(
    asked: Search,
    trials: Sequence[Trial],
    able: Sequence[Trial],
    fresh: Mapping[int, Trial],
    sound: Sequence[Trial],
) -> str:
    """Why nothing can be recommended; empty where something is."""
    if not trials:
        return "no trial has ended yet"
    if able and (sound or not fresh):
        return ""
    which = list(fresh.values()) if able else list(trials)
    broken = [
        limit.told()
        for limit in asked.limits
        if any(t.broken([limit]).get(limit.measurement, 0) > 0 for t in which)
    ]
    where = "measured anew, none of the front" if able else f"none of {len(trials)} trials"
    return (
        f"{where} keeps to all limits ({', '.join(broken)}): vary something that holds to the base "
        "(--range strategies.stay_near=on,off), go to lower rates and fewer steps, or ask for less "
        "with --limit"
    )


def _mattered(asked: Search, trials: Sequence[Trial]) -> Any:
    return effects(
        asked.space.knobs,
        [trial.values for trial in trials],
        {
            "likeness": [trial.likeness.value for trial in trials],
            "variety": [trial.variety.value for trial in trials],
        },
        seed=asked.recipe.seed,
    )
