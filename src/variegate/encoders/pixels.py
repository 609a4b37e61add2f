"""Features that are plain pixels: no network, no download, never out of their depth.

`Layout` is what surrounds and arranges a picture (colours and roughness by place) and knows next
to nothing of who is in it; `Palette` is its colours wherever they stand, `Border` its outer edge,
`Placement` where its subject stands and how large.
`Thumbnail` is the picture itself made small, for finding copies; its rows are not scaled to unit
length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from variegate import seeds
from variegate.errors import EncoderError
from variegate.images import placement

SIDE = 64  # pixels of a thumbnail's side
CELLS = 8  # layout cells per side
WAVES = 64  # random features per cell
LEAST_SPREAD = 1.0  # of luma or chroma in 0..255: no map is to amplify a deviation below it
COLOUR_STEP = 0.2  # of CIELAB over 100: colours this far apart begin to count as others


class _Wordless:
    """What the encoders here share: no words, and no picture that is strange to them."""

    id: str
    has_text = False

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        raise EncoderError(f"{self.id} has no text tower")

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        return False


class Thumbnail(_Wordless):
    """Each picture squeezed to 64 x 64 RGB: rows `[3 * 64 * 64]` in 0..1, channel first."""

    id = f"thumbnail-{SIDE}-1"

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return _small(pictures, SIDE).flatten(1)


class Layout(_Wordless):
    """Which colour and roughness stands in each of 8 x 8 cells, as unit rows.

    Half the squared distance of two rows is the share of the area that differs: in each cell
    1 - exp(-(difference / 0.2) ** 2 / 2), one unit being the way from black to white in CIELAB.
    So red and orange differ nearly as much as white and brown do. Roughness is three times the
    deviation of lightness within a cell, so that stripes differ from plain ground.

    Source: the kernel is written out in random features (Rahimi and Recht 2007), always the same.
    """

    id = f"layout-{CELLS}-2"

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return F.normalize(_looks(pictures).flatten(1), dim=1)


def colour_moments(picture: Image.Image) -> Float[np.ndarray, "4 4"]:
    """First and second moments of luma and chroma (0..255, as in JPEG: ITU-R BT.601) at 64 x 64,
    and the number of pixels last. Those of several pictures together are their sum."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small.convert("YCbCr"), np.float64).reshape(-1, 3)
    pixels = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    moments: Float[np.ndarray, "4 4"] = pixels.T @ pixels
    return moments


Moments = tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]


class Recolour:
    """Gives pictures the tones and the palette of others: a linear map of luma, and one of chroma.

    After it pictures of the first moments have the mean and deviation of luma, or the mean and
    covariance of chroma, of the second. Of all linear maps that do so these move colours least: to
    pictures of the same palette they do nothing, to gray ones they take the colour out. What is
    drawn where stays.

    Source: Pitié and Kokaram 2007, The linear Monge-Kantorovitch linear colour mapping for
    example-based colour transfer (CVMP); there of all three channels, which turns contrast of hue
    into contrast of lightness where the others are gray.
    """

    def __init__(self, *, luma: Moments, chroma: Moments) -> None:
        tones, hues = (_map_between(*luma, slice(0, 1)), _map_between(*chroma, slice(1, 3)))
        self._change = np.zeros((3, 3))
        self._change[:1, :1], self._change[1:, 1:] = tones[0], hues[0]
        self._shift = np.concatenate([tones[1], hues[1]])

    def __call__(self, picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture.convert("RGB").convert("YCbCr"), np.float64)
        moved = (pixels @ self._change.T + self._shift).clip(0, 255).round()
        return Image.fromarray(moved.astype(np.uint8), "YCbCr").convert("RGB")


def _map_between(
    moments: Float[np.ndarray, "4 4"], like: Float[np.ndarray, "4 4"], of: slice
) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k"]]:
    """The linear map, symmetric and positive, between some channels' distributions, and what it
    adds. No direction counts as wholly flat."""

    def told(sums: Float[np.ndarray, "4 4"]) -> tuple[np.ndarray, np.ndarray]:
        mean = sums[3, of] / sums[3, 3]
        flat = LEAST_SPREAD**2 * np.eye(len(mean))
        return mean, sums[of, of] / sums[3, 3] - np.outer(mean, mean) + flat

    (mean, spread), (to_mean, to_spread) = told(moments), told(like)
    root = _root(spread)
    inverse = np.linalg.inv(root)
    change = inverse @ _root(root @ to_spread @ root) @ inverse
    return change, to_mean - change @ mean


def _root(matrix: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    values, vectors = np.linalg.eigh(matrix)
    root: Float[np.ndarray, "k k"] = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


class Palette(_Wordless):
    """Which colours a picture is made of, wherever they stand, as unit rows.

    The mean over cells of what `Layout` has of each cell: the cosine of two rows compares the two
    pictures' colours as distributions.
    """

    id = f"palette-{CELLS}-1"

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return F.normalize(_looks(pictures).mean(1), dim=1)


class Border(_Wordless):
    """What stands along the four edges, as unit rows: the background of most pictures of a
    subject. `Layout` of the outermost ring of cells alone."""

    id = f"border-{CELLS}-1"

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        ring = torch.ones(CELLS, CELLS, dtype=torch.bool)
        ring[1:-1, 1:-1] = False
        return F.normalize(_looks(pictures)[:, ring.flatten()].flatten(1), dim=1)


class Placement(_Wordless):
    """Where in each picture its subject stands and how large it is: rows `[3]` of its centre across
    and down and its size, as shares of the side. They are not scaled to unit length.

    The subject is what differs from the picture's edges (`images.placement`).
    """

    id = "placement-1"

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        small = _arrays(pictures, placement.SIDE)
        boxes = [placement.subject_box(placement.oklab(picture)) for picture in small]
        return torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 3))


def _looks(pictures: Sequence[Image.Image]) -> Float[Tensor, "n c w"]:
    """Colour and roughness of each of 64 cells, written out in waves whose products are a Gaussian
    kernel on them."""
    waves = torch.randn(4, WAVES, generator=seeds.at(0, "encoders.layout")) / COLOUR_STEP
    lab = _to_lab(_small(pictures, 8 * CELLS))
    cells = lab.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).flatten(2, 3)  # [n, 3, 64, 64]
    rough = 3 * cells[:, :1].std(-1, correction=0)
    looks = torch.cat([cells.mean(-1), rough], 1)  # [n, 4, 64]
    angles = torch.einsum("nfc,fw->ncw", looks, waves)
    return torch.cat([angles.cos(), angles.sin()], 2)


def _small(pictures: Sequence[Image.Image], side: int) -> Float[Tensor, "n 3 s s"]:
    return torch.from_numpy(_arrays(pictures, side)).permute(0, 3, 1, 2)


def _arrays(pictures: Sequence[Image.Image], side: int) -> Float[np.ndarray, "n s s 3"]:
    arrays = [
        np.asarray(p.convert("RGB").resize((side, side), Image.Resampling.BOX)) for p in pictures
    ]
    stacked = np.stack(arrays) if arrays else np.zeros((0, side, side, 3), np.uint8)
    return stacked.astype(np.float32) / 255


def _to_lab(rgb: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """CIELAB over 100 under D65, from sRGB in 0..1 (IEC 61966-2-1, CIE 15)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    white = torch.tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,njhw->nihw", to_xyz / white[:, None], linear)
    cut = 6 / 29
    f = torch.where(xyz > cut**3, xyz.clamp_min(cut**3) ** (1 / 3), xyz / (3 * cut**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1) / 100
