"""Which pictures nearly repeat one that another prompt drew: the sign of a few attractors.

Variety within a prompt cannot see it. An attractor that takes a tenth of all pictures mostly
comes once a prompt, and once is no repetition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate.measure.evidence import Line, View
from variegate.measure.paired import Difference, summarise_gap

NEARER = 0.6  # a repeat is nearer than this much of what 99 of 100 of the base's pictures keep
COMMON = 0.01
LEAST_APART = 1e-6  # of 1 - cosine, below which the base itself repeats


@dataclass(frozen=True)
class Repeats:
    """The share of the adapter's pictures that repeat one of another prompt less the base's share,
    and the prompt with most of them: how many, of how many, and which other prompt they repeat."""

    share: Difference
    prompt: str
    hits: int
    of: int
    other: str


def find_repeats(view: View, lines: Sequence[Line]) -> Repeats | str:
    """How much oftener than the base's the adapter's pictures nearly repeat another prompt's.

    A picture repeats when its nearest picture among the other prompts' (1 - cosine) is nearer than
    six tenths of the distance that 99 of 100 of the base's pictures keep. So the base sets what is
    near, seeds that all prompts share or prompts much alike included. Both models are counted at
    the same number of pictures of each prompt. Ours; the idea is the collision test of Arora et al.
    2018 (Do GANs learn the distribution?, ICLR), with the base in place of a human eye.

    Returns why not, as text, where it cannot be told.
    """
    sizes = [min(len(line.adapter_rows), len(line.base_rows)) for line in lines]
    lines = [line for line, size in zip(lines, sizes, strict=True) if size]
    sizes = [size for size in sizes if size]
    if len(lines) < 2:
        return "a repeat is seen between prompts; draw two or more"
    owner = torch.repeat_interleave(torch.arange(len(lines)), torch.tensor(sizes))
    base = _nearest(_rows(view.base, [line.base_rows for line in lines], sizes), owner)[0]
    reach = float(base.quantile(COMMON))
    if reach < LEAST_APART:
        return f"to {view.encoder} the base's own pictures of different prompts are the same"
    distance, place = _nearest(_rows(view.adapter, [s.adapter_rows for s in lines], sizes), owner)
    repeats, chance = distance < NEARER * reach, base < NEARER * reach
    ours, theirs = ([part.float().tolist() for part in x.split(sizes)] for x in (repeats, chance))
    worst = max(range(len(lines)), key=lambda i: int(repeats.split(sizes)[i].sum()))
    hits = repeats & (owner == worst)
    others = Counter(lines[int(owner[p])].prompt for p in place[hits])
    return Repeats(
        summarise_gap(ours, theirs, tail="greater", address="repeats"),
        lines[worst].prompt,
        int(hits.sum()),
        sizes[worst],
        others.most_common(1)[0][0] if others else "",
    )


def _rows(
    features: Float[Tensor, "n d"], rows: Sequence[tuple[int, ...]], sizes: Sequence[int]
) -> Float[Tensor, "m d"]:
    return features[[r for own, size in zip(rows, sizes, strict=True) for r in own[:size]]]


def _nearest(
    features: Float[Tensor, "m d"], owner: Int[Tensor, "m"]
) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
    """The 1 - cosine of each row to the nearest one of another owner, and that one's place."""
    distance, place = [], []
    for one in owner.unique():
        mine = owner == one
        alike = (features[mine] @ features.T).masked_fill(mine, -torch.inf)
        best = alike.max(1)
        distance.append(1 - best.values)
        place.append(best.indices)
    return torch.cat(distance), torch.cat(place)
