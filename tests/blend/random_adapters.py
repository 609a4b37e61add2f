"""Random adapters of a few layers, one of them a convolution, for tests that need no model."""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.adapter import Adapter, LayerUpdate

LAYERS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (10, 8),
    "unet.mid_block.resnets.0.conv1": (6, 4, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (8, 8),
}


def random_adapter(
    seed: int, *, rank: int = 3, alpha: float = 1.5, layers: tuple[str, ...] = tuple(LAYERS)
) -> Adapter:
    updates = {}
    for name in layers:
        out, *inputs = LAYERS[name]
        ones = [1] * (len(inputs) - 1)
        updates[name] = LayerUpdate(
            down=torch.randn(rank, *inputs, generator=seeds.at(seed, name, "down")),
            up=torch.randn(out, rank, *ones, generator=seeds.at(seed, name, "up")),
            alpha=alpha,
        )
    return Adapter("sd1", updates)
