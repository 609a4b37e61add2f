"""Average the factors of the last part of a run evenly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variegate.adapter import Attached
from variegate.recipe import SWA, Recipe
from variegate.train.strategies.base import Strategy


class AverageTheEnd(Strategy):
    def __init__(self, plan: SWA, recipe: Recipe) -> None:
        steps = recipe.optimizer.steps
        self.first = steps - int(plan.last * steps) + 1
        self.every = plan.every
        self.last = steps
        self.points = 0
        self.average: dict[str, Tensor] = {}

    def moved(self, on: Attached, step: int) -> None:
        if step < self.first or ((step - self.first) % self.every and step != self.last):
            return
        self.points += 1
        with torch.no_grad():
            for name, factor in on.named_parameters():
                if name in self.average:
                    self.average[name].lerp_(factor.float(), 1 / self.points)
                else:
                    self.average[name] = factor.detach().float().clone()

    def state(self) -> dict[str, Any]:
        return {"points": self.points, **self.average}

    def restore(self, state: dict[str, Any]) -> None:
        self.points = int(state["points"])
        self.average = {n: v.clone() for n, v in state.items() if isinstance(v, Tensor)}

    def final(self) -> dict[str, Tensor] | None:
        return self.average or None
