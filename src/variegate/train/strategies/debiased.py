"""Weigh noise levels by 1 / sqrt(SNR): what an estimate from much noise misses counts fully."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.recipe import Debiased, Recipe
from variegate.train.strategies.base import Strategy


class WeighByNoise(Strategy):
    """For v the weight is 1 / (SNR + 1), which is what it comes to in units of its own error
    (as published trainers have it); both are finite at a terminal SNR of zero."""

    def __init__(self, plan: Debiased, recipe: Recipe) -> None:
        self.least = 1 / plan.most

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        snr = schedule.snr(timesteps).clamp_min(self.least)
        return 1 / (snr + 1) if schedule.prediction == "v_prediction" else snr.rsqrt()
