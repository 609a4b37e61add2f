"""Updates as products of two matrices, and the smallest product that keeps most of one.

A plain LoRA is taken as it is, so that its dense update (out x in) is never formed. Every other
kind comes as its dense update times the identity, a vector (a norm's weight, a bias) as one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variegate.adapter import LayerUpdate, Update
from variegate.adapter.updates import FullUpdate
from variegate.errors import AdapterError

NOTHING = 1e-7  # of the largest singular value: what float32 cannot tell from nothing


@dataclass(frozen=True)
class Product:
    """left @ right in float64; `shape` is the weight's, convolutions counting as matrices and
    vectors as single rows."""

    left: Float[Tensor, "o r"]
    right: Float[Tensor, "r i"]
    shape: tuple[int, ...]

    @staticmethod
    def of(name: str, update: Update, weight: Tensor | None = None) -> Product:
        """weight: the base's, which every kind but plain LoRA and the difference of a vector needs.

        Raises: AdapterError without a weight where one is needed, or when it has another shape.
        """
        if weight is not None and not update.fits(tuple(weight.shape)):
            raise AdapterError(
                f"{name}: an update of {update.size} does not fit the base's weight of "
                f"{tuple(weight.shape)}; name the base that it was trained on"
            )
        if isinstance(update, LayerUpdate) and update.kind == "lora":
            left, right = update.up.flatten(1).double(), update.down.flatten(1).double()
            return Product(left * update.scale, right, (len(left), *update.down.shape[1:]))
        if update.of_vector:
            return Product.whole(update.delta())
        if weight is None:
            raise AdapterError(
                f"{name} is a {update.kind} layer, whose update is told only with the base's "
                "weight; name the base with --base"
            )
        return Product.whole(update.delta(weight))

    @staticmethod
    def whole(dense: Tensor) -> Product:
        """A dense update."""
        matrix = (dense.flatten(1) if dense.ndim > 1 else dense[None]).double()
        return Product(torch.eye(len(matrix), dtype=torch.float64), matrix, tuple(dense.shape))

    @staticmethod
    def sum(parts: Sequence[tuple[float, Product]]) -> Product:
        """The weighted sum, exact: factors stand side by side."""
        return Product(
            torch.cat([weight * part.left for weight, part in parts], 1),
            torch.cat([part.right for _, part in parts]),
            parts[0][1].shape,
        )

    def dense(self) -> Float[Tensor, "o i"]:
        return self.left @ self.right

    @property
    def of_vector(self) -> bool:
        return len(self.shape) == 1

    @property
    def most(self) -> int:
        """The largest rank it can have."""
        return min(*self.left.shape, self.right.shape[1])


@dataclass(frozen=True)
class Kept:
    """What recompressing a layer left of it: rank of how many (0 of a vector, which is kept whole),
    and squared norms."""

    rank: int
    of_rank: int
    squares: float
    of_squares: float

    @property
    def energy(self) -> float:
        """The kept share of the squared Frobenius norm, 1 of an update that is nothing."""
        return self.squares / self.of_squares if self.of_squares else 1.0


def kept_whole(product: Product) -> tuple[FullUpdate, Kept]:
    """A product as the difference that it is, which is how a vector's stays."""
    dense = product.dense()
    squares = float(dense.square().sum())
    return FullUpdate(dense.view(product.shape).float()), Kept(0, 0, squares, squares)


def compress(
    product: Product, *, rank: int | None = None, energy: float | None = None, floor: float = 0.0
) -> tuple[LayerUpdate, Kept]:
    """The LoRA of scale 1 nearest to a product (Eckart and Young, 1936), its factors balanced.

    With left = Q1 R1 and right' = Q2 R2 the singular values are those of R1 R2', r x r. Where r is
    no smaller than the matrix itself, they come from its smaller Gram matrix.
    rank: at most so much. energy: no more than keeps this share of the squared norm. Without both
    all is kept that float32 can tell from nothing. floor: singular values up to it are nothing.
    """
    left, values, right = svd(product)
    squares = values.square()
    real = int((values > max(floor, NOTHING * float(values[0]))).sum())
    count = real if rank is None else min(rank, real)
    if energy is not None and real:
        short = squares[:real].cumsum(0) < (energy - 1e-12) * squares[:real].sum()
        count = min(count, int(short.sum()) + 1)
    kept = Kept(count, real, float(squares[:count].sum()), float(squares[:real].sum()))
    count = max(1, count)  # nothing still has factors
    root = values[:count].sqrt() if real else torch.zeros(1, dtype=torch.float64)
    ones = [1] * (len(product.shape) - 2)
    update = LayerUpdate(
        down=(root[:, None] * right[:count]).float().reshape(count, *product.shape[1:]),
        up=(left[:, :count] * root).float().reshape(-1, count, *ones),
        alpha=float(count),
    )
    return update, kept


def svd(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """A product's left vectors [o, k], values, largest first, right vectors [k, i]; in float64."""
    if product.left.shape[1] >= min(product.left.shape[0], product.right.shape[1]):
        return _svd_of_dense(product.dense())
    q_left, r_left = torch.linalg.qr(product.left)
    q_right, r_right = torch.linalg.qr(product.right.mT)
    u, values, v = torch.linalg.svd(r_left @ r_right.mT)
    return q_left @ u, values, v @ q_right.mT


def _svd_of_dense(matrix: Float[Tensor, "o i"]) -> tuple[Tensor, Tensor, Tensor]:
    """By the eigenvectors of the smaller Gram matrix: several times quicker than an SVD, and
    exact to 1e-8 of the largest value."""
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _svd_of_dense(matrix.mT)
        return left.mT, values, right.mT
    squares, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    vectors = vectors.flip(-1)
    values = squares.flip(-1).clamp_min(0).sqrt()
    rows = vectors.mT @ matrix
    return vectors, values, rows / values.clamp_min(1e-300)[:, None]
