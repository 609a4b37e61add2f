"""`noise_choice`: the pictures of one prompt start from noises that lead apart.

A noise says what it leads to by its one-step clean estimate f, its latents averaged over a few
cells and brought to length 1.

    select      of the seed's own noise and further ones from addresses of the seed, the one whose f
                is least like any chosen before it; the first seed of a prompt keeps its own
    optimise    a few steps down the gradient of InfoNCE, which draws f to what it was and pushes it
                from the others', each back to the length that noise has
    balanced    each less the mean of all, sqrt(n / (n - 1)) times as long: each is still standard
                normal by itself, any two have a correlation of -1 / (n - 1)
    antithetic  every second seed of a prompt starts from the negative of the one before

Sources: Diverse Text-to-Image Generation via Contrastive Noise Optimization, 2025, arXiv 2510.03813
(optimise; the average over cells and the gradient's fixed length are ours); Jia, Shen and Wang,
Couple to Control, 2026, arXiv 2605.11311 (balanced). `select` is the greedy choice of the farthest
point (Gonzalez 1985) among such estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from variegate import seeds

CELLS = 4  # along one side, over which a clean estimate is averaged
TEMPERATURE = 0.1

# Clean estimates of noises, each of the row of the prompt that is told.
Estimate = Callable[[Float[Tensor, "b c y x"]], Float[Tensor, "b c y x"]]


def looks(x0: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
    """What a clean estimate looks like from afar, at length 1."""
    cells = min(CELLS, *x0.shape[2:])
    return F.normalize(F.adaptive_avg_pool2d(x0.float(), cells).flatten(1), dim=1)


def candidates(
    noise: Float[Tensor, "n c y x"], picture_seeds: Sequence[int], count: int
) -> Float[Tensor, "n k c y x"]:
    """Each seed's own noise and more of its own."""
    more = [
        torch.stack(
            [
                torch.randn(own.shape, generator=seeds.at(seed, "noise choice", number))
                for number in range(1, count)
            ]
        )
        for own, seed in zip(noise, picture_seeds, strict=True)
    ]
    return torch.cat([noise[:, None], torch.stack(more).to(noise)], 1)


def farthest(found: Float[Tensor, "n k d"]) -> list[int]:
    """Which of its k each of n takes in turn, so that it is least like any taken before."""
    taken = [0]
    for own in found[1:]:
        before = torch.stack([found[i, k] for i, k in enumerate(taken)])
        likest = (own @ before.T).max(1).values
        taken.append(int(likest.argmin()))
    return taken


def balanced(noise: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
    """Noises that add up to nothing, each standard normal by itself."""
    n = len(noise)
    if n < 2:
        return noise
    apart: Tensor = (noise - noise.mean(0)) * (n / (n - 1)) ** 0.5
    return apart


def antithetic(noise: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
    """Every second one the negative of the one before."""
    turned = noise.clone()
    turned[1::2] = -noise[0 : len(noise) - 1 : 2]
    return turned


def contrast(now: Float[Tensor, "n d"], start: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """InfoNCE: -log of how much likelier each is to be its own start than any of the others."""
    likeness = now @ now.T / TEMPERATURE
    own = (now * start).sum(1) / TEMPERATURE
    others = likeness.masked_fill(torch.eye(len(now), dtype=torch.bool, device=now.device), -1e9)
    return (torch.logsumexp(torch.cat([own[:, None], others], 1), 1) - own).mean()


def optimised(
    noise: Float[Tensor, "n c y x"], estimate: Estimate, *, rounds: int, step: float
) -> Float[Tensor, "n c y x"]:
    """Noises moved apart, `step` of their length at a time, each as long as it was."""
    if len(noise) < 2:
        return noise
    length = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    start = looks(estimate(noise)).detach()
    moved = noise
    for _ in range(rounds):
        with torch.enable_grad():
            asked = moved.detach().requires_grad_(True)
            loss = contrast(looks(estimate(asked)), start)
            (gradient,) = torch.autograd.grad(loss, asked)
        size = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)
        moved = moved - step * length * gradient / size
        moved = moved / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * length
    return moved.detach()
