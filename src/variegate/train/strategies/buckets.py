"""Keep pictures' shapes: each goes into the bucket of the nearest shape, all of about one area.

Cut to squares, pictures lose heads and feet, and what was learnt draws them cut. The shapes are the
multiples of 64 pixels (of 16 on the pocket) whose area is nearest to the square's. Source: Podell
et al., SDXL, 2023 (arXiv 2307.01952), section 2.3 and appendix I.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from variegate.recipe import Buckets, Recipe
from variegate.train.strategies.base import Strategy

MULTIPLE, POCKET_MULTIPLE = 64, 16  # pixels; UNets halve latents, 8 pixels each, up to three times
AREA_OFF = 0.125  # of the square's area, that a shape's may lie off it


class KeepShapes(Strategy):
    """Acts before the first step, where pictures are cut and turns are dealt: see `shapes`."""

    def __init__(self, plan: Buckets, recipe: Recipe) -> None:
        self.plan = plan


def shapes(side: int, plan: Buckets, *, pocket: bool) -> list[tuple[int, int]]:
    """The sizes (height, width) in pixels, from the widest to the tallest; the square is among
    them when side is such a multiple.

    side: of the square of the same area.
    """
    multiple = plan.multiple or (POCKET_MULTIPLE if pocket else MULTIPLE)
    found = set()
    for short in range(multiple, side + 1, multiple):
        long = max(1, round(side**2 / short / multiple)) * multiple
        near = abs(short * long / side**2 - 1) <= AREA_OFF
        if near and max(short, long) <= plan.ratio_max * min(short, long):
            found |= {(short, long), (long, short)}
    return sorted(found, key=lambda size: (size[0] / size[1], size)) or [(side, side)]


def nearest_shape(size: tuple[int, int], known: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The known (height, width) whose shape is nearest to a picture's."""
    wanted = math.log(size[0] / size[1])
    return min(known, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted))
