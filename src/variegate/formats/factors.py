"""The factors of layers as they come out of a file, and their joining into an adapter's layers.

A slot is the name of a factor: `down`, `up`, `alpha` and `magnitude` of a LoRA and a DoRA, and in
other kinds what the file calls it; see `SLOTS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from variegate.adapter.updates import (
    BoftUpdate,
    DoraUpdate,
    LayerUpdate,
    LohaUpdate,
    LokrUpdate,
    OftUpdate,
    SparseUpdate,
    Update,
)

# Beside LoRA's: what each kind's factors are called in files, LyCORIS's names where there are any.
SLOTS = {
    "loha": {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b"},
    "lokr": {
        **{"w1": "lokr_w1", "w1_a": "lokr_w1_a", "w1_b": "lokr_w1_b"},
        **{"w2": "lokr_w2", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b"},
    },
    "oft": {"blocks": "oft_input_blocks"},
    "boft": {"rotations": "boft_rotations", "scale": "boft_scale"},
    "sparse": {"values": "sparse_values", "indices": "sparse_indices", "shape": "sparse_shape"},
}
KIND_OF_SLOT = {slot: kind for kind, slots in SLOTS.items() for slot in slots.values()}
WHOLE_NUMBERS = ("sparse_indices", "sparse_shape")


@dataclass
class Factors:
    """What a file says of each layer: tensors by slot, and keys left over."""

    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def put(self, layer: str, slot: str, tensor: Tensor, key: str) -> None:
        slots = self.layers.setdefault(layer, {})
        if slot in slots:
            self.faults.append(f"{key}: a second {slot} for layer {layer}")
        slots[slot] = tensor

    def joined(self, alphas: dict[str, float]) -> dict[str, Update]:
        """Whole layers in float32. A layer's own alpha tensor counts before `alphas`; without
        either alpha is the rank. What does not fit is added to `faults`."""
        updates: dict[str, Update] = {}
        for layer, slots in self.layers.items():
            kinds = {KIND_OF_SLOT.get(slot, "lora") for slot in slots if slot != "alpha"}
            if len(kinds) > 1:
                self.faults.append(f"{layer}: factors of several kinds: {', '.join(sorted(kinds))}")
                continue
            if kinds and kinds != {"lora"}:
                made = self._other(kinds.pop(), layer, slots)
                if isinstance(made, Update):
                    updates[layer] = made
                else:
                    self.faults.append(f"{layer}: {made}")
                continue
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
            if (magnitude := slots.get("magnitude")) is None:
                updates[layer] = LayerUpdate(down=down, up=up, alpha=alpha)
            elif magnitude.shape[0] != up.shape[0] or magnitude.numel() != up.shape[0]:
                self.faults.append(
                    f"{layer}: dora_scale {tuple(magnitude.shape)}; expected one length for each "
                    f"of {up.shape[0]} rows (lengths of columns, as of old, are not read)"
                )
            else:
                updates[layer] = DoraUpdate(down, up, alpha, magnitude.float().flatten())
        return updates

    def _other(self, kind: str, layer: str, slots: dict[str, Tensor]) -> Update | str:
        """A layer of another kind than LoRA, or what is wrong with it."""
        names = {slot: name for name, slot in SLOTS[kind].items()}
        given = {
            names[s]: t if s in WHOLE_NUMBERS else t.float() for s, t in slots.items() if s in names
        }
        shapes = ", ".join(f"{SLOTS[kind][n]} {tuple(t.shape)}" for n, t in given.items())
        if any(0 in t.shape for t in given.values()):
            return f"{shapes}; a factor is empty"
        if (fault := FAULTS[kind](given)) is not None:
            return f"{shapes}; {fault}"
        match kind:
            case "loha":
                alpha = self._alpha(layer, slots, float(given["w1_b"].shape[0]))
                return LohaUpdate(**given, alpha=alpha)
            case "lokr":
                rank = LokrUpdate(1.0, **given).rank
                return LokrUpdate(self._alpha(layer, slots, float(rank or 1)), **given)
            case "oft":
                return OftUpdate(given["blocks"])
            case "boft":
                return BoftUpdate(given["rotations"], given["scale"])
        return SparseUpdate(**given)

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


def _loha_fault(given: dict[str, Tensor]) -> str | None:
    if set(given) != set(SLOTS["loha"]) or any(t.ndim != 2 for t in given.values()):
        return "expected four matrices"
    rank = {given["w1_a"].shape[1], given["w1_b"].shape[0]}
    rank |= {given["w2_a"].shape[1], given["w2_b"].shape[0]}
    alike = given["w1_a"].shape == given["w2_a"].shape, given["w1_b"].shape == given["w2_b"].shape
    return None if len(rank) == 1 and all(alike) else "the two products do not fit"


def _lokr_fault(given: dict[str, Tensor]) -> str | None:
    for half in ("w1", "w2"):
        parts = [name for name in given if name.startswith(half)]
        if parts == [half]:
            if given[half].ndim not in ((2,) if half == "w1" else (2, 4)):
                return f"{half} is no matrix"
        elif sorted(parts) != [f"{half}_a", f"{half}_b"]:
            return f"{half} is neither whole nor a product of two"
        elif (
            any(given[part].ndim != 2 for part in parts)
            or given[f"{half}_a"].shape[1] != given[f"{half}_b"].shape[0]
        ):
            return f"the two of {half} do not fit"
    return None


def _oft_fault(given: dict[str, Tensor]) -> str | None:
    blocks = given["blocks"]
    if blocks.ndim != 2:
        return "expected a row of numbers for each block"
    b = OftUpdate(blocks).block_size
    return None if b * (b - 1) // 2 == blocks.shape[1] else "no block has so many numbers"


def _boft_fault(given: dict[str, Tensor]) -> str | None:
    if set(given) != set(SLOTS["boft"]):
        return "expected rotations and a scale"
    shape, scale = given["rotations"].shape, given["scale"]
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 or scale.ndim != 1:
        return "expected square blocks of even size, and a number for each output"
    return "too few blocks for its factors" if shape[1] % 2 ** (shape[0] - 1) else None


def _sparse_fault(given: dict[str, Tensor]) -> str | None:
    if set(given) != set(SLOTS["sparse"]) or any(
        given[name].is_floating_point() for name in ("indices", "shape")
    ):
        return "expected values, and whole numbers for their places and the shape"
    values, indices, shape = given["values"], given["indices"], given["shape"]
    if values.ndim != 1 or indices.shape != (2, len(values)) or shape.shape != (2,):
        return "values and places do not fit"
    inside = (indices >= 0).all() and (indices < shape[:, None]).all()
    return None if bool(inside) else "places lie outside of the weight"


FAULTS = {
    "loha": _loha_fault,
    "lokr": _lokr_fault,
    "oft": _oft_fault,
    "boft": _boft_fault,
    "sparse": _sparse_fault,
}
