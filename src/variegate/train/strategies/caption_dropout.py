"""Train some rows on the empty caption, so that guidance keeps the ground it stands on."""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.recipe import CaptionDropout, Recipe
from variegate.train.strategies.base import Seen, Strategy


class DropCaptions(Strategy):
    def __init__(self, plan: CaptionDropout, recipe: Recipe) -> None:
        self.p = plan.p
        self.seed = recipe.seed

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        draw = torch.rand((), generator=seeds.at(self.seed, "caption_dropout", step, row))
        return "" if float(draw) < self.p else caption
