"""Exact nearest neighbours in blocks: who lies near whom, in memory that does not grow.

Matrix products in single precision find the candidates, and whatever they cannot tell apart is
worked out again in double. So the answers are those of double precision throughout, at the speed
of single. Rows may be a memory-mapped array on disk; a block of them is read at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import EmptyImageSet, FeaturesError

BLOCK = 2048  # rows on each side of one matrix product
PAIRS = 16_384  # worked out again at a time
SPARE = 4  # candidates kept beyond those asked for
KEPT = 2**28  # bytes of single precision rows above which they are read again at each pass
EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Rows:
    """A table of features `[n, d]`, read block by block, whatever holds it."""

    table: np.ndarray | Tensor

    @staticmethod
    def of(features: ArrayLike | Tensor, *, name: str = "features") -> Rows:
        """Raises: FeaturesError when it is no table, EmptyImageSet when it has no row."""
        table = features if isinstance(features, Tensor) else np.asanyarray(features)
        if table.ndim != 2:
            raise FeaturesError(
                f"{name} have shape {tuple(table.shape)}; expected a table of one row per picture"
            )
        if len(table) == 0:
            raise EmptyImageSet(f"{name} hold no pictures; expected one row for each")
        return Rows(table)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def width(self) -> int:
        return int(self.table.shape[1])

    def stored(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop as they are stored, unchecked and not to be written to."""
        part = self.table[start:stop]
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            return (part if part.dtype == torch.float64 else part.float()).numpy()
        return np.asarray(part)

    def block(self, start: int, stop: int) -> Tensor:
        """The same as a tensor of its own, checked for what is not a number."""
        found = torch.from_numpy(np.array(self.stored(start, stop)))
        if not found.is_floating_point():
            found = found.float()
        finite = torch.isfinite(found).all(1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0])
            raise FeaturesError(
                f"row {row} of the features holds NaN or infinity; leave that picture out or"
                " compute its features again"
            )
        return found

    def blocks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        size = size or BLOCK
        for start in range(0, len(self), size):
            yield start, self.block(start, min(start + size, len(self)))

    def pick(self, index: Tensor) -> Tensor:
        """Some rows, in double precision."""
        if isinstance(self.table, Tensor):
            return self.table[index].detach().double().cpu()
        return torch.from_numpy(np.array(self.table[index.numpy()], np.float64))


@dataclass(frozen=True)
class Neighbours:
    """distance: Euclidean, nearest first, `[n, k]` float64; index: which rows they are."""

    distance: Tensor
    index: Tensor


def nearest(
    queries: ArrayLike | Tensor, rows: ArrayLike | Tensor, *, k: int = 1, same: bool = False
) -> Neighbours:
    """The k nearest rows of every query, exactly.

    queries `[n, d]`, rows `[m, d]`. same: queries and rows are one table, and no row is its own
    neighbour; each product then serves both its rows and its columns. For rows of unit length the
    cosine is 1 - distance ** 2 / 2.
    Raises: FeaturesError when there are fewer than k rows to find or the widths differ.
    """
    ours, theirs = Rows.of(queries), Rows.of(rows)
    _same_width(ours, theirs)
    available = len(theirs) - same
    if available < k:
        raise FeaturesError(
            f"{k} nearest neighbours were asked for among {available} rows; give more pictures"
            " or a smaller k"
        )
    keep = min(k + SPARE, available)
    candidates, certain = _candidates(ours, theirs, keep=keep, same=same)
    distance = torch.empty(len(ours), k, dtype=torch.float64)
    index = torch.empty(len(ours), k, dtype=torch.long)
    for start, block in ours.blocks():
        here = slice(start, start + len(block))
        where = candidates[here]
        exact = _exact(block, theirs, where)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        exact, where = exact.gather(1, order), where.gather(1, order)
        # A row left out may be as near as the last one kept only if it was so by rounding.
        # (At distance nothing there is nothing nearer, however many equal rows there are.)
        farthest = exact[:, -1]
        unsure = (farthest**2 > certain[here]) & (farthest > 0) if keep < available else None
        if unsure is not None and bool(unsure.any()):
            for row in unsure.nonzero().flatten().tolist():
                exact[row], where[row] = _by_hand(start + row, block[row], theirs, k=k, same=same)
        distance[here], index[here] = exact, where
    return Neighbours(distance, index)


@dataclass(frozen=True)
class Balls:
    """Who lies strictly within whose radius. in_balls: per query, in how many rows' balls it lies;
    row_in_balls: per row, in how many queries' balls; row_holds: how many queries its own holds."""

    in_balls: Tensor
    row_in_balls: Tensor
    row_holds: Tensor


def within(queries: Rows, rows: Rows, query_radii: Tensor, row_radii: Tensor) -> Balls:
    """Every query against every row's ball and the other way round, exactly, in one pass."""
    _same_width(queries, rows)
    origin = rows.block(0, min(len(rows), BLOCK)).double().mean(0)
    ours, theirs = _Single(queries, origin), _Single(rows, origin)
    found = Balls(
        torch.zeros(len(queries), dtype=torch.long),
        torch.zeros(len(rows), dtype=torch.long),
        torch.zeros(len(rows), dtype=torch.long),
    )
    for i, a in ours.parts():
        here = slice(i, i + len(a.rows))
        for j, b in theirs.parts():
            there = slice(j, j + len(b.rows))
            d2, slack = a.squared(b), _slack(a.longest + b.longest, queries.width)
            ra, rb = query_radii[here], row_radii[there]

            def exact(pairs: Tensor, i: int = i, j: int = j) -> Tensor:
                return _pair_distance(queries.pick(pairs[:, 0] + i), rows.pick(pairs[:, 1] + j))

            in_row = _inside(d2, rb[None], slack, exact)
            in_query = _inside(d2, ra[:, None], slack, exact)
            found.in_balls[here] += in_row.sum(1, dtype=torch.int32)
            found.row_holds[there] += in_row.sum(0, dtype=torch.int32)
            found.row_in_balls[there] += in_query.sum(0, dtype=torch.int32)
    return found


def _inside(d2: Tensor, radii: Tensor, slack: float, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """Which squared distances `[n, m]` lie below the squares of radii, `[n, 1]` or `[1, m]`; what
    lies within the slack of them is worked out by `exact`, from pairs `[p, 2]` of places."""
    square = radii.square()
    sure = d2 < (square - slack).float()
    perhaps = d2 <= (square + slack).float()
    for pairs in (perhaps ^ sure).nonzero().split(PAIRS):
        x, y = pairs.unbind(1)
        sure[x, y] = exact(pairs) < radii.expand_as(d2)[x, y]
    return sure


def _same_width(a: Rows, b: Rows) -> None:
    if a.width != b.width:
        raise FeaturesError(
            f"features of {a.width} and of {b.width} numbers cannot be compared; compute both with"
            " one encoder"
        )


@dataclass(frozen=True)
class _Part:
    """Some rows less an origin, in single precision; their squared lengths, and the greatest."""

    rows: Tensor
    lengths: Tensor
    longest: float

    def squared(self, other: _Part) -> Tensor:
        """Squared distances `[n, m]`, as near as `_slack` says."""
        d2 = torch.addmm(other.lengths[None], self.rows, other.rows.T, alpha=-2)
        return d2.add_(self.lengths[:, None])


class _Single:
    """Rows in single precision, measured from about their middle: of features that all lie to one
    side of nought, most of the length would cancel. Kept between passes unless there are many."""

    def __init__(self, rows: Rows, origin: Tensor) -> None:
        self.rows, self.origin = rows, origin
        self.kept: dict[int, _Part] = {}
        self.keeps = 4 * len(rows) * rows.width <= KEPT

    def parts(self, start: int = 0) -> Iterator[tuple[int, _Part]]:
        """Blocks from `start` (a multiple of the block) on, each with the place of its first."""
        for at in range(start, len(self.rows), BLOCK):
            part = self.kept.get(at)
            if part is None:
                block = self.rows.block(at, min(at + BLOCK, len(self.rows)))
                away = (block.double() - self.origin).float()
                lengths = away.square().sum(1)
                part = _Part(away, lengths, float(lengths.max()))
                if self.keeps:
                    self.kept[at] = part
            yield at, part


def _slack(lengths: float, width: int) -> float:
    """How far a squared distance of rows of these squared lengths may be off: the rounding of a sum
    of d products grows with the root of d, and this is four deviations of it."""
    return 4 * EPSILON * width**0.5 * lengths


def _pair_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().sum(-1).sqrt()


def _candidates(ours: Rows, theirs: Rows, *, keep: int, same: bool) -> tuple[Tensor, Tensor]:
    """Per query the `keep` nearest by single precision `[n, keep]`, and below which squared
    distance no other row can be."""
    origin = theirs.block(0, min(len(theirs), BLOCK)).double().mean(0)
    rows = _Single(theirs, origin)
    queries = rows if same else _Single(ours, origin)
    best = torch.full((len(ours), keep), torch.inf)
    where = torch.zeros(len(ours), keep, dtype=torch.long)
    lengths = torch.zeros(len(ours))
    longest = 0.0
    for i, a in queries.parts():
        lengths[i : i + len(a.rows)] = a.lengths
        for j, b in rows.parts(i if same else 0):
            longest = max(longest, b.longest)
            d2 = a.squared(b)
            if same and i == j:
                d2.fill_diagonal_(torch.inf)
            elif same:
                _keep_best(best, where, j, d2.T.contiguous(), i)
            _keep_best(best, where, i, d2, j)
    return where, best[:, -1] - _slack(1.0, ours.width) * (lengths + longest)


def _keep_best(best: Tensor, where: Tensor, row: int, d2: Tensor, column: int) -> None:
    """Let squared distances `[n, m]`, whose corner is at (row, column), into the best so far."""
    here, keep = slice(row, row + len(d2)), best.shape[1]
    values, places = d2.topk(min(keep, d2.shape[1]), 1, largest=False)
    values = torch.cat([best[here], values], 1)
    places = torch.cat([where[here], places + column], 1)
    best[here], order = values.topk(keep, 1, largest=False)
    where[here] = places.gather(1, order)


def _exact(block: Tensor, rows: Rows, where: Tensor) -> Tensor:
    """Distances in double precision of each query to its candidates, a few queries at a time."""
    parts = []
    for own, places in zip(block.double().split(256), where.split(256), strict=True):
        picked = rows.pick(places.flatten()).reshape(*places.shape, -1)
        between = torch.cdist(own[:, None], picked, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(between[:, 0])
    return torch.cat(parts)


def _by_hand(row: int, query: Tensor, rows: Rows, *, k: int, same: bool) -> tuple[Tensor, Tensor]:
    """One query against all rows in double precision: many ties, or rows nearly equal."""
    parts = [_pair_distance(query[None], b) for _, b in rows.blocks()]
    d = torch.cat(parts)
    if same:
        d[row] = torch.inf
    order = d.argsort(stable=True)[:k]
    return d[order], order
