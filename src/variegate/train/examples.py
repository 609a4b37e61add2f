"""Pictures ready for training, and what is learnt from, held out, and told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from variegate.images import Picture
from variegate.recipe import Recipe
from variegate.train.frame import Frame
from variegate.train.strategies import Shot

if TYPE_CHECKING:
    from variegate.train.stream import Streamed


@dataclass(frozen=True)
class Example:
    """A picture ready for training: its pixels at the run's resolution, mask, and caption.

    family: one name for all that share a vote in the turns; its own key when it shares with none.
    """

    key: str
    shot: Shot
    caption: str
    repeats: int
    family: str


class Cut(NamedTuple):
    """A picture at the size that is trained on, and which part of its file it is."""

    picture: Image.Image
    frame: Frame


@dataclass(frozen=True)
class TrainingSet:
    """Examples to learn from and examples held out, with what is to be told about them.

    stream: what batches are made of where pictures are read as they come; `train` is then a sample
    of it, to be watched. None: `train` is all that is learnt from.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    held_out_keys: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: dict[str, str]
    stream: Streamed | None = None

    @property
    def count(self) -> int:
        """How many pictures are learnt from."""
        return len(self.train) if self.stream is None else self.stream.count

    def close(self) -> None:
        """Stop reading ahead, where anything is."""
        if self.stream is not None:
            self.stream.close()


def example_of(
    picture: Picture,
    cut: Cut,
    mask: Float[Tensor, "h w"] | None,
    recipe: Recipe,
    *,
    family: str,
    pocket: bool,
) -> Example:
    """A picture as it was cut, with its mask; None: it has none, and all of it counts."""
    pixels = torch.from_numpy(np.array(cut.picture)).permute(2, 0, 1).float() / 255
    share = torch.ones(pixels.shape[1:]) if mask is None else mask
    return Example(
        key=picture.key,
        shot=Shot(pixels, share, mask is not None, cut.frame),
        caption=caption_of(picture, recipe, pocket=pocket),
        repeats=picture.repeats,
        family=family,
    )


def caption_of(picture: Picture, recipe: Recipe, *, pocket: bool) -> str:
    """Its own, else one that names the trigger and the class noun."""
    if picture.prompt is not None:
        return picture.prompt
    if pocket:
        return f"a {recipe.trigger or recipe.class_noun or 'picture'}"
    return " ".join(w for w in ("a photo of", recipe.trigger, recipe.class_noun) if w)


def trigger_note(captions: Sequence[tuple[str, str]], recipe: Recipe, *, of: int) -> list[str]:
    """What is to be told of captions, each after its picture's key, that leave out the trigger.

    of: how many pictures there are, where not all were looked at.
    """
    if not recipe.trigger:
        return []
    without = [key for key, caption in captions if recipe.trigger not in caption]
    if not without:
        return []
    looked = f" that were looked at, of {of}," if of > len(captions) else ""
    return [
        f"{len(without)} of {len(captions)} captions{looked} do not name the trigger "
        f"{recipe.trigger!r}, such as that of {without[0]!r}; they are used as they are, so those "
        "pictures do not teach the trigger"
    ]
