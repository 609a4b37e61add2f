"""How near samples sit to their training pictures, beyond the copies that can be counted.

What decides about copying is `copying`; these stand beside it, each with what it confuses.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.cluster.vq import kmeans2
from torch import Tensor

from variegate import seeds
from variegate.errors import FeaturesError
from variegate.measure.neighbours import Rows, nearest

RATIO = 1 / 3  # nearest over second nearest: below, a sample sits on one training picture
CELLS = 3  # of C_T
WIDTH = 64  # principal axes that C_T looks at
IN_CELL = 20  # samples below which a cell says too little


def near_ratio(samples: ArrayLike | Tensor, train: ArrayLike | Tensor) -> float:
    """The share of samples `[n, d]` that are three times nearer to one training picture than to
    any other `[t, d]`.

    Blind where the training pictures are much alike: then no one of them is nearest by far.

    Source: Yoon et al. 2023; Bonnaire et al. 2025 (arXiv 2505.17638), equation 6.
    """
    two = nearest(samples, train, k=2).distance
    return float((two[:, 0] < RATIO * two[:, 1]).double().mean())


def authenticity(samples: ArrayLike | Tensor, train: ArrayLike | Tensor) -> float:
    """The share of samples that are farther from their nearest training picture than that one is
    from its own nearest other.

    Falls with copying, and as much with plain narrowing: a set shrunk by a third, no copy in it,
    scores as a set full of copies does. Reported, never a gate.

    Source: Alaa et al. 2022 (arXiv 2102.08921).
    """
    to_train = nearest(samples, train, k=1)
    own = nearest(train, train, k=1, same=True).distance[:, 0]
    return float((own[to_train.index[:, 0]] < to_train.distance[:, 0]).double().mean())


def data_copying(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "t d"], held_out: Float[Tensor, "h d"]
) -> float:
    """C_T: are samples nearer to the training pictures than held-out pictures are? A z score,
    well below 0 for copying, well above for too little learning.

    In each of three cells of the training pictures (k-means on 64 principal axes), the
    Mann-Whitney z of the distances to the nearest training picture, samples against held-out; the
    mean over cells by their held-out pictures. Cells with fewer than 20 samples or no held-out
    picture are left out.
    Cannot tell copying from narrowing towards the training pictures. Reported, never a gate.

    Source: Meehan et al. 2020 (arXiv 2004.05675).
    Raises: FeaturesError when no cell holds enough of both.
    """
    centre = train.double().mean(0)
    away = train.double() - centre
    axes = torch.linalg.svd(away, full_matrices=False).Vh[:WIDTH].T
    ours, theirs, held = (
        ((s.double() - centre) @ axes).numpy() for s in (samples, train, held_out)
    )
    cells = min(CELLS, len(np.unique(theirs, axis=0)))
    rng = seeds.numpy_at(0, "measure.cells", len(theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cell is left out below
        centres, _ = kmeans2(theirs, cells, minit="++", seed=rng)
    cell_of_train = _nearest_centre(theirs, centres)
    total = weight = 0.0
    for cell in range(cells):
        known = theirs[cell_of_train == cell]
        near = [s[_nearest_centre(s, centres) == cell] for s in (ours, held)]
        if len(known) == 0 or len(near[1]) == 0 or len(near[0]) < IN_CELL:
            continue
        a, b = (nearest(s, known, k=1).distance[:, 0].numpy() for s in near)
        total += len(b) * _mann_whitney_z(a, b)
        weight += len(b)
    if weight == 0:
        raise FeaturesError(
            f"no cell of {len(theirs)} training pictures holds samples and held-out pictures both;"
            " hold out more pictures"
        )
    return total / weight


def _nearest_centre(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((rows[:, None] - centres[None]) ** 2).sum(2).argmin(1)


def _mann_whitney_z(a: np.ndarray, b: np.ndarray) -> float:
    """How far the sum of ranks says that a lies above b, in standard deviations (ties averaged)."""
    ranks = stats.rankdata(np.concatenate([a, b]))
    u = ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2
    n = len(a) * len(b)
    return float((u - n / 2) / np.sqrt(n * (len(a) + len(b) + 1) / 12))


@dataclass(frozen=True)
class Contrast:
    """mean: how much more alike samples are to the training picture whose caption they were drawn
    from than to the nearest other, below 0 for a model that generalises; locked: the share of
    samples whose nearest training picture is that of their own caption."""

    per_sample: Float[Tensor, "n"]
    mean: float
    locked: float


def self_against_other(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "t d"], drawn_from: Tensor
) -> Contrast:
    """cos(sample, its own training picture) - max cos(sample, another), over samples.

    drawn_from `[n]`: for each sample, the training picture whose caption it was asked with. A style
    that all pictures share lifts both terms alike, so it does not show, as it does in a plain
    similarity to the training set.

    Raises: FeaturesError when there is no other training picture.
    """
    if len(train) < 2:
        raise FeaturesError("one training picture has no other to compare with")
    alike = torch.nn.functional.normalize(samples.double(), dim=1) @ (
        torch.nn.functional.normalize(train.double(), dim=1).T
    )
    own = alike.gather(1, drawn_from[:, None])[:, 0]
    others = alike.scatter(1, drawn_from[:, None], -torch.inf).amax(1)
    gap = own - others
    return Contrast(gap, float(gap.mean()), float((gap > 0).double().mean()))


def cluster_distance(samples: Float[Tensor, "n d"], train: Float[Tensor, "t d"]) -> float:
    """The mean distance of two samples that share their nearest training picture, averaged over
    training pictures that have two samples or more; nothing when samples are copies.

    The intra-cluster distance of few-shot generation, which a plain mean pairwise distance is not:
    that keeps nine tenths when all samples are copies of eight pictures.

    Source: Ojha et al. 2021 (arXiv 2104.06820), there with LPIPS; here with any features.
    Raises: FeaturesError when no training picture has two samples.
    """
    anchor = nearest(samples, train, k=1).index[:, 0]
    means = []
    for picture in anchor.unique():
        rows = samples[anchor == picture].double()
        if len(rows) > 1:
            d = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
            means.append(float(d.sum()) / (len(rows) * (len(rows) - 1)))
    if not means:
        raise FeaturesError("no training picture has two samples near it; draw more samples")
    return float(np.mean(means))


@dataclass(frozen=True)
class Orbit:
    """How many training pictures a generator's samples sit around: the likeliest number, its 95 %
    interval, and how many were seen."""

    pictures: int
    low: int
    high: int
    seen: int


def orbited(samples: ArrayLike | Tensor, train: ArrayLike | Tensor) -> Orbit:
    """The effective number of training pictures that the samples orbit.

    Each sample retrieves its nearest training picture. Had the generator s equally likely ones, n
    samples would retrieve k different ones with probability S(n, k) s! / ((s - k)! s^n), S
    Stirling's number of the second kind; the likeliest s is given, at most the number of training
    pictures, and the s that 95 % of such draws would not contradict (exact, both tails).
    Unequal shares make it too small rather than too large.

    Source: the estimator of Dombrowski et al. 2024 (arXiv 2411.16171), turned from "how many
    training pictures are covered" to "how few are orbited".
    """
    near = nearest(samples, train, k=1).index[:, 0]
    n, k, most = len(near), len(near.unique()), len(Rows.of(train))
    table = _distinct_log_probabilities(n, most)
    likelihood = table[:, k]
    best = int(np.argmax(likelihood)) + 1
    chance = np.exp(table)
    at_most, at_least = chance[:, : k + 1].sum(1), chance[:, k:].sum(1)
    kept = np.flatnonzero((at_most > 0.025) & (at_least > 0.025)) + 1
    low, high = (int(kept[0]), int(kept[-1])) if len(kept) else (best, best)
    return Orbit(best, min(low, best), max(high, best), k)


def _distinct_log_probabilities(n: int, most: int) -> np.ndarray:
    """log P(k different | n draws from s equally likely): `[most, min(n, most) + 1]`, s from 1."""
    width = min(n, most)
    stirling = np.full(width + 1, -np.inf)
    stirling[0] = 0.0
    for _ in range(n):  # S(i + 1, k) = k S(i, k) + S(i, k - 1), in logarithms
        with np.errstate(divide="ignore"):
            stay = stirling + np.log(np.arange(width + 1))
        step = np.concatenate([[-np.inf], stirling[:-1]])
        stirling = np.logaddexp(stay, step)
    s = np.arange(1, most + 1)[:, None]
    k = np.arange(width + 1)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = special.gammaln(s + 1) - special.gammaln(np.maximum(s - k, 0) + 1)
    return np.where(k <= s, stirling + falling - n * np.log(s), -np.inf)
