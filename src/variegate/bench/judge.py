"""The judge: reads every factor of a 64-pixel scene, and so knows the truth.

It is ground truth for tests and bench alone. The product's own measures and verdicts never use it,
or they would be marked by their own teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from variegate.bench.world import FACTORS


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class JudgeNet(nn.Module):
    """Pictures `[n, 3, 64, 64]` in -1..1 -> one row of logits per factor."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 24, 2),
            _block(24, 48, 1),
            _block(48, 64, 2),
            _block(64, 64, 1),
            _block(64, 128, 2),
            _block(128, 128, 1),
        )
        self.place = nn.Sequential(nn.Conv2d(128, 12, 1), nn.Flatten())
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(128 * 2 + 12 * 64, 160), nn.ReLU(), nn.Linear(160, len(values))
                )
                for name, values in FACTORS.items()
            }
        )

    def forward(self, x: Float[Tensor, "n 3 64 64"]) -> dict[str, Float[Tensor, "n _"]]:
        h = self.trunk(x)
        h = torch.cat([h.mean((2, 3)), h.amax((2, 3)), self.place(h)], 1)
        return {name: head(h) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Reading:
    """What the judge reads in n pictures: for each factor n value names, and n certainties."""

    values: dict[str, tuple[str, ...]]
    certainty: dict[str, tuple[float, ...]]

    def share(self, factor: str, value: str) -> float:
        """Share of the pictures whose factor has that value."""
        names = self.values[factor]
        return sum(n == value for n in names) / len(names)

    def entropy(self, factor: str) -> float:
        """Entropy of the factor over the pictures as a share of the uniform one's, 0 to 1."""
        names = self.values[factor]
        counts = np.array([names.count(v) for v in set(names)], float) / len(names)
        return float(-(counts * np.log(counts)).sum() / np.log(len(FACTORS[factor])))


@cache
def _net() -> JudgeNet:
    net = JudgeNet()
    with resources.as_file(resources.files(__package__) / "judge.safetensors") as file:
        net.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return net.eval()


def read(pictures: Sequence[np.ndarray] | np.ndarray) -> Reading:
    """The factors of pictures, uint8 `[64, 64, 3]` each."""
    x = torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        logits = [_net()(part) for part in x.split(256)]
    values, certainty = {}, {}
    for name, known in FACTORS.items():
        p = torch.cat([F.softmax(part[name], -1) for part in logits])
        top, index = p.max(-1)
        values[name] = tuple(known[i] for i in index.tolist())
        certainty[name] = tuple(top.tolist())
    return Reading(values, certainty)
