"""The recipe itself: read, changed by settings, checked, hashed."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import tomlkit
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from variegate.errors import RecipeError
from variegate.plugins import Entry
from variegate.recipe.adapters import ADAPTER_KINDS, AdapterPlan, LoraPlan
from variegate.recipe.optimizers import AdamW, Memory, OptimizerPlan
from variegate.recipe.plans import (
    Checkpoints,
    Guard,
    HeldOut,
    Masks,
    Panels,
    Probes,
    SamplingPlan,
)
from variegate.recipe.strategies import OF_TWO_FACTORS, Strategies

KINDS_OF_TWO_FACTORS = ("lora", "dora")  # kinds whose update is one product of two factors


class Recipe(Entry):
    """Everything that was asked of one run."""

    base: str = Field(
        "pocket",
        description="'pocket', a diffusers folder, a .safetensors checkpoint, or a hub name",
    )
    images: str = Field(
        "",
        description="folder of training pictures, or tars of them: 'set-{000..009}.tar', a folder "
        "of tars, or an address such as s3://bucket/set-{000..009}.tar",
    )
    trigger: str = Field("", description="the word that calls the subject")
    class_noun: str = Field("", description="what the subject is to the base")
    clip_skip: int = Field(
        1, ge=1, description="text encoder's layer from the end, as A1111 counts; 1: its last"
    )
    zero_terminal_snr: bool = Field(
        False,
        description="noise levels rescaled until the last keeps nothing of the picture, in "
        "training and in drawing (Lin et al., arXiv 2305.08891); for bases that predict v. "
        "False: as the base has them",
    )
    t5_tokenizer: str | None = Field(
        None,
        description="folder, tokenizer.json or spiece.model for T5 of Stable Diffusion 3; "
        "None: tokenizer_3, in the base's folder or beside its file",
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
    panels: Panels | None = None
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()
    sampling: SamplingPlan = SamplingPlan()

    @model_validator(mode="after")
    def _kinds_have_what_is_asked_of_them(self) -> Recipe:
        kind, faults = self.adapter.kind, list[str]()
        wanting = [n for n in OF_TWO_FACTORS if getattr(self.strategies, n) is not None]
        if wanting and kind not in KINDS_OF_TWO_FACTORS:
            faults.append(
                f"strategies.{wanting[0]} wants an adapter whose update is one product of two "
                f"factors (kind lora or dora); found {kind!r}; take another kind, or set "
                + " ".join(f"strategies.{name}=off" for name in wanting)
            )
        if self.memory.divided and kind != "lora":
            faults.append(f"memory.divided is for adapters of kind lora alone; found {kind!r}")
        if self.optimizer.weight_decay_on == "product" and kind not in ("lora", "loha", "lokr"):
            faults.append(
                "optimizer.weight_decay_on = 'product' is for kinds that are products of factors "
                f"(lora, loha, lokr); found {kind!r}; use 'factors'"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def cautions(self) -> list[str]:
        """What is known to go wrong with a recipe that can be trained, and what mends it."""
        plan, cap = self.optimizer, self.strategies.spectral_cap
        found = list[str]()
        if self.base == "pocket" and isinstance(plan, AdamW) and cap is None and plan.lr > 4e-3:
            found.append(
                f"optimizer.lr = {plan.lr:g} is safe on the pocket with strategies.spectral_cap "
                "alone (without it, at 8e-3, kind lora drew its subject in 3 % of pictures); "
                + (
                    "set strategies.spectral_cap.each=true or optimizer.lr=2e-3"
                    if self.adapter.kind in KINDS_OF_TWO_FACTORS
                    else f"kind {self.adapter.kind} cannot have it: set optimizer.lr=2e-3"
                )
            )
        return found

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

        A setting whose value is `on` or `off` puts the table of a strategy, of a method of
        sampling, or of the panels, in or takes it out; one of `adapter.kind`, which comes before
        the others, keeps of the adapter's table what the new kind knows, and of the strategies of
        `data` those that it can have.
        """
        tables: dict[str, Any] = json.loads(json.dumps(data or {}))
        for setting in sorted(
            settings, key=lambda s: s.partition("=")[0].strip() != "adapter.kind"
        ):
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
        if key == "schedule" and isinstance(inner, str):  # short for a table of that kind
            inner = table[key] = {"kind": inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"setting {setting!r}: {key} is a value, not a table")
        table = inner
    optional = keys == ["panels"] or (keys[:1] == ["strategies"] and len(keys) == 2)
    optional = optional or (keys[:2] == ["sampling", "methods"] and len(keys) == 3)
    if optional and value in ("on", "off", True, False):
        if value in ("on", True):
            table.setdefault(keys[-1], {})
        else:
            table.pop(keys[-1], None)
    else:
        table[keys[-1]] = value
        if keys == ["adapter", "kind"] and value in ADAPTER_KINDS:
            known = ADAPTER_KINDS[value].model_fields
            tables["adapter"] = {k: v for k, v in table.items() if k in known}
            if value not in KINDS_OF_TWO_FACTORS and isinstance(
                own := tables.get("strategies"), dict
            ):
                tables["strategies"] = {k: v for k, v in own.items() if k not in OF_TWO_FACTORS}


def field_at(key: str, recipe: Recipe) -> Any:
    """What an entry `key.sub` of a recipe is annotated with, of the kinds that this one has; None
    where there is no such entry."""
    found = _field(key, recipe)
    return None if found is None else found.annotation


def describe_field(key: str, recipe: Recipe) -> str:
    """What the recipe says of an entry; "" where there is none, or nothing is said."""
    found = _field(key, recipe)
    return (found.description or "") if found else ""


def _field(key: str, recipe: Recipe) -> Any:
    path = key.split(".")
    entry: type[Entry] | None = type(recipe)
    value: Any = recipe
    for name in path[:-1]:
        field = entry.model_fields.get(name) if entry else None
        models = _models(field.annotation) if field else []
        value = getattr(value, name, None)
        of_its_kind = [m for m in models if type(value) is m]
        entry = (of_its_kind or models or [None])[0]
    return entry.model_fields.get(path[-1]) if entry else None


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
