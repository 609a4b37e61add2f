"""What a strategy may do to a training run: moments that the loop offers, each doing nothing here.

A strategy is one recipe entry, one file beside this one that overrides the moments it needs, and
one test. Whatever it draws comes from `seeds`, by address, so that a step can be done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.progress import Say
from variegate.recipe import Recipe


@dataclass(frozen=True)
class Frame:
    """Which part of a file's picture is shown, in the terms in which SDXL is told it.

    original: height and width of the file's picture. scaled: of the whole of it at the scale at
    which the part was cut out. corner: top and left of the part in that. size: of the part, which
    is what is trained on. All in pixels.

    Source: Podell et al., SDXL, 2023 (arXiv 2307.01952), section 2.2: told of its crops, a model
    need not draw cut subjects.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

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


@dataclass(frozen=True)
class Shot:
    """One picture on its way into training: pixels in 0..1 and the subject's share of each.

    `found` says whether the mask is believed; where it is not, the mask is all ones. frame: None
    for pictures that come from no file.
    """

    pixels: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"]
    found: bool
    frame: Frame | None = None


@dataclass(frozen=True)
class Seen:
    """What can be told of a row's picture.

    mask: the subject's share of each place in the latents, None where it was not found. ground:
    the colour around it, in 0..1, None where it is of several.
    """

    mask: Float[Tensor, "y x"] | None
    ground: Float[Tensor, " 3"] | None


@dataclass(frozen=True)
class Rows:
    """Rows for one call of the network, noised already."""

    noised: Float[Tensor, "b c y x"]
    timesteps: Int[Tensor, " b"]
    prompts: list[str]


@dataclass(frozen=True)
class Setting:
    """What a strategy is given before the first step, while the model is still the bare base."""

    recipe: Recipe
    model: Any
    folder: Path
    say: Say


class Strategy:
    """Does nothing; override what is needed.

    needs_masks: the subject's mask is looked for in each picture.
    alters: pictures come in several altered variants.
    """

    needs_masks = False
    alters = False

    def prepare(self, setting: Setting) -> None:
        """Make what is needed, before the adapter is attached."""

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        """The picture as one of its variants; the same address gives the same variant."""
        return shot

    def mirrors(self, step: int, row: int) -> bool:
        """Whether this row is mirrored left to right at this step."""
        return False

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        """The caption that this row is trained on at this step."""
        return caption

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        """What each row's loss counts; None: one."""
        return None

    def weigh_places(self, masks: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"] | None:
        """What each place in the latents counts, given the subject's share there; None: one."""
        return None

    def beside(self, step: int) -> Rows | None:
        """Rows to be answered as the base answers them, trained beside the pictures."""
        return None

    def beside_weight(self) -> float:
        """What the loss on those rows counts."""
        return 1.0
