"""Cut the subject out and lay it on other grounds: painted ones and the base's own.

The caption says nothing of the new ground, so that many are equally likely under it: none becomes
the subject's. What it said of the old one is taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import ImageOps
from torch import Tensor

from variegate import seeds
from variegate.recipe import NewBackground, Recipe
from variegate.sample import Request
from variegate.train.masks import find_masks
from variegate.train.paint import continue_ground, grow, lay_on, paint_ground
from variegate.train.strategies.base import Setting, Shot, Strategy, draw_kept

EMPTY_PLACES = (
    *("an empty room", "a plain wall", "a wooden table top", "a meadow", "a beach", "a street"),
    *("a forest path", "a kitchen counter", "a carpet", "a snowy field", "a stone floor"),
    *("a garden", "a bookshelf", "a cloudy sky", "a brick wall", "a lake shore"),
)


class ChangeGround(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: NewBackground, recipe: Recipe) -> None:
        self.plan = plan
        self.recipe = recipe
        self.grounds: list[Tensor] = []

    def prepare(self, setting: Setting) -> None:
        if self.plan.source != "painted":
            self.grounds = draw_grounds(setting, self.plan.count)

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.recipe.seed, "new_background", *address)
        p, source, which = torch.rand(3, generator=generator).tolist()
        if p >= self.plan.p or not shot.found:
            return shot
        if self.grounds and (self.plan.source == "base" or source < 0.5):
            ground = cover(self.grounds[int(which * len(self.grounds))], shot.mask.shape)
        else:
            ground = paint_ground(shot.pixels.shape[1:], generator)
        pixels = lay_on(shot.pixels, shot.mask, ground).clamp(0, 1)
        return replace(shot, pixels=pixels, changed=shot.changed | {"ground"})


def cover(ground: Float[Tensor, "3 _ _"], size: Sequence[int]) -> Float[Tensor, "3 _ _"]:
    """The ground enlarged until it covers a size (height, width), and cut to it."""
    if list(ground.shape[1:]) == list(size):
        return ground
    scale = max(size[0] / ground.shape[1], size[1] / ground.shape[2])
    whole = [max(n, round(side * scale)) for n, side in zip(size, ground.shape[1:], strict=True)]
    large = F.interpolate(ground[None], whole, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = ((a - n) // 2 for a, n in zip(whole, size, strict=True))
    return large[:, top : top + size[0], left : left + size[1]]


def draw_grounds(setting: Setting, count: int) -> list[Float[Tensor, "3 h w"]]:
    """Grounds from the base's own samples, in 0..1.

    The pocket draws something on every ground, so its subjects are found and painted over;
    samples where none is found are left out. Other bases are asked for empty places.
    """
    recipe, model = setting.recipe, setting.model
    side = recipe.resolution or model.resolution
    prompts = ["a picture", f"a {recipe.class_noun or 'toy'}"] if model.pocket else EMPTY_PLACES
    first = seeds.number(recipe.seed, "grounds") % 1_000_000
    requests = [Request(prompts[i % len(prompts)], first + i, group="ground") for i in range(count)]
    drawn = draw_kept(setting, requests, "grounds")
    pictures = [ImageOps.fit(picture.open(), (side, side)) for picture in drawn]
    images = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures])
    grounds = list(images.float() / 255)
    if not model.pocket:
        return grounds
    masks, confidence = find_masks(images)
    return [
        continue_ground(ground, hole=grow(mask), usable=1 - grow(mask))
        for ground, mask, found in zip(grounds, masks, confidence, strict=True)
        if found > 0
    ]
