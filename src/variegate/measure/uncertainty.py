"""Intervals and tests: how sure a number is. Plain numpy, deterministic, no knowledge of pictures.

The unit of replication is the prompt. Pairs of pictures are never resampled: treated as
independent they turn a nominal 1 % of false alarms into 13 to 44 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from variegate import seeds

DRAWS = 9_999  # random sign flips or swaps, where not all can be counted out
RESAMPLES = 4_000
GROUPS = 20  # parts of a jackknife
ROUNDING = 1e-12  # relative: values that differ by less are the same
EXACT_UP_TO = 12  # units: 2 ** 12 sign patterns are counted out in full


def bca_interval(
    values: Sequence[float], *, level: float = 0.95, address: str = ""
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of the mean of values.

    values: one per prompt. Prompts alone are resampled. The pictures of a prompt are not: drawn
    with replacement they would hold duplicates, which pull an effective number down, and by an
    amount that depends on how varied the set was, so the error would not cancel in the ratio of
    adapter to base. Nothing is lost: what seeds add to the noise is already in the spread of the
    prompts' values.
    address: names the draws, so that one number's interval does not hang on another's.

    Source: Efron, Better Bootstrap Confidence Intervals, 1987, section 6.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2 or np.ptp(x) <= ROUNDING * np.abs(x).max():
        return mean, mean
    rng = seeds.numpy_at(0, "measure.bootstrap", address)
    means = x[rng.integers(len(x), size=(RESAMPLES, len(x)))].mean(1)
    below = np.mean(means < mean) + np.mean(means == mean) / 2
    z0 = stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    left_out = (x.sum() - x) / (len(x) - 1)
    gap = left_out.mean() - left_out
    spread = float((gap**2).sum())
    acceleration = float((gap**3).sum()) / (6 * spread**1.5) if spread else 0.0
    edges = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = z0 + stats.norm.ppf(tail)
        edges.append(stats.norm.cdf(z0 + z / (1 - acceleration * z)))
    low, high = np.quantile(means, edges)
    return float(min(low, mean)), float(max(high, mean))


def sign_flip_p(values: Sequence[float], *, tail: str = "less", address: str = "") -> float:
    """The chance of a mean this low (`tail="less"`) or high (`"greater"`) if each value's sign
    were a coin toss: the test that values scatter evenly about zero.

    Counted out in full up to 12 values; else from 9,999 draws, the observed pattern among them.
    With P values the least possible p is 2 ** -P.
    """
    x = np.asarray(values, np.float64) * (1 if tail == "less" else -1)
    if len(x) == 0:
        return 1.0
    if len(x) <= EXACT_UP_TO:
        bits = (np.arange(2 ** len(x))[:, None] >> np.arange(len(x))) & 1
        means = ((1 - 2 * bits) * x).mean(1)
        return float(np.mean(means <= x.mean() + _slack(x)))
    rng = seeds.numpy_at(0, "measure.flips", address)
    signs = 1 - 2 * rng.integers(2, size=(DRAWS, len(x)))
    hits = int(((signs * x).mean(1) <= x.mean() + _slack(x)).sum())
    return (1 + hits) / (1 + DRAWS)


def _slack(x: np.ndarray) -> float:
    """Room for rounding, so that equal means count as equal."""
    return 1e-12 * float(np.abs(x).max(initial=0.0))


def student_interval(
    value: float, standard_error: float, *, degrees: int, level: float = 0.95
) -> tuple[float, float]:
    """value -+ Student's quantile times its standard error."""
    half = float(stats.t.ppf((1 + level) / 2, max(degrees, 1))) * standard_error
    return value - half, value + half


def jackknife(
    numbers: Callable[[Sequence[int]], Sequence[float]], units: int, *, level: float = 0.95
) -> list[tuple[float, float, float] | tuple[float, None, None]]:
    """Numbers of a whole set, each with its interval, from what they become when a part of the
    units (prompts) is left out: for what is no mean over prompts, such as a Frechet distance.

    numbers: the values with the units of those indices. Twenty parts at most, or each unit by
    itself. Fewer than three units give no interval.

    Source: delete-a-group jackknife, Shao and Tu, The Jackknife and Bootstrap, 1995, section 2.3.
    """
    whole = list(numbers(range(units)))
    groups = min(units, GROUPS)
    if groups < 3:
        return [(value, None, None) for value in whole]
    without = np.array(
        [numbers([u for u in range(units) if u % groups != g]) for g in range(groups)], np.float64
    )
    scatter = ((without - without.mean(0)) ** 2).sum(0) * (groups - 1) / groups
    return [
        (value, *student_interval(value, float(error), degrees=groups - 1, level=level))
        for value, error in zip(whole, np.sqrt(scatter), strict=True)
    ]


def binomial_interval(hits: int, of: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934).

    >>> [round(edge, 3) for edge in binomial_interval(0, 64)]
    [0.0, 0.056]
    """
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, of - hits + 1))
    high = 1.0 if hits == of else float(stats.beta.ppf(1 - tail, hits + 1, of - hits))
    return low, high


def binomial_p(hits: int, of: int, *, rate: float) -> float:
    """The chance of this many hits or more at that rate."""
    return float(stats.binom.sf(hits - 1, of, rate))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Each p made larger so that all may be read together (Holm 1979): below alpha means
    significant at a chance of alpha for even one false alarm among them.

    >>> holm({"a": 0.01, "b": 0.02})
    {'a': 0.02, 'b': 0.02}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda key: (p[key], key))):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return adjusted
