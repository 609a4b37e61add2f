"""Rules and names that several trainers have in common."""

from __future__ import annotations

from typing import Any

from variegate.imports.preset import Imported, Unfit, show, whole

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


OTHER_OPTIMIZER = "not one of the optimizers here; adamw stays"


OTHER_SCHEDULE = "not one of the schedules here; constant stays"


def resolution(imported: Imported, key: str, value: Any) -> None:
    """A side, or width and height as a list or as "512,512"; only squares are learnt here."""
    parts = value if isinstance(value, list) else str(value).replace("x", ",").split(",")
    if not 1 <= len(parts) <= 2:
        raise Unfit("not a side, nor a width and a height")
    sides = [whole(part.strip() if isinstance(part, str) else part) for part in parts]
    if min(sides) < 32:
        raise Unfit("less than 32 pixels")
    imported.put("resolution", min(sides))
    if len(set(sides)) == 1:
        imported.taken.append(f"{key} = {show(value)}: resolution")
    else:
        imported.changed.append(f"{key} = {show(value)}: squares of {min(sides)}, cropped")
