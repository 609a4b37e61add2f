"""Scale an update back when its largest singular value passes a share of its layer's own."""

from __future__ import annotations

import torch

from variegate.adapter import Attached
from variegate.lowrank import clipped, grams, singular_values
from variegate.recipe import Recipe, SpectralCap
from variegate.train.strategies.base import Strategy


class CapSpectrum(Strategy):
    """An update whose largest singular value nears the layer's own adds directions that the base
    does not have (intruder dimensions: Shuttleworth et al. 2024, arXiv 2410.21228). The layer's is
    the spectral norm of its weight, kernels flattened, worked out once."""

    def __init__(self, plan: SpectralCap, recipe: Recipe) -> None:
        self.share, self.each = plan.share, plan.each
        self.limits: dict[str, float] = {}

    def attached(self, on: Attached) -> None:
        self.limits = {
            name: self.share * float(torch.linalg.matrix_norm(weight.float().flatten(1), 2))
            for name, weight in on.base_weights().items()
        }

    def moved(self, on: Attached, step: int) -> None:
        updates = on.low_rank()
        if self.each:
            on.put(clipped(updates, self.limits))
            return
        for names, of in grams(updates).values():
            limits = of.up.new_tensor([self.limits[name] for name in names])
            largest = singular_values(of)[:, 0]
            on.shrink(names, (limits / largest.clamp_min(1e-12)).clamp_max(1.0))
