"""The halves of layers as they come out of a file, and their joining into an adapter's layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from variegate.adapter import LayerUpdate


@dataclass
class Factors:
    """What a file says of each layer: `down`, `up` and `alpha` tensors, and keys left over."""

    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def put(self, layer: str, slot: str, tensor: Tensor, key: str) -> None:
        slots = self.layers.setdefault(layer, {})
        if slot in slots:
            self.faults.append(f"{key}: a second {slot} for layer {layer}")
        slots[slot] = tensor

    def joined(self, alphas: dict[str, float]) -> dict[str, LayerUpdate]:
        """Whole layers in float32. A layer's own alpha tensor counts before `alphas`; without
        either alpha is the rank. What does not fit is added to `faults`."""
        updates: dict[str, LayerUpdate] = {}
        for layer, slots in self.layers.items():
            if "down" not in slots or "up" not in slots:
                missing = "up" if "down" in slots else "down"
                self.faults.append(f"{layer}: its {missing} factor is missing")
                continue
            down, up = slots["down"].float(), slots["up"].float()
            fault = _shape_fault(down, up)
            if fault:
                self.faults.append(f"{layer}: {fault}")
                continue
            alpha = self._alpha(layer, slots, alphas.get(layer, float(down.shape[0])))
            updates[layer] = LayerUpdate(down=down, up=up, alpha=alpha)
        return updates

    def _alpha(self, layer: str, slots: dict[str, Any], otherwise: float) -> float:
        stored = slots.get("alpha")
        if stored is None:
            return otherwise
        if stored.numel() != 1 or not math.isfinite(float(stored)):
            self.faults.append(f"{layer}: alpha of shape {tuple(stored.shape)}; expected a number")
            return otherwise
        return float(stored)


def _shape_fault(down: Tensor, up: Tensor) -> str | None:
    shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim != down.ndim:
        return f"{shapes}; expected two matrices, or two convolution kernels"
    if 0 in down.shape or 0 in up.shape:
        return f"{shapes}; a factor is empty"
    if down.shape[0] != up.shape[1]:
        return f"{shapes}; the ranks {down.shape[0]} and {up.shape[1]} differ"
    if up.ndim == 4 and up.shape[2:] != (1, 1):
        return f"{shapes}; expected a 1x1 kernel in up"
    return None
