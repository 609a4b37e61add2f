"""Presets of other trainers as a recipe, with every key accounted for.

Read are kohya's `dataset_config` (TOML), the kohya_ss GUI's presets (JSON), OneTrainer's (JSON).
Each key is taken over, changed (and how), or left out (and why); none is dropped without a word.
The file is somebody else's: it is small or refused, and a value of another type than its key's is
left out, never guessed at.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from variegate.errors import RecipeError
from variegate.recipe import Recipe

LARGEST = 1 << 20  # bytes; presets are a few thousand
DEEPEST = 16
LONGEST = 80  # characters of a foreign value that are shown


@dataclass
class Imported:
    """What came of a preset: recipe tables, and a line about every key."""

    kind: str
    tables: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def recipe(self) -> Recipe:
        """Raises: RecipeError when what was taken over cannot stand together."""
        return Recipe.build(self.tables, where=f"what was taken over from the {self.kind} preset")

    def to_toml(self) -> str:
        """The recipe's tables, with what was changed and left out as comments above."""
        self.recipe()
        heads = (("taken over", self.taken), ("changed", self.changed), ("left out", self.left_out))
        notes = [f"# {head}: {_flat(line)}" for head, lines in heads for line in lines]
        return "\n".join([f"# From a {self.kind} preset.", *notes, "", tomlkit.dumps(self.tables)])

    def put(self, path: str, value: Any) -> None:
        """An entry of the recipe, by its dotted path."""
        *tables, last = path.split(".")
        table = self.tables
        for key in tables:
            table = table.setdefault(key, {})
        table[last] = value


Rule = Callable[[Imported, str, Any], None]


def read_preset(file: Path) -> Imported:
    """A preset of another trainer, each of its keys taken over, changed or left out.

    Raises: RecipeError for a file that is missing, too large, neither TOML nor JSON, or no preset
    that is known.
    """
    tables = _parse(file)
    if "datasets" in tables or "subsets" in _table(tables.get("general")):
        return _kohya_dataset(tables)
    if "LoRA_type" in tables or "network_dim" in tables or "network_alpha" in tables:
        return _by_rules("kohya_ss GUI", tables, KOHYA_GUI)
    if "training_method" in tables or "lora_rank" in tables:
        return _by_rules("OneTrainer", tables, ONETRAINER)
    raise RecipeError(
        f"{file} is no preset that is known here: expected kohya's dataset_config ([[datasets]]), "
        "a kohya_ss GUI preset (network_dim, LoRA_type) or a OneTrainer preset (training_method)"
    )


def _parse(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"the preset {file} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise RecipeError(
            f"the preset {file} has more than {LARGEST} bytes; expected a few thousand"
        )
    try:
        text = data.decode("utf8")
        found = json.loads(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"the preset {file} is neither TOML nor JSON: {error}") from error
    if not isinstance(found, dict) or _depth(found) > DEEPEST:
        raise RecipeError(f"the preset {file} is nested deeper than {DEEPEST} levels")
    return found


def _by_rules(kind: str, tables: Mapping[str, Any], rules: Mapping[str, Rule]) -> Imported:
    imported = Imported(kind)
    for key, value in tables.items():
        if key in _TOGETHER:
            continue
        rule = rules.get(key)
        if rule is None:
            imported.left_out.append(f"{_show(key)} = {_show(value)}: no counterpart here")
            continue
        try:
            rule(imported, key, value)
        except _Unfit as error:
            imported.left_out.append(f"{key} = {_show(value)}: {error}")
    for settle in (_rates, _warmup, _cycles, _accumulation, _drop_unfit):
        settle(imported, tables)
    return imported


class _Unfit(Exception):
    """A foreign value that cannot be taken over; the text says why."""


def _number(value: Any) -> float:
    """A number, also as text, as GUIs write it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Unfit("not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise _Unfit("not a number") from error
    if not math.isfinite(number):
        raise _Unfit("not a finite number")
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise _Unfit("not a whole number")
    return int(number)


def _take(path: str, read: Callable[[Any], Any] = _number, *, off: Any = None) -> Rule:
    """Taken over as it is to a recipe entry; a value that switches it off there is left out."""

    def rule(imported: Imported, key: str, value: Any) -> None:
        found = read(value)
        if off is not None and found == off:
            imported.taken.append(f"{key} = {_show(value)}: off, as here without the entry")
            return
        trial = Imported(imported.kind)
        trial.put(path, found)
        try:
            trial.recipe()
        except RecipeError as error:
            raise _Unfit(str(error).splitlines()[-1].strip()) from error
        imported.put(path, found)
        imported.taken.append(f"{key} = {_show(value)}: {path}")

    return rule


def _leave(why: str) -> Rule:
    def rule(imported: Imported, key: str, value: Any) -> None:
        raise _Unfit(why)

    return rule


def _named(path: str, names: Mapping[str, Any], otherwise: str) -> Rule:
    """A choice by name, whatever its case; `otherwise` says why others are left out."""

    def rule(imported: Imported, key: str, value: Any) -> None:
        name = value.lower() if isinstance(value, str) else ""
        if name not in names:
            raise _Unfit(otherwise)
        imported.put(path, names[name])
        note = imported.taken if str(names[name]).lower() == name else imported.changed
        note.append(f"{key} = {_show(value)}: {path} = {_show(names[name])}")

    return rule


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 4096 or "\0" in value:
        raise _Unfit("not a text, or empty")
    return value.strip()


def _on_if_true(path: str, entry: Mapping[str, Any]) -> Rule:
    def rule(imported: Imported, key: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise _Unfit("neither true nor false")
        if value:
            imported.put(path, dict(entry))
        imported.taken.append(f"{key} = {value}: {path} {'on' if value else 'off'}")

    return rule


def _clip_skip(imported: Imported, key: str, value: Any) -> None:
    if _whole(value) > 1:
        raise _Unfit("the text encoder's last layer is always used here")
    imported.taken.append(f"{key} = {_show(value)}: as here")


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("neither true nor false")
    return value


def _resolution(imported: Imported, key: str, value: Any) -> None:
    """A side, or width and height as a list or as "512,512"; only squares are learnt here."""
    parts = value if isinstance(value, list) else str(value).replace("x", ",").split(",")
    if not 1 <= len(parts) <= 2:
        raise _Unfit("not a side, nor a width and a height")
    sides = [_whole(part.strip() if isinstance(part, str) else part) for part in parts]
    if min(sides) < 32:
        raise _Unfit("less than 32 pixels")
    imported.put("resolution", min(sides))
    if len(set(sides)) == 1:
        imported.taken.append(f"{key} = {_show(value)}: resolution")
    else:
        imported.changed.append(f"{key} = {_show(value)}: squares of {min(sides)}, cropped")


def _onetrainer_optimizer(imported: Imported, key: str, value: Any) -> None:
    """OneTrainer keeps an optimizer's name and its settings in one table."""
    name = _table(value).get("optimizer") if isinstance(value, dict) else value
    _named("optimizer.kind", OPTIMIZERS, _OTHER_OPTIMIZER)(imported, key, name)
    others = [k for k, v in _table(value).items() if k != "optimizer" and v is not None]
    if others:
        imported.left_out.append(f"{key}: {_show(', '.join(others))}: the defaults here stay")


def _together(imported: Imported, tables: Mapping[str, Any], key: str) -> float | None:
    """A number by a key; None where there is none or where it is left out as no number."""
    if key not in tables:
        return None
    try:
        return _number(tables[key])
    except _Unfit as error:
        imported.left_out.append(f"{key} = {_show(tables[key])}: {error}")
        return None


def _rates(imported: Imported, tables: Mapping[str, Any]) -> None:
    """kohya: a part without a rate of its own is left out; where neither has one, both learn."""
    common, unet, text = (
        _together(imported, tables, key) for key in ("learning_rate", "unet_lr", "text_encoder_lr")
    )
    if common is None and unet is None and text is None:
        return
    if not unet and not text:
        unet = common
        if imported.kind.startswith("kohya"):
            text = common
    if unet:
        imported.put("optimizer.lr", unet)
        imported.taken.append(f"learning rate {unet:g}: optimizer.lr")
    if text:
        imported.put("adapter.text_encoder", True)
        imported.put("optimizer.text_encoder_lr", text)
        imported.taken.append(f"text encoder's rate {text:g}: optimizer.text_encoder_lr")
    if common is not None and unet and common != unet:
        imported.left_out.append(f"learning_rate = {common:g}: unet_lr stands in its place")
    if text and not unet:
        imported.left_out.append("unet_lr = 0: the UNet always learns here, at the default rate")


def _warmup(imported: Imported, tables: Mapping[str, Any]) -> None:
    steps = imported.tables.get("optimizer", {}).get("steps")
    share = _together(imported, tables, "lr_warmup")
    for key in ("lr_warmup_steps", "learning_rate_warmup_steps"):
        count = _together(imported, tables, key)
        if count is not None and count == int(count) and count >= 0:
            imported.put("optimizer.warmup", int(count))
            imported.taken.append(f"{key} = {count:g}: optimizer.warmup")
        elif count is not None:
            imported.left_out.append(f"{key} = {count:g}: not a number of steps")
    if not share:
        return
    if steps is None or not 0 < share <= 100:
        imported.left_out.append(f"lr_warmup = {share:g} %: of how many steps is not known")
    else:
        imported.put("optimizer.warmup", round(steps * share / 100))
        imported.changed.append(
            f"lr_warmup = {share:g} %: optimizer.warmup = {round(steps * share / 100)} steps"
        )


def _cycles(imported: Imported, tables: Mapping[str, Any]) -> None:
    """Settings of a schedule count where that schedule was chosen."""
    schedule = imported.tables.get("optimizer", {}).get("schedule")
    for key, kind, name in (
        ("lr_scheduler_num_cycles", "restarts", "cycles"),
        ("learning_rate_cycles", "restarts", "cycles"),
        ("lr_scheduler_power", "polynomial", "power"),
    ):
        value = _together(imported, tables, key)
        if not value:
            continue
        if schedule != kind:
            imported.left_out.append(f"{key} = {value:g}: the schedule has no {name}")
            continue
        whole = int(value) if value == int(value) else value
        imported.put("optimizer.schedule", {"kind": kind, name: whole})
        imported.taken.append(f"{key} = {value:g}: optimizer.schedule.{name}")


def _accumulation(imported: Imported, tables: Mapping[str, Any]) -> None:
    """n batches of b per step are one batch of n * b here, b rows at a time."""
    times = _together(imported, tables, "gradient_accumulation_steps")
    if times is None or times == 1:
        return
    if times != int(times) or not 1 < times <= 4096:
        imported.left_out.append(f"gradient_accumulation_steps = {times:g}: not a count")
        return
    size = int(imported.tables.get("optimizer", {}).get("batch_size", 1))
    imported.put("optimizer.batch_size", size * int(times))
    imported.put("optimizer.micro_batch", size)
    imported.changed.append(
        f"gradient_accumulation_steps = {times:g}: batches of {size * int(times)}, "
        f"{size} rows at a time"
    )


def _drop_unfit(imported: Imported, tables: Mapping[str, Any]) -> None:
    """Leave out what the chosen optimizer refuses, each entry by itself."""
    plan = imported.tables.get("optimizer", {})
    kind = plan.get("kind", "adamw")
    for key in [k for k in plan if k != "kind"]:
        try:
            Recipe.build({"optimizer": {"kind": kind, key: plan[key]}})
        except RecipeError as error:
            imported.left_out.append(str(error).splitlines()[-1].strip())
            del plan[key]


def _kohya_dataset(tables: Mapping[str, Any]) -> Imported:
    """kohya's levels: what a subset does not say, its data set says, else `[general]`."""
    imported = Imported("kohya dataset_config")
    general = _table(tables.get("general"))
    imported.left_out += [
        f"{_show(key)}: no counterpart here" for key in tables if key not in ("general", "datasets")
    ]
    subsets = []
    for place, data_set in enumerate(_tables(tables.get("datasets"))):
        own = {k: v for k, v in data_set.items() if k != "subsets"}
        subsets += [({**general, **own, **s}, place) for s in _tables(data_set.get("subsets"))]
    learnt = [(s, place) for s, place in subsets if s.get("is_reg") is not True]
    if not learnt:
        raise RecipeError("the preset names no pictures to learn: expected [[datasets.subsets]]")
    regular = len(subsets) - len(learnt)
    if regular:
        imported.left_out.append(
            f"{regular} subsets with is_reg: strategies.stay_near holds the class without pictures"
        )
    for other, place in learnt[1:]:
        imported.left_out.append(
            f"image_dir = {_show(other.get('image_dir'))} (data set {place}): a run learns from "
            "one folder; move the pictures together, repeats in the folder's name"
        )
    for key, value in learnt[0][0].items():
        rule = KOHYA_DATASET.get(key)
        try:
            if rule is None:
                raise _Unfit("no counterpart here")
            rule(imported, key, value)
        except _Unfit as error:
            name = key if rule else _show(key)
            imported.left_out.append(f"{name} = {_show(value)}: {error}")
    return imported


def _class_tokens(imported: Imported, key: str, value: Any) -> None:
    """ "zqx dog": kohya writes the trigger before the class."""
    trigger, _, noun = _text(value).partition(" ")
    imported.put("trigger", trigger)
    if noun.strip():
        imported.put("class_noun", noun.strip())
    imported.changed.append(
        f"{key} = {_show(value)}: trigger = {_show(trigger)}, class_noun = {_show(noun.strip())}"
    )


def _caption_extension(imported: Imported, key: str, value: Any) -> None:
    if _text(value) not in (".txt", ".caption"):
        raise _Unfit("captions are read from .txt and .caption")
    imported.taken.append(f"{key} = {_show(value)}: found by itself")


def _repeats(imported: Imported, key: str, value: Any) -> None:
    if _whole(value) != 1:
        raise _Unfit("counted in steps here; in one folder all pictures come equally often")
    imported.taken.append(f"{key} = 1: as here")


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _depth(value: Any, level: int = 1) -> int:
    if level > DEEPEST or not isinstance(value, dict | list):
        return level
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(v, level + 1) for v in inner), default=level)


def _show(value: Any) -> str:
    """A foreign value, short and on one line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _flat(line: str) -> str:
    return " ".join(line.split())


OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "adamw_8bit": "adamw8bit",
    "adafactor": "adafactor",
    "prodigy": "prodigy",
    "adamwschedulefree": "schedulefree",
    "schedule_free_adamw": "schedulefree",
}
SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "restarts",
    "polynomial": "polynomial",
}
PRECISIONS = {"no": "float32", "fp16": "fp16", "bf16": "bf16"}
_OTHER_OPTIMIZER = "not one of the optimizers here; adamw stays"
_OTHER_SCHEDULE = "not one of the schedules here; constant stays"

KOHYA_GUI: dict[str, Rule] = {
    "pretrained_model_name_or_path": _take("base", _text),
    "max_resolution": _resolution,
    "network_dim": _take("adapter.rank", _whole),
    "network_alpha": _take("adapter.alpha"),
    "conv_dim": _take("adapter.convolution_rank", _whole, off=1),
    "network_dropout": _take("adapter.dropout"),
    "LoRA_type": _named(
        "adapter.layers",
        {
            "standard": "attention+feedforward",
            "kohya locon": "attention+feedforward+convolution",
            "lycoris/locon": "attention+feedforward+convolution",
        },
        "plain LoRA is learnt in its place",
    ),
    "optimizer": _named("optimizer.kind", OPTIMIZERS, _OTHER_OPTIMIZER),
    "lr_scheduler": _named("optimizer.schedule", SCHEDULES, _OTHER_SCHEDULE),
    "max_train_steps": _take("optimizer.steps", _whole, off=0),
    "train_batch_size": _take("optimizer.batch_size", _whole),
    "max_grad_norm": _take("optimizer.max_grad_norm"),
    "min_snr_gamma": _take("strategies.min_snr.gamma", off=0),
    "caption_dropout_rate": _take("strategies.caption_dropout.p", off=0),
    "flip_aug": _on_if_true("strategies.flip", {}),
    "mixed_precision": _named("precision", PRECISIONS, "not one of the precisions here"),
    "gradient_checkpointing": _take("memory.gradient_checkpointing", _truth),
    "seed": _take("seed", _whole, off=0),
    "save_every_n_steps": _take("checkpoints.every", _whole, off=0),
    "save_last_n_steps": _leave("checkpoints.keep counts checkpoints, not steps"),
    "train_data_dir": _take("images", _text),
    "clip_skip": _clip_skip,
    "noise_offset": _leave("noise is not shifted here"),
    "scale_weight_norms": _leave("norms are not clipped here; adapter.dropout, weight decay are"),
    "epoch": _leave("counted in steps here, since pictures are not known yet"),
    "max_train_epochs": _leave("counted in steps here, since pictures are not known yet"),
    "reg_data_dir": _leave("strategies.stay_near holds the class without pictures of it"),
}
# What only has a meaning beside other keys; read once all are seen.
_TOGETHER = (
    *("learning_rate", "unet_lr", "text_encoder_lr"),
    *("lr_warmup", "lr_warmup_steps", "learning_rate_warmup_steps"),
    *("lr_scheduler_num_cycles", "learning_rate_cycles", "lr_scheduler_power"),
    "gradient_accumulation_steps",
)

ONETRAINER: dict[str, Rule] = {
    "base_model_name": _take("base", _text),
    "training_method": _named("adapter.kind", {"lora": "lora"}, "only LoRA is learnt here"),
    "resolution": _resolution,
    "lora_rank": _take("adapter.rank", _whole),
    "lora_alpha": _take("adapter.alpha"),
    "batch_size": _take("optimizer.batch_size", _whole),
    "dropout_probability": _take("adapter.dropout"),
    "clip_grad_norm": _take("optimizer.max_grad_norm"),
    "learning_rate_scheduler": _named("optimizer.schedule", SCHEDULES, _OTHER_SCHEDULE),
    "train_dtype": _named(
        "precision",
        {"float_32": "float32", "float_16": "fp16", "bfloat_16": "bf16"},
        "not one of the precisions here",
    ),
    "optimizer": _onetrainer_optimizer,
    "epochs": _leave("counted in steps here, since pictures are not known yet"),
}

KOHYA_DATASET: dict[str, Rule] = {
    "resolution": _resolution,
    "batch_size": _take("optimizer.batch_size", _whole),
    "image_dir": _take("images", _text),
    "class_tokens": _class_tokens,
    "num_repeats": _repeats,
    "caption_extension": _caption_extension,
    "flip_aug": _on_if_true("strategies.flip", {}),
    "caption_dropout_rate": _take("strategies.caption_dropout.p", off=0),
    "shuffle_caption": _leave("captions are used as they are written"),
    "keep_tokens": _leave("captions are used as they are written"),
    "enable_bucket": _leave("pictures are cut to squares"),
}
