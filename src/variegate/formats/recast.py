"""An adapter in kinds that more tools read: whole differences, exactly, or LoRA, by SVD."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch

from variegate.adapter import Adapter, LayerUpdate, Update
from variegate.adapter.updates import FullUpdate
from variegate.errors import AdapterError
from variegate.formats.metadata import OURS, own_notes

OF_KIND = ("kind", "keys", "tlora", "verdict")
MAX_NUMBERS = 1 << 28  # of one dense update


@dataclass(frozen=True)
class Kept:
    """How much of what a recast layer added is left: its share of the squared Frobenius norm."""

    least: float
    mean: float
    layers: int


def as_differences(adapter: Adapter) -> Adapter:
    """Every layer that is no LoRA as the whole difference of its weight.

    Raises: AdapterError when a layer's difference depends on the base's weight.
    """
    layers = {
        name: update if update.kind in ("lora", "full") else FullUpdate(_dense(name, update))
        for name, update in adapter.layers.items()
    }
    return _other(adapter, layers)


def as_lora(adapter: Adapter, rank: int) -> tuple[Adapter, Kept]:
    """Every layer that is no LoRA as the LoRA of at most this rank that is nearest to it.

    The nearest in the Frobenius norm is the truncated SVD (Eckart and Young, 1936); up and down
    share the singular values evenly.
    Raises: AdapterError when a layer's update depends on the base's weight, or is of a vector.
    """
    layers: dict[str, Update] = {}
    shares = []
    for name, update in adapter.layers.items():
        if update.kind == "lora":
            layers[name] = update
            continue
        delta = _dense(name, update)
        if delta.ndim == 1:
            raise AdapterError(
                f"{name} changes a vector (a norm or a bias), which no LoRA can hold; write "
                "kohya's form without --rank, which keeps it"
            )
        left, values, right = torch.linalg.svd(delta.flatten(1).double(), full_matrices=False)
        r = min(rank, len(values))
        energy = values.square()
        shares.append(float(energy[:r].sum() / energy.sum()) if energy.sum() > 0 else 1.0)
        root = values[:r].sqrt()
        down = (root[:, None] * right[:r]).float().view(r, *delta.shape[1:])
        up = (left[:, :r] * root).float().view(len(delta), r, *[1] * (delta.ndim - 2))
        layers[name] = LayerUpdate(down, up, float(r))
    kept = Kept(min(shares, default=1.0), sum(shares) / len(shares) if shares else 1.0, len(shares))
    return _other(adapter, layers), kept


def _other(adapter: Adapter, layers: dict[str, Update]) -> Adapter:
    """The adapter in other layers, and without what its header said of the former kind."""
    notes = {k: v for k, v in own_notes(adapter.metadata).items() if k not in OF_KIND}
    metadata = {**adapter.metadata, OURS: json.dumps(notes, sort_keys=True)}
    return replace(adapter, layers=layers, metadata=metadata, factors={})


def _dense(name: str, update: Update) -> torch.Tensor:
    if update.needs_weight:
        raise AdapterError(
            f"{name} is a {update.kind} layer: what it adds depends on the base's weight, which "
            "the file does not hold; keep its kind and write kohya's form"
        )
    out, inputs = update.size
    if (out or 1) * inputs > MAX_NUMBERS:
        raise AdapterError(
            f"{name} is {out} x {inputs}; a dense update has at most {MAX_NUMBERS} numbers here"
        )
    return update.delta()
