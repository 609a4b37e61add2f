"""A base's network in parts, one in each process of a run (fully sharded data parallel).

Frozen weights are gathered block by block as a pass comes to them, and let go behind it. So all
processes make the same passes in the same order; where the first alone has something to ask
(`Ranks.led`), the others make a small pass beside each of its. Text encoders and autoencoder are
whole in each.

Source: Zhao et al., PyTorch FSDP, 2023, arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from variegate.errors import RecipeError
from variegate.recipe import Recipe
from variegate.train.fit import BLOCKS
from variegate.train.ranks import Ranks

LEAST = 8  # latent pixels that every network takes


def divider(
    recipe: Recipe, ranks: Ranks, *, handed_over: bool
) -> Callable[[nn.Module], None] | None:
    """What leaves this process its part of a network, moved to its device; None where the recipe
    does not ask for it, or one process is alone.

    Raises: RecipeError for a base that was handed over.
    """
    if not recipe.memory.divided or ranks.size == 1:
        return None
    if handed_over:
        raise RecipeError(
            "memory.divided: a base that was handed over is never changed; hand none over"
        )

    def divide(network: nn.Module) -> None:
        mesh = init_device_mesh(ranks.device, (ranks.size,))
        for block in [p for p in network.modules() if type(p).__name__ in BLOCKS]:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)

    return divide


def lender(model: Any) -> Callable[[], None]:
    """A pass as small as can be, which makes the others' parts come and go."""
    words = model.embed([""])
    latents = torch.zeros(1, model.latent_channels, LEAST, LEAST)
    timesteps = torch.zeros(1).long()

    def lend() -> None:
        with torch.no_grad():
            model.predict(latents, timesteps, words)

    return lend


def held_here(ranks: Ranks) -> str:
    """How much of a divided network lies in this process, in a sentence."""
    own = whole = 0
    for weight in ranks.network.parameters():
        part = weight.to_local() if isinstance(weight, DTensor) else weight
        own += part.nbytes
        whole += weight.numel() * weight.element_size()
    return (
        f"each of {ranks.size} processes holds {own / whole:.0%} of the network's weights: "
        f"{own / 2**20:,.0f} of {whole / 2**20:,.0f} MiB"
    )


def check_even(counts: Mapping[str, int], ranks: Ranks) -> None:
    """Raises: RecipeError where rows cannot be dealt evenly, so that passes would differ."""
    for name, count in counts.items():
        if count % ranks.size:
            raise RecipeError(
                f"memory.divided: {count} rows of {name} in a step; expected a multiple of the "
                f"{ranks.size} processes, which make the same passes; change its batch_size"
            )
