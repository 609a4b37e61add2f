"""`late_adapter`: the base lays out, the adapter draws the subject.

The adapter's strength as a share of what was asked for, by the share u of the noise schedule:
`early` above boundary + width / 2, 1 below boundary - width / 2, on a line between.

Source: the twin at sampling of T-LoRA (Soboleva et al., 2025, arXiv 2507.05964); switching from the
class to the concept is Soboleva et al., 2025, arXiv 2502.05895.
"""

from __future__ import annotations


def share_at(u: float, *, early: float, boundary: float, width: float) -> float:
    """How much of the adapter acts at a share u of the noise schedule.

    >>> [share_at(u, early=0.5, boundary=0.8, width=0.2) for u in (1.0, 0.8, 0.7)]
    [0.5, 0.75, 1.0]
    """
    if width == 0:
        return early if u > boundary else 1.0
    reached = min(1.0, max(0.0, (boundary + width / 2 - u) / width))
    return round(early + (1 - early) * reached, 6)
