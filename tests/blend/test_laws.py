"""Laws of sums and sizes, over ranks, alphas, shapes and weights that nobody chose."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from variegate import seeds
from variegate.adapter import Adapter, LayerUpdate
from variegate.blend.together import blend, resize

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
numbers = some.floats(-3, 3).filter(lambda x: abs(x) > 1e-3)
shapes = some.sampled_from([(5, 7), (9, 4), (6, 3, 3, 3), (4, 8, 1, 1)])


@some.composite
def adapters(draw: Any, shape: Any = None) -> Adapter:
    out, *inputs = draw(shapes) if shape is None else shape
    rank, seed = draw(some.integers(1, 12)), draw(some.integers(0, 9))
    return Adapter(
        "sd1",
        {
            NAME: LayerUpdate(
                torch.randn(rank, *inputs, generator=seeds.at(seed, "down")),
                torch.randn(out, rank, *[1] * (len(inputs) - 1), generator=seeds.at(seed, "up")),
                alpha=draw(numbers),
            )
        },
    )


@some.composite
def pairs(draw: Any) -> tuple[Adapter, Adapter]:
    shape = draw(shapes)
    return draw(adapters(shape)), draw(adapters(shape))


def close(one: Adapter, other: torch.Tensor) -> None:
    size = float(other.abs().max()) + 1e-3
    torch.testing.assert_close(one.delta(NAME), other, atol=2e-6 * size, rtol=1e-5)


@quick
@given(adapters(), some.sampled_from(["soup", "sum"]))
def test_one_member_at_weight_one_is_itself(adapter: Adapter, method: Any) -> None:
    close(blend([adapter], [1.0], method=method).adapter, adapter.delta(NAME))


@quick
@given(pairs(), numbers, numbers)
def test_a_sum_is_the_weighted_sum_of_updates(pair: Any, a: float, b: float) -> None:
    one, other = (member.delta(NAME) for member in pair)
    scale = float(one.abs().max() + other.abs().max()) * 3 + 1e-3
    found = blend(pair, [a, b], method="sum").adapter.delta(NAME)
    torch.testing.assert_close(found, a * one + b * other, atol=2e-6 * scale, rtol=1e-5)
    turned = blend(pair[::-1], [b, a], method="sum").adapter.delta(NAME)
    torch.testing.assert_close(found, turned, atol=2e-6 * scale, rtol=1e-5)


@quick
@given(adapters())
def test_energy_grows_with_rank_up_to_the_whole(adapter: Adapter) -> None:
    whole = resize(adapter, energy=1.0)
    close(whole.adapter, adapter.delta(NAME))
    most = whole.layers[NAME].rank
    energies = [resize(adapter, rank=rank).energy for rank in range(1, most + 1)]
    assert energies == sorted(energies)
    assert abs(energies[-1] - 1) < 1e-9
    # What is lost is what is told: the squared norm of the difference.
    small = resize(adapter, rank=1)
    update = adapter.delta(NAME)
    lost = float((small.adapter.delta(NAME) - update).square().sum() / update.square().sum())
    assert abs(small.energy + lost - 1) < 1e-4
