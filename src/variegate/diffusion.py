"""Noise levels, noising, targets and clean estimates: pure tensor functions.

Symbols follow the papers: x0 is clean, x_t noised, alpha_bar the kept share of its power,

    x_t = alpha x0 + sigma noise,   alpha = sqrt(alpha_bar),   sigma = sqrt(1 - alpha_bar),
    snr = alpha_bar / (1 - alpha_bar),   v = alpha noise - sigma x0.

Nothing here divides by zero at a terminal signal-to-noise ratio of zero (alpha_bar = 0), where
Lin et al. (2024, arXiv 2305.08891) end the schedule and where only v says anything about x0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate.errors import BaseError

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of a picture is left at each timestep, and what the network is asked for.

    Raises: BaseError when alpha_bar leaves 0..1, or reaches 0 in a model that predicts noise:
    at that timestep the noise is its own input and nothing can be learnt from it.
    """

    alpha_bar: Float[Tensor, " T"]
    prediction: Prediction

    def __post_init__(self) -> None:
        low, high = float(self.alpha_bar.min()), float(self.alpha_bar.max())
        if not (low >= 0 and high <= 1):
            raise BaseError(f"alpha_bar runs from {low} to {high}; expected numbers in 0..1")
        if low == 0 and self.prediction == "epsilon":
            raise BaseError(
                "the base's noise schedule ends at a signal-to-noise ratio of zero but the base "
                "predicts noise (epsilon); this needs prediction_type v_prediction, or a "
                "scheduler config without rescale_betas_zero_snr"
            )

    @property
    def timesteps(self) -> int:
        """How many noise levels there are."""
        return len(self.alpha_bar)

    def levels(self, t: Int[Tensor, " b"], like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at each timestep, float32, shaped to multiply rows of `like`."""
        alpha_bar = self.alpha_bar.to(device=t.device, dtype=torch.float32)[t]
        shape = (-1, *([1] * (like.ndim - 1)))
        alpha_bar = alpha_bar.to(like.device).view(shape)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def noised(
        self, x0: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """x_t: the clean rows with their noise at their timestep."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """What a perfect network would predict at x_t."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.levels(t, x0)
        return alpha * noise - sigma * x0

    def clean_estimate(
        self, x_t: Float[Tensor, "b *d"], prediction: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """The x0 that a prediction stands for (Tweedie's estimate)."""
        alpha, sigma = self.levels(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * prediction) / alpha
        return alpha * x_t - sigma * prediction

    def snr(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Signal-to-noise ratio of power; 0 where nothing is left, infinite where nothing was
        added."""
        alpha_bar = self.alpha_bar.to(device=t.device, dtype=torch.float32)[t]
        return alpha_bar / (1 - alpha_bar)

    def min_snr_weight(self, t: Int[Tensor, " b"], *, gamma: float) -> Float[Tensor, " b"]:
        """Loss weights that cap what the easy, nearly clean timesteps count.

        min(snr, gamma) / snr for noise, min(snr, gamma) / (snr + 1) for v; both are 0..max(1,
        gamma/(gamma + 1)) and finite at snr 0 and infinity.

        Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting, 2023,
        arXiv 2303.09556, section 3.4; the v form as in its appendix.
        """
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        alpha_bar = self.alpha_bar.to(device=t.device, dtype=torch.float32)[t]
        return snr.clamp(max=gamma) * (1 - alpha_bar)
