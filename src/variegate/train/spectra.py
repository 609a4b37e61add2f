"""How large the updates are, over how many directions they spread, and how many directions they
put in the place of the base's own, layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.adapter import Adapter, Attached
from variegate.lowrank import effective_rank, grams, singular_values, stable_rank
from variegate.measurement import Measurement

SOURCES = {
    "update_size.nuclear_norm": "sum of singular values, the mean over layers",
    "update_size.share": "Frobenius norm over the layer's own weight's, the largest of all layers",
    "update_rank.stable": "squared Frobenius over squared spectral norm, median over layers",
    "update_rank.effective": "exp of the entropy of the singular values, median over layers",
}

ALIKE = 0.5  # cosine below which a direction is none of the base's: Shuttleworth et al., and PEFT
SMALL = 256  # a layer of fewer rows or columns is taken apart whole at once
BESIDE = 2  # times as many of the base's leading directions are kept as are compared
SETTLED = 1e-4  # what is missed of the largest squared singular value
NOTHING = 1e-6  # a singular value below this share of the largest is rounding


def norms(on: Attached) -> dict[str, float]:
    """The Frobenius norm of the frozen weight under each update, where `spectra` asks for it."""
    if not on.is_low_rank:
        return {}
    return {n: float(torch.linalg.vector_norm(w.float())) for n, w in on.base_weights().items()}


def spectra(
    on: Attached, base: Mapping[str, float], step: int
) -> tuple[list[Measurement], dict[str, dict[str, float]]]:
    """A number for all layers of each kind, and every layer's own; nothing for adapters whose
    updates are not one product of two factors. base: the `norms` of what lies under them."""
    if not on.is_low_rank:
        return [], {}
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
                layers[name] = {
                    "nuclear_norm": nuclear,
                    "stable_rank": stable,
                    "effective_rank": effective,
                    "share": norm / max(base[name], 1e-12),
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


@dataclass
class _Base:
    """Left singular vectors of one layer's own weight: the leading ones, or all there are."""

    left: Float[Tensor, "o d"]
    whole: bool


class Intruders:
    """Counts intruder dimensions: leading left singular vectors of a layer with its update whose
    cosine to every left singular vector of the layer without it is below 0.5.

    A large layer is never taken apart anew. Its leading directions with the update are found from
    those of the base and what the update reaches (a block Lanczos iteration), in about the time of
    a few products of the weight with a hundred columns. Most of them are the base's leading ones,
    turned a little. The first time that one is not, all of the base's directions are worked out,
    and kept from then on, in half precision: 2 * out * min(out, in) bytes for such a layer.

    most: leading directions that are looked at in each layer; the paper and PEFT look at ten.
    Source: Shuttleworth et al., LoRA vs Full Fine-tuning: An Illusion of Equivalence, 2024, arXiv
    2410.21228, algorithm 1.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, most: int, seed: int) -> None:
        self._weights = weights
        self.most = most
        self._seed = seed
        self._bases: dict[str, _Base] = {}

    def look(self, adapter: Adapter, step: int) -> tuple[Measurement, dict[str, int]]:
        """The number in all layers, and the layers that have any, most first."""
        counts = {name: self._count(name, adapter) for name in adapter.layers}
        found = {name: n for name, n in sorted(counts.items(), key=lambda x: -x[1]) if n}
        told = Measurement(
            "intruders",
            float(sum(found.values())),
            n=len(counts),
            better="lower",
            unit="directions",
            step=step,
            source=f"of the {self.most} leading directions of each layer, those with a cosine "
            f"below {ALIKE} to every one of the base's",
        )
        return told, found

    @torch.no_grad()
    def _count(self, name: str, adapter: Adapter) -> int:
        weight = self._weights[name].detach()
        asked = weight if adapter.layers[name].needs_weight else None
        delta = adapter.delta(name, asked).flatten(1).to(weight.device)
        weight = weight.float().flatten(1)
        count = min(self.most, *weight.shape)
        if name not in self._bases:
            self._bases[name] = self._base(name, weight, count)
        base = self._bases[name]
        reached = delta @ self._draw(name, delta.shape[1], 2 * count).to(delta)
        begin = torch.cat([base.left[:, : BESIDE * count].to(delta), reached], 1)
        own, values = leading(weight + delta, count, begin)
        own = own[:, values > NOTHING * values[0]]
        strange = _nearest(own, base) < ALIKE
        if not base.whole:
            rest = own - base.left @ (base.left.T @ own)
            if bool((strange & (rest.norm(dim=0) >= ALIKE)).any()):  # may be one of its others
                base = self._bases[name] = _whole(weight)
                strange = _nearest(own, base) < ALIKE
        return int(strange.sum())

    def _base(self, name: str, weight: Float[Tensor, "o i"], count: int) -> _Base:
        if min(weight.shape) <= max(SMALL, BESIDE * count):
            return _whole(weight)
        begin = weight @ self._draw(name, weight.shape[1], BESIDE * count + count).to(weight)
        return _Base(leading(weight, BESIDE * count, begin)[0], whole=False)

    def _draw(self, name: str, rows: int, columns: int) -> Float[Tensor, "r c"]:
        return torch.randn(rows, columns, generator=seeds.at(self._seed, "intruders", name))


def leading(
    weight: Float[Tensor, "o i"], count: int, begin: Float[Tensor, "o b"]
) -> tuple[Float[Tensor, "o k"], Float[Tensor, " k"]]:
    """The `count` leading left singular vectors and singular values of a matrix, largest first.

    begin: at least `count` columns near what is sought. Each round adds to them what they miss
    (block Lanczos with every column kept orthogonal to all others: Golub and Van Loan, Matrix
    Computations, section 10.3.6), until nothing of weight is missed.
    """
    basis = torch.linalg.qr(begin).Q
    seen = weight.T @ basis
    while True:
        squares, turn = torch.linalg.eigh((seen.T @ seen).double())
        squares = squares.flip(0)[:count].clamp_min(0).to(weight)
        turn = turn.flip(1)[:, :count].to(weight)
        found = basis @ turn
        missed = weight @ (seen @ turn) - found * squares
        size = missed.norm(dim=0)
        fresh = missed[:, size > SETTLED * squares[0]]
        room = len(weight) - basis.shape[1]
        if not fresh.shape[1] or room <= 0:
            return found, squares.sqrt()
        fresh = fresh[:, :room] / fresh[:, :room].norm(dim=0)
        for _ in range(2):  # once leaves rounding behind
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh)).Q
        basis = torch.cat([basis, fresh], 1)
        seen = torch.cat([seen, weight.T @ fresh], 1)


def _whole(weight: Float[Tensor, "o i"]) -> _Base:
    left = torch.linalg.svd(weight, full_matrices=False).U
    return _Base(left if min(weight.shape) <= SMALL else left.half().cpu(), whole=True)


def _nearest(own: Float[Tensor, "o k"], base: _Base) -> Float[Tensor, " k"]:
    """The cosine of each direction to the base's that is most like it."""
    left = base.left.to(own)
    return (left.T @ own).abs().amax(0)
