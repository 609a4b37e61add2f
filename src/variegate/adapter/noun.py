"""The adapter as it travels: updates by layer name, free of any model and any file format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Real
from torch import Tensor

from variegate.adapter.updates import LayerUpdate, Update
from variegate.errors import AdapterError


@dataclass(frozen=True)
class Masking:
    """How a T-LoRA's rank falls with the noise.

    r(t) = floor((r - r_min) (T - t) / T) + r_min, r_min = min_rank, or half of r where that is
    None. T = timesteps. Source: Soboleva et al., T-LoRA, 2025, arXiv 2507.05964.
    """

    min_rank: int | None
    timesteps: int

    def ranks(self, t: Real[Tensor, " b"], rank: int) -> Float[Tensor, " b"]:
        """How many of `rank` components act at each timestep.

        >>> Masking(None, 1000).ranks(torch.tensor([0, 500, 999]), 8).tolist()
        [8.0, 6.0, 4.0]
        """
        least = max(1, rank // 2) if self.min_rank is None else min(self.min_rank, rank)
        left = (self.timesteps - t.double()) * (rank - least) / self.timesteps
        return (left.floor() + least).clamp(least, rank).float()


@dataclass(frozen=True)
class Adapter:
    """Updates by layer name, with free notes.

    masking: of a T-LoRA, whose layers are LoRA of twice its rank: what was learnt, then what was
    there at the start with its sign turned. factors: what training goes on from, where the layers
    or a file of them would not give it back to the bit; no file but a checkpoint holds it.
    """

    family: str
    layers: dict[str, Update]
    metadata: dict[str, str] = field(default_factory=dict)
    masking: Masking | None = None
    factors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, update in self.layers.items() if self.masking else ():
            if update.kind != "lora" or update.rank % 2:
                raise AdapterError(
                    f"{name}: found {update.kind} of rank {update.rank}; a T-LoRA's layers are "
                    "LoRA of even rank"
                )

    @property
    def kind(self) -> str:
        """The kind of its layers' updates, or "mixed"."""
        kinds = {update.kind for update in self.layers.values()}
        if self.masking:
            return "tlora"
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((update.rank for update in self.layers.values()), default=0)

    def delta(self, name: str, weight: Tensor | None = None) -> Tensor:
        """One layer's dense update, of a T-LoRA at full rank; see `Update.delta`."""
        return self._update(name).delta(weight)

    def spectrum(self, name: str, weight: Tensor | None = None) -> Float[Tensor, " k"]:
        """One layer's singular values, largest first: in r x r cost for low-rank kinds, else by
        the dense update. weight: the base's, which kinds that turn it need."""
        return self._update(name).spectrum(weight)

    def scaled(self, strength: float) -> Adapter:
        """The same adapter with every update `strength` times as large."""
        layers = {name: update.scaled(strength) for name, update in self.layers.items()}
        return replace(self, layers=layers, factors={})

    def digest(self) -> str:
        """A hash of all that shapes an answer."""
        digest = hashlib.sha256()
        for name, update in sorted(self.layers.items()):
            factors = update.factors()
            scales = [getattr(update, key, None) for key in ("alpha", "strength")]
            if constraint := getattr(update, "constraint", None):
                scales.append(constraint)
            scale = repr(scales[0]) if scales[1] is None else repr(scales)
            shape = tuple(next(iter(factors.values())).shape)
            digest.update(f"{name} {scale} {shape}".encode())
            for factor in factors.values():
                digest.update(factor.detach().cpu().float().contiguous().numpy().tobytes())
        if self.masking:
            digest.update(repr(self.masking).encode())
        return digest.hexdigest()

    def _update(self, name: str) -> Update:
        if name not in self.layers:
            raise AdapterError(f"the adapter has no layer {name!r}; it has {len(self.layers)}")
        return self.layers[name]


def halves(update: LayerUpdate) -> tuple[LayerUpdate, LayerUpdate]:
    """What a T-LoRA learnt in a layer, and what it takes off again, each at its own rank."""
    r = update.rank // 2
    alpha = update.alpha / 2
    return (
        LayerUpdate(update.down[:r], update.up[:, :r], alpha),
        LayerUpdate(update.down[r:], -update.up[:, r:], alpha),
    )


def joined(learnt: LayerUpdate, start: LayerUpdate) -> LayerUpdate:
    """One LoRA of twice the rank: `learnt` less `start`."""
    return LayerUpdate(
        torch.cat([learnt.down, start.down]),
        torch.cat([learnt.up, -start.up], 1),
        alpha=2 * learnt.alpha,
    )
