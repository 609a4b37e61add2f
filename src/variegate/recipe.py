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
from typing import Annotated, Any, Literal, get_args

import tomlkit
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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


class Flip(Entry):
    """Mirror pictures left to right by chance."""

    p: float = Field(0.5, ge=0, le=1)


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
    flip: Flip | None = None
    stay_near: StayNear | None = None
    zoom_shift: ZoomShift | None = None
    masked_loss: MaskedLoss | None = None
    new_background: NewBackground | None = None


class HeldOut(Entry):
    """Pictures kept from training to tell learning from memorising."""

    share: float = Field(0.15, ge=0, le=0.5)
    at_least_pictures: int = Field(5, ge=2, description="below this many, none is held out")


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
    optimizer: OptimizerPlan = AdamW()
    memory: Memory = Memory()
    strategies: Strategies = Strategies()
    held_out: HeldOut = HeldOut()
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


def _walk(path: tuple[Any, ...]) -> tuple[list[str], type[Entry] | None]:
    """A fault's path as a user writes it, and the table it ends in (None: a value's own).

    pydantic puts the kind of a tagged table into the path; users do not.
    """
    named: list[str] = []
    table: type[Entry] | None = Recipe
    choices: dict[str, type[Entry]] = {}
    for key in path:
        if key in choices:
            table, choices = choices[key], {}
            continue
        named.append(str(key))
        field = table.model_fields.get(key) if table else None
        inner = _tables(field.annotation) if field else []
        choices = {_kind(t): t for t in inner} if len(inner) > 1 else {}
        table = inner[0] if inner else None
    return named, table


def _tables(annotation: Any) -> list[type[Entry]]:
    kinds = get_args(annotation) or (annotation,)
    return [k for k in kinds if isinstance(k, type) and issubclass(k, Entry)]


def _kind(table: type[Entry]) -> str:
    return str(table.model_fields["kind"].default)


def _fault(error: dict[str, Any]) -> str:
    path = tuple(error["loc"])
    named, _ = _walk(path)
    _, table = _walk(path[:-1])
    name, fields = ".".join(named), table.model_fields if table else {}
    of = f" of kind {_kind(table)!r}" if table and "kind" in fields else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), list(fields), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(fields)}"
        return f"{name}: no such key{of}; {hint}"
    if error["type"] == "union_tag_invalid":
        facts = error["ctx"]
        return f"{name}.kind: found {facts['tag']!r}{of}; expected one of {facts['expected_tags']}"
    meaning = fields[path[-1]].description if path[-1] in fields else None
    told = f"{error['msg'][0].lower()}{error['msg'][1:]}{f' ({meaning})' if meaning else ''}"
    return f"{name}: found {error.get('input')!r}{of}; {told}"
