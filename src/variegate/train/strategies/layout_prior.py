"""At high noise, hold the trigger to what the base predicts for the class noun.

Layout, ground and pose are decided there; so they keep the base's variety, while the subject is
learnt from less noise. Ours: related to learning with fewer ranks at high noise (T-LoRA, arXiv
2507.05964), but what is kept is the base's answer and not a smaller update.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate import seeds
from variegate.diffusion import NoiseSchedule
from variegate.errors import RecipeError
from variegate.recipe import LayoutPrior, Recipe
from variegate.train.strategies.base import Beside, Rows, Setting, Strategy
from variegate.train.strategies.stay_near import draw_scene


class KeepLayout(Strategy):
    """Above the boundary the pictures' own loss fades out (over `softness` of the schedule, or at
    once), and rows of pure noise under the trigger are held to the base's answer for the noun.

    Per batch a step does one of the two: with the chance that noise is above the boundary it holds,
    and the pictures count nothing; else it learns, and nothing is held.
    """

    def __init__(self, plan: LayoutPrior, recipe: Recipe) -> None:
        self.plan = plan
        self.recipe = recipe
        self.size = plan.batch_size or recipe.optimizer.batch_size
        self.holds = True  # at the step whose rows were asked for last

    def prepare(self, setting: Setting) -> None:
        """Raises: RecipeError without trigger or class noun."""
        if not (self.recipe.trigger and self.recipe.class_noun):
            raise RecipeError(
                "strategies.layout_prior: wants a trigger and the class noun that stands for it "
                "with the base (--trigger WORD --class NOUN)"
            )
        model = setting.model
        side = (self.recipe.resolution or model.resolution) // model.downscale
        self.shape = (model.latent_channels, side, side)
        self.schedule = model.schedule
        self.pocket = bool(model.pocket)

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        at = timesteps.float() / max(1, schedule.timesteps - 1) - self.plan.boundary
        if self.plan.per == "batch" and self.holds:
            return torch.zeros_like(at)
        if self.plan.softness == 0:
            return (at < 0).float()
        return torch.sigmoid(-4 * at / self.plan.softness)

    def beside(self, step: int) -> Beside | None:
        if self.plan.per == "batch":
            drawn = torch.rand((), generator=seeds.at(self.recipe.seed, "layout_prior turn", step))
            self.holds = bool(drawn >= self.plan.boundary)
            if not self.holds:
                return None
        generator = seeds.at(self.recipe.seed, "layout_prior", step)
        levels = self.schedule.timesteps
        lowest = int(self.plan.boundary * levels)
        asked, plain = (
            [
                draw_scene(
                    seeds.numpy_at(self.recipe.seed, "layout_prior prompt", step, row),
                    word,
                    pocket=self.pocket,
                )
                for row in range(self.size)
            ]
            for word in (self.recipe.trigger, self.recipe.class_noun)
        )
        noise = torch.randn(self.size, *self.shape, generator=generator)
        timesteps = torch.randint(lowest, levels, (self.size,), generator=generator)
        return Beside(Rows(self.schedule.unseen(noise, timesteps), timesteps, asked), plain)

    def beside_weight(self) -> float:
        return self.plan.weight
