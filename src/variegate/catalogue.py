"""The strategies as a menu: what each does, where it acts, its cost, its measured effect.

Names, settings and summaries are read from the recipe, so that menu and recipe cannot part; only
stage, cost and effect are written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from variegate.recipe import Entry, Strategies

Stage = Literal["data", "adapter", "objective", "optimizer", "guard", "sampling", "merge"]
UNTESTED = "untested"
ALTERED = "a few altered variants of each picture, encoded once"


@dataclass(frozen=True)
class Facts:
    """Where a strategy acts, its cost per training step, and its measured effect or `untested`."""

    stage: Stage
    cost: str
    effect: str = UNTESTED


FACTS: dict[str, Facts] = {
    "min_snr": Facts("objective", "none"),
    "caption_scene": Facts("data", "one mask per picture, made once"),
    "caption_dropout": Facts("data", "none"),
    "caption_shuffle": Facts("data", "none"),
    "token_dropout": Facts("data", "none"),
    "caption_edits": Facts("data", "none"),
    "even_pictures": Facts("data", "one look at each picture, once"),
    "buckets": Facts("data", "none; batches hold one shape"),
    "flip": Facts("data", "none; doubles the cached latents"),
    "crop": Facts("data", ALTERED),
    "affine": Facts("data", ALTERED),
    "colour": Facts("data", ALTERED),
    "erase": Facts("data", ALTERED),
    "stay_near": Facts(
        "objective", "one more batch with gradient and one without: about twice the time per step"
    ),
    "zoom_shift": Facts("data", ALTERED),
    "masked_loss": Facts("objective", "one mask per picture, made once"),
    "new_background": Facts("data", f"{ALTERED}; grounds are drawn once"),
}


def strategies() -> list[dict[str, Any]]:
    """Every strategy a recipe can name, in the recipe's order, ready for JSON."""
    return [_describe(name) for name in Strategies.model_fields]


def _describe(name: str) -> dict[str, Any]:
    entry, facts = _entry(name), FACTS[name]
    return {
        "name": name,
        "stage": facts.stage,
        "summary": (entry.__doc__ or "").strip().splitlines()[0],
        "settings": [_setting(entry, key) for key in entry.model_fields],
        "cost": facts.cost,
        "effect": facts.effect,
    }


def _entry(name: str) -> type[Entry]:
    kinds = get_args(Strategies.model_fields[name].annotation)
    return next(k for k in kinds if isinstance(k, type) and issubclass(k, Entry))


def _setting(entry: type[Entry], key: str) -> dict[str, Any]:
    field = entry.model_fields[key]
    shape = entry.model_json_schema()["properties"][key]
    limits = {
        "minimum": "minimum",
        "maximum": "maximum",
        "above": "exclusiveMinimum",
        "below": "exclusiveMaximum",
        "choices": "enum",
    }
    return {
        "name": key,
        "default": field.default,
        "description": field.description or "",
        **{ours: shape[theirs] for ours, theirs in limits.items() if theirs in shape},
    }
