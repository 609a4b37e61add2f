"""What mattered, of what was varied, and how sure that is.

One linear model holds all knobs at once, so that a knob that only went along with another gets no
credit for it: values by rank with a bend, choices by kind, the objective as it is. A knob's share
is what of the spread among trials is no longer explained when it is left out; whether that is more
than chance, a permutation of the residuals tells (Freedman and Lane 1983). Trials that were
suggested by what came of others are no random draws, so a p here is a guide and no proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate import seeds
from variegate.tune.ranges import Knob, Value, spell

DRAWS = 999
SURE = 0.05  # of p, after Holm's correction over all knobs and objectives
LEAST_SPARE = 4  # trials more than the model has columns, below which nothing is told


@dataclass(frozen=True)
class Effect:
    """share: of the spread among trials. most: its upper end at 95 %, over bootstrapped trials.
    p: after Holm's correction. towards: where it was best, in words."""

    knob: str
    objective: str
    share: float
    most: float
    p: float
    trials: int
    towards: str

    @property
    def shown(self) -> bool:
        return self.p < SURE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shown": self.shown}


def effects(
    knobs: Sequence[Knob],
    trials: Sequence[Mapping[str, Value]],
    objectives: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
) -> list[Effect] | str:
    """The effect of every knob on every objective, the largest first; or why nothing can be told.

    trials: their values by knob; a knob that one lacks had no meaning there.
    """
    if not trials:
        return "no trial has ended yet, so nothing is known of what mattered"
    columns = {knob.key: _columns(knob, trials) for knob in knobs}
    width = 1 + sum(c.shape[1] for c in columns.values())
    if len(trials) < width + LEAST_SPARE:
        return (
            f"{len(trials)} trials are too few to tell {len(knobs)} knobs apart; "
            f"{width + LEAST_SPARE} would do: give more --trials"
        )
    found = list[Effect]()
    for name, values in objectives.items():
        y = np.asarray(values, float)
        if y.std() == 0:
            continue
        for knob in knobs:
            rest = [c for key, c in columns.items() if key != knob.key]
            share, most, p = _part(rest, columns[knob.key], y, seed, f"{name}/{knob.key}")
            best = _towards(knob, trials, y)
            found.append(Effect(knob.key, name, share, most, p, len(trials), best))
    return sorted(_corrected(found), key=lambda e: (-e.share, e.knob, e.objective))


def _part(
    rest: list[NDArray[Any]], own: NDArray[Any], y: NDArray[Any], seed: int, address: str
) -> tuple[float, float, float]:
    """The share that the own columns explain beyond the rest; its upper end; its p."""
    n = len(y)
    left_out = np.hstack([np.ones((n, 1)), *rest])
    whole = np.hstack([left_out, own])

    def share(x_less: NDArray[Any], x: NDArray[Any], target: NDArray[Any]) -> float:
        total = float(((target - target.mean()) ** 2).sum())
        return max(0.0, (_unexplained(x_less, target) - _unexplained(x, target)) / total)

    seen = share(left_out, whole, y)
    fitted = left_out @ np.linalg.lstsq(left_out, y, rcond=None)[0]
    rng = seeds.numpy_at(seed, "tune effects", address)
    chance = [share(left_out, whole, fitted + rng.permutation(y - fitted)) for _ in range(DRAWS)]
    p = (1 + sum(c >= seen - 1e-12 for c in chance)) / (DRAWS + 1)
    drawn = list[float]()
    for _ in range(DRAWS // 5):
        rows = rng.integers(n, size=n)
        if y[rows].std() > 0:
            drawn.append(share(left_out[rows], whole[rows], y[rows]))
    return seen, max(seen, float(np.quantile(drawn, 0.95))), p


def _unexplained(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def _columns(knob: Knob, trials: Sequence[Mapping[str, Value]]) -> NDArray[Any]:
    """A knob as columns: rank and its square, or one for each choice but the first.

    Each is nought where the knob had no meaning, and nought on average where it had one: that it
    had none was another knob's doing, whose columns tell so, and whose credit it would be.
    """
    values = [trial.get(knob.key) for trial in trials]
    absent = np.array([value is None for value in values])
    known = [value for value in values if value is not None]
    if knob.ordered:
        levels = sorted({float(value) for value in known})
        places = {v: 2 * i / max(1, len(levels) - 1) - 1 for i, v in enumerate(levels)}
        at = np.array([0.0 if v is None else places[float(v)] for v in values])
        columns = [at, at**2] if len(levels) > 2 else [at]
    else:
        others = list(dict.fromkeys(map(spell, known)))[1:]
        columns = [
            np.array([float(v is not None and spell(v) == c) for v in values]) for c in others
        ]
    # What never changed explains nothing.
    told = [np.where(absent, 0.0, c - c[~absent].mean()) for c in columns if np.ptp(c[~absent]) > 0]
    return np.stack(told, 1) if told else np.zeros((len(trials), 0))


def _towards(knob: Knob, trials: Sequence[Mapping[str, Value]], y: NDArray[Any]) -> str:
    """Where the objective was best: the choice of the best mean, or the third of the values."""
    pairs = [(t[knob.key], v) for t, v in zip(trials, y, strict=True) if knob.key in t]
    if not pairs:
        return ""
    if not knob.ordered:
        names = dict.fromkeys(spell(value) for value, _ in pairs)
        return max(names, key=lambda c: np.mean([v for value, v in pairs if spell(value) == c]))
    order = sorted(float(value) for value, _ in pairs)
    lines = order[len(order) // 3], order[2 * len(order) // 3]
    parts: dict[str, list[float]] = {}
    for value, v in pairs:
        x = float(value)
        part = "low" if x < lines[0] else "high" if x > lines[1] else "middle"
        parts.setdefault(part, []).append(v)
    return max(parts, key=lambda part: np.mean(parts[part]))


def _corrected(found: Sequence[Effect]) -> list[Effect]:
    """Holm's correction over all of them."""
    order = sorted(found, key=lambda e: e.p)
    corrected, highest = list[Effect](), 0.0
    for i, effect in enumerate(order):
        highest = max(highest, min(1.0, effect.p * (len(order) - i)))
        corrected.append(Effect(**{**asdict(effect), "p": round(highest, 4)}))
    return corrected


def told(effect: Effect) -> str:
    """An effect as a sentence.

    >>> told(Effect("adapter.rank", "variety", 0.4, 0.6, 0.01, 24, "low"))
    'adapter.rank made 40 % of the spread in variety (60 % at most; p 0.01): most at its low values'
    """
    if effect.shown:
        # A choice is told as it is; a range by the third that was best.
        where = f"its {effect.towards} values" if effect.towards in THIRDS else effect.towards
        return (
            f"{effect.knob} made {effect.share:.0%} of the spread in {effect.objective} "
            f"({effect.most:.0%} at most; p {effect.p:.2g}): most at {where}"
        ).replace("%", " %")
    return (
        f"{effect.knob} did not matter to {effect.objective}, as far as {effect.trials} trials can "
        f"tell: {effect.most:.0%} of the spread at most, p {effect.p:.2g}"
    ).replace("%", " %")


THIRDS = ("low", "middle", "high")
