"""Which pictures of a set are one picture twice: same bytes, or the same to the eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from variegate.audit.descriptors import (
    HASH_BITS,
    UNRELATED,
    Look,
    composition_distances,
    hash_distances,
)

# Bits of the pHash that may differ, and distance of the coarse grids in units of unrelated
# pictures. Measured on photographs and composed scenes of 64 to 640 pixels against edited copies:
# re-saved, scaled, cropped by 2 % a side: up to 12 bits and 0.19; turned by 2 degrees: a median of
# 8 bits; 15 % brighter: up to 4 bits and 0.34. No two of 40 different photographs came nearer than
# 12 bits, or nearer than 0.30.
NEAR = (12.0, 0.20)
NEAR_BUT_EDITED = (2.0, 0.50)
# With an encoder's word for it, pairs may lie farther apart, but never far: on pictures unlike
# those it was trained on, an encoder calls unrelated things alike.
NEAR_BY_ENCODER = (18.0, 0.35)
ENCODER_COSINE = 0.95


@dataclass(frozen=True)
class Duplicate:
    """Two pictures, by their place in the set, and how alike they are (1.0: the same bytes)."""

    first: int
    second: int
    similarity: float
    kind: Literal["exact", "near"]


def find_duplicates(
    hashes: list[str],
    looks: list[Look],
    cosines: Float[np.ndarray, "n n"] | None = None,
) -> list[Duplicate]:
    """Every pair of pictures that are one picture twice, mirrored copies among them.

    hashes: of the files' bytes. cosines: similarities by an encoder, when there is one.
    """
    if len(looks) < 2:
        return []
    bits = hash_distances(looks)
    grids = composition_distances(looks) / UNRELATED["composition"]
    near = _within(bits, grids, NEAR) | _within(bits, grids, NEAR_BUT_EDITED)
    if cosines is not None:
        near |= (cosines >= ENCODER_COSINE) & _within(bits, grids, NEAR_BY_ENCODER)
    same = np.asarray(hashes)[:, None] == np.asarray(hashes)[None]
    found = []
    for first, second in zip(*np.nonzero(np.triu(near | same, 1)), strict=True):
        exact = bool(same[first, second])
        similarity = 1.0 if exact else min(0.99, 1 - float(bits[first, second]) / HASH_BITS)
        kind: Literal["exact", "near"] = "exact" if exact else "near"
        found.append(Duplicate(int(first), int(second), round(similarity, 3), kind))
    return found


def _within(
    bits: Float[np.ndarray, "n n"], grids: Float[np.ndarray, "n n"], limits: tuple[float, float]
) -> np.ndarray:
    return (bits <= limits[0]) & (grids <= limits[1])


def families(n: int, duplicates: list[Duplicate]) -> list[list[int]]:
    """The groups of two or more pictures that are linked by duplicates, largest first."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for pair in duplicates:
        parent[root(pair.second)] = root(pair.first)
    groups: dict[int, list[int]] = {}
    for i in range(n):
        groups.setdefault(root(i), []).append(i)
    return sorted((g for g in groups.values() if len(g) > 1), key=lambda g: (-len(g), g))
