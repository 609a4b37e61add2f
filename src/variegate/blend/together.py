"""Several adapters of one base as one, of any rank: exact updates are added, never factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from variegate import seeds
from variegate.adapter import Adapter, Update
from variegate.blend.methods import DENSITIES, Member, Method, combine
from variegate.blend.notes import shared_notes
from variegate.blend.products import Kept, Product, compress, kept_whole
from variegate.errors import AdapterError, NotFinite, RequestError
from variegate.formats.names import canonical

SHOWN = 3


@dataclass(frozen=True)
class Blended:
    """An adapter and what was kept of each layer when it was brought to its rank.

    partial: layers that not every member had; the others counted as no change there. left_out:
    what changed and no adapter can hold, as sentences.
    """

    adapter: Adapter
    layers: dict[str, Kept]
    partial: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def vectors(self) -> tuple[str, ...]:
        """The layers that are no matrices (norms, biases): no LoRA holds them, they stay whole."""
        return tuple(name for name, update in self.adapter.layers.items() if update.of_vector)

    @property
    def energy(self) -> float:
        """The kept share of the squared norm of all updates together."""
        whole = sum(kept.of_squares for kept in self.layers.values())
        return sum(kept.squares for kept in self.layers.values()) / whole if whole else 1.0

    def to_json(self) -> dict[str, Any]:
        layers = {
            name: {"rank": k.rank, "of_rank": k.of_rank, "energy": k.energy}
            for name, k in self.layers.items()
        }
        worst = min(self.layers, key=lambda name: self.layers[name].energy)
        return {
            "family": self.adapter.family,
            "rank": self.adapter.rank,
            "energy": self.energy,
            "least_energy": {"layer": worst, "energy": self.layers[worst].energy},
            "layers": layers,
            "partial": list(self.partial),
            "vectors": list(self.vectors),
            "left_out": list(self.left_out),
        }


def blend(
    members: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "soup",
    rank: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    seed: int = 0,
    base: Mapping[str, Tensor] | None = None,
) -> Blended:
    """One adapter of several. A layer that a member lacks counts as unchanged by it.

    method: sum and svd add the weighted updates (task arithmetic: Ilharco et al., 2023, arXiv
    2212.04089); soup takes their mean, weights brought to a sum of 1 (Wortsman et al., 2022, arXiv
    2203.05482); ties, dare, dare_ties and knots as in `methods`.
    weights: 1 each without them. rank, energy: see `compress`; without both, sum and soup keep
    everything and the others keep the largest member's rank. Norms and biases, which are vectors,
    come out as whole differences: by the same formulas, of one row. density: the share of entries
    that is kept by the methods that trim or drop. seed: where DARE's drops start, each member's at
    an address of its own content, so that order does not matter. base: the base's weights by
    layer, for kinds other than plain LoRA.

    Raises: AdapterError when members do not fit one another, RequestError for numbers that make no
    sense, NotFinite when an update holds NaN.
    """
    _check_density(method, density)
    check_size(rank, energy)
    shares = _shares(len(members), weights, method)
    layers = [_canonical(member) for member in members]
    _check_members(members, layers)
    if rank is None and energy is None and method not in ("sum", "soup"):
        rank = _usual_rank(members, method)
    drops = [_draws(seed, member) for member in members]
    names = list(dict.fromkeys(name for own in layers for name in own))

    def combined() -> Iterator[tuple[str, Product]]:
        for name in names:
            weight = None if base is None else _weight(base, name)
            parts = []
            for own, share, draw in zip(layers, shares, drops, strict=True):
                if name in own:
                    update = Product.of(name, own[name], weight)
                    parts.append(Member(share, update, draw(name, update)))
            yield name, combine(parts, method, density=density or DENSITIES.get(method, 1.0))

    partial = tuple(name for name in names if not all(name in own for own in layers))
    noted = {"method": method, "weights": [round(share, 6) for share in shares]}
    metadata = shared_notes(members, **({"blend": noted} if len(members) > 1 else {}))
    found = sized(combined(), members[0].family, metadata, rank=rank, energy=energy)
    return replace(found, partial=partial)


def resize(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> Blended:
    """The same adapter, of any kind, as a LoRA of another size; norms and biases stay as they are.

    Raises: RequestError when neither is given or one makes no sense; else as `blend`.
    """
    if rank is None and energy is None:
        raise RequestError("no size to bring the adapter to: give --rank, --energy or both")
    return blend([adapter], method="sum", rank=rank, energy=energy, base=base)


def sized(
    products: Iterable[tuple[str, Product]],
    family: str,
    metadata: Mapping[str, str],
    *,
    rank: int | None,
    energy: float | None,
    floors: Mapping[str, float] | None = None,
) -> Blended:
    """Products by layer, each at the rank that is asked for, vectors whole; one at a time is in
    memory.

    Raises: AdapterError when no layer has that rank to give.
    """
    layers, kept, most = dict[str, Update](), dict[str, Kept](), 0
    for name, product in products:
        if product.of_vector:
            layers[name], kept[name] = kept_whole(product)
            continue
        most = max(most, product.most)
        floor = (floors or {}).get(name, 0.0)
        layers[name], kept[name] = compress(product, rank=rank, energy=energy, floor=floor)
    if most and rank is not None and rank > most:
        raise AdapterError(
            f"rank {rank} is above what is there: {most} at most in any layer; ask for {most} or "
            "less, or leave the rank out to keep everything"
        )
    return Blended(Adapter(family, layers, dict(metadata)), kept)


def check_size(rank: int | None, energy: float | None) -> None:
    """Raises: RequestError for a rank or a share of energy that cannot be."""
    if rank is not None and rank < 1:
        raise RequestError(f"rank {rank}; expected 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise RequestError(f"energy {energy}; expected a share above 0 and up to 1, such as 0.99")


def _check_density(method: Method, density: float | None) -> None:
    if density is None:
        return
    if method not in DENSITIES:
        raise RequestError(f"{method} keeps every entry: leave --density out")
    if not 0 < density <= 1:
        raise RequestError(f"density {density}; expected a share above 0 and up to 1")


def _shares(count: int, weights: Sequence[float] | None, method: Method) -> list[float]:
    if not count:
        raise RequestError("no adapter to blend; name one at least")
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise RequestError(
            f"{len(weights)} weights for {count} adapters; expected one for each, in their order"
        )
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise RequestError(f"weights {weights}; expected finite numbers, not all of them 0")
    if method != "soup":
        return weights
    if sum(weights) <= 0 or min(weights) < 0:
        raise RequestError(
            f"weights {weights} of a soup, which is a mean; expected none below 0; use --method sum"
        )
    return [weight / sum(weights) for weight in weights]


def _canonical(member: Adapter) -> dict[str, Update]:
    return {canonical(name): update for name, update in member.layers.items()}


def _check_members(members: Sequence[Adapter], layers: Sequence[dict[str, Update]]) -> None:
    for i, member in enumerate(members, 1):
        if not member.layers:
            raise AdapterError(f"adapter {i} of {len(members)} has no layers")
        if member.masking:
            raise AdapterError(
                f"adapter {i} of {len(members)} is a T-LoRA, whose rank falls with the noise; no "
                "single update is the same; use it in an ensemble (--ensemble member)"
            )
        for name, update in member.layers.items():
            if not all(bool(torch.isfinite(t).all()) for t in _numbers(update)):
                raise NotFinite(
                    f"adapter {i} of {len(members)}: {name} holds NaN or infinity; expected finite "
                    "numbers; take an earlier checkpoint"
                )
    families = [member.family for member in members]
    if len(set(families)) > 1:
        raise AdapterError(
            f"adapters of different families ({', '.join(families)}, in their order) have no "
            "layers in common; blend adapters of one base"
        )
    shapes: dict[str, tuple[int | None, ...]] = {}
    odd = []
    for i, own in enumerate(layers, 1):
        for name, update in own.items():
            size = update.size[:1] if update.of_vector else update.size
            before = shapes.setdefault(name, size)
            if None not in (*before, *size) and before != size:
                odd.append(f"{name}: {size} in adapter {i}, {before} before")
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise AdapterError(
            f"the adapters' layers differ in shape: {'; '.join(odd[:SHOWN])}{more}; they were "
            "trained on different bases"
        )


def _numbers(update: Update) -> list[Tensor]:
    return [t for t in update.factors().values() if t.is_floating_point()]


def _usual_rank(members: Sequence[Adapter], method: Method) -> int:
    rank = max(member.rank for member in members)
    if not rank:
        kinds = ", ".join(sorted({member.kind for member in members}))
        raise RequestError(
            f"{method} keeps the largest member's rank, and {kinds} have none; give --rank or "
            "--energy"
        )
    return rank


def _draws(seed: int, member: Adapter) -> Callable[[str, Product], Callable[[], Tensor]]:
    """DARE's draws for one member, at an address of what it is and not of where it stands."""
    digest = member.digest()

    def of(name: str, update: Product) -> Callable[[], Tensor]:
        size = (update.left.shape[0], update.right.shape[1])
        return lambda: torch.rand(size, generator=seeds.at(seed, "dare", digest, name))

    return of


def _weight(base: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in base:
        raise AdapterError(
            f"the base has no layer {name}; name the base that the adapters were trained on"
        )
    return base[name]
