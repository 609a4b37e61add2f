"""Mirror rows left to right by chance."""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.recipe import Flip, Recipe
from variegate.train.strategies.base import Strategy


class MirrorPictures(Strategy):
    def __init__(self, plan: Flip, recipe: Recipe) -> None:
        self.p = plan.p
        self.seed = recipe.seed

    def mirrors(self, step: int, row: int) -> bool:
        draw = torch.rand((), generator=seeds.at(self.seed, "flip", step, row))
        return bool(draw < self.p)
