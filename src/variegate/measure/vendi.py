"""Effective numbers: how many different rows a set of features amounts to.

All are entropies of the eigenvalues of a similarity kernel over n. They grow with n as well as
with variety, and over many prompts they count the prompts: compare sets of one size, prompt by
prompt.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import EmptyImageSet
from variegate.measure.neighbours import Rows

NOTHING = 1e-12  # an eigenvalue below this share is rounding
PRODUCT_BLOCK = 4096  # rows multiplied at a time
LEAST_LENGTH = 1e-12  # of a row, which is not made one


def vendi(
    features: ArrayLike | Tensor,
    *,
    order: float | int = 2,
    bandwidth: float | None = None,
    shares: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, ""]:
    """Effective number of different rows, from 1 (all alike) to n (nothing in common).

    features: `[n, d]`. order: q of the Renyi entropy, 0 to infinity; 1 is Shannon's and heeds rare
    modes, 2 is steady at few rows, infinity heeds the commonest alone. bandwidth: of a Gaussian
    kernel on distances; None takes cosine similarities, whose spectrum is had from the smaller of
    n x n and d x d, the rows read block by block. shares: of each row, summing to 1; None: equal.

    Source: Friedman and Dieng, The Vendi Score, 2023 (arXiv 2210.02410); orders: Pasarkar and
    Dieng, Cousins of the Vendi Score, 2023 (arXiv 2310.12952).
    Raises: EmptyImageSet when n is 0, FeaturesError for rows that are not numbers.

    >>> round(float(vendi(torch.eye(3), order=1)), 3)
    3.0
    """
    if bandwidth is None:
        return _from_gram(_gram(Rows.of(features), shares, order), order)
    rows = Rows.of(features)
    kernel = gaussian_kernel(rows.block(0, len(rows)), bandwidth=bandwidth)
    return vendi_from_kernel(kernel, order, shares=shares)


def vendi_from_kernel(
    kernel: Float[Tensor, "n n"], order: float | int, *, shares: Float[Tensor, "n"] | None = None
) -> Float[Tensor, ""]:
    """(sum of lambda ** q) ** (1 / (1 - q)) over the eigenvalues lambda of kernel / n.

    kernel: positive semidefinite with ones on its diagonal. order q: at least 0, infinity allowed.
    shares: of each row, summing to 1; None: 1 / n each.
    Raises: EmptyImageSet when n is 0.
    """
    n = len(kernel)
    if n == 0:
        raise EmptyImageSet("an effective number was asked of no pictures; expected at least one")
    if shares is None:
        return _from_gram(kernel.double() / n, order)
    root = shares.double().sqrt()
    return _from_gram(kernel.double() * torch.outer(root, root), order)


def truncated_vendi(
    features: Float[Tensor, "n d"],
    *,
    keep: int,
    order: float | int = 1,
    bandwidth: float | None = None,
) -> Float[Tensor, ""]:
    """The effective number from the `keep` largest eigenvalues, the rest of the mass spread evenly
    over them: settles at a number of rows of the order of `keep`, where the whole one goes on
    growing.

    Source: Ospanov and Farnia 2025 (arXiv 2410.21719).
    """
    rows = Rows.of(features)
    if bandwidth is None:
        values = _eigenvalues(_gram(rows, None, order))
    else:
        kernel = gaussian_kernel(rows.block(0, len(rows)), bandwidth=bandwidth)
        values = _eigenvalues(kernel / len(kernel))
    top = values.sort(descending=True).values[:keep]
    return _renyi_number(top + (1 - top.sum()) / len(top), order)


def conditional_vendi(
    kernel: Float[Tensor, "n n"], prompt_kernel: Float[Tensor, "n n"], *, order: float | int = 1
) -> Float[Tensor, ""]:
    """The variety that the prompts do not explain: the effective number under both kernels'
    product over that under the prompts' kernel alone. 1: every picture follows from its prompt.

    Of order 2 it is the conditional RKE score. With a prompt kernel of ones and zeros (same prompt
    or not) it is a mean of the numbers within prompts, which is how variety is compared here.

    Source: Jalali et al. 2024 (arXiv 2411.02817).
    """
    joint = vendi_from_kernel(kernel * prompt_kernel, order)
    return joint / vendi_from_kernel(prompt_kernel, order)


def effective_number(
    features: Float[Tensor, "n d"], *, bandwidth: float, size: int | None = None
) -> float:
    """Order-2 effective number that sets of `size` rows like these would have.

    1 / (1 / size + (1 - 1 / size) m) with m the mean squared kernel of two *different* rows, which
    does not lean with n; so sets of different sizes can be compared at one reference size (None:
    their own, which is `vendi` of order 2 exactly).
    """
    n, at = len(features), size or len(features)
    if n < 2:
        return 1.0
    alike = float(pairs(gaussian_kernel(features, bandwidth=bandwidth)).square().mean())
    return 1 / (1 / at + (1 - 1 / at) * alike)


def gaussian_kernel(features: Float[Tensor, "n d"], *, bandwidth: float) -> Float[Tensor, "n n"]:
    """exp(-distance ** 2 / (2 bandwidth ** 2)) between all rows."""
    return torch.exp(-(distances(features) ** 2) / (2 * bandwidth**2))


def distances(features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Euclidean distances between all rows, exactly zero between equal ones."""
    rows = features.double()
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def pairs(square: Float[Tensor, "n n"]) -> Float[Tensor, "m"]:
    """What is above the diagonal: each pair of different rows once."""
    row, column = torch.triu_indices(len(square), len(square), 1)
    return square[row, column]


def _gram(rows: Rows, shares: Tensor | None, order: float | int) -> Tensor:
    """The smaller of X X' and X' X, X the unit rows times the roots of their shares: both have the
    same eigenvalues other than zeros.

    Few rows, double precision and orders below 1 (which count what is no eigenvalue but rounding)
    are multiplied in double, others in single and added in double: off by 6e-6 at worst, where
    eigenvalues fall as the fourth power, and by 1e-8 as those of features fall.
    """
    n = len(rows)
    if n <= rows.width:
        x = _weighed(rows, 0, n, shares, np.float64)
        return torch.from_numpy(x @ x.T)
    single = n > PRODUCT_BLOCK and order >= 1 and rows.stored(0, 1).dtype != np.float64
    gram = np.zeros((rows.width, rows.width))
    for start in range(0, n, PRODUCT_BLOCK):
        stop = min(start + PRODUCT_BLOCK, n)
        x = _weighed(rows, start, stop, shares, np.float32 if single else np.float64)
        gram += x.T @ x  # of such a product numpy works out one half and mirrors it
    return torch.from_numpy(gram)


def _weighed(rows: Rows, start: int, stop: int, shares: Tensor | None, kind: type) -> np.ndarray:
    x: np.ndarray = rows.stored(start, stop).astype(kind, copy=False)
    square = np.einsum("ij,ij->i", x, x)
    if not np.isfinite(square).all():
        x = rows.block(start, stop).double().numpy()  # says which row holds what is no number
        square = np.einsum("ij,ij->i", x, x)
    share = (
        np.full(len(x), 1 / len(rows)) if shares is None else shares[start:stop].double().numpy()
    )
    weight = np.sqrt(share) / np.sqrt(square).clip(LEAST_LENGTH)
    weighed: np.ndarray = x * weight.astype(x.dtype)[:, None]
    return weighed


def _from_gram(gram: Tensor, order: float | int) -> Tensor:
    if order == 2:  # the squared eigenvalues sum to the squared entries
        return gram.square().sum().reciprocal()
    return _renyi_number(_eigenvalues(gram), order)


def _eigenvalues(gram: Tensor) -> Tensor:
    values = torch.from_numpy(np.linalg.eigvalsh(gram.double().numpy()))
    values = values[values > NOTHING]
    return values / values.sum()


def _renyi_number(shares: Tensor, order: float | int) -> Tensor:
    if order == 1:
        return torch.exp(-torch.special.xlogy(shares, shares).sum())
    if math.isinf(order):
        return shares.max().reciprocal()
    return shares.pow(order).sum().pow(1 / (1 - order))
