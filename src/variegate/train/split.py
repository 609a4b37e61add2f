"""Which pictures are kept from training: never a twin of one that is trained on.

Twins count as one picture throughout. With 5 to 30 pictures this is a leave-k-out of one to four:
enough that the loss says whether what is learnt holds beyond the pictures, while no more than a
fifth is taken from a model that has few. Below five each picture is worth more to the model than
to the question, which one or two pictures would answer badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageOps

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
    """Hold out k of the d different pictures: k = plan.share of d, rounded, and at least one.

    Twins (same bytes or same look, mirrored or not) are kept together and count as one, on
    whichever side; single pictures are held out first, since that takes the fewest from training.
    hashes: of each picture's content. families: one number for all that are known to be copies of
    one picture; None when nobody looked.
    """
    n = len(pictures)
    everything = tuple(range(n))
    if plan.share == 0:
        return Split(everything, (), "no pictures are held out, as the recipe asks")
    groups = twins(pictures, hashes, families or range(n))
    count = f"{n}" if len(groups) == n else f"{n}, {len(groups)} of them different"
    if len(groups) < plan.at_least_pictures:
        return Split(
            everything,
            (),
            f"no pictures are held out: there are {count}, and below {plan.at_least_pictures} each "
            "is needed for training; learning cannot be told from memorising by the loss, so what "
            "is watched is the variety of first guesses, and copies are looked for in the samples",
        )
    wanted = max(1, round(plan.share * len(groups)))
    order = seeds.numpy_at(seed, "held out").permutation(len(groups))
    singles_first = sorted(order, key=lambda i: len(groups[i]) > 1)
    held = sorted(i for chosen in singles_first[:wanted] for i in groups[chosen])
    different = "" if len(groups) == n else f" ({wanted} of {len(groups)} after joining twins)"
    return Split(
        tuple(i for i in everything if i not in held),
        tuple(held),
        f"held out {len(held)} of {n} pictures{different}",
    )


def twins(
    pictures: Sequence[Image.Image], hashes: Sequence[str], families: Sequence[int]
) -> list[list[int]]:
    """Indices grouped by equal content, family, or nearly equal perceptual hash, in order; a mirror
    image has the look of what it mirrors."""
    looks = looks_of(pictures)
    mirrored = looks_of([ImageOps.mirror(picture) for picture in pictures])
    group = list(range(len(pictures)))
    for i in range(len(pictures)):
        for j in range(i):
            apart = min(int((looks[i] != other[j]).sum()) for other in (looks, mirrored))
            alike = apart <= NEAR_BITS
            same = hashes[i] == hashes[j] or families[i] == families[j]
            if (same or alike) and group[i] != group[j]:
                group = [group[j] if g == group[i] else g for g in group]
    return [[i for i, g in enumerate(group) if g == name] for name in dict.fromkeys(group)]


def looks_of(pictures: Sequence[Image.Image]) -> Bool[np.ndarray, "n bits"]:
    """The perceptual hash of each picture, which is the same for a photograph saved again."""
    return np.stack(
        [imagehash.phash(picture, hash_size=HASH_SIDE).hash.flatten() for picture in pictures]
    )
