"""Everything that can be asked of one run: frozen, typed, printable, free of torch.

A recipe is TOML. Unknown keys are refused with the nearest known one, and all faults are told at
once. A strategy is on when its table is present.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import tomlkit
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from variegate.errors import RecipeError
from variegate.plugins import Entry, plugins

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


class MinSNR(Entry):
    """Weigh noise levels by min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556)."""

    gamma: float = Field(5.0, gt=0)


class CaptionDropout(Entry):
    """Train some steps on the empty caption, so that guidance keeps its ground."""

    p: float = Field(0.1, ge=0, le=1)


class CaptionScene(Entry):
    """Name the subject's size and place and the ground's colour in some captions, as seen."""

    p: float = Field(0.5, ge=0, le=1)


class CaptionShuffle(Entry):
    """Put a caption's tags, parted by commas, in another order; the first few stay in front."""

    p: float = Field(1.0, ge=0, le=1)
    keep: int = Field(1, ge=0, description="tags that stay in front")


class TokenDropout(Entry):
    """Leave out tags or words of captions by chance, never the trigger."""

    p: float = Field(0.1, ge=0, lt=1, description="chance of each tag or word")
    unit: Literal["tag", "word"] = "tag"


class CaptionEdits(Entry):
    """Add a random word to some captions, or put one in another's place (arXiv 2305.20086)."""

    p: float = Field(0.3, ge=0, le=1)
    words: int = Field(1, ge=1, le=8, description="words that are changed in such a caption")
    replaced: float = Field(0.5, ge=0, le=1, description="share replaced; the rest is added")


class EvenPictures(Entry):
    """Let pictures that are one picture twice share one vote, taking turns."""


class Buckets(Entry):
    """Keep pictures' shapes: batches of one shape each, of about the same area."""

    ratio_max: float = Field(2.0, ge=1, le=4, description="longer shapes are cut to this")
    multiple: int | None = Field(
        None,
        ge=8,
        multiple_of=8,
        description="pixels that sides are multiples of; None: 64, 16 on the pocket",
    )


class Flip(Entry):
    """Mirror pictures left to right by chance."""

    p: float = Field(0.5, ge=0, le=1)


class Crop(Entry):
    """Show a part of the picture at full size, the subject in it as far as it fits."""

    p: float = Field(0.5, ge=0, le=1)
    area_min: float = Field(0.6, gt=0, le=1, description="least share of the picture's area")
    ratio_max: float = Field(1.2, ge=1, le=3, description="how far the part may be stretched")


class Affine(Entry):
    """Turn and shear the picture about its subject; ground that comes into view is painted on."""

    p: float = Field(0.5, ge=0, le=1)
    rotation: float = Field(10.0, ge=0, le=180, description="largest turn in degrees")
    shear: float = Field(5.0, ge=0, le=45, description="largest lean in degrees")


class Colour(Entry):
    """Vary brightness, contrast, saturation and hue a little."""

    p: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.15, ge=0, lt=1, description="largest change as a share")
    contrast: float = Field(0.15, ge=0, lt=1, description="largest change as a share")
    saturation: float = Field(0.2, ge=0, le=1, description="largest change as a share")
    hue: float = Field(0.02, ge=0, le=0.5, description="largest turn of the colour wheel")


class Erase(Entry):
    """Erase a rectangle by chance; it no longer counts as the subject."""

    p: float = Field(0.3, ge=0, le=1)
    area_min: float = Field(0.02, gt=0, le=0.5, description="share of the picture's area")
    area_max: float = Field(0.15, gt=0, le=0.5, description="share of the picture's area")
    fill: Literal["ground", "gray"] = "ground"


class StayNear(Entry):
    """Hold class and neutral prompts to what the silenced adapter (the base) predicts."""

    weight: float = Field(1.0, gt=0, description="weight of the added loss term")
    adaptive: float | None = Field(
        None, gt=0, description="drift to hold: the weight follows the measured one; None: fixed"
    )
    batch_size: int | None = Field(None, ge=1, description="None: as the pictures' batch")
    high_noise: float = Field(
        0.5, ge=0, lt=1, description="least share of the noise schedule that is drawn"
    )


class ZoomShift(Entry):
    """Zoom the picture in or out and shift it; ground that comes into view is painted on."""

    p: float = Field(1.0, ge=0, le=1)
    zoom_min: float = Field(0.6, gt=0, le=1)
    zoom_max: float = Field(1.1, ge=1, le=4)
    shift: float = Field(0.25, ge=0, le=0.5, description="largest shift as a share of the side")


class MaskedLoss(Entry):
    """Count the loss on the subject fully and outside of it only a little."""

    outside: float = Field(0.1, ge=0, le=1, description="weight outside the subject")


class NewBackground(Entry):
    """Cut the subject out and lay it on other grounds, some from the base's own samples."""

    p: float = Field(0.5, ge=0, le=1)
    source: Literal["painted", "base", "both"] = "both"
    count: int = Field(24, ge=1, description="grounds drawn from the base")


class LayoutPrior(Entry):
    """At high noise, hold the trigger to what the base predicts for the class noun."""

    boundary: float = Field(
        0.85, gt=0, lt=1, description="share of the noise schedule above which layout is held"
    )
    softness: float = Field(
        0.05, ge=0, le=0.5, description="width over which the pictures' loss fades; 0: hard"
    )
    weight: float = Field(1.0, gt=0, description="weight of the added loss term")
    batch_size: int | None = Field(None, ge=1, description="None: as the pictures' batch")


class PriorPictures(Entry):
    """Train class pictures beside the subject's: prior preservation (arXiv 2208.12242)."""

    images: str | None = Field(None, description="folder of class pictures; None: the base draws")
    count: int = Field(32, ge=1, description="pictures that the base draws")
    weight: float = Field(1.0, gt=0, description="weight of the added loss term")
    batch_size: int | None = Field(None, ge=1, description="None: as the pictures' batch")


class LowRank(Entry):
    """Add a norm of each update to the loss, so that it stays small and of low rank."""

    norm: Literal["nuclear", "factors", "frobenius"] = Field(
        "nuclear",
        description="sum of singular values; its surrogate 1/2 (|A|^2 + |B|^2); squared norm",
    )
    strength: float = Field(1e-3, gt=0, description="weight of the sum over layers")


class SpectralCap(Entry):
    """Scale an update back when its largest singular value passes a share of its layer's own."""

    share: float = Field(0.1, gt=0, description="of the base layer's spectral norm")


class MaxNorm(Entry):
    """Scale an update back when its Frobenius norm passes a limit (kohya's scale_weight_norms)."""

    limit: float = Field(1.0, gt=0)


class NeuronDropout(Entry):
    """Drop single outputs of the down projection by chance."""

    p: float = Field(0.1, ge=0, lt=1)


class RankDropout(Entry):
    """Drop whole ranks of the updates by chance, anew for each row."""

    p: float = Field(0.1, ge=0, lt=1)


class ModuleDropout(Entry):
    """Leave whole updates out of a step by chance."""

    p: float = Field(0.1, ge=0, lt=1)


class Debiased(Entry):
    """Weigh noise levels by 1 / sqrt(SNR) (Yu et al. 2023, arXiv 2310.08442)."""

    most: float = Field(1000.0, gt=0, description="SNR is taken as no less than 1 / most")


class SoftHighNoise(Entry):
    """Count high noise, where layout is decided, less in the pictures' loss."""

    above: float = Field(0.8, ge=0, lt=1, description="share of the noise schedule")
    weight: float = Field(0.2, ge=0, le=1, description="what the noisiest level counts")


class NoiseOffset(Entry):
    """Shift each channel's noise a little, so that overall brightness is learnt too."""

    amount: float = Field(0.05, gt=0, le=1)


class InputPerturbation(Entry):
    """Noise the input more than the target says (Ning et al. 2023, arXiv 2301.11706)."""

    amount: float = Field(0.1, gt=0, le=1)


class Huber(Entry):
    """Count large errors linearly instead of squared (Khrapov et al. 2024, arXiv 2403.16728)."""

    delta: float = Field(0.1, gt=0, description="where squares turn into lines")
    schedule: Literal["constant", "snr"] = Field(
        "snr", description="snr: delta falls from 1 without noise to `delta` at full noise"
    )


class EMA(Entry):
    """Keep a running average of the factors, and give that as the adapter."""

    decay: float = Field(0.99, gt=0, lt=1)
    warmup: bool = Field(True, description="decay min(decay, (1 + step) / (10 + step))")


class SWA(Entry):
    """Average the factors of the last part of a run evenly (arXiv 1803.05407)."""

    last: float = Field(0.25, gt=0, le=1, description="share of the steps that is averaged")
    every: int = Field(10, ge=1, description="steps between two points of the average")


# What acts on an update as the product of two factors.
OF_TWO_FACTORS = (
    *("low_rank", "spectral_cap", "max_norm"),
    *("neuron_dropout", "rank_dropout", "module_dropout"),
)


class Strategies(Entry):
    """Whatever prevents collapse; a table that is present is on."""

    min_snr: MinSNR | None = None
    caption_scene: CaptionScene | None = None
    caption_dropout: CaptionDropout | None = None
    caption_shuffle: CaptionShuffle | None = None
    token_dropout: TokenDropout | None = None
    caption_edits: CaptionEdits | None = None
    even_pictures: EvenPictures | None = None
    buckets: Buckets | None = None
    flip: Flip | None = None
    crop: Crop | None = None
    affine: Affine | None = None
    colour: Colour | None = None
    erase: Erase | None = None
    stay_near: StayNear | None = None
    zoom_shift: ZoomShift | None = None
    masked_loss: MaskedLoss | None = None
    new_background: NewBackground | None = None
    layout_prior: LayoutPrior | None = None
    prior_pictures: PriorPictures | None = None
    low_rank: LowRank | None = None
    spectral_cap: SpectralCap | None = None
    max_norm: MaxNorm | None = None
    neuron_dropout: NeuronDropout | None = None
    rank_dropout: RankDropout | None = None
    module_dropout: ModuleDropout | None = None
    debiased: Debiased | None = None
    soft_high_noise: SoftHighNoise | None = None
    noise_offset: NoiseOffset | None = None
    input_perturbation: InputPerturbation | None = None
    huber: Huber | None = None
    ema: EMA | None = None
    swa: SWA | None = None

    @model_validator(mode="after")
    def _one_average(self) -> Strategies:
        if self.ema and self.swa:
            raise ValueError("ema and swa are both on; one average can be the adapter, choose one")
        return self


def _with_plugins(menu: type[Strategies]) -> type[Strategies]:
    """The menu and what other packages add to it; a name that is there already is refused."""
    extra: dict[str, Any] = {}
    for name, plugin in plugins().items():
        if name in menu.model_fields:
            raise RecipeError(f"two strategies are called {name!r}: ours and one of a plug-in")
        extra[name] = (plugin.plan | None, None)
    return create_model("Strategies", __base__=menu, **extra) if extra else menu


if not TYPE_CHECKING:
    Strategies = _with_plugins(Strategies)


class HeldOut(Entry):
    """Pictures kept from training to tell learning from memorising."""

    share: float = Field(0.15, ge=0, le=0.5)
    at_least_pictures: int = Field(5, ge=2, description="below this many, none is held out")


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


class Guard(Entry):
    """Who acts on what is watched: nobody, one who stops, or one who also eases and goes back.

    The varieties are those of one-step clean estimates relative to the base's. The lines lie
    where runs of known collapse part (`tools/probe_table.py`).
    """

    mode: Literal["watch", "stop", "autopilot"] = "autopilot"
    class_warning: float = Field(0.88, gt=0, le=1, description="variety below which it eases")
    class_alarm: float = Field(0.8, gt=0, le=1, description="variety below which it goes back")
    trigger_warning: float = Field(0.75, gt=0, le=1)
    trigger_alarm: float = Field(0.65, gt=0, le=1)
    rewinds: int = Field(2, ge=0, description="ways back before it stops")
    patience: int = Field(5, ge=1, description="looks without less loss before it stops")

    @model_validator(mode="after")
    def _warning_before_alarm(self) -> Guard:
        if self.class_warning <= self.class_alarm or self.trigger_warning <= self.trigger_alarm:
            raise ValueError("a warning must lie above its alarm")
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


class Recipe(Entry):
    """Everything that was asked of one run."""

    base: str = Field(
        "pocket",
        description="'pocket', a diffusers folder, a .safetensors checkpoint, or a hub name",
    )
    images: str = Field("", description="folder of training pictures")
    trigger: str = Field("", description="the word that calls the subject")
    class_noun: str = Field("", description="what the subject is to the base")
    clip_skip: int = Field(
        1, ge=1, description="text encoder's layer from the end, as A1111 counts; 1: its last"
    )
    resolution: int | None = Field(None, ge=32, description="None: the base's own")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    variants: int = Field(16, ge=1, description="altered variants kept of each picture")
    seed: int = Field(0, ge=0)
    adapter: AdapterPlan = LoraPlan()
    optimizer: OptimizerPlan = AdamW()
    memory: Memory = Memory()
    strategies: Strategies = Strategies()
    held_out: HeldOut = HeldOut()
    masks: Masks = Masks()
    probes: Probes = Probes()
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()
    sampling: SamplingPlan = SamplingPlan()

    @model_validator(mode="after")
    def _kinds_have_what_is_asked_of_them(self) -> Recipe:
        kind, faults = self.adapter.kind, list[str]()
        wanting = [n for n in OF_TWO_FACTORS if getattr(self.strategies, n) is not None]
        if wanting and kind not in ("lora", "dora"):
            faults.append(
                f"strategies.{wanting[0]} wants an adapter whose update is one product of two "
                f"factors (kind lora or dora); found {kind!r}"
            )
        if self.optimizer.weight_decay_on == "product" and kind not in ("lora", "loha", "lokr"):
            faults.append(
                "optimizer.weight_decay_on = 'product' is for kinds that are products of factors "
                f"(lora, loha, lokr); found {kind!r}; use 'factors'"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def id(self) -> str:
        """A hash of the canonical text: two recipes that ask the same have the same id."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        return tomlkit.dumps(self.model_dump(mode="json", exclude_none=True))

    @staticmethod
    def parse(data: dict[str, Any], *, where: str = "recipe") -> Recipe:
        """A recipe from plain tables; all faults are raised together as one RecipeError."""
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            faults = "\n".join(f"  {_fault(dict(e))}" for e in error.errors())
            raise RecipeError(f"{where} cannot be used:\n{faults}") from error

    @staticmethod
    def read(file: Path, *, settings: tuple[str, ...] = (), **given: Any) -> Recipe:
        """A recipe from a TOML file, with `key.sub=value` settings and given entries on top."""
        try:
            data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf8"))
        except FileNotFoundError as error:
            raise RecipeError(f"no recipe at {file}; expected a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{file} is not TOML: {error}") from error
        return Recipe.build(data, settings=settings, where=str(file), **given)

    @staticmethod
    def build(
        data: dict[str, Any] | None = None,
        *,
        settings: tuple[str, ...] = (),
        where: str = "recipe",
        **given: Any,
    ) -> Recipe:
        """A recipe from tables, then settings `key.sub=value`, then entries that are not None.

        A setting whose value is `on` or `off` puts a strategy's table in or takes it out; one of
        `adapter.kind` keeps of the adapter's table what the new kind knows.
        """
        tables: dict[str, Any] = json.loads(json.dumps(data or {}))
        for setting in settings:
            _apply(tables, setting)
        tables.update({k: v for k, v in given.items() if v is not None})
        return Recipe.parse(tables, where=where)


def _apply(tables: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"setting {setting!r} is not of the form key.sub=value")
    value: Any
    try:
        value = tomllib.loads(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"setting {setting!r}: {key} is a value, not a table")
        table = inner
    if keys[:1] == ["strategies"] and len(keys) == 2 and value in ("on", "off", True, False):
        if value in ("on", True):
            table.setdefault(keys[-1], {})
        else:
            table.pop(keys[-1], None)
    else:
        table[keys[-1]] = value
        if keys == ["adapter", "kind"] and value in ADAPTER_KINDS:
            known = ADAPTER_KINDS[value].model_fields
            tables["adapter"] = {k: v for k, v in table.items() if k in known}


def _models(annotation: Any) -> list[type[Entry]]:
    """The entries that an annotation allows: one, or those of a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _place(location: tuple[Any, ...]) -> tuple[str, type[Entry] | None]:
    """A fault's path as it is written in a recipe, without the tags of unions, and the table that
    it lies in."""
    path: list[str] = []
    models: list[type[Entry]] = [Recipe]
    for i, key in enumerate(location):
        tagged = [m for m in models if len(models) > 1 and m.model_fields["kind"].default == key]
        if tagged and i < len(location) - 1:
            models = tagged
            continue
        path.append(str(key))
        if i < len(location) - 1:
            field = models[0].model_fields.get(str(key)) if models else None
            models = _models(field.annotation) if field else []
    return ".".join(path), models[0] if len(models) == 1 else None


def _fault(error: dict[str, Any]) -> str:
    told = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return told
    key = str(error["loc"][-1])
    name, table = _place(tuple(error["loc"]))
    fields = table.model_fields if table else {}
    of = f" of kind {fields['kind'].default!r}" if "kind" in fields else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(fields), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(fields)}"
        return f"{name}: no such key{of}; {hint}"
    if error["type"] == "union_tag_invalid":
        return f"{name}.kind: found {error['ctx']['tag']!r}; known: {error['ctx']['expected_tags']}"
    found = error.get("input")
    if error["type"] == "union_tag_not_found":
        return f"{name}: found {found!r}; expected a table"
    meaning = fields[key].description if key in fields else None
    told = f"{told[0].lower()}{told[1:]}{f' ({meaning})' if meaning else ''}"
    return f"{name}: found {found!r}{of}; {told}"
