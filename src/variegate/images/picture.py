"""One picture and what is known of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import UInt8
from PIL import Image

from variegate.errors import ImagesError
from variegate.images.decode import examine

if TYPE_CHECKING:
    from torch import Tensor
else:  # folders are read without torch, which takes seconds to import
    Tensor = Any


@dataclass(frozen=True)
class Picture:
    """A training photograph or a sample: where it is, and its prompt, seed and place in the set.

    key: unique within its set; of a file, its path relative to the set's folder.
    prompt: its caption; None when nobody gave one, "" when it was left empty.
    tensor: the pixels, when the picture lives in memory and `file` is None.
    mask_file: a grey picture, white on the subject. repeats: how often one epoch shows it.
    group: "class", "trigger", "unrelated" or "caption" for samples; free otherwise.
    strength: how strongly the adapter acted on a sample.
    """

    key: str
    file: Path | None
    prompt: str | None = None
    seed: int | None = None
    tensor: UInt8[Tensor, "3 h w"] | None = field(default=None, compare=False)
    mask_file: Path | None = None
    repeats: int = 1
    group: str | None = None
    strength: float = 1.0

    def open(self) -> Image.Image:
        """The picture as 8-bit RGB, upright, over white, first frame.

        Raises: ImagesError that names the file, what is wrong with it and what to do.
        """
        if self.file is None:
            return Image.fromarray(self._pixels().permute(1, 2, 0).contiguous().numpy())
        examined = examine(self.file)
        if examined.image is None:
            fault = examined.faults[-1]
            raise ImagesError(f"Picture {str(self.file)!r}: {fault.fault}; {fault.advice}.")
        return examined.image

    def content_hash(self) -> str:
        """sha256 (hex) of the file's bytes, or of the tensor's shape and bytes."""
        if self.file is None:
            pixels = self._pixels().contiguous()
            digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
            digest.update(pixels.numpy().tobytes())
            return digest.hexdigest()
        try:
            with self.file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ImagesError(
                f"Picture {str(self.file)!r} cannot be read: {error.strerror}; "
                "restore it or remove it from the set."
            ) from error

    def _pixels(self) -> Tensor:
        if self.tensor is None:
            raise ImagesError(
                f"Picture {self.key!r} has neither a file nor pixels; give it one of the two."
            )
        return self.tensor.detach().cpu()
