"""Add Gaussian noise to what the network reads of a caption; the empty caption stays as it is.

A caption that reads a little differently each time cannot be the key to one picture. Source:
Somepalli et al. 2023 (arXiv 2305.20086), section 6, "Gaussian noise". Theirs is of one size for
all; here it is a share of the embedding's own spread, which differs between families of bases.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import CaptionNoise, Recipe
from variegate.train.strategies.base import Strategy


class StirWords(Strategy):
    stirs = True

    def __init__(self, plan: CaptionNoise, recipe: Recipe) -> None:
        self.amount = plan.amount
        self.seed = recipe.seed

    def stir(
        self, embedding: Float[Tensor, "t d"], caption: str, step: int, row: int
    ) -> Float[Tensor, "t d"]:
        if not caption:
            return embedding
        generator = seeds.at(self.seed, "caption_noise", step, row)
        noise = torch.randn(embedding.shape, generator=generator).to(embedding)
        return embedding + self.amount * embedding.detach().float().std() * noise
