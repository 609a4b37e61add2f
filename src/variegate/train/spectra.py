"""How large the updates are and over how many directions they spread, layer by layer."""

from __future__ import annotations

import statistics

import torch

from variegate.adapter import Attached
from variegate.lowrank import effective_rank, grams, singular_values, stable_rank
from variegate.measurement import Measurement

SOURCES = {
    "update_size.nuclear_norm": "sum of singular values, the mean over layers",
    "update_size.share": "Frobenius norm over the layer's own weight's, the largest of all layers",
    "update_rank.stable": "squared Frobenius over squared spectral norm, median over layers",
    "update_rank.effective": "exp of the entropy of the singular values, median over layers",
}


def spectra(on: Attached, step: int) -> tuple[list[Measurement], dict[str, dict[str, float]]]:
    """A number for all layers of each kind, and every layer's own; nothing for adapters whose
    updates are not one product of two factors."""
    if not on.is_low_rank:
        return [], {}
    weights = dict(on.base_weights())
    layers: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for names, of in grams(on.low_rank()).values():
            values = singular_values(of)
            numbers = zip(
                names,
                values.sum(1).tolist(),
                stable_rank(values).tolist(),
                effective_rank(values).tolist(),
                values.square().sum(1).sqrt().tolist(),
                strict=True,
            )
            for name, nuclear, stable, effective, norm in numbers:
                own = float(torch.linalg.vector_norm(weights[name].float()))
                layers[name] = {
                    "nuclear_norm": nuclear,
                    "stable_rank": stable,
                    "effective_rank": effective,
                    "share": norm / max(own, 1e-12),
                }
    column = {key: [own[key] for own in layers.values()] for key in next(iter(layers.values()))}
    found = {
        "update_size.nuclear_norm": statistics.fmean(column["nuclear_norm"]),
        "update_size.share": max(column["share"]),
        "update_rank.stable": statistics.median(column["stable_rank"]),
        "update_rank.effective": statistics.median(column["effective_rank"]),
    }
    told = [
        Measurement(k, v, n=len(layers), better="neither", step=step, source=SOURCES[k])
        for k, v in found.items()
    ]
    rounded = {n: {k: round(v, 6) for k, v in own.items()} for n, own in layers.items()}
    return told, rounded
