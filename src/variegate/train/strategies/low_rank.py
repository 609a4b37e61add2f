"""Add a norm of each update to the loss, so that it stays small and of low rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variegate.adapter import Attached
from variegate.lowrank import factor_norm, grams, nuclear_norm, squared_norm
from variegate.recipe import LowRank, Recipe
from variegate.train.strategies.base import Strategy

NORMS = {"nuclear": nuclear_norm, "factors": factor_norm, "frobenius": squared_norm}


class KeepRankLow(Strategy):
    """strength times the sum over layers: the nuclear norm (the convex stand-in for rank, exact),
    its variational surrogate 1/2 (|A|^2 + |B|^2), or the squared Frobenius norm, all of the update
    and not of its factors alone. (AdamW's decay, on each factor apart from the gradient, is none
    of them.)"""

    def __init__(self, plan: LowRank, recipe: Recipe) -> None:
        self.norm = NORMS[plan.norm]
        self.strength = plan.strength

    def penalty(self, on: Attached) -> Float[Tensor, ""] | None:
        found = [self.norm(of).sum() for _, of in grams(on.low_rank()).values()]
        return self.strength * torch.stack(found).sum().float()
