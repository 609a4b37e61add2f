"""Noise levels, noising, targets and clean estimates: pure tensor functions.

Symbols follow the papers: x0 is clean, x_t noised, alpha_bar the kept share of its power,

    x_t = alpha x0 + sigma noise,   alpha = sqrt(alpha_bar),   sigma = sqrt(1 - alpha_bar),
    snr = alpha_bar / (1 - alpha_bar),   v = alpha noise - sigma x0.

Flow matching (Esser et al. 2024, arXiv 2403.03206, section 2) walks the straight line instead,

    x_t = (1 - sigma) x0 + sigma noise,   target = noise - x0,   snr = ((1 - sigma) / sigma)^2,

so alpha + sigma = 1 where above alpha^2 + sigma^2 = 1. alpha_bar is the signal's share of power,
snr / (1 + snr), in both: everything that is said of noise levels holds for either.

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

Prediction = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of a picture is left at each timestep, and what the network is asked for.

    shift: of a flow alone, where training and sampling spend their time: above 1, on more noise.

    Raises: BaseError when alpha_bar leaves 0..1, or reaches 0 in a model that predicts noise:
    at that timestep the noise is its own input and nothing can be learnt from it.
    """

    alpha_bar: Float[Tensor, " T"]
    prediction: Prediction
    shift: float = 1.0

    @staticmethod
    def flow(*, shift: float = 1.0, timesteps: int = 1000) -> NoiseSchedule:
        """The straight line: at timestep t = 0..timesteps, which the network reads, sigma is
        t / timesteps. So there is one level more than `timesteps`, from the clean picture to noise.
        """
        sigma = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        signal = (1 - sigma).square()
        alpha_bar = signal / (signal + sigma.square())
        return NoiseSchedule(alpha_bar.float(), "flow", shift)

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
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction == "flow":
            return alpha / (alpha + sigma), sigma / (alpha + sigma)
        return alpha, sigma

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
        """Timesteps to train on: uniform, and of a flow logit-normal, then shifted.

        With u the sigmoid of a standard normal, sigma = shift u / (1 + (shift - 1) u).

        Source: Esser et al. 2024, arXiv 2403.03206, section 3.1 (rf/lognorm(0.00, 1.00), the best
        of 61) and equation 23.
        """
        if self.prediction != "flow":
            return torch.randint(self.timesteps, (count,), generator=generator)
        u = torch.randn(count, generator=generator, dtype=torch.float64).sigmoid()
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        # At the clean end there is no noise to be seen, and nothing to learn.
        return (sigma * (self.timesteps - 1)).round().long().clamp(min=1)

    def noised(
        self, x0: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """x_t: the clean rows with their noise at their timestep."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * noise

    def unseen(self, noise: Float[Tensor, "b *d"], t: Int[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """Noise alone in the place of x_t, with the power that x_t has of pictures of unit power:
        1 where alpha^2 + sigma^2 = 1, less along a flow."""
        if self.prediction != "flow":
            return noise
        alpha, sigma = self.levels(t, noise)
        return noise * (alpha.square() + sigma.square()).sqrt()

    def target(
        self, x0: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """What a perfect network would predict at x_t."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - x0
        alpha, sigma = self.levels(t, x0)
        return alpha * noise - sigma * x0

    def clean_estimate(
        self, x_t: Float[Tensor, "b *d"], prediction: Float[Tensor, "b *d"], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """The x0 that a prediction stands for (Tweedie's estimate)."""
        alpha, sigma = self.levels(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - sigma * prediction) / alpha
        if self.prediction == "flow":
            return x_t - sigma * prediction
        return alpha * x_t - sigma * prediction

    def snr(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Signal-to-noise ratio of power; 0 where nothing is left, infinite where nothing was
        added."""
        alpha_bar = self.alpha_bar.to(device=t.device, dtype=torch.float32)[t]
        return alpha_bar / (1 - alpha_bar)

    def min_snr_weight(self, t: Int[Tensor, " b"], *, gamma: float) -> Float[Tensor, " b"]:
        """Loss weights that cap what the easy, nearly clean timesteps count.

        min(snr, gamma) / snr for noise, min(snr, gamma) / (snr + 1) for v; both are 0..max(1,
        gamma/(gamma + 1)) and finite at snr 0 and infinity. An error e of a flow's answer is one of
        sigma e in x0, so there min(snr, gamma) on x0 is min(snr, gamma) sigma^2, that is
        min((1 - sigma)^2, gamma sigma^2).

        Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting, 2023,
        arXiv 2303.09556, section 3.4; the v form as in its appendix.
        """
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        alpha_bar = self.alpha_bar.to(device=t.device, dtype=torch.float32)[t]
        if self.prediction == "flow":
            alpha, sigma = self.levels(t, alpha_bar)
            return torch.minimum(alpha.square(), gamma * sigma.square())
        return snr.clamp(max=gamma) * (1 - alpha_bar)
