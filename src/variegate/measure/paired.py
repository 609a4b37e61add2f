"""Paired differences between adapter and base, prompt by prompt, with interval and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from variegate.measure import uncertainty
from variegate.measure.diversity import AT_LEAST_PROMPTS


@dataclass(frozen=True)
class Difference:
    """The mean of the prompts' mean differences; p is of a mean this low (or high) by chance."""

    value: float
    low: float
    high: float
    p: float
    prompts: int


def summarise(
    per_prompt: Sequence[Sequence[float]], *, tail: str = "less", address: str = ""
) -> Difference:
    """The mean over prompts of each prompt's mean, its 95 % interval, and a sign-flip p.

    per_prompt: for each prompt, one number per picture. With fewer than 7 prompts the pictures are
    the units instead, and what is said holds for these prompts only.
    """
    means = [float(np.mean(values)) for values in per_prompt]
    units = means
    if len(means) < AT_LEAST_PROMPTS:
        units = [float(v) for values in per_prompt for v in values]
    low, high = uncertainty.bca_interval(units, address=address)
    p = uncertainty.sign_flip_p(units, tail=tail, address=address)
    value = float(np.mean(means))
    return Difference(value, min(low, value), max(high, value), p, len(means))
