"""How it is learnt: optimizers, schedules, and what the work has to fit into."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from variegate.plugins import Entry


class Constant(Entry):
    """The peak learning rate all along."""

    kind: Literal["constant"] = "constant"


class Linear(Entry):
    """A straight line from the peak to `floor` of it."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak at the end")


class Cosine(Entry):
    """Half a cosine from the peak to `floor` of it."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak at the end")


class Restarts(Entry):
    """Cosines that begin at the peak again (Loshchilov and Hutter 2016, arXiv 1608.03983)."""

    kind: Literal["restarts"] = "restarts"
    cycles: int = Field(3, ge=1, description="how many cosines, of equal length")
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak at each end")


class Polynomial(Entry):
    """A power of what is left to do."""

    kind: Literal["polynomial"] = "polynomial"
    power: float = Field(2.0, gt=0, le=10)
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak at the end")


def _by_name(value: Any) -> Any:
    """`schedule = "cosine"` is short for a table of that kind."""
    return {"kind": value} if isinstance(value, str) else value


Schedule = Annotated[
    Constant | Linear | Cosine | Restarts | Polynomial,
    Field(discriminator="kind"),
    BeforeValidator(_by_name),
]


class Optimizer(Entry):
    """How it is learnt: what every kind of optimizer knows."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(1, ge=1, description="pictures per step")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="rows per pass of the network, gradients added up; None: all at once",
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled")
    weight_decay_on: Literal["factors", "product"] = Field(
        "factors",
        description="what shrinks by lr * weight_decay a step: each factor, or their product",
    )
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    text_encoder_lr: float | None = Field(None, gt=0, le=1, description="None: half of lr")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    schedule: Schedule = Constant()


class AdamW8bit(AdamW):
    """AdamW whose state takes a byte per number (Dettmers et al. 2021, arXiv 2110.02861).

    NVIDIA GPUs only, through bitsandbytes.
    """

    kind: Literal["adamw8bit"] = "adamw8bit"  # type: ignore[assignment]


class Adafactor(Optimizer):
    """Second moments by row and column (Shazeer and Stern 2018, arXiv 1804.04235).

    With a learning rate of its own, as fine-tuning uses it: neither relative steps nor scaling by
    the factors' size, since `up` begins at zero.
    """

    kind: Literal["adafactor"] = "adafactor"
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    text_encoder_lr: float | None = Field(None, gt=0, le=1, description="None: half of lr")
    schedule: Schedule = Constant()


class Prodigy(Optimizer):
    """Finds the learning rate by itself (Mishchenko and Defazio 2023, arXiv 2306.06101).

    Its estimate only grows, so restarts do not fit it; and it is one for all layers.
    """

    kind: Literal["prodigy"] = "prodigy"
    lr: float = Field(1.0, ge=0.1, le=10, description="factor on the rate that it finds, near 1")
    d_coef: float = Field(1.0, gt=0, le=10, description="factor on its estimate")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    schedule: Annotated[
        Constant | Linear | Cosine | Polynomial,
        Field(discriminator="kind"),
        BeforeValidator(_by_name),
    ] = Constant()


class ScheduleFree(Optimizer):
    """AdamW that averages in place of a schedule (Defazio et al. 2024, arXiv 2405.15682).

    What is saved, watched and judged is the average. Its authors advise 1 to 10 times AdamW's rate.
    """

    kind: Literal["schedulefree"] = "schedulefree"
    lr: float = Field(3e-4, gt=0, le=1, description="learning rate after warm-up")
    text_encoder_lr: float | None = Field(None, gt=0, le=1, description="None: half of lr")
    beta1: float = Field(0.9, gt=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    schedule: Annotated[Constant, BeforeValidator(_by_name)] = Constant()
    weight_decay_on: Literal["factors"] = "factors"


def _adamw_unless_named(value: Any) -> Any:
    return {"kind": "adamw", **value} if isinstance(value, dict) else value


OptimizerPlan = Annotated[
    AdamW | AdamW8bit | Adafactor | Prodigy | ScheduleFree,
    Field(discriminator="kind"),
    BeforeValidator(_adamw_unless_named),
]


class Memory(Entry):
    """What the work has to fit into."""

    vram: float | None = Field(
        None, gt=0, description="GiB; how to fit is then chosen and told. None: as asked here"
    )
    gradient_checkpointing: bool | None = Field(
        None, description="work activations out again in the backward pass. None: as vram needs"
    )
    base_bits: Literal[8, 4] | None = Field(
        None,
        description="bits per weight of the base's linear layers, text encoders' too, while it is "
        "trained on; None: whole, in the run's precision",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the network's blocks: minutes first, then faster on "
        "GPUs; of no use on CPUs",
    )
    divided: bool | None = Field(
        None,
        description="each process of a run holds a part of the base's network (FSDP), not all of "
        "it; alone, one holds all",
    )

    @model_validator(mode="after")
    def _what_is_divided_is_whole(self) -> Memory:
        other = {"vram": self.vram, "base_bits": self.base_bits, "compile": self.compile}
        if self.divided and (found := [name for name, value in other.items() if value]):
            raise ValueError(f"divided does not go with {' and '.join(found)}; leave one out")
        return self
