"""What is attached answers as ever when it no longer asks, and stands as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from torch import Tensor

from variegate.adapter import Attached, attach
from variegate.models import load
from variegate.recipe import LoraPlan
from variegate.train.lean import lean


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Any:
    folder: Path = tmp_path_factory.mktemp("lean")
    write_tiny_sd(folder / "base")
    return load(str(folder / "base"))


@pytest.fixture
def on(model: Any) -> Iterator[Attached]:
    """Updates that are not zero, at a scale that is not one, on layers of every sort."""
    plan = LoraPlan(rank=4, alpha=2, layers="attention+feedforward+convolution", dropout=0.3)
    found = attach(model, plan, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, factor in found.named_parameters():
            if name.endswith(".up"):
                factor.copy_(torch.randn(factor.shape, generator=rng))
    yield found
    found.detach()


def _passes(model: Any, on: Attached) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)  # of the dropout
    rng = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, 8, 8, generator=rng)
    out = model.predict(latents, torch.tensor([100, 900]), model.embed(["a cat", "a dog"]))
    for _, factor in on.named_parameters():
        factor.grad = None
    (out * torch.randn(out.shape, generator=rng)).sum().backward()
    grads = {n: f.grad.clone() for n, f in on.named_parameters() if f.grad is not None}
    return out.detach(), grads


def _changed(model: Any) -> int:
    return sum("forward" in vars(part) for part in model.network.modules())


def _near(got: Tensor, wanted: Tensor) -> bool:
    return float((got - wanted).norm()) <= 1e-5 * float(wanted.norm()) + 1e-7


def test_answers_and_gradients_are_those_of_the_layers_that_ask(model: Any, on: Attached) -> None:
    wanted, gradients = _passes(model, on)
    with lean(model):
        assert _changed(model) > 20
        got, own = _passes(model, on)
    assert _near(got, wanted)
    assert own.keys() == gradients.keys()
    assert all(_near(own[name], gradients[name]) for name in gradients)


def test_a_silenced_adapter_is_the_base_to_the_bit(model: Any, on: Attached) -> None:
    with torch.no_grad(), on.silenced(), on.watched():
        wanted = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), model.embed(["a cat"]))
    with lean(model), torch.no_grad(), on.silenced(), on.watched():
        got = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), model.embed(["a cat"]))
    assert torch.equal(got, wanted)


def test_what_hooks_change_between_the_factors_is_changed(model: Any, on: Attached) -> None:
    on.between_factors(torch.zeros_like)
    with lean(model), torch.no_grad(), on.silenced():
        base = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), model.embed(["a cat"]))
    with lean(model), torch.no_grad():
        got = model.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), model.embed(["a cat"]))
    assert _near(got, base)


def test_no_trace_is_left_and_others_are_left_alone(model: Any, on: Attached) -> None:
    taken = next(part for part in model.network.modules() if type(part).__name__ == "Attention")
    taken.forward = taken.forward  # somebody else's
    theirs = taken.forward
    with pytest.raises(KeyboardInterrupt), lean(model):
        raise KeyboardInterrupt
    assert taken.forward is theirs
    del taken.forward
    with lean(model, wanted=False):
        assert _changed(model) == 0
    assert _changed(model) == 0
