"""`spell`: pictures of one prompt that would land too near each other are pushed apart.

With x0 the clean estimate of a picture and z those of the others of its prompt at this step,

    x0 + over sum_z relu(radius / |x0 - z| - 1) (x0 - z),

so nothing happens beyond the radius. Lengths are root mean squares over the latents' numbers, so
that a radius means the same at any resolution.

Source: Kirchhof et al., Shielded Diffusion: Generating Novel and Diverse Images using Sparse
Repellency, 2024, arXiv 2410.06025, equation 6; lambda = 1.6 as there.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 64  # pictures to keep away from that are compared at once


def repelled(
    x0: Float[Tensor, "b c y x"],
    away: Float[Tensor, "k c y x"],
    felt: Bool[Tensor, "b k"],
    *,
    radius: float,
    over: float,
) -> Float[Tensor, "b c y x"]:
    """How far clean estimates are moved away from others; felt: which each one keeps away from."""
    rows, others = x0.flatten(1).float(), away.flatten(1).to(x0.device, torch.float32)
    moved = torch.zeros_like(rows)
    for start in range(0, len(others), CHUNK):
        part = others[start : start + CHUNK]
        apart = rows[:, None] - part[None]
        length = apart.square().mean(-1).sqrt().clamp(min=1e-6)
        push = (radius / length - 1).clamp(min=0) * felt[:, start : start + CHUNK]
        moved += (push[:, :, None] * apart).sum(1)
    return (over * moved).view_as(x0).to(x0.dtype)


def neighbours(groups: Int[Tensor, " b"]) -> Bool[Tensor, "b b"]:
    """Which rows are of one group, none its own neighbour."""
    alike = groups[:, None] == groups[None]
    return alike & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
