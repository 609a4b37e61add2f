"""Turn and shear pictures a little about their subject; opened ground is painted on."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import Affine, Recipe
from variegate.train.paint import likely_subject, paint_open
from variegate.train.strategies.base import Shot, Strategy


class TurnPictures(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: Affine, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "affine", *address)
        p, turn, shear = torch.rand(3, generator=generator).tolist()
        if p >= self.plan.p:
            return shot
        subject = shot.mask if shot.found else likely_subject(shot.mask)
        pixels, mask, covered = warp(
            shot.pixels,
            subject,
            degrees=(2 * turn - 1) * self.plan.rotation,
            shear=(2 * shear - 1) * self.plan.shear,
        )
        pixels = paint_open(pixels, covered=covered, subject=mask).clamp(0, 1)
        return replace(shot, pixels=pixels, mask=mask if shot.found else shot.mask)


def warp(
    pixels: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "h w"],
    *,
    degrees: float,
    shear: float,
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Pixels, mask, and which pixels are covered (1) after shearing along x, then turning.

    Both about the middle of the mask, which stays where it is; degrees counts counter-clockwise as
    seen, shear is the angle by which upright lines lean. Uncovered pixels hold the nearest colour.
    """
    from kornia.geometry.transform import warp_affine

    h, w = mask.shape
    weight = mask.sum().clamp_min(1e-6)
    middle = torch.stack(
        [
            (mask.sum(0) * torch.arange(w)).sum() / weight,
            (mask.sum(1) * torch.arange(h)).sum() / weight,
        ]
    )
    angle, lean = math.radians(degrees), math.tan(math.radians(shear))
    # Rows count downwards, so counter-clockwise to the eye is clockwise to the formula.
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    ) @ torch.tensor([[1.0, lean], [0.0, 1.0]])
    matrix = torch.cat([turn, (middle - turn @ middle)[:, None]], 1)[None]

    def moved(x: Tensor, mode: str, padding: str) -> Tensor:
        found: Tensor = warp_affine(x[None], matrix, (h, w), mode=mode, padding_mode=padding)
        return found[0]

    covered = (moved(torch.ones(1, h, w), "bilinear", "zeros")[0] > 0.999).float()
    shape = moved(mask[None], "bilinear", "zeros")[0].clamp(0, 1)
    return moved(pixels, "bicubic", "border").clamp(0, 1), shape * covered, covered
