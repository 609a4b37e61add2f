"""Drop whole ranks of the updates by chance, anew for each row; what is left is scaled up."""

from __future__ import annotations

import torch
from torch import Tensor

from variegate.adapter import Attached
from variegate.recipe import RankDropout, Recipe
from variegate.train.strategies.base import Strategy


class DropRanks(Strategy):
    """Draws from torch's global generator, which the loop gives an address at each step."""

    def __init__(self, plan: RankDropout, recipe: Recipe) -> None:
        self.p = plan.p

    @property
    def chance(self) -> float:
        return min(0.95, self.p + self.control.dropout)

    def attached(self, on: Attached) -> None:
        on.between_factors(self._drop)

    def _drop(self, hidden: Tensor) -> Tensor:
        if self.chance == 0:
            return hidden
        # The rank is the last axis after a linear layer, the second after a convolution.
        axis = 1 if hidden.ndim == 4 else hidden.ndim - 1
        shape = [hidden.shape[0] if i == 0 else 1 for i in range(hidden.ndim)]
        shape[axis] = hidden.shape[axis]
        kept = torch.rand(shape, device=hidden.device) >= self.chance
        return hidden * kept.to(hidden.dtype) / (1 - self.chance)
