from __future__ import annotations

import math

import pytest
import torch

from variegate.errors import EmptyImageSet
from variegate.measure.diversity import (
    FLOOR,
    compare_variety,
    mean_pairwise_distance,
    median_distance,
)
from variegate.measure.vendi import (
    conditional_vendi,
    effective_number,
    truncated_vendi,
    vendi,
    vendi_from_kernel,
)

ORDERS = [0.5, 1, 2, 3, math.inf]


def rows(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", ORDERS)
def test_identical_pictures_count_as_one(order: float) -> None:
    same = rows(1).repeat(6, 1)
    assert float(vendi(same, order=order)) == pytest.approx(1)
    assert float(vendi(same, order=order, bandwidth=1.0)) == pytest.approx(1)


@pytest.mark.parametrize("order", ORDERS)
def test_pictures_with_nothing_in_common_count_each(order: float) -> None:
    assert float(vendi(torch.eye(5), order=order)) == pytest.approx(5)


@pytest.mark.parametrize("order", ORDERS)
def test_repeating_the_whole_set_changes_nothing(order: float) -> None:
    some = rows(5)
    twice = float(vendi(some.repeat(2, 1), order=order, bandwidth=2.0))
    assert twice == pytest.approx(float(vendi(some, order=order, bandwidth=2.0)))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_pictures_does_not_matter(order: float) -> None:
    some = rows(7)
    assert float(vendi(some.flip(0), order=order)) == pytest.approx(float(vendi(some, order=order)))


def test_an_effective_number_lies_between_one_and_n_and_falls_with_its_order() -> None:
    some = rows(9)
    numbers = [float(vendi(some, order=order, bandwidth=3.0)) for order in ORDERS]
    assert numbers == sorted(numbers, reverse=True)
    assert 1 <= numbers[-1] <= numbers[0] <= 9


def test_two_pictures_by_hand() -> None:
    kernel = torch.tensor([[1.0, 0.6], [0.6, 1.0]])  # eigenvalues of half of it: .8 and .2
    assert float(vendi_from_kernel(kernel, 2)) == pytest.approx(1 / (0.8**2 + 0.2**2))
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert float(vendi_from_kernel(kernel, 1)) == pytest.approx(math.exp(entropy))
    assert float(vendi_from_kernel(kernel, math.inf)) == pytest.approx(1 / 0.8)


def test_no_pictures_have_no_effective_number() -> None:
    with pytest.raises(EmptyImageSet, match="no pictures"):
        vendi(torch.zeros(0, 3))


def test_at_its_own_size_the_effective_number_is_vendi_of_order_two() -> None:
    some = rows(6)
    assert effective_number(some, bandwidth=2.0) == pytest.approx(
        float(vendi(some, order=2, bandwidth=2.0))
    )


def test_the_effective_number_at_a_reference_size_does_not_lean_with_n() -> None:
    def at_four(n: int) -> float:
        alike = [1 / effective_number(rows(n, seed=s), bandwidth=3.0, size=4) for s in range(200)]
        return sum(alike) / len(alike)

    assert at_four(4) == pytest.approx(at_four(12), rel=0.03)


def test_distances_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0]])
    assert mean_pairwise_distance(line) == pytest.approx(2)
    assert median_distance([line, 10 * line, line]) == pytest.approx(2)
    assert mean_pairwise_distance(line[:1]) == 0


def prompts(count: int, spread: float = 1.0, seed: int = 0, n: int = 4) -> list[torch.Tensor]:
    return [spread * rows(n, seed=1000 * seed + i) for i in range(count)]


def test_a_set_against_itself_keeps_everything() -> None:
    base = prompts(16)
    found = compare_variety(base, base)
    assert found is not None
    assert (found.ratio, found.low, found.high, found.p) == (1, 1, 1, 1)


def test_pictures_all_alike_read_as_the_floor_and_stay_finite() -> None:
    base = prompts(16)
    found = compare_variety([b[:1].repeat(4, 1) for b in base], base)
    assert found is not None
    assert found.ratio == pytest.approx(FLOOR)
    assert found.high == pytest.approx(FLOOR)
    assert found.p == pytest.approx(1e-4)
    assert found.order1 == pytest.approx(FLOOR)


def test_a_base_all_alike_compares_with_nothing() -> None:
    alike = [b[:1].repeat(4, 1) for b in prompts(8)]
    assert compare_variety(prompts(8), alike) is None


def test_one_degenerate_prompt_of_the_base_does_not_outweigh_the_others() -> None:
    base = prompts(16)
    base[3] = base[3][:1].repeat(4, 1)
    found = compare_variety(prompts(16, seed=1), base)
    assert found is not None
    assert 0.5 < found.ratio < 2


def test_a_shift_of_style_is_no_loss_of_variety() -> None:
    base = prompts(16)
    found = compare_variety([b + 100 for b in base], base)
    assert found is not None
    assert found.ratio == pytest.approx(1, abs=1e-3)


def test_what_cosines_hide_the_kernel_shows() -> None:
    """Rows at a cosine of .97: cosine says little was lost, the kernel says all was."""
    base = [0.2 * b + 3 for b in prompts(16)]
    alike = [b[:1].repeat(4, 1) for b in base]
    cosine = float(vendi(alike[0], order=2)) / float(vendi(base[0], order=2))
    found = compare_variety(alike, base)
    assert found is not None
    assert cosine > 0.9
    assert found.ratio < 0.02


def test_six_prompts_are_tested_over_seeds() -> None:
    base, narrow = prompts(2, n=24), prompts(2, 0.2, seed=5, n=24)
    found = compare_variety(narrow, base)
    assert found is not None
    assert found.over_seeds
    assert found.p < 0.01
    assert found.high < 0.5
    same = compare_variety(prompts(2, seed=6, n=24), base)
    assert same is not None
    assert same.p > 0.01


def test_over_seeds_another_style_of_equal_variety_is_not_narrower() -> None:
    base = prompts(1, n=24)
    found = compare_variety([b + 50 for b in prompts(1, seed=9, n=24)], base)
    assert found is not None
    assert found.p > 0.01


def test_the_spectrum_is_the_same_from_either_side() -> None:
    x = rows(40, 12).double()  # more rows than columns: the 12 x 12 side
    unit = torch.nn.functional.normalize(x)
    for order in ORDERS:
        assert float(vendi(x, order=order)) == pytest.approx(
            float(vendi_from_kernel(unit @ unit.T, order)), rel=1e-9
        )


@pytest.mark.parametrize("fall", [1.0, 4.0])
@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_many_rows_in_single_precision_read_as_they_do_in_double(fall: float, order: float) -> None:
    spectrum = torch.arange(1, 33, dtype=torch.float64) ** (-fall / 2)
    many = rows(9000, 32) * spectrum
    single = float(vendi(many.float(), order=order))
    assert single == pytest.approx(float(vendi(many, order=order)), rel=1e-5)


def test_rows_that_count_double_are_rows_there_twice() -> None:
    x = rows(6)
    shares = torch.tensor([2.0, 1, 1, 1, 1, 1]) / 7
    twice = torch.cat([x[:1], x])
    for bandwidth in (None, 2.0):
        assert float(vendi(x, order=1, shares=shares, bandwidth=bandwidth)) == pytest.approx(
            float(vendi(twice, order=1, bandwidth=bandwidth)), rel=1e-6
        )


def test_a_truncated_number_settles_where_the_whole_one_grows() -> None:
    few, many = rows(64, 256), rows(1024, 256)
    whole = float(vendi(many, order=1) / vendi(few, order=1))
    cut = float(truncated_vendi(many, keep=8) / truncated_vendi(few, keep=8))
    assert whole > 2.5
    assert cut == pytest.approx(1, abs=0.05)


def test_truncation_that_keeps_all_changes_nothing() -> None:
    x = rows(10)
    assert float(truncated_vendi(x, keep=10, bandwidth=3.0)) == pytest.approx(
        float(vendi(x, order=1, bandwidth=3.0)), rel=1e-6
    )


def test_what_follows_from_the_prompt_is_not_variety() -> None:
    # Three prompts; first each with one picture repeated, then each with four unlike ones.
    prompts = torch.block_diag(*[torch.ones(4, 4)] * 3)
    alike = torch.block_diag(*[torch.ones(4, 4)] * 3)
    unlike = torch.eye(12)
    for order in (1, 2):
        assert float(conditional_vendi(alike, prompts, order=order)) == pytest.approx(1)
        assert float(conditional_vendi(unlike, prompts, order=order)) == pytest.approx(4)


def test_the_mass_that_truncation_leaves_out_is_spread_evenly() -> None:
    # Eigenvalues .5, .3, .2: of two kept, (.5 + .1, .3 + .1), and exp(H(.6, .4)) = 1.96.
    x = torch.eye(3).repeat_interleave(torch.tensor([5, 3, 2]), 0)
    assert float(truncated_vendi(x, keep=2)) == pytest.approx(1.9601, abs=1e-3)
