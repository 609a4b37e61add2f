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
    and not their products: points so near to one another differ little in which is done. A
    half-life in pictures (Karras et al. 2022, arXiv 2206.00364, appendix F) means the same at any
    batch."""

    def __init__(self, plan: EMA, recipe: Recipe) -> None:
        self.plan = plan
        self.decay = plan.decay
        if plan.half_life is not None:
            self.decay = 0.5 ** (recipe.optimizer.batch_size / plan.half_life)
        self.average: dict[str, Tensor] = {}

    def moved(self, on: Attached, step: int) -> None:
        decay = self.decay
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
