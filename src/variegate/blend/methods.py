"""How several updates of one layer become one, each method as its paper has it.

Weights scale each member's update W_i before anything is added up, and their sign is heard where
signs are elected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from variegate.blend.products import Product

Method = Literal["sum", "soup", "svd", "ties", "dare", "dare_ties", "knots"]
METHODS: tuple[Method, ...] = get_args(Method)
# The share of entries that is kept where nothing is said: the papers' own.
DENSITIES = {"ties": 0.2, "dare": 0.1, "dare_ties": 0.1, "knots": 0.2}


@dataclass(frozen=True)
class Member:
    """One member's update of a layer; `drops` draws one number in 0..1 per entry, for DARE."""

    weight: float
    update: Product
    drops: Callable[[], Float[Tensor, "o i"]]


def combine(members: Sequence[Member], method: Method, *, density: float) -> Product:
    """The update that members make together, in factors where the method allows it."""
    match method:
        case "sum" | "soup" | "svd":
            return Product.sum([(m.weight, m.update) for m in members])
        case "knots":
            return _knots(members, density)
    shape = members[0].update.shape
    if method == "ties":
        parts = [_trimmed(m.update.dense(), density) for m in members]
    else:
        parts = [_dropped(m, density) for m in members]
    parts = [m.weight * part for m, part in zip(members, parts, strict=True)]
    together = sum(parts[1:], parts[0]) if method == "dare" else _elected_mean(parts)
    return Product.whole(together.view(shape))


def _trimmed(entries: Float[Tensor, "o i"], density: float) -> Float[Tensor, "o i"]:
    """The largest entries alone, zeros elsewhere.

    Source: Yadav et al., TIES-Merging, 2023, arXiv 2306.01708, section 4, step 1; there over all
    layers at once, here layer by layer.
    """
    count = round(density * entries.numel())
    flat = entries.flatten()
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count).indices
    kept[places] = flat[places]
    return kept.view_as(entries)


def _elected_mean(parts: Sequence[Float[Tensor, "o i"]]) -> Float[Tensor, "o i"]:
    """Where signs differ, the sign of the larger sum wins, and the mean is of those that have it.

    Source: as `_trimmed`, steps 2 and 3; a sum of zero counts as positive.
    """
    stacked = torch.stack(list(parts))
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0).to(stacked)
    agree = stacked * sign > 0
    return (stacked * agree).sum(0) / agree.sum(0).clamp_min(1)


def _dropped(member: Member, density: float) -> Float[Tensor, "o i"]:
    """Each entry kept with probability `density` and divided by it, so that the mean stays.

    Source: Yu et al., Language Models are Super Mario (DARE), 2023, arXiv 2311.03099, section 3.
    """
    entries = member.update.dense()
    return torch.where(member.drops() < density, entries / density, 0.0)


def _knots(members: Sequence[Member], density: float) -> Product:
    """U of [W_1 ... W_k] = U S [V_1 ... V_k], with TIES over the S V_i.

    The dense updates are not formed: with [left_1 ... left_k] = Q R, the matrix that is decomposed
    has as many rows as all ranks together.
    Source: Stoica et al., Model merging with SVD to tie the KnOTS, 2024, arXiv 2410.19735,
    section 4 (KnOTS-TIES, S on the side of V).
    """
    inputs = members[0].update.right.shape[1]
    q, r = torch.linalg.qr(torch.cat([m.update.left for m in members], 1))
    ranks = [m.update.left.shape[1] for m in members]
    inner = [part @ m.update.right for part, m in zip(r.split(ranks, dim=1), members, strict=True)]
    u, values, v = torch.linalg.svd(torch.cat(inner, 1), full_matrices=False)
    blocks = (values[:, None] * v).split(inputs, dim=1)
    trimmed = [m.weight * _trimmed(b, density) for m, b in zip(members, blocks, strict=True)]
    return Product(q @ u, _elected_mean(trimmed), members[0].update.shape)
