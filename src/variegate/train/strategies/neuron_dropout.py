"""Drop single outputs of the down projection by chance, as kohya calls neuron dropout."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from variegate.recipe import NeuronDropout, Recipe
from variegate.train.strategies.base import Dropout


class DropNeurons(Dropout):
    def __init__(self, plan: NeuronDropout, recipe: Recipe) -> None:
        self.p = plan.p

    def drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.chance)
