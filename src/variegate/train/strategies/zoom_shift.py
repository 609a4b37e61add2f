"""Zoom pictures in or out and shift them; the ground goes on where it comes into view.

It goes on from what is seen of it, patterns included. Mirroring at the edges is avoided: it would
draw the subject several times. So is a new ground around the old picture: it would draw a frame.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import Recipe, ZoomShift
from variegate.train.paint import likely_subject, paint_open
from variegate.train.strategies.base import Setting, Shot, Strategy

FILLS = 0.5  # share of the picture that the square about a subject takes up which fills it


class MovePictures(Strategy):
    needs_masks = True
    alters = True

    def __init__(self, plan: ZoomShift, recipe: Recipe) -> None:
        self.plan = plan
        self.seed = recipe.seed
        self.cell = 1  # pixels that pictures are laid on whole ones of

    def prepare(self, setting: Setting) -> None:
        if self.plan.whole_cells:
            self.cell = int(setting.model.downscale)

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        generator = seeds.at(self.seed, "zoom_shift", *address)
        p, u, x, y = torch.rand(4, generator=generator).tolist()
        if p >= self._chance(shot):
            return shot
        least = self.plan.zoom_min
        if shot.found:
            least = min(1.0, max(least, self.plan.smallest / extent(shot.mask)))
        zoom = self._zoom(least, u)
        shift = [
            keep_in_view(profile, zoom, (2 * draw - 1) * self.plan.shift, cell=self.cell)
            for axis, draw in ((0, x), (1, y))
            for profile in [shot.mask.amax(axis) * shot.found]
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

    def _zoom(self, least: float, draw: float) -> float:
        """The zoom that a number from 0 to 1 draws of those from `least` up."""
        plan, levels = self.plan, self.plan.zoom_levels
        if levels is None:
            return least + (plan.zoom_max - least) * draw
        steps = [i / levels for i in range(1, levels + 1)]
        out = [plan.zoom_min**step for step in reversed(steps)]
        zooms = [z for z in out if z >= least] + [1.0] + [plan.zoom_max**step for step in steps]
        return zooms[int(draw * len(zooms))]

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


def keep_in_view(
    profile: Float[Tensor, " n"], zoom: float, shift: float, *, cell: int = 1
) -> float:
    """The shift nearest to the wanted one that keeps the subject in the picture, if it fits.

    profile is the mask's largest value along one axis, all 0 where no subject is known; shifts are
    shares of the side. cell: of the shifts those count, if there are any, that lay the zoomed
    picture's edge on whole ones of so many pixels.
    """
    where, n = (profile > 0.5).nonzero().flatten(), len(profile)
    least, most = -0.5, 0.5
    if len(where):
        low = (float(where[0]) / n - 0.5) * zoom + 0.5
        high = ((float(where[-1]) + 1) / n - 0.5) * zoom + 0.5
        least, most = (-low, 1 - high) if high - low < 1 else (0.0, 0.0)
    near = min(max(shift, least), most)
    if cell == 1:
        return near
    edge = (n - max(1, round(n * zoom))) / 2
    # A subject that does not fit has no room; it goes to the nearest cell all the same.
    room = cell / 2 if least == most else 0.0
    first = math.ceil((edge + least * n - room) / cell)
    last = math.floor((edge + most * n + room) / cell)
    if first > last:
        return near
    return (cell * min(max(round((edge + near * n) / cell), first), last) - edge) / n


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
