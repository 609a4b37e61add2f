"""`cads`: what is read of the prompt comes out of noise as the picture does.

    gamma(u) = 1 up to u = full, 0 from u = none on, a line between; u the share of the schedule
    y' = sqrt(gamma) y + strength sqrt(1 - gamma) n,    n standard normal
    y'' = (y' - mean(y')) / std(y') std(y) + mean(y),   y = rescaled y'' + (1 - rescaled) y'

with mean and deviation over all numbers that are read of one prompt, and n of each picture and step
from an address of its seed.

Source: Sadat et al., CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed
Sampling, 2023, arXiv 2310.17347, equations 4 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.models import Conditioning


def kept(u: float, *, full: float, none: float) -> float:
    """gamma: how much of the prompt is there at a share u of the noise schedule.

    >>> [kept(u, full=0.6, none=1.0) for u in (0.5, 0.8, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return round(min(1.0, max(0.0, (none - u) / (none - full))), 12)


def annealed(
    words: Conditioning,
    *,
    gamma: float,
    strength: float,
    rescaled: float,
    picture_seeds: Sequence[int],
    index: int,
) -> Conditioning:
    """What is read, noised; index: which denoising step."""
    if gamma == 1:
        return words

    def noised(part: Tensor, name: str) -> Tensor:
        noise = torch.stack(
            [
                torch.randn(part.shape[1:], generator=seeds.at(seed, "cads", name, index))
                for seed in picture_seeds
            ]
        ).to(part)
        return _noised(part, noise, gamma=gamma, strength=strength, rescaled=rescaled)

    pooled = None if words.pooled is None else noised(words.pooled, "pooled")
    return replace(words, embeddings=noised(words.embeddings, "words"), pooled=pooled)


def _noised(
    y: Float[Tensor, "b ..."],
    noise: Float[Tensor, "b ..."],
    *,
    gamma: float,
    strength: float,
    rescaled: float,
) -> Float[Tensor, "b ..."]:
    ragged = gamma**0.5 * y + strength * (1 - gamma) ** 0.5 * noise
    shape = (-1, *[1] * (y.ndim - 1))
    mean, std = (f(y.flatten(1), 1).view(shape) for f in (torch.mean, torch.std))
    own_mean, own_std = (f(ragged.flatten(1), 1).view(shape) for f in (torch.mean, torch.std))
    back = (ragged - own_mean) / own_std * std + mean
    whole: Tensor = rescaled * back + (1 - rescaled) * ragged
    return whole
