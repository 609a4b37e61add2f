"""Frozen convolutions whose weights lie as oneDNN computes with them.

A convolution on a CPU brings its weight into blocks before every product, forward and backward. In
bfloat16, where products are quick and a batch is small, that is a third of a step of Stable
Diffusion at 256 pixels. Weights that do not learn can be brought there once: for a second copy of
them for forward, and a third, turned round, for backward (a convolution's gradient is a convolution
with its weight mirrored). float32 keeps to torch's own path, whose bits runs are held to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import BFloat16, Shaped
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


@contextmanager
def packed(model: Any, wanted: bool = True) -> Iterator[None]:
    """While the block runs the network's frozen convolutions compute from weights in blocks.

    Only bfloat16 on CPUs that oneDNN knows it on; anything else runs as it is.
    """
    on_cpu = torch.device(model.device).type == "cpu" and model.dtype == torch.bfloat16
    if not (wanted and on_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        yield
        return
    layers = [part for part in model.network.modules() if _packs(part)]
    for layer in layers:
        layer.forward = _Packed(layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _packs(part: nn.Module) -> bool:
    return (
        isinstance(part, nn.Conv2d)
        and not part.weight.requires_grad
        and part.groups == 1
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and set(part.dilation) == {1}
    )


class _Packed:
    """Stands for a layer's forward; packs at the first pass that has a gradient to give.

    Blocks suit one height and width: pictures of another size go torch's own way.
    """

    def __init__(self, layer: nn.Conv2d, plain: Callable[[Tensor], Tensor]) -> None:
        self.layer, self.plain = layer, plain
        self.size: torch.Size | None = None

    def __call__(self, x: Shaped[Tensor, "b c y x"]) -> Shaped[Tensor, "b d u v"]:
        gives = torch.is_grad_enabled() and x.requires_grad
        if self.size is None and gives:
            self._pack(x)
        if x.shape[2:] != self.size:
            return self.plain(x)
        product: Tensor = _Product.apply(x.to(torch.bfloat16), self)  # type: ignore[no-untyped-call]
        return product

    def _pack(self, x: Tensor) -> None:
        layer, weight = self.layer, self.layer.weight.detach()
        self.size = x.shape[2:]
        self.padding = [int(pad) for pad in layer.padding]
        self.stride = [int(step) for step in layer.stride]
        self.forward = _in_blocks(weight, self.padding, self.stride, list(x.shape))
        self.backward: Tensor | None = None
        if self.stride == [1, 1]:
            turned = weight.flip(2, 3).transpose(0, 1).contiguous()
            self.around = [
                side - 1 - pad for side, pad in zip(layer.kernel_size, self.padding, strict=True)
            ]
            if min(self.around) >= 0:
                shape = [len(x), layer.out_channels, *self._outcome(x)]
                self.backward = _in_blocks(turned, self.around, [1, 1], shape)

    def _outcome(self, x: Tensor) -> list[int]:
        sides = zip(x.shape[2:], self.layer.kernel_size, self.padding, strict=True)
        return [side + 2 * pad - kernel + 1 for side, kernel, pad in sides]


def _in_blocks(weight: Tensor, padding: list[int], stride: list[int], shape: list[int]) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, [1, 1], 1, shape
    )
    return blocks


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], stride: list[int]
) -> Tensor:
    product: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, [1, 1], 1, "none", [], ""
    )
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: BFloat16[Tensor, "b c y x"], by: _Packed) -> Tensor:
        ctx.by, ctx.shape = by, x.shape
        return _convolved(x, by.forward, by.layer.bias, by.padding, by.stride)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        by, gradient = ctx.by, gradients[0].contiguous()
        if by.backward is not None:
            return _convolved(gradient, by.backward, None, by.around, [1, 1]), None
        weight = by.layer.weight
        return conv2d_input(ctx.shape, weight, gradient, by.stride, by.padding), None
