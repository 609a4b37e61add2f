"""Shift each channel's noise a little, so that a picture's overall brightness is learnt too."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import NoiseOffset, Recipe
from variegate.train.strategies.base import Strategy


class ShiftNoise(Strategy):
    """noise + amount * n, one n from N(0, 1) for each row and channel (Guttenberg, Diffusion with
    offset noise, 2023)."""

    def __init__(self, plan: NoiseOffset, recipe: Recipe) -> None:
        self.amount = plan.amount
        self.seed = recipe.seed

    def noise(self, noise: Float[Tensor, "b c y x"], step: int) -> Float[Tensor, "b c y x"]:
        rng = seeds.at(self.seed, "noise_offset", step)
        shift = torch.randn(*noise.shape[:2], 1, 1, generator=rng)
        return noise + self.amount * shift.to(noise.device)
