"""Show a part of the picture at full size; the subject stays in it as far as it fits.

The part differs from the picture in size, shape and place (random resized crops: Szegedy et al.
2015, arXiv 1409.4842). A base that is told of crops, as SDXL is, is told of these too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import Crop, Recipe
from variegate.train.strategies.base import Shot, Strategy


class ShowParts(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: Crop, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "crop", *address)
        p, area, shape, y, x = torch.rand(5, generator=generator).tolist()
        if p >= self.plan.p:
            return shot
        share = (self.plan.area_min + (1 - self.plan.area_min) * area) ** 0.5
        stretch = self.plan.ratio_max ** (shape - 0.5)
        h, w = shot.mask.shape
        height = min(h, max(1, round(h * share * stretch)))
        width = min(w, max(1, round(w * share / stretch)))
        top, left = round(y * (h - height)), round(x * (w - width))
        if shot.found:
            top = hold(shot.mask.amax(1), height, top)
            left = hold(shot.mask.amax(0), width, left)
        both = torch.cat([shot.pixels, shot.mask[None]])
        part = both[None, :, top : top + height, left : left + width]
        whole = F.interpolate(part, (h, w), mode="bicubic", antialias=True)[0].clamp(0, 1)
        return replace(
            shot,
            pixels=whole[:3],
            mask=whole[3],
            frame=shot.frame and shot.frame.inside(top, left, height, width),
            changed=shot.changed | {"layout"},
        )


def hold(profile: Float[Tensor, " n"], length: int, start: int) -> int:
    """The start nearest to the wanted one of a window that holds the subject, if one can.

    profile is the mask's largest value along one axis. A window shorter than the subject lies
    within it.
    """
    where = (profile > 0.5).nonzero().flatten()
    if len(where) == 0:
        return start
    # The last start that cuts nothing at the near side, the first that cuts nothing at the far.
    last, first = int(where[0]), int(where[-1]) + 1 - length
    low, high = min(first, last), max(first, last)
    return min(max(start, low, 0), high, len(profile) - length)
