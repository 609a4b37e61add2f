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

SIDE = 64  # pixels that descriptors look at
LAYOUT = 8  # cells a side
EDGE = 8  # pixels of SIDE that count as border
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
    border = _border()
    grid = layout(lab)
    return Look(
        background=colour_shares(lab[border]),
        palette=colour_shares(lab.reshape(-1, 3)),
        composition=grid.reshape(-1, 3),
        mirrored_composition=grid[:, ::-1].reshape(-1, 3),
        structure=phash_bits(picture),
        mirrored_structure=phash_bits(ImageOps.mirror(picture)),
        box=subject_box(lab),
    )


def oklab(rgb: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """sRGB in 0..1 to Oklab: lightness 0..1, then green-red and blue-yellow in about -0.3..0.3.

    Source: Ottosson, A perceptual color space for image processing, 2020.
    """
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: np.ndarray = np.cbrt(linear @ to_lms.T) @ to_lab.T
    return lab


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


def subject_box(lab: Float[np.ndarray, "side side 3"]) -> Float[np.ndarray, "3"]:
    """Centre x, centre y and size of what differs from the border, as shares of the side.

    Each pixel is weighed by its distance to the nearest of the border's main colours, beyond what
    the border itself shows. A picture that is all border has its centre in the middle, size 0.
    """
    edge = lab[_border()]
    anchors = _main_colours(edge)
    far = np.linalg.norm(lab[:, :, None] - anchors, axis=-1).min(-1)
    typical = np.quantile(far[_border()], 0.9)
    weight = np.clip(far - typical - 0.02, 0, 0.25)
    total = weight.sum()
    if total <= 1e-9:
        return np.array([0.5, 0.5, 0.0])
    y, x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    cx, cy = float((weight * x).sum() / total), float((weight * y).sum() / total)
    spread = np.sqrt((weight * ((x - cx) ** 2 + (y - cy) ** 2)).sum() / total)
    return np.array([cx, cy, float(2 * spread)])


def _border() -> Bool[np.ndarray, "side side"]:
    """The left, right and upper edges: what stands on the ground reaches the lower one."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:EDGE], mask[:, :EDGE], mask[:, -EDGE:] = True, True, True
    return mask


def _main_colours(
    lab: Float[np.ndarray, "pixels 3"], n: int = 4
) -> Float[np.ndarray, "colours_found 3"]:
    """Up to n colours that lie far apart among the pixels: a few rounds of k-means."""
    centres = [np.median(lab, 0)]
    for _ in range(n - 1):
        far = np.linalg.norm(lab[:, None] - np.stack(centres), axis=-1).min(-1)
        if np.quantile(far, 0.9) < 0.05:
            break
        centres.append(lab[np.argsort(far)[int(0.9 * len(far))]])
    found = np.stack(centres)
    for _ in range(4):
        nearest = np.linalg.norm(lab[:, None] - found, axis=-1).argmin(-1)
        found = np.stack(
            [lab[nearest == i].mean(0) if (nearest == i).any() else c for i, c in enumerate(found)]
        )
    return found


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
