"""Leave whole updates out of a step by chance, as stochastic depth leaves out blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from variegate.adapter import Attached
from variegate.recipe import ModuleDropout, Recipe
from variegate.train.strategies.base import Strategy


class DropModules(Strategy):
    """Draws from torch's global generator, which the loop gives an address at each step."""

    def __init__(self, plan: ModuleDropout, recipe: Recipe) -> None:
        self.p = plan.p

    @property
    def chance(self) -> float:
        return min(0.95, self.p + self.control.dropout)

    def attached(self, on: Attached) -> None:
        on.between_factors(self._drop)

    def _drop(self, hidden: Tensor) -> Tensor:
        left_out = bool(torch.rand(()) < self.chance)
        return torch.zeros_like(hidden) if left_out else hidden
