"""Norms and ranks of updates up @ down, in the cost of r x r matrices: pure tensor functions.

The dense update (out x in) is never formed. With G = up' up and H = down down', both r x r, the
squared singular values of up @ down are the eigenvalues of H^1/2 G H^1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

NOTHING = 1e-10  # an eigenvalue below this share of the largest is rounding


@dataclass(frozen=True)
class Factors:
    """One layer's update: scale * up @ down, convolution kernels flattened to matrices."""

    name: str
    up: Float[Tensor, "o r"]
    down: Float[Tensor, "r i"]
    scale: float


@dataclass(frozen=True)
class Grams:
    """up' up and down down' of several updates of one rank, in float64."""

    up: Float[Tensor, "l r r"]
    down: Float[Tensor, "l r r"]
    scale: Float[Tensor, " l"]


def grams(updates: Sequence[Factors]) -> dict[int, tuple[list[str], Grams]]:
    """The updates by rank, with their names; gradients reach the factors."""
    by_rank: dict[int, list[Factors]] = {}
    for update in updates:
        by_rank.setdefault(update.up.shape[1], []).append(update)
    return {
        rank: (
            [u.name for u in same],
            Grams(
                torch.stack([(u.up.T @ u.up).double() for u in same]),
                torch.stack([(u.down @ u.down.T).double() for u in same]),
                torch.tensor(
                    [u.scale for u in same], dtype=torch.float64, device=same[0].up.device
                ),
            ),
        )
        for rank, same in by_rank.items()
    }


def singular_values(of: Grams) -> Float[Tensor, "l r"]:
    """Of each scale * up @ down, largest first; the smallest are exact to 1e-8 of the largest."""
    with torch.no_grad():
        root = _power(of.down, 0.5)
        squares = torch.linalg.eigvalsh(root @ of.up @ root).clamp_min(0)
        return (squares.sqrt() * of.scale.abs()[:, None]).flip(-1)


def clipped(updates: Sequence[Factors], limits: Mapping[str, float]) -> list[Factors]:
    """The updates with their singular values above the limits of their names brought down to
    these; all others stay, directions too.

    With u and v the vectors of a value s above its limit k: (1 - (1 - sqrt(k/s)) u u') up, and down
    likewise with v, written with u = up H^1/2 y / s and v' = u' up down / s.
    """
    slim, found = dict[str, Factors](), dict[str, Factors]()
    for update in updates:
        if update.up.shape[1] > min(update.up.shape[0], update.down.shape[1]):
            found[update.name] = _clipped_dense(update, limits[update.name])
        else:
            slim[update.name] = update
    with torch.no_grad():
        for names, of in grams(list(slim.values())).values():
            limit = of.up.new_tensor([limits[name] for name in names])
            for name, up, down in zip(names, *_clipping(of, limit), strict=True):
                old = slim[name]
                up, down = old.up @ up.to(old.up), down.to(old.up) @ old.down
                found[name] = replace(old, up=up, down=down)
    return [found[u.name] for u in updates]


def _clipping(
    of: Grams, limits: Float[Tensor, " l"]
) -> tuple[Float[Tensor, "l r r"], Float[Tensor, "l r r"]]:
    """What to multiply `up` by from the right and `down` from the left."""
    root = _power(of.down, 0.5)
    squares, vectors = torch.linalg.eigh(root @ of.up @ root)
    squares = squares.clamp_min(1e-100)
    values = squares.sqrt() * of.scale.abs()[:, None]
    taken = _taken(values, limits.to(values)[:, None])
    one = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    of_up = root @ vectors
    to_down = of_up.mT @ of.up
    up = one - (of_up * (taken / squares)[:, None, :]) @ to_down
    down = one - (of.down @ to_down.mT * (taken / squares.square())[:, None, :]) @ to_down
    return up, down


def _clipped_dense(update: Factors, limit: float) -> Factors:
    """The same where the dense update is smaller than r x r."""
    with torch.no_grad():
        up, down = update.up.double(), update.down.double()
        u, values, v = torch.linalg.svd(up @ down, full_matrices=False)
        taken = _taken(values * abs(update.scale), values.new_tensor(limit))
        if not taken.any():
            return update
        up = up - (u * taken) @ (u.mT @ up)
        down = down - (down @ v.mT * taken) @ v
        return replace(update, up=up.to(update.up), down=down.to(update.down))


def _taken(values: Tensor, limits: Tensor) -> Tensor:
    """What each of the factors gives of a direction, as a share, so that its value is the limit."""
    return 1 - (limits / values.clamp_min(1e-50)).clamp_max(1).sqrt()


def nuclear_norm(of: Grams) -> Float[Tensor, " l"]:
    """The sum of the singular values of each update, with its gradient.

    As 1/2 tr(G K) + 1/2 tr(H J) with K = H^1/2 S^-1/2 H^1/2, S = H^1/2 G H^1/2, and J likewise,
    both held constant: the factors balanced as in the variational form min 1/2 (|A|^2 + |B|^2)
    over A, B with the same product (Srebro et al. 2004, Maximum-Margin Matrix Factorization), so
    value and gradient (up K = U V' down') are exact. Where the update is zero, so is the gradient.
    """
    with torch.no_grad():
        of_up = _balance(of.up, of.down)
        of_down = _balance(of.down, of.up)
    halves = (of.up * of_up).sum((1, 2)) + (of.down * of_down).sum((1, 2))
    return of.scale.abs() * halves / 2


def factor_norm(of: Grams) -> Float[Tensor, " l"]:
    """scale / 2 (|up|^2 + |down|^2), never below the nuclear norm and equal where the factors are
    balanced (up' up = down down')."""
    traces = of.up.diagonal(dim1=1, dim2=2).sum(1) + of.down.diagonal(dim1=1, dim2=2).sum(1)
    return of.scale.abs() * traces / 2


def squared_norm(of: Grams) -> Float[Tensor, " l"]:
    """The squared Frobenius norm of each update, scale^2 tr(G H)."""
    return of.scale.square() * (of.up * of.down).sum((1, 2))


def stable_rank(values: Float[Tensor, "l r"]) -> Float[Tensor, " l"]:
    """The squared Frobenius norm over the squared spectral norm: 1 to r; 0 for a zero update."""
    largest = values[:, 0].square()
    return torch.where(largest > 0, values.square().sum(1) / largest.clamp_min(1e-300), 0.0)


def effective_rank(values: Float[Tensor, "l r"]) -> Float[Tensor, " l"]:
    """The exponential of the entropy of the singular values' shares; 0 for a zero update.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    total = values.sum(1)
    shares = values / total.clamp_min(1e-300)[:, None]
    number = torch.exp(-torch.special.xlogy(shares, shares).sum(1))
    return torch.where(total > 0, number, 0.0)


def _balance(own: Float[Tensor, "l r r"], other: Float[Tensor, "l r r"]) -> Tensor:
    root = _power(other, 0.5)
    return root @ _power(root @ own @ root, -0.5) @ root


def _power(square: Float[Tensor, "l r r"], exponent: float) -> Tensor:
    """A power of symmetric matrices that are not negative; what is nothing stays nothing."""
    values, vectors = torch.linalg.eigh((square + square.mT) / 2)
    real = values > NOTHING * values.amax(-1, keepdim=True).clamp_min(1e-300)
    powers = torch.where(real, values.clamp_min(1e-300) ** exponent, 0.0)
    return (vectors * powers[:, None, :]) @ vectors.mT
