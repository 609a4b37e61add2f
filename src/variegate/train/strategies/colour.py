"""Vary brightness, contrast, saturation and hue a little, as light and cameras do."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import Colour, Recipe
from variegate.train.strategies.base import Shot, Strategy


class VaryColours(Strategy):
    alters = True

    def __init__(self, plan: Colour, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "colour", *address)
        p, *draws = torch.rand(5, generator=generator).tolist()
        if p >= self.plan.p:
            return shot
        reach = (self.plan.brightness, self.plan.contrast, self.plan.saturation, self.plan.hue)
        by = [(2 * draw - 1) * most for draw, most in zip(draws, reach, strict=True)]
        pixels = recolour(
            shot.pixels, brightness=by[0], contrast=by[1], saturation=by[2], turns=by[3]
        )
        return replace(shot, pixels=pixels)


def recolour(
    pixels: Float[Tensor, "3 h w"],
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    turns: float = 0.0,
) -> Float[Tensor, "3 h w"]:
    """Pixels times 1 + brightness, then contrast and saturation likewise about the mean and about
    gray, then the hue turned round the colour wheel by a share of it. 0 changes nothing."""
    from kornia import enhance

    found: Tensor = pixels
    if brightness:
        found = enhance.adjust_brightness_accumulative(found, 1 + brightness)
    if contrast:
        found = enhance.adjust_contrast_with_mean_subtraction(found, 1 + contrast)
    if saturation:
        found = enhance.adjust_saturation_with_gray_subtraction(found, 1 + saturation)
    if turns:
        found = enhance.adjust_hue(found, turns * 2 * math.pi)
    return found.clamp(0, 1)
