"""Which point of a grid keeps most variety at enough likeness, with few pictures: successive
halving over common prompts and seeds.

All points are drawn at a prompt of each group; then the most promising at twice as many prompts,
and so on, each stage at an equal share of the budget. A point is ruled out only by a paired test;
one that is merely less promising rests, and is told as not told apart where the test cannot tell.

It knows of a point nothing but what it sees, so it can be tried on made-up ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np

from variegate.errors import NotFinite, RequestError
from variegate.measure.diversity import AT_LEAST_PROMPTS
from variegate.measure.uncertainty import sign_flip_p, student_interval
from variegate.pick.points import Point

ALPHA = 0.01  # of each test that may rule a point out, of all that a stage asks of it
FEWEST = 1  # prompts of each group that all points are drawn at
SHORT = 5.0  # what a point of likeness below the floor costs, in points of variety


@dataclass(frozen=True)
class Sight:
    """What a point showed. prompts: of each group. variety: of the base's, the mean of class and
    trigger prompts. likeness: 0 of the base, 1 of the subject."""

    prompts: int
    variety: float
    likeness: float


@dataclass(frozen=True)
class Differences:
    """Of two points at what both were asked, right minus left. variety: a logarithm for each
    prompt. likeness: of each trigger prompt, one for each seed, how much more often right shows the
    subject, 1 for as often as left does; empty where that is not known."""

    variety: tuple[float, ...]
    likeness: tuple[tuple[float, ...], ...]

    @property
    def like(self) -> float:
        """How often right shows the subject, for each time that left does."""
        return 1 + float(np.mean(units(self.likeness))) if self.likeness else 1.0


def units(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What a test on likeness is asked of: prompts, or their pictures where they are few."""
    if len(rows) >= AT_LEAST_PROMPTS:
        return tuple(float(np.mean(own)) for own in rows)
    return tuple(chain.from_iterable(rows))


@runtime_checkable
class Arena(Protocol):
    """Who draws and measures."""

    def look(self, point: Point, prompts: int) -> Sight: ...

    def differences(self, left: Point, right: Point) -> Differences: ...


@dataclass(frozen=True)
class Ruled:
    """Why a point was ruled out, and how many prompts of each group had been drawn."""

    why: str
    prompts: int


@dataclass
class Race:
    """How a search went. choice: None until something was drawn. reference: the plain point of
    most likeness, to which likeness is compared. tied: what cannot be told from the choice.
    promised: variety and likeness of each as the whole grid suggests them."""

    points: tuple[Point, ...]
    sights: dict[Point, Sight] = field(default_factory=dict)
    ruled_out: dict[Point, Ruled] = field(default_factory=dict)
    promised: dict[Point, tuple[float, float]] = field(default_factory=dict)
    choice: Point | None = None
    reference: Point | None = None
    tied: tuple[Point, ...] = ()
    pictures: int = 0
    stopped_because: str = ""

    @property
    def left(self) -> list[Point]:
        return [p for p in self.points if p in self.sights and p not in self.ruled_out]

    def floor(self, margin: float) -> float:
        assert self.reference is not None
        return self.promised[self.reference][1] - margin

    def worth(self, point: Point, margin: float) -> float:
        """Variety, less what is missing of the likeness, as the whole grid suggests both."""
        variety, likeness = self.promised[point]
        return variety - SHORT * max(0.0, self.floor(margin) - likeness)

    def ranked(self, margin: float) -> list[Point]:
        return sorted(self.left, key=lambda p: -self.worth(p, margin))


def race(
    points: Sequence[Point],
    arena: Arena,
    *,
    plain: Callable[[Point], bool],
    prompts: int,
    each: int,
    budget: int,
    margin: float,
) -> Race:
    """Search within a budget of pictures.

    plain: the points that are used as trainers hand them over. prompts: of each of the two groups,
    that the last stage draws; each: pictures a prompt. margin: how far likeness may lie below that
    of the best plain point.

    Raises: RequestError when the budget does not reach for the first stage.
    """
    found = Race(tuple(points))
    first = min(FEWEST, prompts)
    needed = len(found.points) * 2 * first * each
    if needed > budget:
        raise RequestError(
            f"{len(found.points)} points want {needed} pictures to be looked at once; found a "
            f"budget of {budget}"
        )
    size, going = first, list(found.points)
    while True:
        for point in going:
            before = found.sights[point].prompts if point in found.sights else 0
            try:
                found.sights[point] = arena.look(point, size)
            except NotFinite as error:
                found.ruled_out[point] = Ruled(f"its pictures turned NaN: {error}", size)
                continue
            found.pictures += 2 * (size - before) * each
        _judge(found, arena, plain=plain, margin=margin)
        if size >= prompts:
            found.stopped_because = "every prompt of the plan was drawn"
            break
        if len(found.left) < 2:
            found.stopped_because = "one point was left"
            break
        longer = min(prompts, 2 * size)
        left = budget - found.pictures
        going = _next(found, longer, each, left, _stages(size, prompts), margin)
        if len(going) < 2:
            found.stopped_because = "what is left of the budget does not reach for another stage"
            break
        size = longer
    deepest = max(found.sights[p].prompts for p in found.left)
    final = [p for p in found.ranked(margin) if found.sights[p].prompts == deepest]
    found.choice = final[0]
    found.tied = tuple(p for p in found.ranked(margin) if _tied(found, arena, p, margin))
    return found


def surely_above(values: Sequence[float], than: float = 0.0, *, alpha: float = ALPHA) -> bool:
    """Whether the mean of paired differences lies above a number by more than chance explains: a
    sign flip over as many values as can reach alpha, Student's interval over fewer.

    >>> surely_above([0.5] * 3 + [0.6] * 5), surely_above([0.5, -0.4, 0.3])
    (True, False)
    """
    x = np.asarray(values, np.float64) - than
    if len(x) < 2 or x.mean() <= 0:
        return False
    if 2.0 ** -len(x) <= alpha / 2:
        return sign_flip_p(list(x), tail="greater", address="race") < alpha
    error = float(x.std(ddof=1) / np.sqrt(len(x)))
    low, _ = student_interval(float(x.mean()), error, degrees=len(x) - 1, level=1 - 2 * alpha)
    return low > 0


def too_unlike(found: Differences, margin: float) -> bool:
    """Whether right surely shows the subject less often than left, by more than the margin."""
    return surely_above([-x for x in units(found.likeness)], margin)


def _judge(found: Race, arena: Arena, *, plain: Callable[[Point], bool], margin: float) -> None:
    """Take the reference anew, rule out what the tests rule out, and promise the rest."""
    seen = [p for p in found.points if p in found.sights]
    if not seen:
        raise NotFinite(next(iter(found.ruled_out.values())).why)
    reference = _promise(found, seen, arena, plain)
    found.reference = reference
    found.ruled_out.pop(reference, None)
    beside = {p: arena.differences(reference, p) for p in found.left if p != reference}
    for point, gap in beside.items():
        if too_unlike(gap, margin):
            found.ruled_out[point] = Ruled(
                f"surely shows the subject less often than {reference.words} ({gap.like:.0%} of "
                "its times)",
                found.sights[point].prompts,
            )
    # Only what surely keeps the likeness may rule out others for having less variety.
    sure = [p for p, gap in beside.items() if surely_above(units(gap.likeness), -margin)]
    sure = [p for p in [reference, *sure] if p in found.left]
    for point in found.left:
        if point == reference:
            continue
        for better in sorted(sure, key=lambda p: -found.promised[p][0]):
            if found.promised[better][0] <= found.promised[point][0]:
                break
            if surely_above(arena.differences(point, better).variety, alpha=ALPHA / len(sure)):
                found.ruled_out[point] = Ruled(
                    f"surely less varied than {better.words}, which surely keeps the likeness",
                    found.sights[point].prompts,
                )
                break


def _stages(size: int, prompts: int) -> int:
    """How many stages are still to come after one of so many prompts.

    >>> _stages(1, 16), _stages(8, 12), _stages(16, 16)
    (4, 1, 0)
    """
    return 0 if size >= prompts else 1 + _stages(min(prompts, 2 * size), prompts)


def _next(found: Race, size: int, each: int, left: int, stages: int, margin: float) -> list[Point]:
    """Whom the next stage draws: the reference, then the most promising, as far as the stage's
    equal share of what is left of the budget goes; two at least while there is enough for them.

    Source: Karnin et al., Almost optimal exploration in multi-armed bandits, 2013, section 3.
    """
    reference = found.reference
    ranked = [p for p in found.ranked(margin) if p != reference]
    taken, spent = list[Point](), 0
    for point in [*([reference] if reference is not None else []), *ranked]:
        spent += 2 * (size - found.sights[point].prompts) * each
        if spent > (left if len(taken) < 2 else left // stages):
            break
        taken.append(point)
    return taken


def _tied(found: Race, arena: Arena, point: Point, margin: float) -> bool:
    assert found.choice is not None
    assert found.reference is not None
    if point == found.choice:
        return False
    if found.promised[point][1] < found.floor(margin) and point != found.reference:
        return False  # it may keep more variety; nobody says that it keeps the likeness
    return not surely_above(arena.differences(point, found.choice).variety)


def _promise(
    found: Race, seen: Sequence[Point], arena: Arena, plain: Callable[[Point], bool]
) -> Point:
    """Variety and likeness of every point, drawn towards what its checkpoint, its strength and its
    guidance scale do each across the grid, the more so the less was seen of the point itself; and
    the plain point of most likeness, whose own is 1.

    Stein's estimate around an additive model: what a point has beyond the sum of its parts counts
    in full only where it is large beside the noise. (Efron and Morris, Stein's estimation rule and
    its competitors, 1973.)
    """
    able = [p for p in seen if p not in found.ruled_out or p == found.reference]
    able = [p for p in able if plain(p)] or able
    reference = max(able, key=lambda p: (found.sights[p].prompts, found.sights[p].likeness))
    like = _likeness(found, seen, arena, reference)
    best = max(able, key=lambda p: like[p])
    if best != reference:
        reference, like = best, _likeness(found, seen, arena, best)
    gaps = [arena.differences(reference, p).variety for p in seen if p != reference]
    values = np.array([found.sights[p].variety for p in seen])
    count = np.array([2.0 * found.sights[p].prompts for p in seen])
    # A difference of two has twice the variance of one.
    noise = _pooled(gaps) / 2 * float(np.mean(values)) ** 2
    varied = _shrunk(seen, values, noise / count)
    found.promised = {p: (float(v), like[p]) for p, v in zip(seen, varied, strict=True)}
    return reference


def _likeness(
    found: Race, seen: Sequence[Point], arena: Arena, reference: Point
) -> dict[Point, float]:
    """How often each point shows the subject, for each time that the reference does."""
    gaps = {p: arena.differences(reference, p) for p in seen}
    rows = [units(gaps[p].likeness) for p in seen]
    noise = _pooled([own for p, own in zip(seen, rows, strict=True) if p != reference]) / 2
    values = np.array([gaps[p].like for p in seen])
    drawn = _shrunk(seen, values, np.array([noise / max(1, len(own)) for own in rows]))
    return {p: float(x) for p, x in zip(seen, drawn, strict=True)}


def _pooled(sets: Sequence[Sequence[float]]) -> float:
    """The mean variance within sets of two or more."""
    found = [float(np.var(own, ddof=1)) for own in sets if len(own) > 1]
    return float(np.mean(found)) if found else 0.0


def _shrunk(points: Sequence[Point], values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """values, each drawn towards the additive fit over the grid. noise: its variance."""
    columns = [np.ones(len(points))]
    for name in ("checkpoint", "strength", "guidance_scale"):
        levels = list(dict.fromkeys(getattr(p, name) for p in points))
        columns += [
            np.array([float(getattr(p, name) == level) for p in points]) for level in levels[1:]
        ]
    design = np.stack(columns, 1)
    spare = len(points) - int(np.linalg.matrix_rank(design))
    if spare < 3:
        return values
    weight = 1 / np.sqrt(np.maximum(noise, 1e-12))
    fit, *_ = np.linalg.lstsq(design * weight[:, None], values * weight, rcond=None)
    expected = design @ fit
    rest = values - expected
    beyond = max(0.0, float((rest**2).sum()) / spare - float(noise.mean()))
    share = beyond / np.maximum(beyond + noise, 1e-12)
    return np.asarray(expected + share * rest)
