"""Count large errors linearly instead of squared, so that odd pictures pull less."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.recipe import Huber, Recipe
from variegate.train.strategies.base import Strategy


class BendSquares(Strategy):
    """2 c (sqrt(d^2 + c^2) - c): d^2 where d is small, 2 c d where it is large.

    With the schedule "snr", c = delta + (1 - delta) / (1 + sigma / alpha)^2: 1 where there is no
    noise, `delta` where there is nothing else.
    """

    def __init__(self, plan: Huber, recipe: Recipe) -> None:
        self.plan = plan

    def errors(
        self,
        difference: Float[Tensor, "b c y x"],
        schedule: NoiseSchedule,
        timesteps: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c y x"] | None:
        c = self._delta(difference, schedule, timesteps)
        return 2 * c * ((difference.square() + c * c).sqrt() - c)

    def _delta(self, like: Tensor, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]) -> Tensor:
        if self.plan.schedule == "constant":
            return like.new_full((), self.plan.delta)
        alpha, sigma = schedule.levels(timesteps, like)
        return self.plan.delta + (1 - self.plan.delta) * (alpha / (alpha + sigma)).square()
