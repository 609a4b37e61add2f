"""T-LoRA: low-rank updates whose rank falls as the noise grows, row by row of a batch.

    y = W x + B S M_t A x - B_0 S_0 M_t A_0 x,     M_t keeps the first r(t) of r components.

A, S, B start as the last r singular components of a random matrix and are trained; what they were
at the start (index 0) is taken off again, so that nothing changes before the first step.

The layers have to know each row's timestep. A `Clock` listens to the calls of the network that the
layers are in (a pre-hook), so that no model, sampler or training loop has to know of it.

Source: Soboleva et al., T-LoRA: Single Image Diffusion Model Customization Without Overfitting,
2025, arXiv 2507.05964; standard deviation 1 / r as in its code, ControlGenAI/T-LoRA.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from variegate.adapter.noun import Masking
from variegate.errors import AdapterError


class Clock:
    """Which timestep each row of the network's latest call is at."""

    def __init__(self, network: nn.Module, masking: Masking) -> None:
        self._masking = masking
        self._times: Tensor | None = None
        self._signature = inspect.signature(network.forward)
        self._handle = network.register_forward_pre_hook(self._note, with_kwargs=True)

    def mask(self, rank: int, like: Tensor) -> Float[Tensor, "b r"]:
        """Ones for the components that act on each row of `like`, zeros for the others.

        Raises: AdapterError when the layer sees other rows than the network was called with.
        """
        if self._times is None or len(self._times) != len(like):
            seen = "none" if self._times is None else str(len(self._times))
            raise AdapterError(
                f"a T-LoRA layer has {len(like)} rows and {seen} timesteps; it acts only inside "
                "the network whose timesteps it hears"
            )
        kept = self._masking.ranks(self._times, rank)[:, None]
        return (torch.arange(rank, device=kept.device) < kept).to(like.device, like.dtype)

    def stop(self) -> None:
        self._handle.remove()

    def _note(self, network: nn.Module, args: Any, kwargs: Any) -> None:
        given = self._signature.bind(*args, **kwargs).arguments
        rows = next(iter(given.values()))
        times = torch.as_tensor(given["timestep"], device=rows.device)
        self._times = times.reshape(-1).expand(len(rows))


class Factors(NamedTuple):
    """B S A of one layer: down is A, scale the diagonal of S, up is B."""

    down: Tensor
    scale: Float[Tensor, " r"]
    up: Tensor


def last_components(weight: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """The last `rank` singular components of a random matrix of the weight's shape, whose entries
    have the standard deviation 1 / rank; shaped as a LoRA's factors.

    A matrix is decomposed whole: a second per layer of 1280 x 1280, once per run.
    """
    matrix = torch.randn(weight.shape[0], weight[0].numel(), generator=generator) / rank
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    ones = [1] * (weight.ndim - 2)
    return Factors(
        right[-rank:].reshape(rank, *weight.shape[1:]).contiguous(),
        values[-rank:].clone(),
        left[:, -rank:].reshape(-1, rank, *ones).contiguous(),
    )


class TimedLora(nn.Module):
    """A layer of a T-LoRA, in the place of the base's own."""

    down: Tensor
    scale: Tensor
    up: Tensor
    down_0: Tensor
    scale_0: Tensor
    up_0: Tensor

    def __init__(
        self, base_layer: nn.Module, learnt: Factors, start: Factors, clock: Clock
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.disable_adapters = False
        self.dropout: nn.Module = nn.Identity()
        self._clock = clock
        weight: Any = base_layer.weight
        for name, value in learnt._asdict().items():
            self.register_parameter(
                name, nn.Parameter(value.to(weight.device, torch.float32, copy=True))
            )
        for name, value in start._asdict().items():
            self.register_buffer(f"{name}_0", value.to(weight.device, torch.float32, copy=True))

    def learnt(self) -> Factors:
        return Factors(self.down, self.scale, self.up)

    def start(self) -> Factors:
        return Factors(self.down_0, self.scale_0, self.up_0)

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        self.disable_adapters = not enabled

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return answer
        x = self.dropout(x.to(self.down.dtype))
        mask = self._clock.mask(len(self.scale), x)
        # Two products and not one of twice the rank: at the start they cancel to the bit.
        added = self._product(x, self.learnt(), mask) - self._product(x, self.start(), mask)
        return answer + added.to(answer.dtype)

    def _product(self, x: Tensor, factors: Factors, mask: Float[Tensor, "b r"]) -> Tensor:
        kept = factors.scale * mask
        if not isinstance(self.base_layer, nn.Conv2d):
            inner = F.linear(x, factors.down)
            kept = kept.view(len(x), *[1] * (x.ndim - 2), -1)
            return F.linear(inner * kept, factors.up)
        layer = self.base_layer
        inner = F.conv2d(
            x, factors.down, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        return F.conv2d(inner * kept[:, :, None, None], factors.up)
