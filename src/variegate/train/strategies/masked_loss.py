"""Count the loss on the subject fully and on what is around it only a little."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from variegate.recipe import MaskedLoss, Recipe
from variegate.train.strategies.base import Strategy


class CountTheSubject(Strategy):
    needs_masks = True

    def __init__(self, plan: MaskedLoss, recipe: Recipe) -> None:
        self.outside = plan.outside

    def weigh_places(self, masks: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"] | None:
        return self.outside + (1 - self.outside) * masks
