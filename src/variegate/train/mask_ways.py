"""The ways in which a picture's mask is had: drawn by hand, else found."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from variegate.errors import ImagesError
from variegate.recipe import Recipe
from variegate.train.attention import attention_map
from variegate.train.masks import find_masks, mask_from_map, plausible
from variegate.train.segmenter import open_segmenter


class MaskWays:
    """Hand-drawn masks where there are any, else those of the user's segmenter or those found in
    the pixels, else those of the base's attention if it is asked.

    base: the bare base, asked if the recipe says so; None: it is not asked.
    Raises: RecipeError for a segmenter that cannot be used.
    """

    def __init__(self, recipe: Recipe, base: Any) -> None:
        named = recipe.masks.segmenter
        self._segment = open_segmenter(Path(named)) if named else None
        self._recipe = recipe
        self._base = base if recipe.masks.unsure == "attention" else None
        self._ways = Counter[str]()
        self._lost = list[str]()

    def of(
        self,
        picture: Image.Image,
        *,
        key: str,
        caption: str | None,
        drawn: Path | io.BytesIO | None,
    ) -> Float[Tensor, "h w"] | None:
        """The mask of a picture as it is cut; None: not found.

        drawn: what holds its hand-drawn mask. Raises: ImagesError when that cannot be read.
        """
        mask, way = self._found(picture, key, caption, drawn)
        if mask is None:
            self._lost.append(key)
        else:
            self._ways[way] += 1
        return mask

    def note(self) -> str:
        """What is to be told of the masks so far."""
        told = [f"{n} {way}" for way, n in sorted(self._ways.items())]
        if self._lost:
            told.append(
                f"{len(self._lost)} not found (such as {self._lost[0]!r}): those pictures count as "
                "a whole; draw a mask beside them named NAME-masklabel.png"
            )
        return f"masks: {', '.join(told)}"

    def _found(
        self, picture: Image.Image, key: str, caption: str | None, drawn: Path | io.BytesIO | None
    ) -> tuple[Tensor | None, str]:
        if drawn is not None:
            return _drawn_mask(drawn, key, picture.size), "hand-drawn"
        if self._segment is not None:
            found = self._segment(picture)
            return (found, "by the segmenter") if plausible(found) else (None, "")
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        masks, confidence = find_masks(pixels[None])
        if confidence[0] > 0:
            return masks[0], "found in the pixels"
        if self._base is not None:
            return self._attended(pixels, caption), "by the base's attention"
        return None, ""

    def _attended(self, pixels: Tensor, prompt: str | None) -> Float[Tensor, "h w"] | None:
        """What the base attends to at the class noun, in the picture's caption or the plainest
        one."""
        noun = self._recipe.class_noun
        if not noun:
            return None
        caption = (prompt or "").replace(self._recipe.trigger or noun, noun)
        asked = caption if noun in caption.split() else f"a {noun}"
        map_ = attention_map(self._base, pixels.float() / 255, asked, noun)
        return None if map_ is None else mask_from_map(map_)


def _drawn_mask(drawn: Path | io.BytesIO, key: str, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    try:
        with Image.open(drawn, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            grey = ImageOps.fit(image.convert("L"), size, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        what = drawn if isinstance(drawn, Path) else f"of {key!r}"
        raise ImagesError(
            f"mask {what} cannot be read: {error}; draw it again as a grey PNG, white on the "
            "subject, or remove it"
        ) from error
    return torch.from_numpy(np.array(grey)).float() / 255
