"""LoRA layers and attention without the questions that they ask at every pass.

On a small network a step is many short passes: that PEFT's layers ask which adapters are on, and
diffusers' attention which arguments its processor takes, is a tenth of it. While a run learns the
answers do not change. What is computed is the same, but that `up` is added in one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from jaxtyping import Float
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


@contextmanager
def lean(model: Any, wanted: bool = True) -> Iterator[None]:
    """While the block runs whatever is attached to the network answers by the shortest way.

    For what is attached when it begins, and until it is taken off.
    """
    changed: list[nn.Module] = []
    for part in model.network.modules() if wanted else ():
        if "forward" in vars(part):  # somebody else's
            continue
        if type(part) is Linear and _is_plain(part):
            part.forward = _lean_lora(part, part.forward)
        elif type(part) is Attention and type(part.processor) in (AttnProcessor, AttnProcessor2_0):
            part.forward = partial(part.processor, part)
        else:
            continue
        changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            del part.forward


def _is_plain(layer: Linear) -> bool:
    """One adapter, not merged, of LoRA's own kind and without a bias of its own."""
    active = list(layer.active_adapters)
    return (
        list(layer.lora_A) == active
        and len(active) == 1
        and not layer.merged
        and not layer.lora_variant
        and layer.lora_B[active[0]].bias is None
    )


def _lean_lora(layer: Any, asking: Callable[..., Tensor]) -> Callable[..., Tensor]:
    (name,) = layer.active_adapters
    base, down, up = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    dropout, scaling = layer.lora_dropout[name], layer.scaling[name]

    def forward(x: Float[Tensor, "*b i"], *more: Any, **named: Any) -> Float[Tensor, "*b o"]:
        if layer.disable_adapters:
            answer: Tensor = base(x, *more, **named)
            return answer
        if more or named or x.dtype != down.weight.dtype or layer.scaling[name] != scaling:
            return asking(x, *more, **named)
        result = base(x)
        if result.dtype != x.dtype:
            return asking(x)
        hidden = down(dropout(x)).flatten(0, -2)
        added = torch.addmm(result.flatten(0, -2), hidden, up.weight.mT, alpha=scaling)
        return added.view(result.shape)

    return forward
