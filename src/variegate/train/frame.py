"""Which part of a file's picture is trained on, and cutting it out.

A base that is told of its crops, as SDXL is, need not draw cut subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageOps


@dataclass(frozen=True)
class Frame:
    """Which part of a file's picture is shown, in the terms in which SDXL is told it.

    original: height and width of the file's picture. scaled: of the whole of it at the scale at
    which the part was cut out. corner: top and left of the part in that. size: of the part, which
    is what is trained on. All in pixels.

    Source: Podell et al., SDXL, 2023 (arXiv 2307.01952), section 2.2; the order of the numbers is
    that of diffusers' `StableDiffusionXLPipeline._get_add_time_ids`.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @property
    def told(self) -> tuple[int, int, int, int, int, int]:
        """A row of `Conditioning.sizes`: original, corner and size, each height (or top) first."""
        return (*self.original, *self.corner, *self.size)

    def to_json(self) -> list[list[int]]:
        """As it goes from one process to another; `read` reads it."""
        return [list(pair) for pair in (self.original, self.scaled, self.corner, self.size)]

    @staticmethod
    def read(told: Sequence[Sequence[int]] | None) -> Frame | None:
        """A frame that was told as JSON; None of None."""
        if told is None:
            return None
        original, scaled, corner, size = ((int(a), int(b)) for a, b in told)
        return Frame(original, scaled, corner, size)

    def mirrored(self) -> Frame:
        """The same part of the picture after it was mirrored left to right."""
        top, left = self.corner
        return replace(self, corner=(top, self.scaled[1] - left - self.size[1]))

    def inside(self, top: int, left: int, height: int, width: int) -> Frame:
        """A window of this part, resized to this part's size."""
        down, across = self.size[0] / height, self.size[1] / width
        return Frame(
            self.original,
            (round(self.scaled[0] * down), round(self.scaled[1] * across)),
            (round((self.corner[0] + top) * down), round((self.corner[1] + left) * across)),
            self.size,
        )

    def window(self, top: int, left: int, height: int, width: int) -> Frame:
        """A window of this part as it is."""
        corner = (self.corner[0] + top, self.corner[1] + left)
        return replace(self, corner=corner, size=(height, width))


def cut_middle(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Frame]:
    """The middle of a picture at a size (height, width), as much of it as fits."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (round(image.height * scale), round(image.width * scale))
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), Frame(
        original=(image.height, image.width),
        scaled=scaled,
        corner=((scaled[0] - height) // 2, (scaled[1] - width) // 2),
        size=size,
    )
