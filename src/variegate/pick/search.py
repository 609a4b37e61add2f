"""A search over edits within a number of tries: first every knob alone, then what helped together.

It knows of an adapter nothing but a score of any choice, so it can be tried on a made-up one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from variegate.blend.edits import Edit, told

SHORT = 5.0  # what a point of likeness below the floor costs, in points of variety


@dataclass(frozen=True)
class Knob:
    """One thing to turn: its levels from the mildest on, and the ones to be tried alone first."""

    name: str
    levels: tuple[Edit, ...]
    first: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Score:
    """variety: of the base's, the mean of class and trigger prompts. likeness: 0 base, 1 subject."""

    variety: float
    likeness: float


@dataclass(frozen=True)
class Try:
    """What was tried, in the order in which it is applied, and what it gave."""

    edits: tuple[Edit, ...]
    score: Score

    @property
    def words(self) -> str:
        return "; ".join(edit.words for edit in self.edits) or "as it is"

    def to_json(self) -> dict[str, Any]:
        return {
            "edits": [told(edit) for edit in self.edits],
            "words": self.words,
            "variety": self.score.variety,
            "likeness": self.score.likeness,
        }

    def worth(self, floor: float) -> float:
        """Variety, less what is missing of the likeness."""
        return self.score.variety - SHORT * max(0.0, floor - self.score.likeness)


Choice = tuple[int | None, ...]  # by knob: which of its levels, None for not turned


def search(
    knobs: Sequence[Knob], score: Callable[[tuple[Edit, ...]], Score], *, tries: int, price: float
) -> list[Try]:
    """All tries in order, the first of nothing changed.

    Two thirds of them at most turn one knob each, in the order of the knobs. The others go on from
    the best so far, by the smallest steps: a knob that helped alone is turned as well, or one that
    is turned already goes a level up or down, or back (coordinate descent; a move is taken at once
    when it is better). price: the share of the unchanged likeness that may be lost.

    It ends early when no step from the best one is left untried. Edits are applied in the order of
    the knobs.
    """
    walk = _Walk(knobs, score, price)
    first = walk.ask((None,) * len(knobs))
    alone = [
        (i, level) for turn in range(4) for i, k in enumerate(knobs) for level in k.first[turn : turn + 1]
    ]
    for i, level in alone[: max(1, 2 * tries // 3)]:
        if len(walk.tried) > tries:
            break
        walk.ask(walk.with_level(first, i, level))
    while len(walk.tried) <= tries:
        best = walk.best()
        fresh = next((c for c in walk.steps(best) if c not in walk.tried), None)
        if fresh is None:
            break
        walk.ask(fresh)
    return list(walk.tried.values())


def best_of(tried: Sequence[Try], *, price: float) -> Try:
    """The most varied of those that are no more than `price` less like than the first, which was
    not changed; the first where there is none."""
    floor = (1 - price) * tried[0].score.likeness
    fine = [t for t in tried if t.score.likeness >= floor]
    return max(fine, key=lambda t: t.score.variety, default=tried[0])


class _Walk:
    def __init__(
        self, knobs: Sequence[Knob], score: Callable[[tuple[Edit, ...]], Score], price: float
    ) -> None:
        self._knobs = knobs
        self._score = score
        self._price = price
        self.tried: dict[Choice, Try] = {}

    def ask(self, choice: Choice) -> Choice:
        edits = tuple(
            knob.levels[level]
            for knob, level in zip(self._knobs, choice, strict=True)
            if level is not None
        )
        self.tried[choice] = Try(edits, self._score(edits))
        return choice

    def with_level(self, choice: Choice, knob: int, level: int | None) -> Choice:
        return (*choice[:knob], level, *choice[knob + 1 :])

    def worth(self, choice: Choice) -> float:
        unchanged = next(iter(self.tried.values())).score.likeness
        return self.tried[choice].worth((1 - self._price) * unchanged)

    def best(self) -> Choice:
        return max(self.tried, key=self.worth)

    def steps(self, best: Choice) -> Iterator[Choice]:
        """From the best on, the most hopeful first."""
        alone = self._alone()
        for i, _ in alone:  # together with what helped alone, as it was then
            if best[i] is None:
                yield self.with_level(best, i, alone_level(self.tried, i, self.worth))
        for i, level in enumerate(best):  # more of it, or less
            if level is not None:
                for other in (level + 1, level - 1):
                    if 0 <= other < len(self._knobs[i].levels):
                        yield self.with_level(best, i, other)
        for i, _ in alone:
            if best[i] is None:
                for level in range(len(self._knobs[i].levels)):
                    yield self.with_level(best, i, level)
        for i, level in enumerate(best):
            if level is not None:
                yield self.with_level(best, i, None)

    def _alone(self) -> list[tuple[int, float]]:
        """Knobs by what they gave alone at their best, those that gave most first."""
        unchanged = (None,) * len(self._knobs)
        found: dict[int, float] = {}
        for choice in self.tried:
            turned = [i for i, level in enumerate(choice) if level is not None]
            if len(turned) == 1:
                gain = self.worth(choice) - self.worth(unchanged)
                found[turned[0]] = max(gain, found.get(turned[0], float("-inf")))
        return sorted(found.items(), key=lambda each: -each[1])


def alone_level(
    tried: dict[Choice, Try], knob: int, worth: Callable[[Choice], float]
) -> int | None:
    """The level at which a knob was best when it was turned alone."""
    own = [c for c in tried if c[knob] is not None and sum(level is not None for level in c) == 1]
    return max(own, key=worth)[knob] if own else None
