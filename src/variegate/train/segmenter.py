"""Masks by a segmentation network that the user has: rembg with weights from a local file.

Nothing is fetched: rembg's session for own weights is opened on the file that is named, which is to
be of the U2-Net family (u2net.onnx, u2netp.onnx, silueta.onnx, or one trained like them).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from variegate.errors import RecipeError

Segment = Callable[[Image.Image], Tensor]
WEIGHTS_MISSING = "expected an ONNX file of the U2-Net family, such as u2net.onnx"


def open_segmenter(file: Path) -> Segment:
    """What gives the subject's share of each pixel `[h, w]` of a picture, in 0..1.

    Raises: RecipeError when the file is missing or of another kind, rembg is not installed, or
    cannot read it.
    """
    if file.suffix != ".onnx" or not file.is_file():
        found = "a file of another kind" if file.is_file() else "no such file"
        raise RecipeError(f"masks.segmenter: {str(file)!r}: found {found}; {WEIGHTS_MISSING}")
    try:
        import rembg
    except ImportError as error:
        raise RecipeError(
            f"masks.segmenter: {str(file)!r} is read by rembg, which is not installed; install "
            "variegate[masks], or leave masks.segmenter out"
        ) from error
    try:
        session = rembg.new_session("u2net_custom", model_path=str(file.resolve()))
    except Exception as error:  # whatever onnxruntime raises for a file that it cannot read
        raise RecipeError(
            f"masks.segmenter: {str(file)!r} cannot be read: {error}; {WEIGHTS_MISSING}"
        ) from error

    def segment(picture: Image.Image) -> Float[Tensor, "h w"]:
        mask: Any = rembg.remove(picture, session=session, only_mask=True)
        return torch.from_numpy(np.array(mask.convert("L"))).float() / 255

    return segment
