"""Where the subject is, found from the pixels alone.

The ring at a picture's border shows its ground. Its colours are clustered, and whatever is far
from all of them, and from their mixtures, is the subject. Hand-drawn masks, where there are any,
win over what is found here.

A border that is not of its own colours tells that there is no such ground; then nothing is found.
How right these masks are, and those of the base's attention, is in `docs/pictures.md`.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

Array = NDArray[np.float32]

WORKING_PIXELS = 192  # larger pictures are searched at this side
CLUSTERS = 5  # of the border's colours: two inks, their shading, and what touches the border
LEAST_SHARE = 0.03  # of a side of the border, for a colour to count as seen there
LEAST_SIDES = 3  # of the border on which a colour must be seen to be ground, not the subject
LEAST_DISTANCE = 7.0  # in Lab, below which nothing stands out to the eye
# Of the border, that may stand out from the ground's colours. Of 200 scenes of the pocket's world
# none has more, of 200 on grounds of 40 random rectangles, where masks are wrong, three quarters.
MOST_EDGE = 0.25
SMALLEST, LARGEST = 0.015, 0.9  # plausible shares of the picture


def find_masks(
    images: UInt8[Tensor, "n 3 h w"],
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]]:
    """The subject's share of each pixel, and a confidence in 0..1 for each picture.

    Confidence is how far the subject stands out (1: clearly), and 0 where none was found: there
    the mask is all ones. It is plausible when it takes 1.5 to 90 % of the picture.
    """
    masks, confidence = [], []
    for image in images:
        mask, sure = _find_mask(image.permute(1, 2, 0).cpu().numpy())
        masks.append(torch.from_numpy(mask))
        confidence.append(sure)
    if not masks:
        return torch.zeros(images.shape[0], *images.shape[2:]), torch.zeros(0)
    return torch.stack(masks), torch.tensor(confidence, dtype=torch.float32)


def mask_from_map(map_: Float[Tensor, "h w"]) -> Float[Tensor, "h w"] | None:
    """The parts of a map in 0..1 that stand out from the rest; None where that is no subject."""
    values = map_.numpy().astype(np.float32)
    out = values > _otsu(values)
    out &= _big_parts(out, share=0.15)
    if not SMALLEST <= float(out.mean()) <= LARGEST:
        return None
    return torch.from_numpy(out.astype(np.float32))


def plausible(mask: Float[Tensor, "h w"]) -> bool:
    """Whether the subject takes a believable share of the picture."""
    return SMALLEST <= float((mask > 0.5).float().mean()) <= LARGEST


def _find_mask(pixels: NDArray[np.uint8]) -> tuple[Array, float]:
    height, width = pixels.shape[:2]
    whole = np.ones((height, width), np.float32)
    image = Image.fromarray(pixels)
    scale = WORKING_PIXELS / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    lab = to_lab(np.asarray(image, np.float32) / np.float32(255))
    if min(lab.shape[:2]) < 8:
        return whole, 0.0
    distance = _distance(lab, _ground_colours(lab))
    subject, sure = _pick_subject(distance)
    if sure == 0 or not SMALLEST <= float(subject.mean()) <= LARGEST:
        return whole, 0.0
    soft = ndimage.gaussian_filter(subject.astype(np.float32), 0.6)
    if scale < 1:
        smooth = Image.fromarray(soft).resize((width, height), Image.Resampling.BILINEAR)
        soft = np.asarray(smooth, np.float32)
    return np.clip(soft, 0, 1).astype(np.float32), sure


def to_lab(rgb: Array) -> Array:
    """CIE L*a*b* (D65) of sRGB in 0..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    lab = np.stack(
        [lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )
    return lab.astype(np.float32)


def _ground_colours(lab: Array) -> Array:
    """The middle colours `[k, 3]` of the border ring that are seen on most of its sides."""
    ring = max(2, min(lab.shape[:2]) // 10)
    sides = (lab[:ring], lab[-ring:], lab[:, :ring], lab[:, -ring:])
    strips = [side.reshape(-1, 3) for side in sides]
    colours = np.concatenate(strips)
    # Farthest-first starts need no randomness and find a second ink however rare it is.
    centres = [np.median(colours, axis=0)]
    for _ in range(CLUSTERS - 1):
        gaps = np.min([((colours - c) ** 2).sum(1) for c in centres], axis=0)
        centres.append(colours[int(gaps.argmax())])
    middles = np.stack(centres)
    for _ in range(10):
        nearest = ((colours[:, None] - middles) ** 2).sum(-1).argmin(1)
        middles = np.stack(
            [
                colours[nearest == k].mean(0) if bool((nearest == k).any()) else middles[k]
                for k in range(CLUSTERS)
            ]
        )
    side_of = np.repeat(np.arange(4), [len(strip) for strip in strips])
    shares = np.stack(
        [np.bincount(nearest[side_of == i], minlength=CLUSTERS) / len(strips[i]) for i in range(4)]
    )
    ground = (shares > LEAST_SHARE).sum(0) >= LEAST_SIDES
    ground[shares.sum(0).argmax()] = True
    chosen: Array = middles[ground].astype(np.float32)
    return chosen


def _distance(lab: Array, ground: Array) -> Array:
    """How far each pixel is, in Lab, from every ground colour and every mixture of two."""
    best = np.full(lab.shape[:2], np.inf, np.float32)
    for i, a in enumerate(ground):
        best = np.minimum(best, np.linalg.norm(lab - a, axis=-1))
        for b in ground[i + 1 :]:
            along = b - a
            t = np.clip((lab - a) @ along / max(float(along @ along), 1e-6), 0, 1)
            best = np.minimum(best, np.linalg.norm(lab - a - t[..., None] * along, axis=-1))
    return best


def _pick_subject(distance: Array) -> tuple[NDArray[np.bool_], float]:
    """The parts that stand out, joined and filled, and how clearly they do."""
    side = min(distance.shape)
    threshold = max(LEAST_DISTANCE, min(_otsu(distance), 18.0))
    out = distance > threshold
    ring = max(2, side // 10)
    edge = np.ones_like(out)
    edge[ring:-ring, ring:-ring] = False
    if float(out[edge].mean()) > MOST_EDGE:
        return out, 0.0
    out &= _big_parts(out, share=0.1)
    reach = max(1, round(side / 40))
    padded = np.pad(out, 2 * reach)
    closed = ndimage.binary_closing(padded, _disk(reach))[
        2 * reach : -2 * reach, 2 * reach : -2 * reach
    ]
    filled = ndimage.binary_fill_holes(closed)
    subject = filled & _big_parts(filled, share=0.15)
    if not subject.any() or subject.all():
        return subject, 0.0
    gap = float(np.median(distance[subject]) - np.median(distance[~subject]))
    return subject, float(np.clip(gap / 30, 0.05, 1))


def _big_parts(out: NDArray[np.bool_], *, share: float) -> NDArray[np.bool_]:
    """The connected parts that have at least a share of the best one's weight.

    A part weighs its area, up to four times less when it lies at the edge.
    """
    labels, count = ndimage.label(out, np.ones((3, 3)))
    if count == 0:
        return np.zeros_like(out, dtype=bool)
    h, w = out.shape
    y, x = np.mgrid[0:h, 0:w]
    off = np.maximum(np.abs(y / (h - 1) - 0.5), np.abs(x / (w - 1) - 0.5)) * 2
    weights = ndimage.sum(1 - 0.75 * off**2, labels, np.arange(1, count + 1))
    kept = np.flatnonzero(weights >= share * weights.max()) + 1
    return np.isin(labels, kept)


def _otsu(values: Array) -> float:
    """The threshold that splits values into the two most separate groups."""
    counts, edges = np.histogram(values, 128)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][int(np.nan_to_num(between).argmax())])


def _disk(radius: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk: NDArray[np.bool_] = x**2 + y**2 <= radius**2 + 0.5
    return disk
