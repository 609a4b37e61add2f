"""What is in an adapter file, for people and for JSON."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from variegate.adapter import Adapter, LayerUpdate, Update
from variegate.adapter.updates import FullUpdate, LohaUpdate, LokrUpdate, SparseUpdate, numbers_of
from variegate.errors import AdapterError
from variegate.formats.container import Container
from variegate.formats.factors import KIND_OF_SLOT
from variegate.formats.metadata import own_notes, trigger_of
from variegate.formats.names import spelled
from variegate.formats.reading import containers, foreign_family, foreign_kind, identify, joined
from variegate.lowrank import Factors, effective_rank, grams, singular_values

MAX_TEXT = 2000  # characters of one entry of the header
MOST_VALUES = 16  # singular values told of a layer
MAX_RANK = 256  # above it spectra cost more than they tell
MAX_NUMBERS = 1 << 24  # of factors whose spectrum is told


def inspect(file: Path | str) -> dict[str, Any]:
    """What is in an adapter file; never fails on a foreign kind.

    `problem` says why it cannot be used here, or is None. `layer_facts` has each layer's kind,
    rank, alpha, Frobenius norm, largest singular values and effective rank, None where they depend
    on the base's weights or cost more than they tell. Long texts of the header are cut.

    Raises: AdapterError when the file is missing, damaged, or a pickle.
    """
    file = Path(file)
    parts = containers(file)
    keys = [key for part in parts for key in part.tensors]
    metadata = {k: v for part in parts for k, v in part.metadata.items()}
    facts: dict[str, Any] = {
        "family": foreign_family(keys) or "unknown",
        "format": None,
        "kind": foreign_kind(keys) or _kind_of(keys),
        "layers": None,
        "rank": None,
        "alpha": None,
    }
    problem = None
    try:
        facts |= _facts(joined(parts))
        facts["format"] = "peft" if file.is_dir() else identify(keys)
    except AdapterError as error:
        problem = str(error)
    notes = own_notes(metadata)
    return {
        **facts,
        "file": str(file.resolve()),
        "bytes": sum(part.file.stat().st_size for part in parts),
        "tensors": len(keys),
        "dtypes": _dtypes(parts),
        "hashes": _hashes(parts[0].file, metadata) if len(parts) == 1 else None,
        "trigger": trigger_of(metadata)[:MAX_TEXT],
        "notes": notes,
        "verdict": notes.get("verdict"),
        "metadata": {k[:MAX_TEXT]: _cut(v) for k, v in sorted(metadata.items())},
        "problem": problem,
    }


def _facts(adapter: Adapter) -> dict[str, Any]:
    updates = adapter.layers.values()
    largest = max(updates, key=lambda update: update.rank)
    layers = _layer_facts(adapter)
    norms = [layer["norm"] for layer in layers if layer["norm"] is not None]
    facts: dict[str, Any] = {
        "family": adapter.family,
        "kind": adapter.kind,
        "kinds": dict(Counter(update.kind for update in updates)),
        "layers": len(adapter.layers),
        "rank": largest.rank or None,
        "alpha": getattr(largest, "alpha", None),
        "ranks": sorted({update.rank for update in updates if update.rank}),
        "alphas": sorted({u.alpha for u in updates if hasattr(u, "alpha")}),
        "parts": sorted({name.partition(".")[0] for name in adapter.layers}),
        "text_encoder": any(name.startswith("text_encoder") for name in adapter.layers),
        "parameters": sum(t.numel() for update in updates for t in numbers_of(update)),
        "norm": _finite(math.hypot(*norms)) if norms else None,
        "layer_facts": layers,
    }
    if adapter.masking:
        facts |= {"min_rank": adapter.masking.min_rank, "timesteps": adapter.masking.timesteps}
    return facts


def _layer_facts(adapter: Adapter) -> list[dict[str, Any]]:
    spectra = _spectra(adapter)
    layers = []
    for name, update in adapter.layers.items():
        values = spectra.get(name)
        norm = _norm(update) if values is None else float(values.norm())
        known = values is not None and bool(torch.isfinite(values).all())
        layers.append(
            {
                "name": name,
                "kind": update.kind,
                "rank": update.rank or None,
                "alpha": getattr(update, "alpha", None),
                "norm": _finite(norm),
                "singular_values": [float(f"{v:.6g}") for v in values[:MOST_VALUES].tolist()]
                if known and values is not None
                else None,
                "effective_rank": _finite(float(effective_rank(values[None])))
                if known and values is not None
                else None,
            }
        )
    return layers


def _spectra(adapter: Adapter) -> dict[str, Tensor]:
    """Singular values of the layers where they are cheap, largest first, in float64."""
    low = [
        factors
        for name, update in adapter.layers.items()
        if (factors := _as_product(name, update)) is not None and factors.up.shape[1] <= MAX_RANK
    ]
    found: dict[str, Tensor] = {}
    for names, of in grams(low).values():
        if bool(torch.isfinite(of.up).all() and torch.isfinite(of.down).all()):
            found |= dict(zip(names, singular_values(of), strict=True))
    for name, update in adapter.layers.items():
        if isinstance(update, LokrUpdate) and _is_small(update):
            found[name] = update.spectrum().double()
    return found


def _as_product(name: str, update: Update) -> Factors | None:
    """An update as up @ down, or None. A LoHa of rank r is one of rank r^2: the entrywise product
    of two is that of all pairs of their columns and rows."""
    if isinstance(update, LayerUpdate) and not update.needs_weight:
        return Factors(name, update.up.flatten(1), update.down.flatten(1), update.scale)
    if isinstance(update, LohaUpdate) and update.rank**2 <= MAX_RANK:
        up = update.w1_a[:, :, None] * update.w2_a[:, None, :]
        down = update.w1_b[:, None, :] * update.w2_b[None, :, :]
        return Factors(name, up.flatten(1), down.flatten(0, 1), update.alpha / update.rank)
    return None


def _is_small(update: LokrUpdate) -> bool:
    """Whether both halves are matrices of a size that an SVD is quick for."""
    out, inputs = update.size
    factors = update.factors().values()
    halves_fit = all(min(t.shape[0], t[0].numel()) <= MAX_RANK for t in factors)
    return halves_fit and (out or 1) * inputs <= MAX_NUMBERS


def _norm(update: Update) -> float | None:
    if isinstance(update, FullUpdate):
        return float(update.difference.double().norm())
    if isinstance(update, SparseUpdate):
        return float(update.values.double().norm())
    out, inputs = update.size
    if update.needs_weight or (out or 1) * inputs > MAX_NUMBERS:
        return None
    return float(update.delta().double().norm())


def _finite(number: float | None) -> float | None:
    return float(f"{number:.6g}") if number is not None and math.isfinite(number) else None


def _kind_of(keys: list[str]) -> str:
    """The kind that key names speak of."""
    slots = [said.slot for key in keys if (said := spelled(key))]
    other = next((KIND_OF_SLOT[slot] for slot in slots if slot in KIND_OF_SLOT), None)
    return other or ("dora" if any(s.startswith("magnitude") for s in slots) else "lora")


def _dtypes(parts: list[Container]) -> list[str]:
    return sorted(
        {
            str(t.dtype).removeprefix("torch.")
            for part in parts
            for key, t in part.tensors.items()
            if not key.endswith("alpha")
        }
    )


def _hashes(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What the field calls a file by.

    sha256: of all of it; Civitai's AutoV2 is its first ten digits. after_header: of the tensors
    alone; A1111 shows its first twelve where the file states no `sshs_model_hash`, and Civitai's
    AutoV3 is those. stated: what the header says of itself.
    """
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with file.open("rb") as stream:
        start = stream.read(8)
        head = start + stream.read(int.from_bytes(start, "little"))
        whole.update(head)
        while piece := stream.read(1 << 20):
            whole.update(piece)
            tensors.update(piece)
    stated = {k: v[:80] for k, v in metadata.items() if k.startswith("sshs_")}
    return {
        "sha256": whole.hexdigest(),
        "autov2": whole.hexdigest()[:10],
        "after_header": tensors.hexdigest(),
        "autov3": tensors.hexdigest()[:12],
        "stated": stated,
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"
