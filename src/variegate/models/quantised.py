"""Frozen linear layers held in 8 or 4 bits, their weights worked out again whenever they are read.

Round to nearest, with a scale for each row (8 bits), or a scale and a shift for each group of
inputs (4 bits). Codes and scales are plain buffers, and `weight` is a property: whoever stands on a
layer's weight (DoRA, spectra, caps) reads what the layer answers with.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Bits = Literal[8, 4]
GROUPS = (128, 64, 32)  # inputs that share a scale in 4 bits: the largest that divides a row


def quantise(network: nn.Module, bits: Bits) -> None:
    """Let every linear layer of a frozen network hold its weight in so many bits, in place.

    8: round(127 w / max|w|), a scale for each output. 4: sixteen levels from the least to the
    largest of a group of inputs. Convolutions, norms, embeddings and biases stay as they are.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            # Not those derived from it, whose owners read their weights in ways of their own.
            if type(child) is nn.Linear and child.out_features > 1:
                setattr(module, name, QuantisedLinear(child, bits))


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight takes 8 or 4 bits per number, and its scales."""

    codes: Tensor
    scale: Float[Tensor, "g 1"]
    shift: Float[Tensor, "g 1"] | None

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.dtype = layer.weight.dtype
        weight = layer.weight.detach().float()  # half precision would round the scales
        for name, part in _rounded(weight, bits).items():
            self.register_buffer(name, part)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the layer answers with, as a new tensor."""
        return _read(self.codes, self.scale, self.shift, self.in_features, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.bias, self.codes, self.scale, self.shift, self.in_features, self.dtype
        )
        return answer


def _rounded(weight: Float[Tensor, "o i"], bits: Bits) -> dict[str, Tensor | None]:
    """The codes of a weight, the scale of each group, and what is taken off after scaling."""
    tiny = torch.finfo(weight.dtype).tiny
    if bits == 8:
        scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=tiny)
        return {"codes": (weight / scale).round().to(torch.int8), "scale": scale, "shift": None}
    inputs = weight.shape[1]
    group = next((size for size in GROUPS if inputs % size == 0), inputs)
    groups = weight.reshape(-1, group)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=tiny)
    codes = ((groups - low) / scale).round().to(torch.uint8)
    half = (len(codes) + 1) // 2  # two groups in a row of bytes: one from each half
    upper = torch.zeros_like(codes[:half])
    upper[: len(codes) - half] = codes[half:]
    return {"codes": codes[:half] | upper << 4, "scale": scale, "shift": -low}


def _read(
    codes: Tensor, scale: Tensor, shift: Tensor | None, inputs: int, dtype: torch.dtype
) -> Float[Tensor, "o i"]:
    if shift is None:
        return (codes * scale).to(dtype)
    # The lower halves of all bytes are the first groups, the upper halves the others.
    numbers = torch.cat([codes & 15, codes >> 4])[: len(scale)]
    return (numbers * scale - shift).view(-1, inputs).to(dtype)


class _Product(torch.autograd.Function):
    """x W' + b, keeping the codes alone for the backward pass; plain autograd would keep W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        inputs: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, shift)
        ctx.read, ctx.given = (inputs, dtype), x.dtype
        return F.linear(x, _read(codes, scale, shift, inputs, dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight = _read(*ctx.saved_tensors, *ctx.read)
        return (gradient @ weight.to(gradient.dtype)).to(ctx.given), *[None] * 6
