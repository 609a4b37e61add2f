"""What is held out, masked, watched, guarded, kept and drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from variegate.plugins import Entry
from variegate.recipe.sampling import SamplingMethods, Variety, joined


class HeldOut(Entry):
    """Pictures kept from training to tell learning from memorising."""

    share: float = Field(
        0.15, ge=0, le=0.5, description="of the different pictures; one at least, none at 0"
    )
    at_least_pictures: int = Field(
        5, ge=2, description="different ones; below this many, none is held out"
    )


class Masks(Entry):
    """Where the subject's masks come from, for strategies that need them; hand-drawn ones win."""

    segmenter: str = Field(
        "", description="ONNX file of the U2-Net family, read by rembg; empty: from the pixels"
    )
    unsure: Literal["whole", "attention"] = Field(
        "whole",
        description="where the pixels do not tell: the whole picture counts, or what of it the "
        "base attends to at the class noun",
    )


class Probes(Entry):
    """What is watched while training, on fixed (picture, timestep, noise) triples."""

    every: int | None = Field(
        None, ge=1, description="steps between two looks; None: as 5 % of the time allows"
    )
    triples: int = Field(16, ge=1, description="questions about pictures, of each set")
    noises: int = Field(8, ge=2, description="starts from pure noise, of each prompt")
    intruders: int | None = Field(
        None,
        ge=0,
        description="leading directions of each layer that are compared with the base's at every "
        "checkpoint; None: ten, 0: none",
    )


class Panels(Entry):
    """Pictures drawn while training, for the eye: the same prompts and noise at every look.

    The sampler is that of the verdict.
    """

    every: int | None = Field(
        None,
        ge=1,
        description="steps between two looks; None: as a tenth of the time allows, in whole "
        "looks of the probes",
    )
    pictures: int = Field(3, ge=1, le=16, description="of each prompt")
    prompts: tuple[str, ...] = Field(
        (), description="beside the trigger and the class noun in their plainest prompt"
    )
    steps: int = Field(10, ge=1, le=1000, description="denoising steps")
    guidance_scale: float | None = Field(None, ge=1, description="None: that of the verdict")


class Guard(Entry):
    """Who acts on what is watched: nobody, one who stops, or one who also eases and goes back.

    The varieties are those of one-step clean estimates relative to the base's; copying is how
    much nearer they are to a picture learnt than the base's, 1 all are one. The lines lie where
    runs of known collapse part (`tools/probe_table.py`, `tools/copying_table.py`).
    """

    mode: Literal["watch", "stop", "autopilot"] = "autopilot"
    class_warning: float = Field(0.88, gt=0, le=1, description="variety below which it eases")
    class_alarm: float = Field(0.8, gt=0, le=1, description="variety below which it goes back")
    trigger_warning: float = Field(0.75, gt=0, le=1)
    trigger_alarm: float = Field(0.65, gt=0, le=1)
    copying_warning: float = Field(
        0.45, gt=0, lt=1, description="of pictures too few to hold any out: nearness to them"
    )
    copying_alarm: float = Field(0.6, gt=0, lt=1)
    rewinds: int = Field(2, ge=0, description="ways back before it stops")
    patience: int = Field(5, ge=1, description="looks without less loss before it stops")

    @model_validator(mode="after")
    def _warning_before_alarm(self) -> Guard:
        if self.class_warning <= self.class_alarm or self.trigger_warning <= self.trigger_alarm:
            raise ValueError("a warning must lie above its alarm")
        if self.copying_warning >= self.copying_alarm:
            raise ValueError("copying_warning must lie below copying_alarm")
        return self


class Checkpoints(Entry):
    every: int = Field(100, ge=1, description="steps between two checkpoints")
    keep: int = Field(10, ge=1, description="how many of the latest are kept")


class SamplingPlan(Entry):
    """How pictures are drawn for the verdict."""

    preset: Literal["quick", "standard", "thorough"] = "standard"
    steps: int = Field(25, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(7.5, ge=1)
    sampler: Literal["ddim", "euler", "euler_a", "dpmpp_2m"] = "ddim"
    variety: Variety | None = Field(
        None, description="a measured combination of methods; None: off"
    )
    methods: SamplingMethods | None = Field(
        None, description="how pictures are drawn beside that, over what `variety` names"
    )

    @field_validator("methods")
    @classmethod
    def _nothing_on_is_nothing(cls, methods: SamplingMethods | None) -> SamplingMethods | None:
        return methods if methods is not None and methods.on else None

    @model_validator(mode="after")
    def _the_sampler_can_do_it(self) -> SamplingPlan:
        methods = self.in_force
        if methods is not None and methods.cfg_pp and self.sampler not in ("ddim", "euler"):
            raise ValueError(
                f"methods.cfg_pp noises again by itself, which sampler ddim or euler lets it; "
                f"found {self.sampler!r}"
            )
        return self

    @property
    def in_force(self) -> SamplingMethods | None:
        """The methods of `variety` with `methods` over them; None: the plain loop."""
        return joined(self.variety, self.methods)
