"""Scale an update back when its Frobenius norm passes a limit."""

from __future__ import annotations

from variegate.adapter import Attached
from variegate.lowrank import grams, squared_norm
from variegate.recipe import MaxNorm, Recipe
from variegate.train.strategies.base import Strategy


class CapNorm(Strategy):
    """Both factors by the root of limit / norm, so that neither outgrows the other; what kohya-ss
    sd-scripts calls scale_weight_norms."""

    def __init__(self, plan: MaxNorm, recipe: Recipe) -> None:
        self.limit = plan.limit

    def moved(self, on: Attached, step: int) -> None:
        for names, of in grams(on.low_rank()).values():
            norms = squared_norm(of).detach().sqrt()
            on.shrink(names, (self.limit / norms.clamp_min(1e-12)).clamp_max(1.0))
