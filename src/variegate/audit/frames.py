"""Bars and frames of one colour around a picture: a letterbox, a scanned margin, a screenshot's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from variegate.audit.finding import Finding

SIDE = 256  # pixels of the longer side that frames are looked for at
EVEN = 0.05  # how far a pixel of a bar may be from its colour, of 0..1
APART = 0.1  # how far a pixel behind the bar is from it
EDGE = 0.8  # of the line behind a bar differs from it; what touches a plain ground covers less
BLUR = 9  # lines in which a bar may end
THIN, THICK = 2, 0.4  # of a bar: pixels of SIDE at least, of the side at most
WHOLE = (0.0, 0.0, 1.0, 1.0)
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the sides


def picture_inside(image: Image.Image) -> Box | None:
    """What is left of an RGB picture without bars at two opposite sides or more; None when it has
    none.

    A bar is a strip of one colour from edge to edge that ends in a straight line: a subject before
    a plain ground touches the ground's strip in a few places, a picture in a frame all along.
    Behind a stripe of a striped ground is another stripe, of one colour itself.
    """
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64) / 255
    height, width = pixels.shape[:2]
    if min(height, width) < 8 * THIN:
        return None
    top, bottom = _bar(pixels), _bar(pixels[::-1])
    # Bars at the sides end where those above and below begin, and where these are blurred.
    first, last = (edge and edge + BLUR // 2 for edge in (top, bottom))
    inner = pixels[first : height - last].swapaxes(0, 1)
    left, right = _bar(inner), _bar(inner[::-1])
    upright, across = (min(top, bottom) > 0, min(left, right) > 0)
    if not (upright or across):
        return None
    # A line more than was counted: where bar and picture meet, scaling has mixed them.
    left, right = (left + 1, right + 1) if across else (0, 0)
    top, bottom = (top + 1, bottom + 1) if upright else (0, 0)
    return (left / width, top / height, 1 - right / width, 1 - bottom / height)


def _bar(pixels: Float[np.ndarray, "lines across 3"]) -> int:
    """How many of the first lines are a bar."""
    colour = np.median(pixels[0], axis=0)
    away = np.abs(pixels - colour).max(-1)
    even = _most(away) <= EVEN
    thick = len(even) if even.all() else int(np.argmin(even))
    if not THIN <= thick <= THICK * len(pixels):
        return 0
    # JPEG blurs the edge over a block of 8.
    differs = (away[thick : thick + BLUR] > APART).mean(1) >= EDGE
    if not differs.any():
        return 0
    thick += int(np.argmax(differs))
    behind = pixels[thick : thick + 5]
    own = np.abs(behind - np.median(behind, axis=1, keepdims=True)).max(-1)
    return thick if _most(own).max() > EVEN else 0


def _most(away: Float[np.ndarray, "lines across"]) -> Float[np.ndarray, "lines"]:
    """For each line, what nearly all of its pixels keep within."""
    kept: np.ndarray = np.quantile(away, 0.98, axis=1)
    return kept


def judge_frames(boxes: Sequence[Box | None]) -> list[Finding]:
    framed = sum(box is not None for box in boxes)
    if not framed:
        return []
    return [
        Finding(
            "Some pictures have bars or a frame",
            f"{framed} of {len(boxes)} have a strip of one colour at two opposite sides or more",
            "Crop them off: what is around the pictures is learnt with the subject.",
        )
    ]
