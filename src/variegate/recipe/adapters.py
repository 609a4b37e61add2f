"""What is learnt: the kinds of adapter, each with its own settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from variegate.plugins import Entry

Layers = Annotated[
    Literal["attention", "attention+feedforward", "attention+feedforward+convolution"],
    Field(description="which UNet layers get an update"),
]


def _no_convolution(value: object) -> object:
    """For kinds that turn or mask a matrix. PEFT's OFT folds overlapping windows of a 3x3
    convolution back into one, so that it is wrong before it has learnt anything; BOFT would hold
    permutations of (9 x channels)^2 numbers for each; SHiRA knows no convolutions."""
    if isinstance(value, str) and "convolution" in value:
        raise ValueError(
            "this kind is for matrices: on convolutions PEFT's OFT is wrong from the start, BOFT "
            "takes gigabytes and SHiRA is not made; use attention or attention+feedforward, or "
            "another adapter.kind"
        )
    return value


MatrixLayers = Annotated[Layers, BeforeValidator(_no_convolution)]


class RankedPlan(Entry):
    """What kinds of some rank have in common.

    Of ranks and alphas, an entry counts for each layer whose name has its key as whole parts
    ("attn2", "mid_block", "attn2.to_k"); of several the last. A layer that alphas names is scaled
    by that alpha and its own rank; all others by the plan's.
    """

    kind: str
    rank: int = Field(16, ge=1, le=1024, description="rank of each layer's update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    layers: Layers = "attention"
    convolution_rank: int | None = Field(
        None, ge=1, le=1024, description="rank of the convolutions' updates; None: rank"
    )
    text_encoder: bool = Field(False, description="train the text encoder's attention too")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")
    text_encoder_rank: int | None = Field(
        None, ge=1, le=1024, description="rank in the text encoder; None: rank"
    )
    ranks: dict[str, Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        None, description='ranks of layers by parts of their names: {"attn2" = 4}'
    )
    alphas: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description='alphas of layers by parts of their names: {"attn2" = 8.0}'
    )
    start: str | None = Field(
        None, description="adapter file to go on from: its layers, ranks and alphas hold"
    )


class LoraPlan(RankedPlan):
    """Low-rank updates, up @ down; read by every tool (Hu et al. 2021, arXiv 2106.09685)."""

    kind: Literal["lora"] = "lora"
    scale: Literal["standard", "rslora"] = Field(
        "standard",
        description="rslora: alpha / sqrt(rank), so that large ranks learn as fast "
        "(Kalajdzievski 2023, arXiv 2312.03732)",
    )
    init: Literal["default", "orthogonal"] = Field(
        "default", description="orthogonal: rows of down at right angles; up is zero in both"
    )


class DoraPlan(RankedPlan):
    """LoRA for the direction of each weight, beside its length (Liu et al. 2024, 2402.09353)."""

    kind: Literal["dora"] = "dora"


class LohaPlan(RankedPlan):
    """Two low-rank products multiplied entry by entry, of rank up to rank^2 (2108.06098)."""

    kind: Literal["loha"] = "loha"
    dropout: float = Field(0.0, ge=0, le=0.5, description="dropout of the update's output rows")


class LokrPlan(RankedPlan):
    """Kronecker product of a small matrix and a low-rank one (Yeh et al. 2023, 2309.14859)."""

    kind: Literal["lokr"] = "lokr"
    dropout: float = Field(0.0, ge=0, le=0.5, description="dropout of the update's output rows")
    factor: int = Field(
        -1, ge=-1, le=1024, description="rows of the small matrix; -1: about the square root"
    )
    decompose_both: bool = Field(False, description="low rank for the small matrix too")

    @field_validator("factor")
    @classmethod
    def _some(cls, value: int) -> int:
        if value == 0:
            raise ValueError("a matrix has at least one row; use -1 or a number from 1 on")
        return value


class OftPlan(Entry):
    """Turns the inputs of each layer, block by block (Qiu et al. 2023, 2306.07280)."""

    dropout: ClassVar[float] = 0.0
    kind: Literal["oft"] = "oft"
    block_size: int = Field(
        32, ge=2, le=1024, description="inputs turned together, at most; must divide them"
    )
    layers: MatrixLayers = "attention"
    text_encoder: bool = Field(False, description="train the text encoder's attention too")


class BoftPlan(Entry):
    """Turns inputs by butterfly products of blocks, and scales outputs (Liu 2023, 2311.06243)."""

    kind: Literal["boft"] = "boft"
    block_size: int = Field(8, ge=2, le=1024, multiple_of=2, description="block's inputs, at most")
    factors: int = Field(2, ge=1, le=10, description="butterfly factors; 1: blocks alone")
    layers: MatrixLayers = "attention"
    text_encoder: bool = Field(False, description="train the text encoder's attention too")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of one factor's blocks left out")


class SparsePlan(Entry):
    """A few single weights of each layer, drawn by chance: SHiRA (Bhardwaj 2024, 2406.13175)."""

    dropout: ClassVar[float] = 0.0
    kind: Literal["sparse"] = "sparse"
    rank: int = Field(
        16, ge=1, le=1024, description="as many weights as a LoRA of this rank has numbers"
    )
    layers: MatrixLayers = "attention"
    text_encoder: bool = Field(False, description="train the text encoder's attention too")


class TloraPlan(Entry):
    """Fewer ranks the noisier the picture, against overfitting (T-LoRA 2025, 2507.05964)."""

    text_encoder: ClassVar[bool] = False
    kind: Literal["tlora"] = "tlora"
    rank: int = Field(16, ge=1, le=1024, description="rank at the lowest noise")
    min_rank: int | None = Field(
        None, ge=1, le=1024, description="rank at the highest noise; None: half of rank"
    )
    layers: Layers = "attention"
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")


_ADAPTERS = (
    *(LoraPlan, DoraPlan, LohaPlan, LokrPlan),
    *(OftPlan, BoftPlan, SparsePlan, TloraPlan),
)


def _kind_of(value: Any) -> Any:
    """A table without a kind is a plain LoRA."""
    return value.get("kind", "lora") if isinstance(value, dict) else getattr(value, "kind", None)


AdapterPlan = Annotated[
    Annotated[LoraPlan, Tag("lora")]
    | Annotated[DoraPlan, Tag("dora")]
    | Annotated[LohaPlan, Tag("loha")]
    | Annotated[LokrPlan, Tag("lokr")]
    | Annotated[OftPlan, Tag("oft")]
    | Annotated[BoftPlan, Tag("boft")]
    | Annotated[SparsePlan, Tag("sparse")]
    | Annotated[TloraPlan, Tag("tlora")],
    Discriminator(_kind_of),
]
ADAPTER_KINDS: dict[str, type[Entry]] = {
    plan.model_fields["kind"].default: plan for plan in _ADAPTERS
}
