"""Leave whole updates out of a step by chance, as stochastic depth leaves out blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from variegate.recipe import ModuleDropout, Recipe
from variegate.train.strategies.base import Dropout


class DropModules(Dropout):
    def __init__(self, plan: ModuleDropout, recipe: Recipe) -> None:
        self.p = plan.p

    def drop(self, hidden: Tensor) -> Tensor:
        left_out = bool(torch.rand(()) < self.chance)
        return torch.zeros_like(hidden) if left_out else hidden
