"""Count the loss on the subject fully and on what is around it only a little.

Where noise still hides the mask, that enlarges the subject: what is learnt there is the mean of all
pictures that may lie behind the noise, each counted by its weights, and at every place those count
most that have the subject there. So above a boundary the whole picture can count. There its ground
is learnt too, and pictures whose ground is their own can be made to count less.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.recipe import MaskedLoss, Recipe
from variegate.train.strategies.base import Strategy

SOFTNESS = 0.05  # of the boundary, as a share of the schedule


class CountTheSubject(Strategy):
    needs_masks = True

    def __init__(self, plan: MaskedLoss, recipe: Recipe) -> None:
        self.plan = plan

    def weigh_places(
        self, masks: Float[Tensor, "b y x"], schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b y x"] | None:
        outside = self.plan.outside + (1 - self.plan.outside) * self._above(schedule, timesteps)
        outside = outside[:, None, None]
        return outside + (1 - outside) * masks

    def weigh_grounds(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"], moved: Bool[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        if self.plan.own_ground == 1:
            return None
        return 1 - (1 - self.plan.own_ground) * self._above(schedule, timesteps) * ~moved

    def _above(self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """How far each row's noise lies above the boundary: 0 below, 1 well above it."""
        if self.plan.boundary is None:
            return torch.zeros(len(timesteps), device=timesteps.device)
        at = timesteps.float() / max(1, schedule.timesteps - 1) - self.plan.boundary
        return torch.sigmoid(4 * at / SOFTNESS)
