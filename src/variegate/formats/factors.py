"""The factors of layers as they come out of a file, and their joining into an adapter's layers.

A slot is the name of a factor, see `names.SUFFIXES`. Tucker cores are folded into the factors
beside them, which changes no update: a convolution of core, down and up is one of down' and up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from variegate.adapter.updates import (
    BoftUpdate,
    DecomposedUpdate,
    DoraUpdate,
    FullUpdate,
    LayerUpdate,
    LohaUpdate,
    LokrUpdate,
    OftUpdate,
    SparseUpdate,
    TurnedUpdate,
    Update,
)
from variegate.formats.names import Spelled

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
    "turned": {"blocks": "oft_blocks", "rescale": "rescale"},
    "full": {"difference": "diff"},
}
CORES = {"hada_t1": "loha", "hada_t2": "loha", "lokr_t2": "lokr"}
KIND_OF_SLOT = CORES | {slot: kind for kind, slots in SLOTS.items() for slot in slots.values()}
BESIDE = ("alpha", "magnitude", "magnitude_rows")  # of any kind
WHOLE_NUMBERS = ("sparse_indices", "sparse_shape")
# Factors that have a row for every output: what is cut where one matrix holds several layers.
ROWS = ("up", "magnitude", "magnitude_rows", "hada_w1_a", "hada_w2_a", "diff")
SHARED = ("down", "alpha", "hada_w1_b", "hada_w2_b")
MAX_NUMBERS = 1 << 28  # in one folded factor, or one half of a LoKr


class Unfit(ValueError):
    """What is wrong with a layer's factors."""


@dataclass
class Factors:
    """What a file says of each layer: tensors by slot, and keys left over."""

    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _fused: dict[tuple[str, ...], tuple[Spelled, dict[str, Tensor]]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.layers and not self._fused

    def put(self, said: Spelled, tensor: Tensor, key: str) -> None:
        """Take in one tensor."""
        if said.rows == "whole":
            slots = self.layers.setdefault(said.layers[0], {})
        else:
            slots = self._fused.setdefault(said.layers, (said, {}))[1]
        if said.slot in slots:
            self.faults.append(f"{key}: a second {said.slot} for layer {said.layers[0]}")
        slots[said.slot] = tensor

    def part(self) -> None:
        """Give every layer its own rows of matrices that hold several, once all tensors are in."""
        for said, slots in self._fused.values():
            try:
                shares = _shares(said, slots)
            except Unfit as unfit:
                self.faults.append(f"{said.layers[0]}: {unfit}")
                continue
            for layer, own in zip(said.layers, shares, strict=True):
                if layer in self.layers:
                    self.faults.append(f"{layer}: once by itself, and once in a matrix of several")
                self.layers[layer] = own
        self._fused.clear()

    def joined(self, alphas: dict[str, float]) -> dict[str, Update]:
        """Whole layers in float32. A layer's own alpha tensor counts before `alphas`; without
        either alpha is the rank. What does not fit is added to `faults`."""
        updates: dict[str, Update] = {}
        for layer, slots in self.layers.items():
            try:
                updates[layer] = _update(slots, alphas.get(layer))
            except Unfit as unfit:
                self.faults.append(f"{layer}: {unfit}")
        return updates


def _shares(said: Spelled, slots: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each layer's own factors out of those of a matrix that holds several, or whose halves stand
    in another order."""
    count, parts = len(said.layers), 3 if said.rows == "thirds" else 2
    if said.rows == "swapped if last" and not _has_two_chunks(slots):
        return [slots]
    shares: list[dict[str, Tensor]] = [{} for _ in said.layers]
    for slot, tensor in slots.items():
        if slot in SHARED:
            pieces = (tensor,) * count
        elif slot not in ROWS:
            raise Unfit(f"its {slot} cannot be shared out among {count} layers")
        elif not tensor.ndim or tensor.shape[0] % parts:
            raise Unfit(f"{slot} {tuple(tensor.shape)}; its rows are not a multiple of {parts}")
        elif said.rows == "thirds":
            pieces = tensor.chunk(3)
        else:
            pieces = (torch.cat(tensor.chunk(2)[::-1]),)
        for share, piece in zip(shares, pieces, strict=True):
            share[slot] = piece
    return shares


def _has_two_chunks(slots: dict[str, Tensor]) -> bool:
    """Whether a modulation has as many outputs as two chunks of what it reads."""
    rows = next((t.shape[0] for s, t in slots.items() if s in ROWS and t.ndim), 0)
    reads = [slots[s] for s in ("down", "hada_w1_b", "diff") if s in slots]
    return any(t.ndim > 1 and rows == 2 * t.shape[1] for t in reads)


def _update(slots: dict[str, Tensor], otherwise: float | None) -> Update:
    """One layer. Raises: Unfit."""
    kinds = {KIND_OF_SLOT.get(slot, "lora") for slot in slots if slot not in BESIDE} or {"lora"}
    if len(kinds) > 1:
        raise Unfit(f"factors of several kinds: {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    for slot, tensor in slots.items():
        if 0 in tensor.shape:
            raise Unfit(f"{slot} {tuple(tensor.shape)}; a factor is empty")
    floats = {s: t if s in WHOLE_NUMBERS else t.float() for s, t in slots.items()}
    update = BUILD[kind](floats, _alpha(slots, otherwise))
    decomposing = [s for s in ("magnitude", "magnitude_rows") if s in slots]
    if not decomposing:
        return update
    if len(decomposing) > 1:
        raise Unfit("two tensors of magnitudes")
    return _decomposed(update, floats[decomposing[0]], rows=decomposing[0] == "magnitude_rows")


def _alpha(slots: dict[str, Tensor], otherwise: float | None) -> float | None:
    stored = slots.get("alpha")
    if stored is None:
        return otherwise
    if stored.numel() != 1 or not math.isfinite(float(stored)):
        raise Unfit(f"alpha of shape {tuple(stored.shape)}; expected a number")
    return float(stored)


def _lora(slots: dict[str, Tensor], alpha: float | None) -> Update:
    if "down" not in slots or "up" not in slots:
        raise Unfit(f"its {'up' if 'down' in slots else 'down'} factor is missing")
    down, up = slots["down"], slots["up"]
    if (core := slots.get("mid")) is not None:
        down, up = _folded_lora(core, down, up)
    shapes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim != down.ndim:
        raise Unfit(f"{shapes}; expected two matrices, or two convolution kernels")
    if down.shape[0] != up.shape[1]:
        raise Unfit(f"{shapes}; the ranks {down.shape[0]} and {up.shape[1]} differ")
    if up.ndim == 4 and up.shape[2:] != (1, 1):
        raise Unfit(f"{shapes}; expected a 1x1 kernel in up")
    return LayerUpdate(down, up, float(down.shape[0]) if alpha is None else alpha)


def _folded_lora(core: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Down and up of a convolution with a core: down'[a] = sum over b of core[a, b] down[b].

    Source: LyCORIS, `functional/general.py`, `rebuild_tucker`.
    """
    a, b = core.shape[:2] if core.ndim == 4 else (0, 0)
    if (a, b) != (up.shape[1] if up.ndim > 1 else -1, down.shape[0]) or not {
        up[0, 0].numel(),
        down[0, 0].numel() if down.ndim > 1 else 0,
    } <= {1}:
        raise Unfit(
            f"core {tuple(core.shape)}, down {tuple(down.shape)}, up {tuple(up.shape)}; expected "
            "a kernel between two 1x1 kernels"
        )
    folded = _einsum("abhw,bi->aihw", core, down.flatten(1))
    return folded, up.reshape(*up.shape[:2], 1, 1)


def _einsum(formula: str, left: Tensor, right: Tensor) -> Tensor:
    """A product whose size is looked at before it is made."""
    terms, _, result = formula.partition("->")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms.split(","), (left, right), strict=True):
        sizes |= dict(zip(term, tensor.shape, strict=True))
    numbers = math.prod(sizes[letter] for letter in result)
    if numbers > MAX_NUMBERS:
        raise Unfit(f"its core makes {numbers} numbers of a factor; at most {MAX_NUMBERS} are made")
    return torch.einsum(formula, left, right)


def _given(kind: str, slots: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: slots[slot] for name, slot in SLOTS[kind].items() if slot in slots}


def _told(given: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())


def _loha(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("loha", slots)
    if set(given) != set(SLOTS["loha"]) or any(t.ndim != 2 for t in given.values()):
        raise Unfit(f"{_told(given)}; expected four matrices")
    for half in ("1", "2"):
        if (core := slots.get(f"hada_t{half}")) is not None:
            a, b = f"w{half}_a", f"w{half}_b"
            given[a], given[b] = _folded(core, given[a], given[b])
    rank = {given["w1_a"].shape[1], given["w1_b"].shape[0]}
    rank |= {given["w2_a"].shape[1], given["w2_b"].shape[0]}
    alike = given["w1_a"].shape == given["w2_a"].shape, given["w1_b"].shape == given["w2_b"].shape
    if len(rank) != 1 or not all(alike):
        raise Unfit(f"{_told(given)}; the two products do not fit")
    return LohaUpdate(**given, alpha=float(rank.pop()) if alpha is None else alpha)


def _folded(core: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """[out, r] and [r, in * kh * kw] of LyCORIS's core [r, r, kh, kw] with [r, out] and [r, in]."""
    if core.ndim != 4 or core.shape[:2] != (first.shape[0], second.shape[0]):
        raise Unfit(
            f"core {tuple(core.shape)} between {tuple(first.shape)} and {tuple(second.shape)}; "
            "they do not fit"
        )
    return first.T.contiguous(), _einsum("abhw,bi->aihw", core, second).flatten(1)


def _lokr(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("lokr", slots)
    if (core := slots.get("lokr_t2")) is not None:
        if not {"w2_a", "w2_b"} <= set(given) or given["w2_a"].ndim != 2 or given["w2_b"].ndim != 2:
            raise Unfit(f"{_told(given)}; its core has no two matrices beside it")
        given["w2_a"], given["w2_b"] = _folded(core, given["w2_a"], given["w2_b"])
    for half in ("w1", "w2"):
        parts = [name for name in given if name.startswith(half)]
        if parts == [half]:
            if given[half].ndim not in ((2,) if half == "w1" else (2, 4)):
                raise Unfit(f"{_told(given)}; {half} is no matrix")
        elif sorted(parts) != [f"{half}_a", f"{half}_b"]:
            raise Unfit(f"{_told(given)}; {half} is neither whole nor a product of two")
        elif (
            any(given[part].ndim != 2 for part in parts)
            or given[f"{half}_a"].shape[1] != given[f"{half}_b"].shape[0]
        ):
            raise Unfit(f"{_told(given)}; the two of {half} do not fit")
    update = LokrUpdate(1.0, **given)
    if (numbers := max(map(math.prod, update.half_sizes))) > MAX_NUMBERS:
        raise Unfit(
            f"{_told(given)}; a half of it is {numbers} numbers; expected at most {MAX_NUMBERS}"
        )
    return replace(update, alpha=float(update.rank or 1) if alpha is None else alpha)


def _oft(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("oft", slots)
    blocks = given["blocks"]
    if blocks.ndim != 2:
        raise Unfit(f"{_told(given)}; expected a row of numbers for each block")
    b = OftUpdate(blocks).block_size
    if b * (b - 1) // 2 != blocks.shape[1]:
        raise Unfit(f"{_told(given)}; no block has so many numbers")
    return OftUpdate(blocks)


def _boft(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("boft", slots)
    if set(given) != set(SLOTS["boft"]):
        raise Unfit(f"{_told(given)}; expected rotations and a scale")
    shape, scale = given["rotations"].shape, given["scale"]
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 or scale.ndim != 1:
        raise Unfit(
            f"{_told(given)}; expected square blocks of even size, and a number for each output"
        )
    if shape[1] % 2 ** min(shape[0] - 1, 64):
        raise Unfit(f"{_told(given)}; too few blocks for its factors")
    return BoftUpdate(given["rotations"], given["scale"])


def _sparse(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("sparse", slots)
    if set(given) != set(SLOTS["sparse"]) or any(
        given[name].is_floating_point() or given[name].is_complex() for name in ("indices", "shape")
    ):
        raise Unfit(
            f"{_told(given)}; expected values, and whole numbers for their places and the shape"
        )
    values, indices, shape = given["values"], given["indices"], given["shape"]
    if values.ndim != 1 or indices.shape != (2, len(values)) or shape.shape != (2,):
        raise Unfit(f"{_told(given)}; values and places do not fit")
    if not bool((indices >= 0).all() and (indices < shape[:, None]).all()):
        raise Unfit(f"{_told(given)}; places lie outside of the weight")
    return SparseUpdate(**given)


def _turned(slots: dict[str, Tensor], alpha: float | None) -> Update:
    given = _given("turned", slots)
    blocks, rescale = given.get("blocks"), given.get("rescale")
    if blocks is None or blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise Unfit(f"{_told(given)}; expected square blocks")
    outputs = blocks.shape[-3] * blocks.shape[-1]
    if blocks.ndim == 4 and (
        blocks.shape[-1] % 2 or blocks.shape[1] % 2 ** min(blocks.shape[0] - 1, 64)
    ):
        raise Unfit(f"{_told(given)}; too few blocks for its factors, or blocks of an odd size")
    if rescale is not None and (rescale.shape[:1] != (outputs,) or rescale.numel() != outputs):
        raise Unfit(f"{_told(given)}; expected one scale for each of {outputs} outputs")
    # Here alpha is the constraint on the rotation, and without it there is none.
    return TurnedUpdate(blocks, alpha or 0.0, rescale)


def _full(slots: dict[str, Tensor], alpha: float | None) -> Update:
    if not slots["diff"].ndim:
        raise Unfit("its difference is a single number; expected a tensor of the weight's shape")
    return FullUpdate(slots["diff"])


def _decomposed(update: Update, magnitude: Tensor, *, rows: bool) -> Update:
    """The update under lengths that were learnt beside it.

    PEFT's are of rows, whatever their shape; LyCORIS's of rows `[out, 1...]` or, as of old, of
    columns `[1, in...]`.
    """
    if update.of_vector:
        raise Unfit("magnitudes beside the difference of a vector, which has no rows to measure")
    out, inputs = update.size
    lengths, shape = magnitude.numel(), tuple(magnitude.shape)
    if rows or (shape and shape[0] == out):
        if lengths != out:
            raise Unfit(f"magnitudes {shape}; expected one length for each of {out} rows")
        if type(update) is LayerUpdate:
            return DoraUpdate(update.down, update.up, update.alpha, magnitude.flatten())
        return DecomposedUpdate(magnitude if len(shape) > 1 else magnitude.view(-1, 1), update)
    if len(shape) < 2 or shape[0] != 1 or shape[1] != lengths or inputs % lengths:
        raise Unfit(
            f"dora_scale {shape}; expected one length for each of {out} rows, or for each column"
        )
    return DecomposedUpdate(magnitude, update)


BUILD: dict[str, Callable[[dict[str, Tensor], float | None], Update]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "oft": _oft,
    "boft": _boft,
    "sparse": _sparse,
    "turned": _turned,
    "full": _full,
}
