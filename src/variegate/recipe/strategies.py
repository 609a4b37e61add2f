"""Whatever prevents collapse: one entry each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    create_model,
    model_validator,
)

from variegate.errors import RecipeError
from variegate.plugins import Entry, plugins


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


class CaptionNoise(Entry):
    """Add a little Gaussian noise to what is read of captions (arXiv 2305.20086)."""

    amount: float = Field(
        0.1, gt=0, le=1, description="its standard deviation, as a share of the embedding's own"
    )


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
    smallest: float = Field(
        0.0,
        ge=0,
        le=1,
        description="longer side of the subject, as a share of the picture's, below which it is "
        "not zoomed out: details that are not to be seen cannot be learnt",
    )
    by_area: bool = Field(
        False,
        description="p is for a subject that fills the picture and can stand nowhere else; the "
        "smaller one is, the less often it is moved",
    )


class MaskedLoss(Entry):
    """Count the loss on the subject fully and outside of it only a little."""

    outside: float = Field(0.1, ge=0, le=1, description="weight outside the subject")
    boundary: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the noise schedule above which the whole picture counts: counting "
        "the subject alone enlarges it there",
    )
    own_ground: float = Field(
        1.0,
        ge=0,
        le=1,
        description="what a picture on its own ground counts above the boundary, where grounds are "
        "learnt; with new_background on, less than 1 leaves them to the others",
    )

    @model_validator(mode="after")
    def _own_ground_above_something(self) -> MaskedLoss:
        if self.own_ground < 1 and self.boundary is None:
            raise ValueError(
                "own_ground counts above a boundary, and none is set; set boundary too"
            )
        return self


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
    per: Literal["image", "batch"] = Field(
        "image",
        description="image: each step learns and holds, each picture weighed by its own noise; "
        "batch: each step does one of the two, drawn by the share of the schedule",
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
    each: bool = Field(
        False,
        description="scale back only the directions that pass it, and not the whole update",
    )


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
    half_life: int | None = Field(
        None, ge=1, description="pictures until a state counts half, in decay's place"
    )
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
    caption_noise: CaptionNoise | None = None
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
