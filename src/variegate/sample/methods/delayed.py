"""`delayed`: no guidance, or guidance away, until a picture has left its basin.

While the noise is high, pictures of what was learnt by heart are drawn to one place: there the
distance d between what is predicted for the prompt and for nothing is large, and its first least
value tells that the picture has left.

    d_i = |p_asked - p_empty|,    left at the first step i with d_(i-2) > d_(i-1) < d_i

Source: Jain et al., Classifier-Free Guidance inside the Attraction Basin May Cause Memorization,
2024, arXiv 2411.16738; the comparison of three steps as in SonyResearch/mitigating_memorization.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Basin:
    """Which pictures have left; told the distances of each step in turn."""

    def __init__(self) -> None:
        self._before: list[Float[Tensor, " b"]] = []
        self._left: Bool[Tensor, " b"] | None = None

    def left(self, distance: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Those that have left by this step, of which these are the distances."""
        if self._left is None:
            self._left = torch.zeros_like(distance, dtype=torch.bool)
        if len(self._before) == 2:
            first, least = self._before
            self._left = self._left | ((first > least) & (distance > least))
        self._before = [*self._before[-1:], distance]
        return self._left
