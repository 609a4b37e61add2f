"""Distances between two sets of features as distributions: FD, KID, MMD.

Reported, never a gate: all three mix how a set looks with how varied it is, and FD on fewer rows
than the features are wide is about its own rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from variegate import seeds
from variegate.errors import FeaturesError
from variegate.measure.neighbours import Rows

MOMENT_BLOCK = 16_384  # rows summed at a time


@dataclass(frozen=True)
class Moments:
    """The mean `[d]` and covariance `[d, d]` (over n - 1) of n rows, in double precision."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]
    n: int

    @staticmethod
    def of(features: ArrayLike | Tensor) -> Moments:
        """In one pass over the rows, which may lie on disk. Raises: FeaturesError for one row."""
        rows = Rows.of(features)
        if len(rows) < 2:
            raise FeaturesError("one row has no covariance; give two pictures or more")
        # Sums about the first block's mean: about zero, the two terms of a covariance would
        # cancel and leave rounding.
        shift = rows.block(0, min(len(rows), MOMENT_BLOCK)).double().mean(0)
        total = torch.zeros(rows.width, dtype=torch.float64)
        products = np.zeros((rows.width, rows.width))
        for _, block in rows.blocks(MOMENT_BLOCK):
            away = block.double() - shift
            total += away.sum(0)
            products += away.numpy().T @ away.numpy()  # numpy works out one half and mirrors it
        mean = total / len(rows)
        product = torch.from_numpy(products)
        covariance = (product - len(rows) * torch.outer(mean, mean)) / (len(rows) - 1)
        return Moments(mean + shift, covariance, len(rows))


def frechet_distance(
    a: ArrayLike | Tensor | Moments, b: ArrayLike | Tensor | Moments
) -> Float[Tensor, ""]:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), of features `[n, d]` or their moments.

    The trace of (A B)^1/2 is the sum of the singular values of L_A' L_B with A = L_A L_A', the
    roots of the eigenvalues of L_A' B L_A: one Cholesky factor and one symmetric eigenproblem, and
    no square root of a matrix that is not symmetric. Where A has no full rank (fewer rows than
    d), a factor from its eigenvectors stands in.

    Source: Heusel et al. 2017 (arXiv 1706.08500), with any encoder.
    """
    ours = a if isinstance(a, Moments) else Moments.of(a)
    theirs = b if isinstance(b, Moments) else Moments.of(b)
    if len(ours.mean) != len(theirs.mean):
        raise FeaturesError(
            f"features of {len(ours.mean)} and of {len(theirs.mean)} numbers cannot be compared;"
            " compute both with one encoder"
        )
    factor, failed = torch.linalg.cholesky_ex(ours.covariance)
    if bool(failed):
        values, vectors = torch.linalg.eigh(ours.covariance)
        factor = vectors * values.clamp_min(0).sqrt()
    middle = factor.T @ theirs.covariance @ factor
    roots = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp_min(0).sqrt()
    gap = (ours.mean - theirs.mean).square().sum()
    trace = ours.covariance.trace() + theirs.covariance.trace()
    return (gap + trace - 2 * roots.sum()).clamp_min(0)


def mifid(
    train: Float[Tensor, "n d"], samples: Float[Tensor, "m d"], *, least: float = 0.1
) -> Float[Tensor, ""]:
    """The Frechet distance over how far the training pictures are from their nearest samples: the
    mean of 1 - |cosine|, taken for 1 when it is `least` or more. Copies of all cost.

    Wants ten thousand pictures or more, as the distance under it does. Copies of a few cost little,
    since the mean is over the training pictures.

    Source: Bai et al. 2021 (arXiv 2106.03062), as torchmetrics 1.9 has it.
    """
    distance = frechet_distance(train, samples)
    units = [
        torch.nn.functional.normalize(rows[rows.sum(1) != 0].double()) for rows in (train, samples)
    ]
    apart = (1 - (units[0] @ units[1].T).abs()).amin(1).mean()
    penalty = apart if float(apart) < least else torch.ones_like(apart)
    return distance / (penalty + 1e-14) if float(distance) > 1e-8 else torch.zeros_like(distance)


def kid(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    size: int = 1000,
    indices: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> tuple[float, float]:
    """The mean and the deviation over subsets of the unbiased squared MMD under the cubic kernel
    (x.y / d + 1)^3. Rows are drawn at a fixed address, so that it gives the same number again;
    size is cut to the smaller set.

    indices: the subsets' rows, where they are to be somebody else's.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    size = min(size, len(a), len(b))
    if size < 2:
        raise FeaturesError("KID wants two pictures or more in each set")
    if indices is None:
        rng = seeds.numpy_at(0, "measure.kid", f"{len(a)}.{len(b)}")
        indices = [
            (
                torch.from_numpy(rng.permutation(len(a))[:size]),
                torch.from_numpy(rng.permutation(len(b))[:size]),
            )
            for _ in range(subsets)
        ]
    found = []
    for rows_a, rows_b in indices:
        x, y = a[rows_a].double(), b[rows_b].double()
        found.append(
            _unbiased(_cubic(x, x), _cubic(y, y), _cubic(x, y)),
        )
    return float(np.mean(found)), float(np.std(found))


def mmd(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, bandwidth: float | None = None
) -> float:
    """The unbiased squared maximum mean discrepancy under a Gaussian kernel.

    bandwidth: None takes the median distance over both sets. (A fixed one is a trap: at ten times
    the length of the features the kernel is a straight line and the number a hundredth of the
    squared distance of the means, blind to variety.)

    Source: Gretton et al., A Kernel Two-Sample Test, 2012, lemma 6.
    """
    if min(len(a), len(b)) < 2:
        raise FeaturesError("MMD wants two pictures or more in each set")
    both = torch.cat([a, b]).double()
    squared = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    if bandwidth is None:
        row, column = torch.triu_indices(len(both), len(both), 1)
        bandwidth = float(squared[row, column].median().sqrt())
        if bandwidth == 0:
            return 0.0
    k, n = torch.exp(-squared / (2 * bandwidth**2)), len(a)
    return _unbiased(k[:n, :n], k[n:, n:], k[:n, n:])


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    n, m = len(xx), len(yy)
    among_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    among_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(among_x + among_y - 2 * xy.mean())
