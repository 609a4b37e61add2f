"""A search over edits within a number of tries: first every knob alone, then what helped together.

It knows of an adapter nothing but a score of any choice, so it can be tried on a made-up one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from variegate.blend.edits import Edit, told

NOTHING = 0.005  # of variety and likeness: what is moved less is not moved
# What an edit more must give in variety to be taken: of many that were tried, some look this much
# better by chance, and each costs a little likeness that measures do not see.
AN_EDIT = 0.05
SHORT = 5.0  # what a point of likeness below the floor costs, in points of variety


@dataclass(frozen=True)
class Knob:
    """One thing to turn: its levels from the mildest on, and which of them are tried alone; sooner:
    before other knobs, though it is applied in its place."""

    name: str
    levels: tuple[Edit, ...]
    first: tuple[int, ...] = (0,)
    sooner: bool = False


@dataclass(frozen=True)
class Score:
    """variety: of the base's, the mean of class and trigger prompts. likeness: 0 of the base, 1 of
    the subject."""

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
    the best so far, by the smallest steps: a knob that is turned goes a level up or down, one that
    helped alone is turned as well, then any other that did anything (coordinate descent; a step is
    taken at once when it is better). price: the share of the unchanged likeness that may be lost.

    It ends early when no step from the best one is left untried. Edits are applied in the order of
    the knobs.
    """
    walk = _Walk(knobs, score, price)
    first = walk.ask((None,) * len(knobs))
    order = sorted(range(len(knobs)), key=lambda i: not knobs[i].sooner)
    alone = [(i, level) for i in order for level in knobs[i].first]
    for i, level in alone[: max(1, 2 * tries // 3)]:
        walk.ask(walk.with_level(first, i, level))
    while len(walk.tried) <= tries:
        # By turns from the best within the price, and from one a little beyond it that a step back
        # elsewhere may bring within.
        starts = walk.bests()[:: 1 if len(walk.tried) % 2 else -1]
        steps = chain.from_iterable(map(walk.steps, starts))
        fresh = next((c for c in steps if c not in walk.tried), None)
        if fresh is None:
            break
        walk.ask(fresh)
    return list(walk.tried.values())


def best_of(tried: Sequence[Try], *, price: float) -> Try:
    """The most varied, `AN_EDIT` off for each edit, of those that are no more than `price` less
    like than the first, which was not changed; the first where there is none."""
    floor = (1 - price) * tried[0].score.likeness
    fine = [t for t in tried if t.score.likeness >= floor]
    return max(fine, key=lambda t: t.score.variety - AN_EDIT * len(t.edits), default=tried[0])


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

    def bests(self) -> list[Choice]:
        """The best within the price, and the best with its lack of likeness counted off."""
        within = best_of(list(self.tried.values()), price=self._price)
        own = next(choice for choice, tried in self.tried.items() if tried is within)
        return [own, max(self.tried, key=self.worth)]

    def steps(self, best: Choice) -> Iterator[Choice]:
        """From the best on, the most hopeful first."""
        for i, level in enumerate(best):
            if level is not None:
                for other in (level + 1, level - 1):
                    if 0 <= other < len(self._knobs[i].levels):
                        yield self.with_level(best, i, other)
        alone = [each for each in self._alone() if best[each.knob] is None]
        yield from (self.with_level(best, a.knob, a.level) for a in alone if a.gain > 0)
        for a in alone:
            if a.moved:
                for level in range(len(self._knobs[a.knob].levels)):
                    yield self.with_level(best, a.knob, level)
        for i, level in enumerate(best):
            if level is not None:
                yield self.with_level(best, i, None)

    def _alone(self) -> list[_Alone]:
        """Every knob that was turned alone, at its best; those that gave most first, and last those
        that nobody turned yet, which may do anything."""
        unchanged: Choice = (None,) * len(self._knobs)
        zero = self.tried[unchanged].score
        found: dict[int, _Alone] = {}
        for choice, tried in self.tried.items():
            turned = [(i, level) for i, level in enumerate(choice) if level is not None]
            if len(turned) != 1:
                continue
            (knob, level), gain = turned[0], self.worth(choice) - self.worth(unchanged)
            shift = max(
                abs(tried.score.variety - zero.variety), abs(tried.score.likeness - zero.likeness)
            )
            known = found.get(knob)
            if known is None or gain > known.gain:
                found[knob] = _Alone(knob, level, gain, shift > NOTHING)
        rest = [
            _Alone(i, 0, float("-inf"), True) for i in range(len(self._knobs)) if i not in found
        ]
        return [*sorted(found.values(), key=lambda each: -each.gain), *rest]


@dataclass(frozen=True)
class _Alone:
    """What a knob did alone at its best level; moved: whether anything at all."""

    knob: int
    level: int
    gain: float
    moved: bool
