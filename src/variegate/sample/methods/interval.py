"""`interval`: guidance at middle noise only.

Guided where low < sigma / alpha <= high; asked without guidance elsewhere, where the empty prompt
need not be asked: it takes less time than plain guidance.

Source: Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and
Distribution Quality in Diffusion Models, 2024, arXiv 2404.07724.
"""

from __future__ import annotations


def guided_at(ratio: float, *, low: float, high: float) -> bool:
    """Whether a step of this noise over signal is guided.

    >>> [guided_at(ratio, low=0.28, high=5.42) for ratio in (0.28, 1.0, 5.42, float("inf"))]
    [False, True, True, False]
    """
    return low < ratio <= high
