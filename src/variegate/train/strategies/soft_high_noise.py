"""Count high noise less in the pictures' loss: layout is decided there and learnt first."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.recipe import Recipe, SoftHighNoise
from variegate.train.strategies.base import Strategy


class CountLayoutLess(Strategy):
    """1 up to a share of the schedule, then falling evenly. Left out whole, high noise would not
    teach the subject's shape either (as T-LoRA found, arXiv 2507.05964)."""

    def __init__(self, plan: SoftHighNoise, recipe: Recipe) -> None:
        self.above = plan.above
        self.least = plan.weight

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        at = timesteps.float() / max(1, schedule.timesteps - 1)
        fallen = ((at - self.above) / (1 - self.above)).clamp(0, 1)
        return 1 - (1 - self.least) * fallen
