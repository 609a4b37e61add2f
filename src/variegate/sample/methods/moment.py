"""One denoising step as methods see it: in the model's own coordinates, whatever the sampler's.

    x = alpha x0 + sigma noise,

with alpha and sigma as the sampler takes them at this step. A prediction p is noise, velocity or
flow; what it says of x0 and of the noise is linear in p, so a shift of the clean estimate is a
shift of the prediction, and each method may speak of whichever it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from variegate.diffusion import NoiseSchedule, Prediction


@dataclass(frozen=True, eq=False)
class Moment:
    """index: which step. share: how far up the noise schedule, 1 at pure noise."""

    index: int
    share: float
    alpha: float
    sigma: float
    prediction: Prediction
    x: Float[Tensor, "b c y x"]

    @staticmethod
    def of(
        schedule: NoiseSchedule, scheduler: Any, index: int, x: Float[Tensor, "b c y x"]
    ) -> Moment:
        """The step that a diffusers scheduler takes next; x: what the network is shown."""
        timestep = float(scheduler.timesteps[index])
        last = schedule.timesteps if schedule.prediction != "flow" else schedule.timesteps - 1
        alpha, sigma = levels(schedule, scheduler, index)
        return Moment(index, timestep / last, alpha, sigma, schedule.prediction, x)

    @property
    def ratio(self) -> float:
        """Noise over signal, the sigma of papers that add noise to pictures of full strength."""
        return self.sigma / self.alpha if self.alpha > 0 else float("inf")

    def clean(self, prediction: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The x0 that a prediction stands for."""
        if self.prediction == "epsilon":
            return (self.x - self.sigma * prediction) / self.alpha
        if self.prediction == "flow":
            return self.x - self.sigma * prediction
        return self.alpha * self.x - self.sigma * prediction

    def shifted(
        self, prediction: Float[Tensor, "b c y x"], by: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b c y x"]:
        """The prediction whose clean estimate lies `by` further, x being what it is."""
        slope = self.alpha / self.sigma if self.prediction == "epsilon" else 1 / self.sigma
        return prediction - slope * by

    def noise_between(
        self, one: Float[Tensor, "b c y x"], other: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b c y x"]:
        """How much more noise one prediction sees in x than another."""
        return (one - other) * (1.0 if self.prediction == "epsilon" else self.alpha)


def levels(schedule: NoiseSchedule, scheduler: Any, index: int) -> tuple[float, float]:
    """(alpha, sigma) at one of a scheduler's steps, or after the last."""
    ratios = getattr(scheduler, "sigmas", None)
    if schedule.prediction == "flow":
        sigma = float(scheduler.sigmas[index])
        return 1 - sigma, sigma
    if ratios is not None:  # noise over signal, between the levels of training too
        ratio = float(ratios[index])
        alpha = (1 + ratio**2) ** -0.5
        return alpha, ratio * alpha
    if index < len(scheduler.timesteps):
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
    else:
        alpha_bar = float(scheduler.final_alpha_cumprod)
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
