"""What of a picture can be told apart without a network: pure functions of its pixels.

Each descriptor looks at one thing that a training set can lack variety in: its background (the
border), its palette, its composition (where what is), its fine structure (pHash), and where the
subject stands. Distances are in units of what two unrelated pictures have between them, so 0 is
alike and about 1 is unrelated; the units were set on photographs of different things in different
places and on composed scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imagehash
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageOps

from variegate.images.placement import SIDE, border, oklab, subject_box

LAYOUT = 8  # cells a side
HASH_BITS = 64

# Distance between two unrelated pictures, per descriptor: the median over pairs of photographs of
# different subjects and over pairs of composed scenes lies between 0.9 and 1.3 times these.
UNRELATED = {"background": 0.62, "palette": 0.50, "composition": 0.26, "structure": 32.0}


@dataclass(frozen=True)
class Look:
    """What one picture looks like.

    background, palette: shares of colours near the border and over the whole picture.
    composition: mean colour (Oklab) of a coarse grid. structure: pHash bits, of the picture and
    of its mirror image. box: the subject's centre (x, y) and size as shares of the picture.
    """

    background: Float[np.ndarray, "colours"]
    palette: Float[np.ndarray, "colours"]
    composition: Float[np.ndarray, "cells 3"]
    mirrored_composition: Float[np.ndarray, "cells 3"]
    structure: Bool[np.ndarray, "bits"]
    mirrored_structure: Bool[np.ndarray, "bits"]
    box: Float[np.ndarray, "3"]


def look(picture: Image.Image) -> Look:
    """All descriptors of one RGB picture, whatever its size."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    lab = oklab(np.asarray(small, np.float64) / 255)
    grid = layout(lab)
    return Look(
        background=colour_shares(lab[border()]),
        palette=colour_shares(lab.reshape(-1, 3)),
        composition=grid.reshape(-1, 3),
        mirrored_composition=grid[:, ::-1].reshape(-1, 3),
        structure=phash_bits(picture),
        mirrored_structure=phash_bits(ImageOps.mirror(picture)),
        box=subject_box(lab),
    )


def colour_shares(lab: Float[np.ndarray, "pixels 3"]) -> Float[np.ndarray, "colours"]:
    """How much of each of 5 x 7 x 7 coarse colours there is; softly binned, sums to 1."""
    bins = (5, 7, 7)
    places = np.stack(
        [
            lab[:, 0] * (bins[0] - 1),
            (lab[:, 1] + 0.24) / 0.48 * (bins[1] - 1),
            (lab[:, 2] + 0.24) / 0.48 * (bins[2] - 1),
        ]
    )
    limit = np.array(bins)[:, None] - 1
    places = np.clip(places, 0, limit)
    low = np.minimum(places.astype(int), limit - 1)
    part = places - low
    shares = np.zeros(np.prod(bins))
    for corner in np.ndindex(2, 2, 2):
        up = np.array(corner)[:, None]
        weight = np.where(up == 1, part, 1 - part).prod(0)
        place = np.ravel_multi_index(tuple(low + up), bins)
        shares += np.bincount(place, weight, minlength=len(shares))
    return shares / len(lab)


def layout(lab: Float[np.ndarray, "side side 3"]) -> Float[np.ndarray, "rows columns 3"]:
    """Mean colour in each cell of a coarse grid; chroma doubled, so that hue counts as light."""
    step = SIDE // LAYOUT
    cells = lab.reshape(LAYOUT, step, LAYOUT, step, 3).mean((1, 3))
    weighted: np.ndarray = cells * np.array([1.0, 2.0, 2.0])
    return weighted


def phash_bits(picture: Image.Image) -> Bool[np.ndarray, "bits"]:
    """The 64 bits of the perceptual hash (signs of low frequencies about their median)."""
    return np.asarray(imagehash.phash(picture).hash, dtype=bool).ravel()


def distances(looks: list[Look]) -> dict[str, Float[np.ndarray, "n n"]]:
    """For each descriptor, how far pictures are apart: 0 alike, 1 as far as unrelated ones.

    A mirrored picture is as near as the picture itself.
    """
    parts: dict[str, Callable[[], Float[np.ndarray, "n n"]]] = {
        "background": lambda: _share_distances(np.stack([x.background for x in looks])),
        "palette": lambda: _share_distances(np.stack([x.palette for x in looks])),
        "composition": lambda: composition_distances(looks),
        "structure": lambda: hash_distances(looks).astype(np.float64),
    }
    return {name: part() / UNRELATED[name] for name, part in parts.items()}


def _share_distances(
    shares: Float[np.ndarray, "n colours"],
) -> Float[np.ndarray, "n n"]:
    """Hellinger distance between colour shares, 0..1."""
    overlap = np.sqrt(shares) @ np.sqrt(shares).T
    apart: np.ndarray = np.sqrt(np.clip(1 - overlap, 0, 1))
    return apart


def composition_distances(looks: list[Look]) -> Float[np.ndarray, "n n"]:
    """Root mean square distance of the coarse grids, as they are or mirrored."""
    own = np.stack([x.composition.ravel() for x in looks])
    mirrored = np.stack([x.mirrored_composition.ravel() for x in looks])
    cells = own.shape[1] / 3

    def apart(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> np.ndarray:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        root: np.ndarray = np.sqrt(np.clip(squared, 0, None) / cells)
        return root

    nearest: np.ndarray = np.minimum(apart(own, own), apart(own, mirrored))
    np.fill_diagonal(nearest, 0)
    either: np.ndarray = np.minimum(nearest, nearest.T)
    return either


def hash_distances(looks: list[Look]) -> Float[np.ndarray, "n n"]:
    """How many of the 64 pHash bits differ, between pictures as they are or mirrored."""
    own = np.stack([x.structure for x in looks]).astype(np.float64)
    mirrored = np.stack([x.mirrored_structure for x in looks]).astype(np.float64)

    def differ(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> np.ndarray:
        bits: np.ndarray = a @ (1 - b).T + (1 - a) @ b.T
        return bits

    nearest = np.minimum(differ(own, own), differ(own, mirrored))
    either: np.ndarray = np.minimum(nearest, nearest.T)
    return either
