"""The pictures of a set as points on a plane: near where they are alike, far where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

from variegate.audit.effective import FARTHEST


@dataclass(frozen=True)
class Chart:
    """places: of each picture, in units in which unrelated pictures are 1 apart, about their
    middle, the direction in which they differ most first. alone: how far each is from the nearest
    other. share: how much of the differences the plane shows, 0..1."""

    places: Float[np.ndarray, "n 2"]
    alone: Float[np.ndarray, "n"]
    share: float

    def of(self, rows: list[int]) -> Chart:
        """The same for a list of pictures, those that come again at one place."""
        again = np.bincount(rows, minlength=len(self.places))
        alone = np.where(again > 1, 0.0, self.alone)
        return Chart(self.places[rows], alone[rows], self.share)

    def to_json(self, names: list[str]) -> dict[str, Any]:
        """share, and a point for each picture: file, x, y, distance to the nearest other."""
        points = [
            [name, round(float(x), 4), round(float(y), 4), round(float(alone), 4)]
            for name, (x, y), alone in zip(names, self.places, self.alone, strict=True)
        ]
        return {"share": round(self.share, 4), "points": points}


def chart(apart: Float[np.ndarray, "n n"]) -> Chart:
    """The plane that keeps most of the distances: the two largest eigenvectors of the doubly
    centred squared distances, each times the root of its eigenvalue.

    apart: distances between pictures, 1 for unrelated ones. A direction's sign is chosen so that
    its farther end is positive, so the order of the pictures changes nothing.
    Source: classical scaling, Torgerson, Multidimensional scaling I, 1952; `share` is the second
    criterion of Mardia, Some properties of classical multi-dimensional scaling, 1978.

    >>> line = np.array([0.0, 1.0, 3.0])
    >>> found = chart(np.abs(np.subtract.outer(line, line)))
    >>> np.round(found.places[:, 0], 3).tolist(), round(found.share, 3)
    ([-1.333, -0.333, 1.667], 1.0)
    """
    n = len(apart)
    if n < 2:
        return Chart(np.zeros((n, 2)), np.full(n, FARTHEST), 1.0)
    squares = apart**2
    means = squares.mean(0)
    inner = -(squares - means - means[:, None] + squares.mean()) / 2
    values, vectors = scipy.linalg.eigh(inner, subset_by_index=[max(0, n - 2), n - 1])
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    whole = float((inner**2).sum())
    places = np.zeros((n, 2))
    places[:, : len(values)] = vectors * np.sqrt(values)
    places *= np.where((places**3).sum(0) < 0, -1.0, 1.0)
    alone = (apart + np.diag(np.full(n, np.inf))).min(0)
    return Chart(places, alone, float((values**2).sum()) / whole if whole > 0 else 1.0)
