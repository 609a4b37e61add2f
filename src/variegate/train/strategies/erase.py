"""Erase a rectangle of the picture by chance, so that no single part becomes the subject.

The erased place no longer counts as subject. Filled from the ground around it, it looks as if the
subject had a gap; filled with gray, as published (Zhong et al. 2017, arXiv 1708.04896), it looks
like a gray box, which a model that learns long enough may come to draw.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from variegate import seeds
from variegate.recipe import Erase, Recipe
from variegate.train.paint import continue_ground, grow, likely_subject
from variegate.train.strategies.base import Shot, Strategy

GRAY = 0.5
LONGEST = 3.0  # sides of the rectangle: at most three times as long as wide


class EraseParts(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: Erase, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "erase", *address)
        p, size, shape, y, x = torch.rand(5, generator=generator).tolist()
        if p >= self.plan.p:
            return shot
        h, w = shot.mask.shape
        area = (self.plan.area_min + (self.plan.area_max - self.plan.area_min) * size) * h * w
        ratio = LONGEST ** (2 * shape - 1)
        height = min(h, max(1, round(math.sqrt(area * ratio))))
        width = min(w, max(1, round(math.sqrt(area / ratio))))
        top, left = round(y * (h - height)), round(x * (w - width))
        hole = torch.zeros_like(shot.mask)
        hole[top : top + height, left : left + width] = 1
        if self.plan.fill == "gray":
            filling = torch.full_like(shot.pixels, GRAY)
        else:
            subject = shot.mask if shot.found else likely_subject(shot.mask)
            usable = (1 - hole) * (1 - grow(subject))
            filling = continue_ground(shot.pixels, hole=hole, usable=usable)
        pixels = (1 - hole) * shot.pixels + hole * filling
        return replace(
            shot, pixels=pixels, mask=(1 - hole) * shot.mask if shot.found else shot.mask
        )
