"""Exact nearest neighbours in blocks: who lies near whom, in memory that does not grow.

Matrix products in single precision find the candidates, and whatever they cannot tell apart is
worked out again in double. So the answers are those of double precision throughout, at the speed
of single. Rows may be a memory-mapped array on disk; a block of them is read at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import EmptyImageSet, FeaturesError

BLOCK = 2048  # rows on each side of one matrix product
PAIRS = 65_536  # worked out again at a time
SPARE = 8  # candidates kept beyond those asked for
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

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start..stop as they are stored, checked for what is not a number."""
        part = self.table[start:stop]
        found = (
            part.detach().cpu()
            if isinstance(part, Tensor)
            else torch.from_numpy(
                np.array(part)  # a copy: a memory map may not be written to
            )
        )
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
    neighbour. For rows of unit length the cosine is 1 - distance ** 2 / 2.
    Raises: FeaturesError when there are fewer than k rows to find or the widths differ.
    """
    ours, theirs = Rows.of(queries), Rows.of(rows)
    _same_width(ours, theirs)
    origin = theirs.block(0, min(len(theirs), BLOCK)).double().mean(0)
    available = len(theirs) - same
    if available < k:
        raise FeaturesError(
            f"{k} nearest neighbours were asked for among {available} rows; give more pictures"
            " or a smaller k"
        )
    keep = min(k + SPARE, available)
    distance = torch.empty(len(ours), k, dtype=torch.float64)
    index = torch.empty(len(ours), k, dtype=torch.long)
    for start, block in ours.blocks():
        where, certain = _candidates(start, block, theirs, origin=origin, keep=keep, same=same)
        exact = _exact(block, theirs, where)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        exact, where = exact.gather(1, order), where.gather(1, order)
        # A row left out may be as near as the last one kept only if it was so by rounding.
        # (At distance nothing there is nothing nearer, however many equal rows there are.)
        farthest = exact[:, -1]
        unsure = (farthest**2 > certain) & (farthest > 0) if keep < available else None
        if unsure is not None and bool(unsure.any()):
            for row in unsure.nonzero().flatten().tolist():
                exact[row], where[row] = _by_hand(start + row, block[row], theirs, k=k, same=same)
        stop = start + len(block)
        distance[start:stop], index[start:stop] = exact, where
    return Neighbours(distance, index)


def within(
    queries: Rows, rows: Rows, query_radii: Tensor, row_radii: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who lies strictly within whose radius, exactly, in one pass.

    Returns, per query, in how many rows' balls it lies and how many rows its own ball holds; and
    per row the same the other way round (balls of queries it lies in; queries in its ball).
    """
    _same_width(queries, rows)
    in_balls = torch.zeros(len(queries), dtype=torch.long)
    holds = torch.zeros(len(queries), dtype=torch.long)
    row_in_balls = torch.zeros(len(rows), dtype=torch.long)
    row_holds = torch.zeros(len(rows), dtype=torch.long)
    origin = rows.block(0, min(len(rows), BLOCK)).double().mean(0)
    for i, a in queries.blocks():
        here = slice(i, i + len(a))
        ra = query_radii[here].square()
        for j, b in rows.blocks():
            there = slice(j, j + len(b))
            rb = row_radii[there].square()
            d2, slack = _squared(a, b, origin)
            in_row, in_query = d2 < rb.to(d2.dtype), d2 < ra.to(d2.dtype)[:, None]
            near = ((d2 - rb.to(d2.dtype)).abs() <= slack) | (
                (d2 - ra.to(d2.dtype)[:, None]).abs() <= slack
            )
            for pairs in near.nonzero().split(PAIRS):
                x, y = pairs.unbind(1)
                exact = _pair_distance(a[x], b[y])
                in_row[x, y] = exact < row_radii[there][y]
                in_query[x, y] = exact < query_radii[here][x]
            in_balls[here] += in_row.sum(1)
            row_holds[there] += in_row.sum(0)
            holds[here] += in_query.sum(1)
            row_in_balls[there] += in_query.sum(0)
    return in_balls, holds, row_in_balls, row_holds


def _same_width(a: Rows, b: Rows) -> None:
    if a.width != b.width:
        raise FeaturesError(
            f"features of {a.width} and of {b.width} numbers cannot be compared; compute both with"
            " one encoder"
        )


def _squared(a: Tensor, b: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances `[n, m]` in single precision and how far each may be off.

    Measured from about the middle of the rows: of features that all lie to one side of nought,
    most of the length would cancel.
    """
    a, b = (a.double() - origin).float(), (b.double() - origin).float()
    length_a, length_b = a.square().sum(1), b.square().sum(1)
    d2 = torch.addmm(length_b[None], a, b.T, alpha=-2).add_(length_a[:, None])
    # Rounding of a sum of d products grows with the root of d; four deviations of it.
    slack = 4 * EPSILON * a.shape[1] ** 0.5 * (length_a[:, None] + length_b[None])
    return d2, slack


def _pair_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).square().sum(-1).sqrt()


def _candidates(
    start: int, block: Tensor, rows: Rows, *, origin: Tensor, keep: int, same: bool
) -> tuple[Tensor, Tensor]:
    """The `keep` nearest by single precision, and below which squared distance no other can be."""
    best = torch.full((len(block), 0), torch.inf)
    where = torch.zeros((len(block), 0), dtype=torch.long)
    most = torch.zeros(len(block))
    for j, b in rows.blocks():
        d2, slack = _squared(block, b, origin)
        most = torch.maximum(most, slack.amax(1))
        if same:
            own = torch.arange(start, start + len(block)) - j
            inside = (own >= 0) & (own < len(b))
            d2[inside.nonzero().flatten(), own[inside]] = torch.inf
        values, columns = d2.topk(min(keep, d2.shape[1]), 1, largest=False)
        best, where = torch.cat([best, values], 1), torch.cat([where, columns + j], 1)
        if best.shape[1] > keep:
            best, order = best.topk(keep, 1, largest=False)
            where = where.gather(1, order)
    return where, best.amax(1) - most


def _exact(block: Tensor, rows: Rows, where: Tensor) -> Tensor:
    """Distances in double precision of each query to its candidates, a few queries at a time."""
    parts = []
    for i in range(0, len(block), 256):
        picked = rows.pick(where[i : i + 256].flatten())
        picked = picked.reshape(*where[i : i + 256].shape, -1)
        parts.append(_pair_distance(block[i : i + 256, None], picked))
    return torch.cat(parts)


def _by_hand(row: int, query: Tensor, rows: Rows, *, k: int, same: bool) -> tuple[Tensor, Tensor]:
    """One query against all rows in double precision: many ties, or rows nearly equal."""
    parts = [_pair_distance(query[None], b) for _, b in rows.blocks()]
    d = torch.cat(parts)
    if same:
        d[row] = torch.inf
    order = d.argsort(stable=True)[:k]
    return d[order], order
