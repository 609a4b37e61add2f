"""OneTrainer's presets (JSON)."""

from __future__ import annotations

from typing import Any

from variegate.imports.preset import Imported, Rule, leave, named, show, table_of, take, text, whole
from variegate.imports.shared import (
    OPTIMIZERS,
    OTHER_OPTIMIZER,
    OTHER_SCHEDULE,
    SCHEDULES,
    resolution,
)


def _optimizer(imported: Imported, key: str, value: Any) -> None:
    """OneTrainer keeps an optimizer's name and its settings in one table."""
    name = table_of(value).get("optimizer") if isinstance(value, dict) else value
    named("optimizer.kind", OPTIMIZERS, OTHER_OPTIMIZER)(imported, key, name)
    others = [k for k, v in table_of(value).items() if k != "optimizer" and v is not None]
    if others:
        imported.left_out.append(f"{key}: {show(', '.join(others))}: the defaults here stay")


ONETRAINER: dict[str, Rule] = {
    "base_model_name": take("base", text),
    "training_method": named("adapter.kind", {"lora": "lora"}, "only LoRA is learnt here"),
    "resolution": resolution,
    "lora_rank": take("adapter.rank", whole),
    "lora_alpha": take("adapter.alpha"),
    "batch_size": take("optimizer.batch_size", whole),
    "dropout_probability": take("adapter.dropout"),
    "clip_grad_norm": take("optimizer.max_grad_norm"),
    "learning_rate_scheduler": named("optimizer.schedule", SCHEDULES, OTHER_SCHEDULE),
    "train_dtype": named(
        "precision",
        {"float_32": "float32", "float_16": "fp16", "bfloat_16": "bf16"},
        "not one of the precisions here",
    ),
    "optimizer": _optimizer,
    "epochs": leave("counted in steps here, since pictures are not known yet"),
}
