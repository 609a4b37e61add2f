"""What one press can mend: which pictures to mirror or to crop, and where.

Proposals only; nothing here writes a picture. Each answers one finding, which an audit of the
pictures as proposed no longer has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from variegate.audit.descriptors import Look
from variegate.audit.frames import WHOLE, Box
from variegate.audit.sides import Sides

Kind = Literal["mirror", "crop", "trim"]
KEPT = 0.72  # of a side, what a crop keeps
NARROWEST = 0.9  # what it keeps at most; wider crops move nothing
# What a subject reaches from its centre, in sizes of `subject_box`: a disc of radius r has 1.41 r.
REACH = 0.75
# Where a crop puts the subject, of its sides: around the middle, never on it.
TARGETS = ((0.3, 0.35), (0.7, 0.65), (0.3, 0.65), (0.7, 0.35), (0.5, 0.7), (0.3, 0.5), (0.7, 0.5))
MOVED = 0.04  # of a side; what moves the subject less is not worth a change


@dataclass(frozen=True)
class Fix:
    """kind: "mirror" left to right, "crop" to another part, "trim" bars off. pictures: by their
    place in the set, what is kept of each."""

    kind: Kind
    pictures: tuple[tuple[int, Box], ...]

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        told = [[names[i], *(round(v, 5) for v in box)] for i, box in self.pictures]
        return {"fix": self.kind, "pictures": told}


def fixes(
    looks: Sequence[Look],
    *,
    sizes: Sequence[tuple[int, int]],
    frames: Sequence[Box | None],
    sides: Sides,
    handed: bool,
    one_place: bool,
    resolution: int,
) -> tuple[Fix, ...]:
    """The fixes that a set has use for. sizes: of each picture, in pixels. handed: whether captions
    forbid to mirror. one_place: whether the subject is always in the same place."""
    found = [
        Fix("trim", tuple((i, box) for i, box in enumerate(frames) if box is not None)),
        Fix("crop", _crops(looks, sizes, resolution) if one_place else ()),
        Fix(
            "mirror",
            tuple((i, WHOLE) for i in sides.to_mirror()) if sides.one_sided and not handed else (),
        ),
    ]
    return tuple(fix for fix in found if fix.pictures)


def _crops(
    looks: Sequence[Look], sizes: Sequence[tuple[int, int]], resolution: int
) -> tuple[tuple[int, Box], ...]:
    """Two of three pictures cropped so that the subject stands elsewhere in each, whole where it
    fits, and no side below what the base is trained at."""
    made: list[tuple[int, Box]] = []
    for i, (look, size) in enumerate(zip(looks, sizes, strict=True)):
        kept = max(KEPT, resolution / min(size))
        if i % 3 == 2 or kept > NARROWEST or look.box[2] <= 0:
            continue
        target = TARGETS[len(made) % len(TARGETS)]
        box = _crop(look, kept, target)
        if box is not None:
            made.append((i, box))
    return tuple(made)


def _crop(look: Look, kept: float, target: tuple[float, float]) -> Box | None:
    centre, reach = look.box[:2], REACH * float(look.box[2])
    starts = []
    for at, wanted in zip(centre, target, strict=True):
        start = float(at) - wanted * kept
        # Whole in the crop as far as that goes, and the crop in the picture.
        start = min(start, max(0.0, float(at) - reach))
        start = max(start, min(1.0, float(at) + reach) - kept)
        starts.append(float(np.clip(start, 0, 1 - kept)))
    moved = [abs((float(at) - s) / kept - float(at)) for at, s in zip(centre, starts, strict=True)]
    if max(moved) < MOVED:
        return None
    left, top = starts
    return (left, top, left + kept, top + kept)
