"""Put the tags of a caption in another order at each step; the first few stay in front.

A text encoder reads what stands first most; in another order each tag is read for itself. Captions
without commas have one tag, and stay as they are.
"""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.recipe import CaptionShuffle, Recipe
from variegate.train.strategies.base import Seen, Strategy
from variegate.train.wording import tags_of


class ShuffleTags(Strategy):
    def __init__(self, plan: CaptionShuffle, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        tags = tags_of(caption)
        kept, rest = tags[: self.plan.keep], tags[self.plan.keep :]
        generator = seeds.at(self.seed, "caption_shuffle", step, row)
        if len(rest) < 2 or float(torch.rand((), generator=generator)) >= self.plan.p:
            return caption
        order = torch.randperm(len(rest), generator=generator).tolist()
        return ", ".join([*kept, *(rest[i] for i in order)])
