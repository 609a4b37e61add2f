"""Kohya's form, which diffusers, ComfyUI and A1111 all read: our public file for SD 1, 2 and XL.

Per layer `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha`; the update is
up @ down * alpha / rank, and a missing alpha means a scale of 1, that is alpha = rank.

DoRA, LoHa, LoKr, turned outputs and whole differences have LyCORIS's keys, which ComfyUI and A1111
read: `.dora_scale` beside the others', `.hada_w1_a` to `.hada_w2_b`, `.lokr_w1` or `.lokr_w1_a` and
`_b`, `.oft_blocks`, `.rescale`, `.diff`, `.diff_b`, `.w_norm`, `.b_norm`. For other kinds the field
has no form that fits, and these keys are ours, which no other tool reads: `.oft_input_blocks`
(upper triangles of skew blocks, of the inputs), `.boft_rotations` and `.boft_scale`,
`.sparse_values`, `.sparse_indices`, `.sparse_shape`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from variegate.adapter import Adapter, LayerUpdate
from variegate.adapter.updates import DecomposedUpdate, DoraUpdate, FullUpdate, TurnedUpdate, Update
from variegate.errors import AdapterError
from variegate.formats.factors import SLOTS
from variegate.formats.names import kohya_name


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    """What to store: alpha always with it, in float32 so that any alpha is exact.

    Layers of unlike alphas are all stored with the commonest one, and `up` takes up the
    difference: diffusers (0.42) loses track of which alpha belongs to which attention layer.

    Raises: AdapterError when a layer has no name in this form.
    """
    counts = Counter(
        u.alpha
        for u in adapter.layers.values()
        if isinstance(u, LayerUpdate) and u.kind == "lora" and u.alpha
    )
    common = counts.most_common(1)[0][0] if len(counts) > 1 else None
    unnamed, stored = [], dict[str, Tensor]()
    for layer, update in adapter.layers.items():
        name = kohya_name(layer.removesuffix(".bias"), adapter.family)
        if name is None:
            unnamed.append(layer)
        elif layer.endswith(".bias") and isinstance(update, FullUpdate):
            beside = adapter.layers.get(layer.removesuffix(".bias"))
            slot = "b_norm" if _is_norm(beside) else "diff_b"
            stored[f"{name}.{slot}"] = update.difference
        else:
            own = _stored(update, common)
            stored |= {f"{name}.{slot}": tensor for slot, tensor in own.items()}
    if unnamed:
        raise AdapterError(
            f"kohya's form has no name for {len(unnamed)} of {len(adapter.layers)} layers of a "
            f"{adapter.family} adapter, first {unnamed[0]!r}; write the form diffusers or peft"
        )
    return stored


def _stored(update: Update, common: float | None) -> dict[str, Tensor]:
    """One layer's tensors, by what follows its name."""
    if isinstance(update, DecomposedUpdate):
        return {**_stored(update.inner, None), "dora_scale": update.magnitude}
    if isinstance(update, LayerUpdate):
        alpha, up = float(update.alpha), update.up
        lengths = {}
        if isinstance(update, DoraUpdate):
            lengths["dora_scale"] = update.magnitude.view(-1, *[1] * (up.ndim - 1))
        elif common is not None and alpha != common:
            alpha, up = common, up * (alpha / common)
        return {
            **{"lora_down.weight": update.down, "lora_up.weight": up},
            **{"alpha": torch.tensor(alpha), **lengths},
        }
    if isinstance(update, FullUpdate):
        return {"w_norm" if _is_norm(update) else "diff": update.difference}
    if isinstance(update, TurnedUpdate):
        scales = {} if update.rescale is None else {"rescale": update.rescale}
        constraint = torch.tensor(float(update.constraint))
        return {"oft_blocks": update.blocks, "alpha": constraint, **scales}
    stored = {SLOTS[update.kind][factor]: value for factor, value in update.factors().items()}
    alpha_or_none: Any = getattr(update, "alpha", None)
    return stored if alpha_or_none is None else {**stored, "alpha": torch.tensor(alpha_or_none)}


def _is_norm(update: Update | None) -> bool:
    return isinstance(update, FullUpdate) and update.difference.ndim == 1
