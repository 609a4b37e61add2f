"""Presets of other trainers as a recipe, with every key accounted for.

Read are kohya's `dataset_config` (TOML), the kohya_ss GUI's presets (JSON), OneTrainer's (JSON).
Each key is taken over, changed (and how), or left out (and why); none is dropped without a word.
The file is somebody else's: it is small or refused, and a value of another type than its key's is
left out, never guessed at.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from variegate.errors import RecipeError
from variegate.imports.kohya import GUI, read_dataset
from variegate.imports.onetrainer import ONETRAINER
from variegate.imports.preset import Imported, table_of
from variegate.imports.together import by_rules

__all__ = ["Imported", "read_preset"]

LARGEST = 1 << 20  # bytes; presets are a few thousand


DEEPEST = 16


def read_preset(file: Path) -> Imported:
    """A preset of another trainer, each of its keys taken over, changed or left out.

    Raises: RecipeError for a file that is missing, too large, neither TOML nor JSON, or no preset
    that is known.
    """
    tables = _parse(file)
    if "datasets" in tables or "subsets" in table_of(tables.get("general")):
        return read_dataset(tables)
    if "LoRA_type" in tables or "network_dim" in tables or "network_alpha" in tables:
        return by_rules("kohya_ss GUI", tables, GUI)
    if "training_method" in tables or "lora_rank" in tables:
        return by_rules("OneTrainer", tables, ONETRAINER)
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


def _depth(value: Any, level: int = 1) -> int:
    if level > DEEPEST or not isinstance(value, dict | list):
        return level
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(v, level + 1) for v in inner), default=level)
