"""Drop single outputs of the down projection by chance, as kohya calls neuron dropout."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from variegate.adapter import Attached
from variegate.recipe import NeuronDropout, Recipe
from variegate.train.strategies.base import Strategy


class DropNeurons(Strategy):
    """Draws from torch's global generator, which the loop gives an address at each step."""

    def __init__(self, plan: NeuronDropout, recipe: Recipe) -> None:
        self.p = plan.p

    @property
    def chance(self) -> float:
        return min(0.95, self.p + self.control.dropout)

    def attached(self, on: Attached) -> None:
        on.between_factors(self._drop)

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.chance)
