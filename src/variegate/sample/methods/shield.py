"""`shield`: pictures are pushed away from pictures that were learnt, as `spell` does it.

The pictures to keep away from are encoded once, cut to a square in their middle, at the size that
is drawn. A copy is one of the latents: a subject in another place is none, and is left alone.

Source: Kirchhof et al., 2024, arXiv 2410.06025, section 5.6 (shielded generation).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from variegate.errors import RequestError
from variegate.images import ImageSet
from variegate.models import DiffusionModel


def pictures_of(folder: str) -> ImageSet:
    """The pictures to keep away from.

    Raises: RequestError when no folder is named or it has none.
    """
    if not folder:
        raise RequestError(
            "the shield keeps away from pictures: name their folder, methods.shield.images=DIR"
        )
    found = ImageSet.read(Path(folder))
    if not len(found):
        raise RequestError(f"no pictures to keep away from in {folder}")
    return found


def digest(pictures: ImageSet) -> str:
    """What tells these pictures from others, wherever they lie."""
    hashes = sorted(picture.content_hash() for picture in pictures)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def encoded(model: DiffusionModel, pictures: ImageSet) -> Float[Tensor, "k c y x"]:
    """Their latents, each picture's mean."""
    side = (model.resolution, model.resolution)
    found = []
    for picture in pictures:
        square = ImageOps.fit(picture.open(), side, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append(model.encode(pixels).float())
    return torch.cat(found)
