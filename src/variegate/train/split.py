"""Which pictures are kept from training: never a twin of one that is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from variegate import seeds
from variegate.recipe import HeldOut

NEAR_BITS = 3  # of 256: perceptual hashes this near are the same photograph, saved again
HASH_SIDE = 16


@dataclass(frozen=True)
class Split:
    """Indices of the pictures that are trained on and of those held out, and why so."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    why: str


def split(
    pictures: Sequence[Image.Image],
    hashes: Sequence[str],
    plan: HeldOut,
    *,
    seed: int,
    families: Sequence[int] | None = None,
) -> Split:
    """Hold out about plan.share of the pictures, twins (same bytes or same look) kept together.

    hashes: of each picture's content. families: one number for all that are known to be copies of
    one picture; None when nobody looked. Groups of twins larger than what is to be held out stay in
    training.
    """
    n = len(pictures)
    everything = tuple(range(n))
    if plan.share == 0:
        return Split(everything, (), "no pictures are held out, as the recipe asks")
    if n < plan.at_least_pictures:
        return Split(
            everything,
            (),
            f"no pictures are held out: there are {n}, and below {plan.at_least_pictures} each is "
            "needed for training; learning cannot be told from memorising by the loss",
        )
    groups = twins(pictures, hashes, families or range(n))
    wanted = max(1, round(plan.share * n))
    order = seeds.numpy_at(seed, "held out").permutation(len(groups))
    held: list[int] = []
    for i in order:
        if len(held) + len(groups[i]) <= wanted:
            held += groups[i]
    if not held:
        return Split(
            everything,
            (),
            f"no pictures are held out: the {n} pictures are {len(groups)} groups of twins, each "
            f"larger than the {wanted} to be held out",
        )
    kept = tuple(i for i in everything if i not in held)
    return Split(
        kept,
        tuple(sorted(held)),
        f"held out {len(held)} of {n} pictures ({len(groups)} after joining twins)",
    )


def twins(
    pictures: Sequence[Image.Image], hashes: Sequence[str], families: Sequence[int]
) -> list[list[int]]:
    """Indices grouped by equal content, family, or nearly equal perceptual hash, in order."""
    looks = np.stack(
        [imagehash.phash(picture, hash_size=HASH_SIDE).hash.flatten() for picture in pictures]
    )
    group = list(range(len(pictures)))
    for i in range(len(pictures)):
        for j in range(i):
            alike = int((looks[i] != looks[j]).sum()) <= NEAR_BITS
            same = hashes[i] == hashes[j] or families[i] == families[j]
            if (same or alike) and group[i] != group[j]:
                group = [group[j] if g == group[i] else g for g in group]
    return [[i for i, g in enumerate(group) if g == name] for name in dict.fromkeys(group)]
