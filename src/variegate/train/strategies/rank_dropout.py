"""Drop whole ranks of the updates by chance, anew for each row; what is left is scaled up."""

from __future__ import annotations

import torch
from torch import Tensor

from variegate.recipe import RankDropout, Recipe
from variegate.train.strategies.base import Dropout


class DropRanks(Dropout):
    def __init__(self, plan: RankDropout, recipe: Recipe) -> None:
        self.p = plan.p

    def drop(self, hidden: Tensor) -> Tensor:
        # The rank is the last axis after a linear layer, the second after a convolution.
        axis = 1 if hidden.ndim == 4 else hidden.ndim - 1
        shape = [hidden.shape[0] if i == 0 else 1 for i in range(hidden.ndim)]
        shape[axis] = hidden.shape[axis]
        kept = torch.rand(shape, device=hidden.device) >= self.chance
        return hidden * kept.to(hidden.dtype) / (1 - self.chance)
