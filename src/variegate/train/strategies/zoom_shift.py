"""Zoom pictures in or out and shift them; the ground goes on where it comes into view.

It goes on from what is seen of it, patterns included. Mirroring at the edges is avoided: it would
draw the subject several times. So is a new ground around the old picture: it would draw a frame.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import Recipe, ZoomShift
from variegate.train.paint import likely_subject, paint_open
from variegate.train.strategies.base import Shot, Strategy

FILLS = 0.5  # share of the picture that the square about a subject takes up which fills it


class MovePictures(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: ZoomShift, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "zoom_shift", *address)
        p, u, x, y = torch.rand(4, generator=generator).tolist()
        if p >= self._chance(shot):
            return shot
        least = self.plan.zoom_min
        if shot.found:
            least = min(1.0, max(least, self.plan.smallest / extent(shot.mask)))
        zoom = least + (self.plan.zoom_max - least) * u
        shift = [(2 * draw - 1) * self.plan.shift for draw in (x, y)]
        if shot.found:
            shift = [
                keep_in_view(shot.mask.amax(axis), zoom, wanted)
                for axis, wanted in ((0, shift[0]), (1, shift[1]))
            ]
        subject = shot.mask if shot.found else likely_subject(shot.mask)
        pixels, mask, covered = move(shot.pixels, subject, zoom, (shift[0], shift[1]))
        pixels = paint_open(pixels, covered=covered, subject=mask).clamp(0, 1)
        return replace(
            shot,
            pixels=pixels,
            mask=mask if shot.found else shot.mask,
            changed=shot.changed | {"layout"},
        )

    def _chance(self, shot: Shot) -> float:
        if not (self.plan.by_area and shot.found):
            return self.plan.p
        return self.plan.p * min(1.0, extent(shot.mask) ** 2 / FILLS)


def extent(mask: Float[Tensor, "h w"]) -> float:
    """The subject's longer side, as a share of the picture's."""
    sides = [(mask.amax(axis) > 0.5).float() for axis in (0, 1)]
    where = [side.nonzero().flatten() for side in sides]
    shares = [
        (int(at[-1]) - int(at[0]) + 1) / len(side) if len(at) else 0.0
        for at, side in zip(where, sides, strict=True)
    ]
    return max(*shares, 1e-3)


def keep_in_view(profile: Float[Tensor, " n"], zoom: float, shift: float) -> float:
    """The shift nearest to the wanted one that keeps the subject in the picture, if it fits.

    profile is the mask's largest value along one axis; shifts are shares of the side.
    """
    where = (profile > 0.5).nonzero().flatten()
    if len(where) == 0:
        return shift
    n = len(profile)
    low = (float(where[0]) / n - 0.5) * zoom + 0.5
    high = ((float(where[-1]) + 1) / n - 0.5) * zoom + 0.5
    if high - low >= 1:
        return 0.0
    return min(max(shift, -low), 1 - high)


def move(
    pixels: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "h w"],
    zoom: float,
    shift: tuple[float, float],
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Pixels, mask, and which pixels are covered (1) after zooming about the middle.

    shift is (right, down) as shares of the side. Uncovered pixels hold the nearest colour. The
    picture is resized once and laid down on whole pixels: nothing else may cost it its details.
    """
    both = torch.cat([pixels, mask[None]])[None]
    h, w = mask.shape
    size = [max(1, round(side * zoom)) for side in (h, w)]
    if size != [h, w]:
        both = F.interpolate(both, size, mode="bicubic", antialias=True)
    right, down = shift
    rows = torch.arange(h) - round((h - size[0]) / 2 + down * h)
    columns = torch.arange(w) - round((w - size[1]) / 2 + right * w)
    moved = both[0][:, rows.clamp(0, size[0] - 1)][:, :, columns.clamp(0, size[1] - 1)]
    in_rows = (rows >= 0) & (rows < size[0])
    covered = (in_rows[:, None] & (columns >= 0) & (columns < size[1])).float()
    return moved[:3].clamp(0, 1), moved[3].clamp(0, 1) * covered, covered
