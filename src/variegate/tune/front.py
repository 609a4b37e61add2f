"""What trials of two objectives say: the front, its hypervolume, and the point to take.

Both objectives are larger the better, and 0 is what nobody wants: likeness 0 is the base, variety 0
is one picture over and over. So the corner (0, 0) is what a point is measured from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]  # likeness, variety
CORNER: Point = (0.0, 0.0)


@dataclass(frozen=True)
class Limit:
    """A line that a trial must keep to. above: it must not be more than `at`, else not less."""

    measurement: str
    at: float
    above: bool

    def broken(self, value: float) -> float:
        """How far past the line: above 0 is broken.

        >>> round(Limit("copy_rate", 0.05, above=True).broken(0.08), 3)
        0.03
        """
        return value - self.at if self.above else self.at - value

    def told(self) -> str:
        return f"{self.measurement} {'at most' if self.above else 'at least'} {self.at:g}"


def front(points: Sequence[Point]) -> list[int]:
    """Which points no other beats: none is as good in both and better in one. Of equal points the
    first.

    >>> front([(0.2, 0.9), (0.6, 0.6), (0.5, 0.5), (0.9, 0.1)])
    [0, 1, 3]
    """
    return [
        i
        for i, p in enumerate(points)
        if not any(
            (q[0] >= p[0] and q[1] >= p[1] and q != p) or (q == p and j < i)
            for j, q in enumerate(points)
        )
    ]


def hypervolume(points: Sequence[Point], corner: Point = CORNER) -> float:
    """The area that is dominated by some point and lies beyond the corner: how good a set of points
    is as one number (Zitzler and Thiele 1999).

    >>> hypervolume([(0.5, 1.0), (1.0, 0.5)])
    0.75
    """
    area, reached = 0.0, corner[1]
    for x, y in sorted(points, reverse=True):
        if x > corner[0] and y > reached:
            area += (x - corner[0]) * (y - reached)
            reached = y
    return area


def knee(points: Sequence[Point], corner: Point = CORNER) -> int:
    """The point to take where nothing says which objective counts more: the one with the largest
    product of what it has of both, that is the largest share of the hypervolume to itself alone.

    It is Nash's solution of a bargain between the two (Econometrica 18, 1950): on the front,
    whatever units the objectives are told in, and the same when points that lose are left out. Of
    equal ones the first. Raises: ValueError without points.
    """
    if not points:
        raise ValueError("no points")

    def gained(i: int) -> float:
        x, y = points[i]
        return max(0.0, x - corner[0]) * max(0.0, y - corner[1])

    return max(front(points), key=gained)


def thinned(points: Sequence[Point], most: int, corner: Point = CORNER) -> list[int]:
    """Which `most` points of a front to keep: each in turn the one that adds most hypervolume to
    those kept (a greedy choice, within 1 - 1/e of the best: Nemhauser et al. 1978)."""
    left, kept = front(points), list[int]()
    while left and len(kept) < most:
        best = max(left, key=lambda i: hypervolume([points[k] for k in (*kept, i)], corner))
        kept.append(best)
        left.remove(best)
    return sorted(kept)


def neighbours(points: Sequence[Point], of: int) -> Mapping[str, int]:
    """The next point of the front towards more likeness, and towards more variety."""
    order = sorted(front(points), key=lambda i: points[i])
    at = order.index(of)
    found = {}
    if at + 1 < len(order):
        found["likeness"] = order[at + 1]
    if at > 0:
        found["variety"] = order[at - 1]
    return found
