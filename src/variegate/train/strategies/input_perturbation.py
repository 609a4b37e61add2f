"""Noise the input more than the target says, so that sampling's small errors are met before."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import InputPerturbation, Recipe
from variegate.train.strategies.base import Strategy


class PerturbInput(Strategy):
    def __init__(self, plan: InputPerturbation, recipe: Recipe) -> None:
        self.amount = plan.amount
        self.seed = recipe.seed

    def perturb(self, noise: Float[Tensor, "b c y x"], step: int) -> Float[Tensor, "b c y x"]:
        more = torch.randn(noise.shape, generator=seeds.at(self.seed, "input_perturbation", step))
        return noise + self.amount * more.to(noise.device)
