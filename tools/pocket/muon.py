"""Muon: momentum whose update of each matrix is made orthogonal (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon), scaled to AdamW's size of step (Liu et al. 2025,
arXiv 2502.16982). torch's own takes no convolutions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonal(x: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to `[n, rows, columns]`, nearly: singular values of
    about 0.7 to 1.2 after five quintic Newton-Schulz steps."""
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if turned else x).float()


class Muon(torch.optim.Optimizer):
    """For matrices and convolutions, these taken as matrices of output channels by the rest."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                kept = state.setdefault("momentum", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(kept, group["momentum"]).reshape(len(p), -1)
                alike.setdefault((update.shape[0], update.shape[1]), []).append((p, update))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([u for _, u in pairs]))
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.reshape(p.shape), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)
