"""kohya: the presets of its GUI (kohya_ss, JSON) and its `dataset_config` (TOML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variegate.errors import RecipeError
from variegate.imports.preset import (
    Imported,
    Rule,
    Unfit,
    leave,
    named,
    on_if_true,
    show,
    table_of,
    tables_of,
    take,
    text,
    truth,
    whole,
)
from variegate.imports.shared import (
    OPTIMIZERS,
    OTHER_OPTIMIZER,
    OTHER_SCHEDULE,
    PRECISIONS,
    SCHEDULES,
    resolution,
)


def read_dataset(tables: Mapping[str, Any]) -> Imported:
    """kohya's levels: what a subset does not say, its data set says, else `[general]`."""
    imported = Imported("kohya dataset_config")
    general = table_of(tables.get("general"))
    imported.left_out += [
        f"{show(key)}: no counterpart here" for key in tables if key not in ("general", "datasets")
    ]
    subsets = []
    for place, data_set in enumerate(tables_of(tables.get("datasets"))):
        own = {k: v for k, v in data_set.items() if k != "subsets"}
        subsets += [({**general, **own, **s}, place) for s in tables_of(data_set.get("subsets"))]
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
            f"image_dir = {show(other.get('image_dir'))} (data set {place}): a run learns from "
            "one folder; move the pictures together, repeats in the folder's name"
        )
    for key, value in learnt[0][0].items():
        rule = DATASET.get(key)
        try:
            if rule is None:
                raise Unfit("no counterpart here")
            rule(imported, key, value)
        except Unfit as error:
            name = key if rule else show(key)
            imported.left_out.append(f"{name} = {show(value)}: {error}")
    return imported


def _class_tokens(imported: Imported, key: str, value: Any) -> None:
    """ "zqx dog": kohya writes the trigger before the class."""
    trigger, _, noun = text(value).partition(" ")
    imported.put("trigger", trigger)
    if noun.strip():
        imported.put("class_noun", noun.strip())
    imported.changed.append(
        f"{key} = {show(value)}: trigger = {show(trigger)}, class_noun = {show(noun.strip())}"
    )


def _caption_extension(imported: Imported, key: str, value: Any) -> None:
    if text(value) not in (".txt", ".caption"):
        raise Unfit("captions are read from .txt and .caption")
    imported.taken.append(f"{key} = {show(value)}: found by itself")


def _repeats(imported: Imported, key: str, value: Any) -> None:
    if whole(value) != 1:
        raise Unfit("counted in steps here; in one folder all pictures come equally often")
    imported.taken.append(f"{key} = 1: as here")


GUI: dict[str, Rule] = {
    "pretrained_model_name_or_path": take("base", text),
    "max_resolution": resolution,
    "network_dim": take("adapter.rank", whole),
    "network_alpha": take("adapter.alpha"),
    "conv_dim": take("adapter.convolution_rank", whole, off=1),
    "network_dropout": take("adapter.dropout"),
    "LoRA_type": named(
        "adapter.layers",
        {
            "standard": "attention+feedforward",
            "kohya locon": "attention+feedforward+convolution",
            "lycoris/locon": "attention+feedforward+convolution",
        },
        "plain LoRA is learnt in its place",
    ),
    "optimizer": named("optimizer.kind", OPTIMIZERS, OTHER_OPTIMIZER),
    "lr_scheduler": named("optimizer.schedule", SCHEDULES, OTHER_SCHEDULE),
    "max_train_steps": take("optimizer.steps", whole, off=0),
    "train_batch_size": take("optimizer.batch_size", whole),
    "max_grad_norm": take("optimizer.max_grad_norm"),
    "min_snr_gamma": take("strategies.min_snr.gamma", off=0),
    "caption_dropout_rate": take("strategies.caption_dropout.p", off=0),
    "flip_aug": on_if_true("strategies.flip", {}),
    "mixed_precision": named("precision", PRECISIONS, "not one of the precisions here"),
    "gradient_checkpointing": take("memory.gradient_checkpointing", truth),
    "seed": take("seed", whole, off=0),
    "save_every_n_steps": take("checkpoints.every", whole, off=0),
    "save_last_n_steps": leave("checkpoints.keep counts checkpoints, not steps"),
    "train_data_dir": take("images", text),
    "clip_skip": take("clip_skip", whole),
    "zero_terminal_snr": take("zero_terminal_snr", truth, off=False),
    "noise_offset": take("strategies.noise_offset.amount", off=0),
    "scale_weight_norms": take("strategies.max_norm.limit", off=0),
    "epoch": leave("counted in steps here, since pictures are not known yet"),
    "max_train_epochs": leave("counted in steps here, since pictures are not known yet"),
    "reg_data_dir": take("strategies.prior_pictures.images", text),
}


DATASET: dict[str, Rule] = {
    "resolution": resolution,
    "batch_size": take("optimizer.batch_size", whole),
    "image_dir": take("images", text),
    "class_tokens": _class_tokens,
    "num_repeats": _repeats,
    "caption_extension": _caption_extension,
    "flip_aug": on_if_true("strategies.flip", {}),
    "caption_dropout_rate": take("strategies.caption_dropout.p", off=0),
    "shuffle_caption": on_if_true("strategies.caption_shuffle", {}),
    "keep_tokens": leave("strategies.caption_shuffle.keep is its like, 1 where tags are shuffled"),
    "enable_bucket": on_if_true("strategies.buckets", {}),
}
