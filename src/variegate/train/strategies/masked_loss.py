"""Count the loss on the subject fully and on what is around it only a little.

Where noise still hides the mask, that enlarges the subject: what is learnt there is the mean of all
pictures that may lie behind the noise, each counted by its weights, and at every place those count
most that have the subject there. So above a boundary the whole picture can count.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
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
        outside = torch.full_like(timesteps, self.plan.outside, dtype=masks.dtype)
        if self.plan.boundary is not None:
            above = timesteps.float() / max(1, schedule.timesteps - 1) - self.plan.boundary
            outside = outside + (1 - outside) * torch.sigmoid(4 * above / SOFTNESS)
        outside = outside[:, None, None]
        return outside + (1 - outside) * masks
