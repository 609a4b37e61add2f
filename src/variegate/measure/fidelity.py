"""Precision, recall, density, coverage: does a set lie where another lies, and does it fill it?

Reported, never a gate. At the sizes at which adapters are measured these numbers are degenerate:
coverage is near 1 for 16 real pictures whatever the samples are, perfect copies of the training
pictures score best of all, and recall falls to nothing for a set shrunk by a third. They want a
thousand real pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import FeaturesError
from variegate.measure.neighbours import Rows, nearest, within

ENOUGH = 1000  # real pictures below which the numbers are degenerate


@dataclass(frozen=True)
class Fidelity:
    """precision: share of fake rows within some real row's ball; recall: share of real rows within
    some fake row's ball; density: the mean number of real balls around a fake row, over k;
    coverage: share of real rows whose ball holds a fake row. `enough`: whether there are the
    thousand real rows that these want."""

    precision: float
    recall: float
    density: float
    coverage: float
    enough: bool


def fidelity(real: ArrayLike | Tensor, fake: ArrayLike | Tensor, *, k: int = 5) -> Fidelity:
    """How well fake rows `[m, d]` lie on real rows `[n, d]`. A row's ball reaches to its k-th
    nearest other row of its own set; a row on its edge is outside.

    Exact, in blocks: cost grows with the product of the counts, memory does not. k = 3 is usual for
    precision and recall, k = 5 for density and coverage.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991); Naeem et al. 2020 (arXiv 2002.09797).
    Raises: FeaturesError when a set has no more than k rows.
    """
    ours, theirs = Rows.of(real, name="the real features"), Rows.of(fake, name="the fake features")
    for name, rows in (("real", ours), ("fake", theirs)):
        if len(rows) <= k:
            raise FeaturesError(
                f"{len(rows)} {name} rows have no {k} neighbours; give more pictures or a smaller k"
            )
    real_radii = nearest(real, real, k=k, same=True).distance[:, -1]
    fake_radii = nearest(fake, fake, k=k, same=True).distance[:, -1]
    found = within(theirs, ours, fake_radii, real_radii)
    return Fidelity(
        precision=float((found.in_balls > 0).double().mean()),
        recall=float((found.row_in_balls > 0).double().mean()),
        density=float(found.in_balls.double().mean()) / k,
        coverage=float((found.row_holds > 0).double().mean()),
        enough=len(ours) >= ENOUGH,
    )
