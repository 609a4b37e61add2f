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
    pictures = [float(v) for values in per_prompt for v in values]
    return _told([float(np.mean(v)) for v in per_prompt], pictures, tail=tail, address=address)


def summarise_gap(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    tail: str = "less",
    address: str = "",
) -> Difference:
    """The mean over prompts of how much the adapter's pictures exceed the base's, as `summarise`.

    ours, theirs: for each prompt, one number per picture of each model, those of the same seed at
    the same place. With fewer than 7 prompts pairs of pictures are the units: pictures less one
    mean of the base's would all share what chance there is in it, and pass for surer than they are.
    """
    means = [float(np.mean(a)) - float(np.mean(b)) for a, b in zip(ours, theirs, strict=True)]
    pairs = [
        float(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=False)
    ]
    return _told(means, pairs, tail=tail, address=address)


def _told(
    means: Sequence[float], pictures: Sequence[float], *, tail: str, address: str
) -> Difference:
    units = pictures if len(means) < AT_LEAST_PROMPTS else means
    low, high = uncertainty.bca_interval(units, address=address)
    p = uncertainty.sign_flip_p(units, tail=tail, address=address)
    value = float(np.mean(means))
    return Difference(value, min(low, value), max(high, value), p, len(means))
