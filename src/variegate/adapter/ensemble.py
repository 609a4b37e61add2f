"""Several adapters of one base that sample together, each whole, in place of one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from variegate import seeds
from variegate.adapter.noun import Adapter
from variegate.errors import AdapterError

Way = Literal["member", "switch", "average"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class Ensemble:
    """Members with their weights (positive; brought to a sum of 1) and how they share the work.

    way: `member` draws each picture with one of them, chosen by weight at an address of its prompt
    and seed, so that what the members can draw is united; `switch` has them take turns, denoising
    step by denoising step; `average` takes the weighted mean of all predictions, which multiplies
    their distributions rather than uniting them. metadata: what the members' headers say alike.
    """

    members: tuple[Adapter, ...]
    weights: tuple[float, ...]
    way: Way = "member"
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise AdapterError(f"no way {self.way!r} to be an ensemble; known: {', '.join(WAYS)}")
        if not self.members or len(self.members) != len(self.weights):
            raise AdapterError(
                f"{len(self.members)} members and {len(self.weights)} weights; expected one or "
                "more members, and a weight for each"
            )
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise AdapterError(f"weights {list(self.weights)}; expected numbers above 0")
        families = list(dict.fromkeys(member.family for member in self.members))
        if len(families) > 1:
            raise AdapterError(
                f"members of different families: {', '.join(families)}; expected adapters of one "
                "base"
            )

    @property
    def family(self) -> str:
        return self.members[0].family

    @property
    def layers(self) -> dict[str, object]:
        """All names of layers of any member."""
        return {name: None for member in self.members for name in member.layers}

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, brought to a sum of 1."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def chosen(self, prompt: str, seed: int) -> int:
        """Which member draws this picture; the same whatever else is drawn."""
        draw = float(torch.rand(1, generator=seeds.at(seed, "ensemble", prompt)))
        reached = 0.0
        for i, share in enumerate(self.shares):
            reached += share
            if draw < reached:
                return i
        return len(self.members) - 1

    def turns(self, steps: int) -> list[int]:
        """Whose turn each denoising step is: at every step his who is furthest behind his share.

        >>> Ensemble((Adapter("sd1", {}),) * 2, (2.0, 1.0)).turns(6)
        [0, 1, 0, 0, 1, 0]
        """
        taken = [0] * len(self.members)
        turns = []
        for step in range(1, steps + 1):
            behind = [share * step - n for share, n in zip(self.shares, taken, strict=True)]
            turns.append(behind.index(max(behind)))
            taken[turns[-1]] += 1
        return turns

    def scaled(self, strength: float) -> Ensemble:
        """Every member's update `strength` times as large."""
        return replace(self, members=tuple(member.scaled(strength) for member in self.members))

    def digest(self) -> str:
        """A hash of all that shapes an answer."""
        digests = [member.digest() for member in self.members]
        told = repr((self.way, self.shares, digests))
        return hashlib.sha256(told.encode()).hexdigest()
