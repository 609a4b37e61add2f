"""What a strategy may do to a training run: moments that the loop offers, each doing nothing here.

A strategy is one recipe entry, one file beside this one that overrides the moments it needs, and
one test. Whatever it draws comes from `seeds`, by address, so that a step can be done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from variegate.adapter import Attached
from variegate.diffusion import NoiseSchedule
from variegate.images import ImageSet
from variegate.progress import Say
from variegate.recipe import Recipe, SamplingPlan
from variegate.sample import Request, sample
from variegate.train.frame import Frame
from variegate.train.wording import Aspect

DRAWN_STEPS = 20  # denoising steps of pictures that are trained with: they need no fine detail


@dataclass(frozen=True)
class Shot:
    """One picture on its way into training: pixels in 0..1 and the subject's share of each.

    `found` says whether the mask is believed; where it is not, the mask is all ones. frame: None
    for pictures that come from no file. changed: what is no longer as the caption knows it.
    """

    pixels: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"]
    found: bool
    frame: Frame | None = None
    changed: frozenset[Aspect] = frozenset()


@dataclass(frozen=True)
class Seen:
    """What can be told of a row's picture.

    mask: the subject's share of each place in the latents, None where it was not found. ground:
    the colour around it, in 0..1, None where it is of several. changed: as in `Shot`.
    """

    mask: Float[Tensor, "y x"] | None
    ground: Float[Tensor, " 3"] | None
    changed: frozenset[Aspect] = frozenset()


@dataclass(frozen=True)
class Rows:
    """Rows for one call of the network, noised already.

    frames: what part of its file's picture each row shows, None for one that comes from no file;
    empty where none does. Bases that are told of sizes take those for whole pictures. turns: the
    step and row of each training picture, None for other rows; empty where there are none.
    """

    noised: Float[Tensor, "b c y x"]
    timesteps: Int[Tensor, " b"]
    prompts: list[str]
    frames: list[Frame | None] = field(default_factory=list)
    turns: list[tuple[int, int] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Beside:
    """Rows that are trained beside the pictures.

    base_prompts: what the silenced adapter (the base) is asked for its answer to the same rows,
    which is then the target. target: given in its place, None otherwise.
    """

    rows: Rows
    base_prompts: list[str]
    target: Float[Tensor, "b c y x"] | None = None


@dataclass(frozen=True)
class Setting:
    """What a strategy is given before the first step, while the model is still the bare base."""

    recipe: Recipe
    model: Any
    folder: Path
    say: Say


@dataclass(frozen=True)
class Control:
    """What the guard has turned: factors on the learning rate and on what holds to the base, and
    what is added to every dropout."""

    lr: float = 1.0
    hold: float = 1.0
    dropout: float = 0.0


def draw_kept(setting: Setting, requests: Sequence[Request], name: str) -> ImageSet:
    """Pictures of the bare base for a run, in its folder `name`, drawn once.

    All or none: drawing the rest in other batches could move a pixel, and with it a resumed run.
    """
    asked = setting.recipe.sampling
    out, whole = setting.folder / name, setting.folder / name / "all-drawn"
    if out.exists() and not whole.exists():
        shutil.rmtree(out)
    plan = SamplingPlan(
        steps=min(DRAWN_STEPS, asked.steps),
        guidance_scale=asked.guidance_scale,
        sampler=asked.sampler,
    )
    drawn = sample(setting.model, None, requests, plan=plan, out=out, say=setting.say)
    whole.touch()
    return drawn


class Strategy:
    """Does nothing; override what is needed.

    needs_masks: the subject's mask is looked for in each picture.
    alters: pictures come in several altered variants.
    stirs: what is read of captions is changed.
    control: what the guard wants at present.
    """

    needs_masks = False
    alters = False
    stirs = False
    control = Control()

    def prepare(self, setting: Setting) -> None:
        """Make what is needed, before the adapter is attached."""

    def attached(self, on: Attached) -> None:
        """Meet the adapter, fresh or restored, before the first step."""

    def alter(self, shot: Shot, address: tuple[int | str, ...]) -> Shot:
        """The picture as one of its variants; the same address gives the same variant."""
        return shot

    def mirrors(self, step: int, row: int) -> bool:
        """Whether this row is mirrored left to right at this step."""
        return False

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        """The caption that this row is trained on at this step."""
        return caption

    def stir(
        self, embedding: Float[Tensor, "t d"], caption: str, step: int, row: int
    ) -> Float[Tensor, "t d"]:
        """What the network reads of this row's caption at this step, where `stirs`."""
        return embedding

    def noise(self, noise: Float[Tensor, "b c y x"], step: int) -> Float[Tensor, "b c y x"]:
        """The noise that is added and is to be found again."""
        return noise

    def perturb(self, noise: Float[Tensor, "b c y x"], step: int) -> Float[Tensor, "b c y x"]:
        """The noise that is added in place of the one that is to be found."""
        return noise

    def errors(
        self,
        difference: Float[Tensor, "b c y x"],
        schedule: NoiseSchedule,
        timesteps: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c y x"] | None:
        """What each difference from the target costs; None: its square."""
        return None

    def weigh_rows(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        """What each row's loss counts; None: one."""
        return None

    def weigh_grounds(
        self, schedule: NoiseSchedule, timesteps: Int[Tensor, " b"], moved: Bool[Tensor, " b"]
    ) -> Float[Tensor, " b"] | None:
        """The same, given whether each row's subject lies on a ground that is not its own."""
        return None

    def weigh_places(
        self, masks: Float[Tensor, "b y x"], schedule: NoiseSchedule, timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b y x"] | None:
        """What each place in the latents counts, given the subject's share there; None: one."""
        return None

    def beside(self, step: int) -> Beside | None:
        """Rows to be trained beside the pictures."""
        return None

    def beside_weight(self) -> float:
        """What the loss on those rows counts."""
        return 1.0

    def heard(self, loss: float) -> None:
        """The mean loss on those rows, unweighed, once the step is done."""

    def penalty(self, on: Attached) -> Float[Tensor, ""] | None:
        """A term of the loss that the weights alone decide."""
        return None

    def moved(self, on: Attached, step: int) -> None:
        """The weights have just moved."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of this strategy: plain values and tensors by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where a checkpoint stood."""

    def final(self) -> dict[str, Tensor] | None:
        """Factors by name that are to be the adapter in place of the last ones."""
        return None


class Dropout(Strategy):
    """Leaves out some of what stands between an update's factors, with a chance that the guard may
    raise. Draws from torch's global generator, which each step gives an address."""

    p: float

    @property
    def chance(self) -> float:
        return min(0.95, self.p + self.control.dropout)

    def attached(self, on: Attached) -> None:
        on.between_factors(lambda hidden: self.drop(hidden) if self.chance else hidden)

    def drop(self, hidden: Tensor) -> Tensor:
        """What is left of the outputs of a down projection."""
        raise NotImplementedError
