"""Where in a picture its subject stands, and how large: from pixels alone.

What differs from the picture's edges is taken for the subject. On cluttered grounds that says
little: centre and size then lie near the middle of what they can be, whatever is shown.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

SIDE = 64  # pixels of the square that is looked at
EDGE = 8  # of them count as border


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


def subject_box(lab: Float[np.ndarray, "side side 3"]) -> Float[np.ndarray, "3"]:
    """Centre x, centre y and size of what differs from the border, as shares of the side.

    Each pixel is weighed by its distance to the nearest of the border's main colours, beyond what
    the border itself shows. A picture that is all border has its centre in the middle, size 0.
    """
    edge = lab[border()]
    anchors = _main_colours(edge)
    far = np.linalg.norm(lab[:, :, None] - anchors, axis=-1).min(-1)
    typical = np.quantile(far[border()], 0.9)
    weight = np.clip(far - typical - 0.02, 0, 0.25)
    total = weight.sum()
    if total <= 1e-9:
        return np.array([0.5, 0.5, 0.0])
    y, x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    cx, cy = float((weight * x).sum() / total), float((weight * y).sum() / total)
    spread = np.sqrt((weight * ((x - cx) ** 2 + (y - cy) ** 2)).sum() / total)
    return np.array([cx, cy, float(2 * spread)])


def border() -> Bool[np.ndarray, "side side"]:
    """Which pixels are border: the left, right and upper edges. What stands on the ground reaches
    the lower one."""
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
