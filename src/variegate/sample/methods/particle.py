"""`particle`: the pictures of one prompt push each other apart while they are noise.

With x the pictures at full strength (latents over alpha), s their noise (sigma over alpha), d_ij
their distances and h_i = median_j(d_ij)^2 / log(n - 1), the noise in picture i is taken to be

    noise_i - weight s sum_j 2 exp(-d_ij^2 / h_i) (x_i - x_j) / h_i,    j != i,

where s is at least `least_noise`. Of two pictures, where that logarithm is 0, it is that of three.

Source: Corso et al., Particle Guidance: non-I.I.D. Diverse Sampling with Diffusion Models, 2023,
arXiv 2310.13102, section 5; kernel, bandwidth and weight as in gcorso/particle-guidance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Alpha at the noisiest step of Stable Diffusion 1: schedules that end in pure noise have none.
LEAST_ALPHA = 0.068


def pushed(
    x: Float[Tensor, "b c y x"],
    groups: Int[Tensor, " b"],
    *,
    alpha: float,
    sigma: float,
    weight: float,
) -> Float[Tensor, "b c y x"]:
    """How far each picture's clean estimate is moved, away from the others of its group.

    x: as the network is shown them, alpha times the pictures above, which makes (x_i - x_j) / h_i
    larger by 1 / alpha. Noise that is less by e is a clean estimate that is s e further.
    """
    rows = x.flatten(1).float()
    moved = torch.zeros_like(rows)
    for group in groups.unique():
        own = (groups == group).nonzero().flatten()
        n = len(own)
        if n < 2:
            continue
        apart = rows[own][:, None] - rows[own][None]
        squares = apart.square().sum(-1)
        others = ~torch.eye(n, dtype=torch.bool, device=x.device)
        median = squares[others].view(n, n - 1).sqrt().median(1).values
        h = (median.square() / math.log(max(n - 1, 2))).clamp(min=1e-12)
        near = torch.where(others, torch.exp(-squares / h[:, None]), 0.0)
        push = (2 * near / h[:, None])[:, :, None] * apart
        moved[own] = weight * sigma**2 / max(alpha, LEAST_ALPHA) * push.sum(1)
    return moved.view_as(x).to(x.dtype)
