"""Stacked digits: pictures of exactly 1000 modes, who reads them, and what is counted.

Three grey digits lie in the three channels of one picture, so that a mode is a number from 0 to
999. It is "Stacked MNIST" (Srivastava et al. 2017, VEEGAN, arXiv 1705.07761; Lin et al. 2018,
PacGAN, arXiv 1712.04086) with the digits of 8 x 8 pixels that scikit-learn ships (Alpaydin and
Kaynak, Optical Recognition of Handwritten Digits, UCI 1998) in MNIST's place: 26,000 pictures are
drawn, a classifier reads each channel, and what counts is how many of the modes were seen and how
far their shares are from even.

`tools/stacked_digits.py` makes the base model of this world and the tables of
`docs/stacked-digits.md`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from variegate.adapter import Adapter, attached
from variegate.errors import RequestError
from variegate.models import Conditioning, DiffusionModel
from variegate.recipe import SamplingPlan
from variegate.sample.denoise import denoise, initial_noise

MODES = 1000
DRAWN = 26_000  # pictures, as in VEEGAN and PacGAN
SIDE = 8  # pixels
Part = Literal["learnt", "held out"]


# --- the world ----------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Single grey digits and what each is."""

    pixels: UInt8[np.ndarray, "n 8 8"]
    labels: Int[np.ndarray, " n"]


@cache
def digits(part: Part) -> Digits:
    """The single digits of one part: of each class every third is held out.

    The base model and the classifier learn from the one part alone; adapters, and whoever tests the
    classifier, see the other.

    Raises: RequestError when scikit-learn is not there.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RequestError(
            "stacked digits are made of scikit-learn's: pip install 'variegate[bench]'"
        ) from error
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    turn = np.zeros(len(labels), np.int64)
    for label in range(10):
        own = labels == label
        turn[own] = np.arange(own.sum())
    chosen = (turn % 3 == 0) == (part == "held out")
    return Digits(pixels[chosen], labels[chosen])


def choose(
    modes: Int[np.ndarray, " n"], rng: np.random.Generator, *, part: Part
) -> Int[np.ndarray, "n 3"]:
    """Which single digits stand for each mode, by chance: indices into `digits(part)`."""
    labels, found = digits(part).labels, np.empty((len(modes), 3), np.int64)
    wanted = digits_of(modes)
    for label in range(10):
        own = wanted == label
        found[own] = rng.choice(np.flatnonzero(labels == label), int(own.sum()))
    return found


def stack(
    modes: Int[np.ndarray, " n"], rng: np.random.Generator, *, part: Part
) -> UInt8[np.ndarray, "n 8 8 3"]:
    """A picture of each mode, its digits chosen by chance: hundreds in red, ones in blue."""
    return digits(part).pixels[choose(modes, rng, part=part)].transpose(0, 2, 3, 1)


def digits_of(modes: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 3"]:
    """The three digits of each mode.

    >>> digits_of(np.array([307])).tolist()
    [[3, 0, 7]]
    """
    return np.stack([modes // 100, modes // 10 % 10, modes % 10], 1)


def some_modes(count: int, seed: int) -> tuple[int, ...]:
    """As many different modes, chosen by chance, in order."""
    chosen = np.random.default_rng((53, seed)).choice(MODES, count, replace=False)
    return tuple(sorted(chosen.tolist()))


# --- who reads it -------------------------------------------------------------------------------

WIDTH, RIDGE = 0.25, 0.01  # of the kernel exp(-WIDTH |x - y|^2), pixels in 0..1; of its diagonal


@cache
def _weights() -> tuple[Float[np.ndarray, "n 64"], Float[np.ndarray, "n 10"]]:
    known = digits("learnt")
    rows = _rows(known.pixels)
    wanted = 2.0 * np.eye(10)[known.labels] - 1
    kernel = _kernel(rows, rows).astype(float) + RIDGE * np.eye(len(rows))
    return rows, np.linalg.solve(kernel, wanted).astype(np.float32)


def read_digits(pixels: UInt8[np.ndarray, "n 8 8"]) -> Int[np.ndarray, " n"]:
    """Which digit each grey picture shows, by kernel ridge regression on the part that is learnt.

    Something is always read: there is no answer for what is no digit.
    """
    known, weights = _weights()
    rows = _rows(pixels)
    return np.concatenate(
        [
            (_kernel(rows[i : i + 4096], known) @ weights).argmax(1)
            for i in range(0, len(rows), 4096)
        ]
        or [np.empty(0, np.int64)]
    )


def read_modes(pictures: UInt8[np.ndarray, "n 8 8 3"]) -> Int[np.ndarray, " n"]:
    """Which mode each picture shows, channel by channel."""
    hundreds, tens, ones = (read_digits(pictures[..., channel]) for channel in range(3))
    return 100 * hundreds + 10 * tens + ones


def _rows(pixels: UInt8[np.ndarray, "n 8 8"]) -> Float[np.ndarray, "n 64"]:
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def _kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    apart = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T)
    return np.exp(-WIDTH * apart)


@cache
def confusion() -> Float[np.ndarray, "10 10"]:
    """How often the classifier reads the column's digit where the row's is shown, on the part that
    it has not seen."""
    known = digits("held out")
    counts = np.zeros((10, 10))
    np.add.at(counts, (known.labels, read_digits(known.pixels)), 1)
    return counts / counts.sum(1, keepdims=True)


def as_read(shares: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The shares of the 1000 modes as the classifier would see them, its errors among them."""
    cube, wrong = shares.reshape(10, 10, 10), confusion()
    return np.einsum("abc,ax,by,cz->xyz", cube, wrong, wrong, wrong).reshape(-1)


# --- what is counted ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How many of the modes were seen, and KL(shares || even) in nats, 0 to log 1000."""

    modes: float
    kl: float


def spread(seen: Int[np.ndarray, " n"], *, among: int = MODES) -> Spread:
    """Of modes as they were read, one for each picture.

    The plug-in estimate of the literature: log k less the entropy of the counts. It lies above the
    truth by about (k - 1) / 2n (Miller 1955), which is why `expected` stands beside it.

    >>> spread(np.array([0, 0, 1, 1]), among=4)
    Spread(modes=2.0, kl=0.6931471805599453)
    """
    shares = np.bincount(seen, minlength=among) / len(seen)
    some = shares[shares > 0]
    return Spread(float(len(some)), max(0.0, float(np.log(among) + (some * np.log(some)).sum())))


def expected(shares: Float[np.ndarray, " k"], n: int) -> Spread:
    """What `spread` gives on average for n independent draws from these shares, exactly.

    A count is binomial, so the mean of the modes is the sum of 1 - (1 - p)^n and that of the
    entropy's terms a sum over the binomial's weights (all but 1e-12 of them).
    """
    from scipy.stats import binom

    terms = 0.0
    for p, times in zip(*np.unique(shares[shares > 0], return_counts=True), strict=True):
        low, high = binom.ppf((1e-13, 1 - 1e-13), n, p)
        counts = np.arange(max(1, low), high + 1)
        part = counts / n
        terms += times * float((binom.pmf(counts, n, p) * part * np.log(part)).sum())
    return Spread(float((1 - (1 - shares) ** n).sum()), float(np.log(len(shares)) + terms))


def even(modes: Collection[int] = range(MODES)) -> Float[np.ndarray, "1000"]:
    """The shares that some modes have where nothing else is drawn, each as often."""
    shares = np.zeros(MODES)
    shares[list(modes)] = 1 / len(modes)
    return shares


@dataclass(frozen=True)
class Learnt:
    """Of the modes that an adapter was shown: how many it draws, and the share of its pictures that
    show none of them."""

    modes: int
    outside: float


def learnt(seen: Int[np.ndarray, " n"], shown: Collection[int]) -> Learnt:
    inside = np.isin(seen, list(shown))
    return Learnt(len(np.unique(seen[inside])), float(1 - inside.mean()))


# --- drawing ------------------------------------------------------------------------------------


def draw_modes(
    model: DiffusionModel,
    adapter: Adapter | None,
    prompt: str,
    count: int,
    *,
    plan: SamplingPlan,
    first_seed: int = 0,
    batch_size: int = 1000,
) -> Int[np.ndarray, " n"]:
    """The modes of so many pictures of one prompt, at seeds of their own.

    The pictures are those of `variegate.sample`, which keeps each as a file; here they are read and
    let go. Raises: NotFinite where a latent is.
    """
    seen = []
    with attached(model, adapter), torch.no_grad():
        words, empty = model.embed([prompt]), model.embed([""])
        for start in range(0, count, batch_size):
            seeds = range(first_seed + start, first_seed + min(count, start + batch_size))
            latents = denoise(
                model,
                torch.cat([initial_noise(model, seed) for seed in seeds]),
                Conditioning.join([words] * len(seeds)),
                Conditioning.join([empty] * len(seeds)),
                plan=plan,
                picture_seeds=seeds,
            )
            images = (model.decode(latents) / 2 + 0.5).clamp(0, 1)
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            seen.append(read_modes(pixels.cpu().numpy()))
    return np.concatenate(seen)
