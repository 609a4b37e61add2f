"""Kohya's form, which diffusers, ComfyUI and A1111 all read: our public file for SD 1 and 2.

Per layer `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha`; the update is
up @ down * alpha / rank, and a missing alpha means a scale of 1, that is alpha = rank.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from variegate.adapter import Adapter
from variegate.formats.factors import Factors
from variegate.formats.names import kohya_name, layer_of_kohya

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def factors(tensors: dict[str, Tensor]) -> Factors:
    """The layers' factors; keys that spell no layer are left over."""
    found = Factors()
    for key, tensor in tensors.items():
        name, dot, rest = key.partition(".")
        layer = layer_of_kohya(name)
        slot = {DOWN: "down", UP: "up", ALPHA: "alpha"}.get(dot + rest)
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
    counts = Counter(update.alpha for update in adapter.layers.values() if update.alpha)
    common = counts.most_common(1)[0][0] if len(counts) > 1 else None
    stored: dict[str, Tensor] = {}
    for layer, update in adapter.layers.items():
        name = kohya_name(layer)
        alpha, up = float(update.alpha), update.up
        if common is not None and alpha != common:
            alpha, up = common, up * (alpha / common)
        stored[name + DOWN] = update.down.to(dtype)
        stored[name + UP] = up.to(dtype)
        stored[name + ALPHA] = torch.tensor(alpha)
    return stored
