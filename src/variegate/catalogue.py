"""The strategies as a menu: what each does, where it acts, its cost, its measured effect.

The kinds of adapter are on it too, since what can be learnt decides what can be lost, and the
methods of sampling, which draw more out of what was learnt. Names, settings and summaries are read
from the recipe, so that menu and recipe cannot part; only stage and cost are written here. Effects
are those of the published benchmark, `effects.json`, and of the table of methods,
`sampling_effects.json`; what a cost comes to is `strategy_costs.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, cast, get_args

from variegate.plugins import Entry, plugins
from variegate.recipe import ADAPTER_KINDS, SamplingMethods, Strategies

Stage = Literal["data", "adapter", "objective", "optimizer", "guard", "sampling", "merge"]
UNTESTED = "untested"
LEAST_ONCE = 10  # plain steps, below which chance speaks
ALTERED = "a few altered variants of each picture, encoded once"


@dataclass(frozen=True)
class Facts:
    """Where a strategy acts, its cost per training step, and an effect that another package claims.

    Effects of our own stand in the published benchmark, or nowhere: `untested`.
    """

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
    "caption_noise": Facts("data", "none"),
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
    "layout_prior": Facts(
        "objective", "one more batch with gradient and one without: about twice the time per step"
    ),
    "prior_pictures": Facts(
        "objective", "one more batch with gradient; class pictures are drawn and encoded once"
    ),
    "low_rank": Facts("adapter", "products of r x r matrices per layer"),
    "spectral_cap": Facts("adapter", "products of r x r matrices per layer"),
    "max_norm": Facts("adapter", "products of r x r matrices per layer"),
    "neuron_dropout": Facts("adapter", "none"),
    "rank_dropout": Facts("adapter", "none"),
    "module_dropout": Facts("adapter", "none"),
    "debiased": Facts("objective", "none"),
    "soft_high_noise": Facts("objective", "none"),
    "noise_offset": Facts("objective", "none"),
    "input_perturbation": Facts("objective", "none"),
    "huber": Facts("objective", "none"),
    "ema": Facts("optimizer", "one more copy of the factors"),
    "swa": Facts("optimizer", "one more copy of the factors"),
}

FACTS |= {
    name: Facts(cast(Stage, plugin.stage), plugin.cost, plugin.effect)
    for name, plugin in plugins().items()
}

KINDS: dict[str, Facts] = {
    "lora": Facts("adapter", "the least; every tool reads its file"),
    "dora": Facts(
        "adapter",
        "one more pass over each weight per step; ComfyUI up to 2026 and A1111 divide by other "
        "lengths, diffusers leaves them out",
    ),
    "loha": Facts(
        "adapter", "the dense update per layer and step; ComfyUI and A1111 read its file"
    ),
    "lokr": Facts(
        "adapter", "the dense update per layer and step; ComfyUI and A1111 read its file"
    ),
    "oft": Facts("adapter", "one small solve per layer and step; its file is read here only"),
    "boft": Facts(
        "adapter", "dense products as wide as the inputs per layer; its file is read here only"
    ),
    "sparse": Facts("adapter", "a copy of each weight per step; its file is read here only"),
    "tlora": Facts(
        "adapter",
        "two products in place of one per layer, and one decomposition per layer at the start; "
        "other tools read its file as a LoRA of twice the rank, unmasked",
    ),
}


METHODS: dict[str, Facts] = {
    "late_adapter": Facts("sampling", "none; an adapter that is dialled, as at any strength but 1"),
    "cads": Facts("sampling", "noise as large as what is read of the prompt, per step"),
    "interval": Facts("sampling", "less: outside of the interval the network is asked once"),
    "delayed": Facts("sampling", "none"),
    "rescale": Facts("sampling", "none"),
    "cfg_pp": Facts("sampling", "none; samplers ddim and euler, and flows"),
    "autoguidance": Facts(
        "sampling", "the network is asked once more per step: half as long again"
    ),
    "particle": Facts("sampling", "distances of the latents of one prompt, per step"),
    "spell": Facts("sampling", "distances of the latents of one prompt, per step"),
    "shield": Facts(
        "sampling", "the pictures encoded once; distances of latents to all of them, per step"
    ),
    "noise_choice": Facts(
        "sampling",
        "select: each seed's candidates asked once, 4 of 50 calls at 25 guided steps; optimise: "
        "about four calls a round; balanced and antithetic: none",
    ),
}
METHOD = "sampling.methods."


def strategies() -> list[dict[str, Any]]:
    """Every strategy a recipe can name, in the recipe's order, then every kind of adapter, then
    every method of sampling, ready for JSON."""
    menu = [(name, _entry(name), FACTS[name]) for name in Strategies.model_fields]
    menu += [(f"adapter.kind={kind}", entry, KINDS[kind]) for kind, entry in ADAPTER_KINDS.items()]
    menu += [
        (f"{METHOD}{name}", _entry(name, SamplingMethods), METHODS[name])
        for name in SamplingMethods.model_fields
    ]
    return [
        _describe(name, entry, facts, measured().get(name, facts.effect))
        for name, entry, facts in menu
    ]


def effect_of(name: str) -> str:
    """What the benchmark measured of a strategy, in words.

    Raises: KeyError when the menu has no strategy of that name.
    """
    return measured().get(name, FACTS[name].effect)


@cache
def measured() -> dict[str, str]:
    """What the published benchmark (`tools/publish_bench.py`) and the table of methods
    (`tools/variety_table.py`) say in words, by the name of strategy, kind (`adapter.kind=..`),
    method or single setting."""
    found: dict[str, str] = {}
    for file in ("effects.json", "sampling_effects.json"):
        found |= json.loads((resources.files(__package__) / file).read_text(encoding="utf8"))
    return found


@cache
def _costs() -> dict[str, dict[str, float]]:
    """Of training on the pocket, by `tools/strategy_costs.py`: `step`, a step beside plain's, and
    `once`, what is done once, in plain's steps."""
    file = resources.files(__package__) / "strategy_costs.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf8"))
    return found


def _cost(name: str, words: str) -> str:
    found = _costs().get(name)
    if found is None:
        return words
    once = f", and once {found['once']:.0f} plain steps" if found["once"] >= LEAST_ONCE else ""
    return f"{words}; on the pocket {found['step']:.1f} times a plain step{once}"


def _describe(name: str, entry: type[Entry], facts: Facts, effect: str) -> dict[str, Any]:
    return {
        "name": name,
        "stage": facts.stage,
        "summary": (entry.__doc__ or "").strip().splitlines()[0],
        "settings": [_setting(entry, key) for key in entry.model_fields if key != "kind"],
        "cost": _cost(name, facts.cost),
        "effect": effect,
    }


def _entry(name: str, menu: type[Entry] = Strategies) -> type[Entry]:
    kinds = get_args(menu.model_fields[name].annotation)
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
