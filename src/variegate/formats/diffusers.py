"""The forms of diffusers and PEFT: `unet.<path>.lora_A.weight` and `lora_B.weight`.

No layer carries its alpha in these files. It stands in the header, as the JSON of PEFT's
settings under `lora_adapter_metadata`; without that header alpha is the rank. PEFT's own form is
a folder per model: `unet/adapter_model.safetensors` beside `unet/adapter_config.json`. A DoRA's
lengths of rows are `lora_magnitude_vector`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from torch import Tensor

from variegate.adapter import Adapter, LayerUpdate
from variegate.adapter.updates import DoraUpdate
from variegate.errors import AdapterError
from variegate.formats.factors import Factors
from variegate.formats.names import PROJECTION, canonical, module_path

HEADER = "lora_adapter_metadata"
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
HELD = ("lora", "dora")
# PEFT's first weights that leave the base as it is, so that a file's product is the update.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    """What to store in one file for diffusers."""
    stored: dict[str, Tensor] = {}
    for layer, update in _held(adapter).items():
        stored |= _named(canonical(layer), update)
    return stored


def part_tensors(adapter: Adapter, part: str) -> dict[str, Tensor]:
    """What to store in PEFT's folder for one model, under the module paths of today."""
    stored: dict[str, Tensor] = {}
    for layer, update in _of_part(adapter, part).items():
        stored |= _named(f"base_model.model.{_own_path(layer, adapter.family)}", update)
    return stored


def _named(name: str, update: LayerUpdate) -> dict[str, Tensor]:
    stored = {f"{name}.lora_A.weight": update.down, f"{name}.lora_B.weight": update.up}
    if isinstance(update, DoraUpdate):
        shape = [1, -1, 1, 1] if update.up.ndim == 4 else [-1]
        stored[f"{name}.lora_magnitude_vector"] = update.magnitude.view(shape)
    return stored


def header(adapter: Adapter) -> str:
    """The settings of every part as diffusers stores them: `{"unet.r": 4, ...}`."""
    settings = {
        f"{part}.{key}": value
        for part in PARTS
        if _of_part(adapter, part)
        for key, value in part_settings(adapter, part).items()
    }
    return json.dumps(settings, indent=2, sort_keys=True)


def part_settings(adapter: Adapter, part: str) -> dict[str, Any]:
    """PEFT's settings for one model: the commonest rank and alpha, and who differs."""
    updates = {_own_path(n, adapter.family): u for n, u in _of_part(adapter, part).items()}
    rank = Counter(u.rank for u in updates.values()).most_common(1)[0][0]
    alpha = Counter(u.alpha for u in updates.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {n: u.rank for n, u in updates.items() if u.rank != rank},
        "alpha_pattern": {n: u.alpha for n, u in updates.items() if u.alpha != alpha},
        "target_modules": sorted(updates),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": any(u.kind == "dora" for u in updates.values()),
    }


def _own_path(layer: str, family: str) -> str:
    """Where the layer is in its own model: text encoders with a projection have an inner one
    beside it."""
    projected = ("text_encoder_2.", "text_encoder.") if family == "sd3" else ("text_encoder_2.",)
    path = module_path(layer)
    is_inner = layer.startswith(projected) and not path.startswith(PROJECTION)
    return f"text_model.{path}" if is_inner else path


def alphas_of_header(text: str, found: Factors) -> dict[str, float]:
    """Each layer's alpha by the header of a diffusers file.

    Raises: AdapterError when the header is no JSON or says what cannot be honoured.
    """
    settings = _json(text, HEADER)
    alphas: dict[str, float] = {}
    for part in PARTS:
        prefix = f"{part}."
        own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
        if own:
            alphas |= alphas_of_settings(own, found, part)
    return alphas


def alphas_of_settings(settings: dict[str, Any], found: Factors, part: str) -> dict[str, float]:
    """Each layer's alpha by PEFT's settings for one model; rsLoRA's scale alpha / sqrt(r) is
    turned into ours, alpha / r.

    Raises: AdapterError when the settings are not a LoRA's, say what cannot be honoured, or tell of
    a start that changed the base.
    """
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(
            f"the settings beside the file say peft_type {kind!r:.40}; expected LORA: of PEFT's "
            "kinds, LoRA and DoRA are read"
        )
    start = settings.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in PLAIN_STARTS:
        raise AdapterError(
            f"PEFT's settings say init_lora_weights {start!r:.40}; expected true, false or one of "
            f"{', '.join(name for name in PLAIN_STARTS if isinstance(name, str))}: PiSSA, OLoRA, "
            "CorDA, LoftQ and LoRA-GA change the base before they train, and what is stored is not "
            "what they add to the base as it was; save it from PEFT as a plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion, the folder of the "
            "adapter as it was before training)"
        )
    pattern = settings.get("alpha_pattern") or {}
    whole = settings.get("lora_alpha")
    if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
        raise AdapterError(
            f"{HEADER}: alpha_pattern is {pattern!r:.80}; expected names and numbers"
        )
    if whole is not None and not _is_number(whole):
        raise AdapterError(f"{HEADER}: lora_alpha is {whole!r:.80}; expected a number")
    literal = {_literal(key): float(value) for key, value in pattern.items()}
    alphas: dict[str, float] = {}
    for layer, slots in found.layers.items():
        if not layer.startswith(f"{part}.") or "down" not in slots or not slots["down"].ndim:
            continue
        rank = slots["down"].shape[0]
        alpha = _longest_match(literal, layer)
        if alpha is None:
            alpha = float(rank if whole is None else whole)
        alphas[layer] = alpha * rank**0.5 if settings.get("use_rslora") else alpha
    return alphas


def _longest_match(alphas: dict[str, float], layer: str) -> float | None:
    """What the pattern says of a layer: PEFT asks for an end of its path."""
    parts = f".{module_path(layer)}".split(".")
    for n in range(len(parts)):
        if (alpha := alphas.get(".".join(parts[n:]))) is not None:
            return alpha
    return None


def settings_of_text(text: str, where: str) -> dict[str, Any]:
    """PEFT's `adapter_config.json`."""
    return _json(text, where)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise AdapterError(f"{where} holds a {type(settings).__name__}; expected an object")
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _literal(pattern: str) -> str:
    """A module path out of PEFT's pattern; expressions from a stranger's file are not run."""
    name = pattern.removeprefix("^").removesuffix("$").replace(r"\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise AdapterError(
            f"{HEADER}: the alpha_pattern entry {pattern!r:.80} is an expression; expected the "
            "path of a module"
        )
    return name.removeprefix("text_model.")


def _of_part(adapter: Adapter, part: str) -> dict[str, LayerUpdate]:
    return {n: u for n, u in _held(adapter).items() if n.startswith(f"{part}.")}


def _held(adapter: Adapter) -> dict[str, LayerUpdate]:
    """Raises: AdapterError when these forms cannot hold a layer's kind, or not beside another."""
    for name, update in adapter.layers.items():
        if update.kind not in HELD:
            raise AdapterError(
                f"{name} is a {update.kind} layer; the forms of diffusers and PEFT hold LoRA and "
                "DoRA; write kohya's form, or have it made a LoRA (--rank R, which may lose some)"
            )
    layers = {n: u for n, u in adapter.layers.items() if isinstance(u, LayerUpdate)}
    for part in PARTS:
        if len({u.kind for n, u in layers.items() if n.startswith(f"{part}.")}) > 1:
            raise AdapterError(
                f"some layers of the {part} are LoRA and some DoRA; PEFT has one setting for all "
                "of a model; write kohya's form"
            )
    return layers
