"""Keep a running average of the factors, and give that as the adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variegate.adapter import Attached
from variegate.recipe import EMA, Recipe
from variegate.train.strategies.base import Strategy


class FollowSlowly(Strategy):
    """average <- decay * average + (1 - decay) * factors after each step. The factors are averaged
    and not their products: points so near to one another differ little in which is done."""

    def __init__(self, plan: EMA, recipe: Recipe) -> None:
        self.plan = plan
        self.average: dict[str, Tensor] = {}

    def moved(self, on: Attached, step: int) -> None:
        decay = self.plan.decay
        if self.plan.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, factor in on.named_parameters():
                if name in self.average:
                    self.average[name].lerp_(factor.float(), 1 - decay)
                else:
                    self.average[name] = factor.detach().float().clone()

    def state(self) -> dict[str, Any]:
        return dict(self.average)

    def restore(self, state: dict[str, Any]) -> None:
        self.average = {name: value.clone() for name, value in state.items()}

    def final(self) -> dict[str, Tensor] | None:
        return self.average or None
