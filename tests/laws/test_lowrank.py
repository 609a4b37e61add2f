"""Norms of up @ down from r x r matrices, against the dense update."""

from __future__ import annotations

import torch

from variegate.lowrank import (
    Factors,
    effective_rank,
    factor_norm,
    grams,
    nuclear_norm,
    singular_values,
    squared_norm,
    stable_rank,
)


def factors(seed: int, *, rank: int = 4, out: int = 12, inner: int = 9) -> Factors:
    rng = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=rng).requires_grad_()
    down = torch.randn(rank, inner, generator=rng).requires_grad_()
    return Factors(f"layer {seed}", up, down, scale=0.5 + seed)


def dense(update: Factors) -> torch.Tensor:
    return (update.scale * update.up @ update.down).double()


def test_every_norm_and_rank_is_that_of_the_dense_update() -> None:
    updates = [factors(0), factors(1, out=20), factors(2)]
    ((names, found),) = grams(updates).values()
    assert names == ["layer 0", "layer 1", "layer 2"]
    exact = torch.stack([torch.linalg.svdvals(dense(u))[:4] for u in updates]).detach()
    torch.testing.assert_close(singular_values(found), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nuclear_norm(found).detach(), exact.sum(1), rtol=1e-6, atol=0)
    squares = exact.square().sum(1)
    torch.testing.assert_close(squared_norm(found).detach(), squares, rtol=1e-6, atol=0)
    torch.testing.assert_close(stable_rank(exact), squares / exact[:, 0] ** 2)
    assert bool((effective_rank(exact) <= 4).all())
    assert bool((stable_rank(exact) <= effective_rank(exact) + 1e-9).all())


def test_the_gradient_of_the_nuclear_norm_is_that_of_the_dense_one() -> None:
    update = factors(3)
    ((_, found),) = grams([update]).values()
    ours = torch.autograd.grad(nuclear_norm(found).sum(), [update.up, update.down])
    exact = torch.autograd.grad(
        torch.linalg.matrix_norm(dense(update), "nuc"), [update.up, update.down]
    )
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_factors_norm_bounds_the_nuclear_norm_and_meets_it_where_they_are_balanced() -> None:
    update = factors(4)
    ((_, found),) = grams([update]).values()
    assert bool((factor_norm(found) > nuclear_norm(found)).all())
    u, s, vh = torch.linalg.svd(dense(update) / update.scale, full_matrices=False)
    root = s[:4].sqrt()
    even = Factors(
        "even", (u[:, :4] * root).float(), (root[:, None] * vh[:4]).float(), update.scale
    )
    ((_, balanced),) = grams([even]).values()
    torch.testing.assert_close(factor_norm(balanced), nuclear_norm(found), rtol=1e-5, atol=0)


def test_a_zero_update_has_no_norm_no_rank_and_no_gradient() -> None:
    fresh = factors(5)
    zero = Factors("zero", torch.zeros_like(fresh.up).requires_grad_(), fresh.down, 1.0)
    ((_, found),) = grams([zero]).values()
    value = nuclear_norm(found)
    assert float(value.detach()) == 0
    for gradient in torch.autograd.grad(value.sum(), [zero.up, zero.down]):
        assert float(gradient.abs().max()) == 0
    values = singular_values(found)
    assert float(stable_rank(values)) == 0
    assert float(effective_rank(values)) == 0


def test_updates_of_several_ranks_are_kept_apart() -> None:
    found = grams([factors(0), factors(1, rank=2)])
    assert {rank: names for rank, (names, _) in found.items()} == {4: ["layer 0"], 2: ["layer 1"]}
