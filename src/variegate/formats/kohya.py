"""Kohya's form, which diffusers, ComfyUI and A1111 all read: our public file for SD 1 and 2.

Per layer `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha`; the update is
up @ down * alpha / rank, and a missing alpha means a scale of 1, that is alpha = rank.

DoRA, LoHa and LoKr have LyCORIS's keys, which ComfyUI and A1111 read: `.dora_scale` beside LoRA's,
`.hada_w1_a` to `.hada_w2_b`, `.lokr_w1` or `.lokr_w1_a` and `_b`, `.lokr_w2` likewise. For other
kinds the field has no form that fits, and these keys are ours, which no other tool reads:
`.oft_input_blocks` (upper triangles of skew blocks; LyCORIS's `oft_blocks` turn outputs, these
inputs), `.boft_rotations` and `.boft_scale`, `.sparse_values`, `.sparse_indices`, `.sparse_shape`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from variegate.adapter import Adapter, LayerUpdate
from variegate.adapter.updates import DoraUpdate, Update
from variegate.formats.factors import KIND_OF_SLOT, SLOTS, Factors
from variegate.formats.names import kohya_name, layer_of_kohya

DOWN, UP, ALPHA, MAGNITUDE = ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"
SLOT_OF_KEY = {
    **{DOWN: "down", UP: "up", ALPHA: "alpha", MAGNITUDE: "magnitude"},
    **{f".{slot}": slot for slot in KIND_OF_SLOT},
}


def factors(tensors: dict[str, Tensor]) -> Factors:
    """The layers' factors; keys that spell no layer are left over."""
    found = Factors()
    for key, tensor in tensors.items():
        name, dot, rest = key.partition(".")
        layer = layer_of_kohya(name)
        slot = SLOT_OF_KEY.get(dot + rest)
        if layer is None or slot is None:
            found.unknown.append(key)
        else:
            found.put(layer, slot, tensor, key)
    return found


def tensors(adapter: Adapter, dtype: torch.dtype) -> dict[str, Tensor]:
    """What to store: alpha always with it, in float32 so that any alpha is exact.

    Layers of unlike alphas are all stored with the commonest one, and `up` takes up the
    difference: diffusers (0.42) loses track of which alpha belongs to which attention layer.
    """
    plain = {n: u for n, u in adapter.layers.items() if isinstance(u, LayerUpdate)}
    counts = Counter(u.alpha for u in plain.values() if u.kind == "lora" and u.alpha)
    common = counts.most_common(1)[0][0] if len(counts) > 1 else None
    stored: dict[str, Tensor] = {}
    for layer, update in adapter.layers.items():
        name = kohya_name(layer)
        if not isinstance(update, LayerUpdate):
            stored |= _other(name, update, dtype)
            continue
        alpha, up = float(update.alpha), update.up
        if isinstance(update, DoraUpdate):
            ones = [1] * (up.ndim - 1)
            stored[name + MAGNITUDE] = update.magnitude.view(-1, *ones).to(dtype)
        elif common is not None and alpha != common:
            alpha, up = common, up * (alpha / common)
        stored[name + DOWN] = update.down.to(dtype)
        stored[name + UP] = up.to(dtype)
        stored[name + ALPHA] = torch.tensor(alpha)
    return stored


def kind_of(keys: Iterable[str]) -> str:
    """The kind that key names speak of."""
    slots = [SLOT_OF_KEY.get(f".{key.partition('.')[2]}", "") for key in keys]
    other = next((KIND_OF_SLOT[slot] for slot in slots if slot in KIND_OF_SLOT), None)
    return other or ("dora" if "magnitude" in slots else "lora")


def _other(name: str, update: Update, dtype: torch.dtype) -> dict[str, Tensor]:
    stored = {
        f"{name}.{SLOTS[update.kind][factor]}": value.to(dtype)
        if value.is_floating_point()
        else value
        for factor, value in update.factors().items()
    }
    alpha = getattr(update, "alpha", None)
    return stored if alpha is None else {**stored, name + ALPHA: torch.tensor(float(alpha))}
