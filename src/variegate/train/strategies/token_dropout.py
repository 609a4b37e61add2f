"""Leave out tags or words of a caption by chance, never the trigger.

So no single combination of words stands for a picture. The empty caption is another matter, that
of `caption_dropout`: of a caption that would lose everything, the first part stays.
"""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.recipe import Recipe, TokenDropout
from variegate.train.strategies.base import Seen, Strategy
from variegate.train.wording import joined, parts_of, tags_of


class DropTokens(Strategy):
    def __init__(self, plan: TokenDropout, recipe: Recipe) -> None:
        self.plan = plan
        self.trigger = recipe.trigger
        self.seed = recipe.seed

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        if self.plan.unit == "tag":
            parts = [
                (tag, any(called for _, called in parts_of(tag, self.trigger)))
                for tag in tags_of(caption)
            ]
        else:
            parts = parts_of(caption, self.trigger)
        generator = seeds.at(self.seed, "token_dropout", step, row)
        draws = torch.rand(len(parts), generator=generator).tolist()
        kept = [
            part
            for (part, called), draw in zip(parts, draws, strict=True)
            if called or part == "," or draw >= self.plan.p
        ]
        if len(kept) == len(parts):
            return caption
        if not any(part != "," for part in kept):
            kept = [next(part for part, _ in parts if part != ",")]
        return ", ".join(kept) if self.plan.unit == "tag" else joined(kept)
