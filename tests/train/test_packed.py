"""Frozen convolutions in blocks give what torch's own give, and leave no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variegate.train.packed import packed

FROZEN = [(3, 1, 1), (1, 1, 0), (3, 2, 1)]  # kernel, stride, padding


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(16, 16, k, s, p) for k, s, p in FROZEN)).bfloat16()
    network.requires_grad_(False)
    return SimpleNamespace(network=network, device="cpu", dtype=torch.bfloat16)


def _passes(model: Any, side: int = 12, rows: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 16, side, side, generator=torch.Generator().manual_seed(1)).bfloat16()
    x.requires_grad_()
    out = model.network(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out.float() * weights).sum().backward()
    assert x.grad is not None
    return out.detach().float(), x.grad.float()


def _off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def _took_blocks(model: Any) -> list[bool]:
    return [getattr(layer.forward, "size", None) is not None for layer in model.network]


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor has no bf16 of its own, and nothing is packed there",
)
def test_outputs_and_gradients_are_those_of_plain_convolutions(model: Any) -> None:
    plain = _passes(model)
    with packed(model):
        blocks = _passes(model)
        assert all(_took_blocks(model))
    for got, wanted in zip(blocks, plain, strict=True):
        assert _off(got, wanted) < 0.01


def test_another_size_and_batch_is_right_too(model: Any) -> None:
    plain = _passes(model, side=20, rows=3), _passes(model, side=12, rows=3)
    with packed(model):
        _passes(model, side=12, rows=2)
        there = _passes(model, side=20, rows=3), _passes(model, side=12, rows=3)
    for got, wanted in zip(there, plain, strict=True):
        assert _off(got[0], wanted[0]) < 0.01
        assert _off(got[1], wanted[1]) < 0.01


def test_layers_are_as_before_afterwards(model: Any) -> None:
    before = _passes(model)
    with packed(model):
        _passes(model)
    assert all("forward" not in vars(layer) for layer in model.network)
    assert all(torch.equal(a, b) for a, b in zip(_passes(model), before, strict=True))


def test_nothing_is_packed_before_there_is_a_gradient(model: Any) -> None:
    with packed(model), torch.no_grad():
        model.network(torch.randn(1, 16, 8, 8).bfloat16())
        assert not any(_took_blocks(model))


@pytest.mark.parametrize("why", ["float32", "learns", "unwanted"])
def test_what_is_not_packed_runs_as_it_is(model: Any, why: str) -> None:
    if why == "float32":
        model.network.float()
        model.dtype = torch.float32
    elif why == "learns":
        model.network.requires_grad_(True)
    with packed(model, why != "unwanted"):
        assert all("forward" not in vars(layer) for layer in model.network)
