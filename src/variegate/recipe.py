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
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from variegate.errors import RecipeError


class Entry(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterPlan(Entry):
    """What is learnt: low-rank updates of named layers."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024, description="rank of each layer's update")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    layers: Literal["attention", "attention+feedforward", "attention+feedforward+convolution"] = (
        Field("attention", description="which UNet layers get an update")
    )
    convolution_rank: int | None = Field(
        None, ge=1, le=1024, description="rank of the convolutions' updates; None: rank"
    )
    text_encoder: bool = Field(False, description="train the text encoder's attention too")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")


class OptimizerPlan(Entry):
    """How it is learnt."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    text_encoder_lr: float | None = Field(None, gt=0, le=1, description="None: half of lr")
    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(1, ge=1, description="pictures per step")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, on the factors")
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0)


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

    every: int = Field(50, ge=1, description="steps between two looks")
    triples: int = Field(32, ge=1)


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

    base: str = Field("pocket", description="'pocket', a diffusers folder, or a hub name")
    images: str = Field("", description="folder of training pictures")
    trigger: str = Field("", description="the word that calls the subject")
    class_noun: str = Field("", description="what the subject is to the base")
    resolution: int | None = Field(None, ge=32, description="None: the base's own")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    variants: int = Field(16, ge=1, description="altered variants kept of each picture")
    seed: int = Field(0, ge=0)
    adapter: AdapterPlan = AdapterPlan()
    optimizer: OptimizerPlan = OptimizerPlan()
    strategies: Strategies = Strategies()
    held_out: HeldOut = HeldOut()
    masks: Masks = Masks()
    probes: Probes = Probes()
    checkpoints: Checkpoints = Checkpoints()
    sampling: SamplingPlan = SamplingPlan()

    @property
    def id(self) -> str:
        """A hash of the canonical text: two recipes that ask the same have the same id."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
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

        A setting whose value is `on` or `off` puts a strategy's table in or takes it out.
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


def _keys_at(path: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for key in path:
        field = model.model_fields.get(key) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, Entry)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _fault(error: dict[str, Any]) -> str:
    path = tuple(error["loc"])
    name = ".".join(map(str, path))
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{name}: no such key; {hint}"
    found = error.get("input")
    return f"{name}: found {found!r}; {error['msg'][0].lower()}{error['msg'][1:]}"
