from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from variegate.measure.paired import summarise_gap
from variegate.measure.uncertainty import (
    bca_interval,
    binomial_interval,
    binomial_p,
    holm,
    jackknife,
    sign_flip_p,
)


def test_flips_of_few_values_are_counted_out() -> None:
    assert sign_flip_p([-1.0] * 7) == 2**-7
    assert sign_flip_p([-1.0, -2.0, 3.0]) == 5 / 8  # sums -6 -4 -2 0 0 2 4 6 against 0
    assert sign_flip_p([-1.0] * 7, tail="greater") == 1
    assert sign_flip_p([]) == 1


def test_flips_of_many_values_are_drawn_the_same_each_time() -> None:
    values = list(np.random.default_rng(0).normal(-0.3, 1, 40))
    assert sign_flip_p(values) == sign_flip_p(values)
    assert 0.01 < sign_flip_p(values) + sign_flip_p(values, tail="greater") < 1.01
    assert sign_flip_p([-1.0] * 40) == 1e-4


def test_the_flip_test_holds_its_level() -> None:
    rng = np.random.default_rng(1)
    p = np.asarray([sign_flip_p(list(rng.normal(size=9))) for _ in range(600)])
    assert np.mean(p < 0.05) < 0.08


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(150):
        low, high = bca_interval(list(rng.normal(1, 1, 24)))
        held += low <= 1 <= high
    assert held / 150 > 0.88


def test_an_interval_of_equal_values_is_a_point() -> None:
    assert bca_interval([0.5] * 8) == (0.5, 0.5)
    assert bca_interval([0.5]) == (0.5, 0.5)
    rounded = [0.3, *[0.1 + 0.2] * 11]
    assert bca_interval(rounded) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(("prompts", "pictures"), [(1, 16), (6, 4), (7, 4)])
def test_few_prompts_do_not_make_chance_surer(prompts: int, pictures: int) -> None:
    """A prompt's pictures of the base are not a known number but drawn like the adapter's."""
    rng, alarms, held = np.random.default_rng(4), 0, 0
    for _ in range(200):
        ours, theirs = rng.normal(size=(2, prompts, pictures)).tolist()
        found = summarise_gap(ours, theirs)
        alarms += found.p < 0.05
        held += found.low <= 0 <= found.high
    assert alarms / 200 < 0.08
    assert held / 200 > 0.84


def test_a_gap_is_of_all_pictures_where_models_drew_unlike_numbers() -> None:
    found = summarise_gap([[1.0, 3.0], [5.0]], [[1.0], [2.0, 3.0]])
    assert (found.value, found.prompts) == (1.75, 2)
    many = summarise_gap([[1.0, 3.0]] * 8, [[1.0]] * 8)
    assert (many.value, many.low, many.high) == (1.0, 1.0, 1.0)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    x = np.random.default_rng(0).normal(size=15)
    ((value, low, high),) = jackknife(lambda kept: [x[list(kept)].mean()], 15)
    known = stats.t.interval(0.95, 14, x.mean(), stats.sem(x))
    assert (low, high) == pytest.approx(known)
    assert value == x.mean()
    assert jackknife(lambda kept: [float(len(kept))], 2) == [(2.0, None, None)]


def test_the_jackknife_in_parts_covers_the_truth_of_a_number_that_is_no_mean() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        x = rng.normal(size=(64, 4))
        ((_, low, high),) = jackknife(lambda kept, x=x: [float(x[list(kept)].std())], 64)
        hits += low <= 1 <= high
    assert 0.9 <= hits / 300 <= 0.985


def test_exact_shares_by_hand() -> None:
    low, high = binomial_interval(0, 64)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 64)))
    assert binomial_interval(64, 64)[1] == 1
    assert binomial_p(0, 64, rate=0.005) == pytest.approx(1)
    assert binomial_p(1, 64, rate=0.005) == pytest.approx(1 - 0.995**64)
    assert binomial_p(3, 64, rate=0.005) < 0.01 < binomial_p(2, 64, rate=0.005)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {
        "a": pytest.approx(0.03),
        "c": pytest.approx(0.06),
        "b": pytest.approx(0.06),
    }
    assert holm({}) == {}
