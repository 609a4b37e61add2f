"""How many different pictures a set really holds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Width of the Gaussian kernel over distances where unrelated pictures are 1 apart. Squared, as the
# order-2 number has it, such a pair is 1 % alike, one that shares half of what is looked at 8 %.
WIDTH = 0.45
FARTHEST = 1.2  # farther than unrelated tells nothing more


def together(parts: dict[str, Float[np.ndarray, "n n"]]) -> Float[np.ndarray, "n n"]:
    """The root mean square of several distances, none of which counts beyond `FARTHEST`.

    parts: distances in units of unrelated pictures, one matrix per descriptor.
    """
    squares = [np.minimum(d, FARTHEST) ** 2 for d in parts.values()]
    apart: np.ndarray = np.sqrt(np.mean(squares, axis=0))
    return apart


def likeness(apart: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Gaussian kernel of distances in units of unrelated pictures, 1 for alike pictures."""
    alike: np.ndarray = np.exp(-(apart**2) / (2 * WIDTH**2))
    return alike


def effective_number(kernel: Float[np.ndarray, "n n"], *, tolerance: float = 1e-6) -> float:
    """The largest order-2 Vendi number (RKE) that any mixture of the pictures can have.

    max over p of 1 / sum_ij p_i p_j k_ij^2: from 1 (all alike) to n (no two alike at all). Because
    the best mixture shares one weight among copies, n copies count as one picture, copying a
    picture changes nothing, and adding a picture never lowers the number.

    kernel: likenesses in 0..1 with ones on the diagonal; 0 pictures give 0.
    tolerance: relative gap at which the search stops.
    Source: order 2 of Pasarkar and Dieng, Cousins of the Vendi Score, 2023; the maximum as in
    Leinster and Meckes, Maximizing diversity in biology and beyond, 2016.

    >>> round(effective_number(np.ones((6, 6))), 6)
    1.0
    >>> round(effective_number(np.eye(5)), 6)
    5.0
    """
    n = len(kernel)
    if n == 0:
        return 0.0
    alike = kernel**2
    p = np.full(n, 1 / n)
    for _ in range(20_000):
        slope = alike @ p
        value = float(p @ slope)
        # For a convex form, min over p of p'Zp lies between 2 min(Zp) - p'Zp and p'Zp.
        if value - float(slope.min()) <= tolerance * value:
            break
        p = p * (value / slope)  # multiplicative steps keep p >= 0 and lower p'Zp
        p = p / p.sum()
    return float(np.clip(1 / value, 1.0, n))
