"""Weigh noise levels by min(SNR, gamma), so that nearly clean pictures do not rule the loss."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.recipe import MinSNR, Recipe
from variegate.train.strategies.base import Strategy


class CapEasyLevels(Strategy):
    def __init__(self, plan: MinSNR, recipe: Recipe) -> None:
        self.gamma = float(plan.gamma)

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        return schedule.min_snr_weight(timesteps, gamma=self.gamma)
