from __future__ import annotations

import pytest
import torch
from torch import Tensor

from variegate.errors import FeaturesError
from variegate.measure.diversity import mean_pairwise_distance
from variegate.measure.memorisation import (
    authenticity,
    cluster_distance,
    data_copying,
    near_ratio,
    orbited,
    self_against_other,
)


def rows(n: int, d: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


TRAIN, HELD_OUT, FRESH = rows(60, seed=1), rows(60, seed=2), rows(128, seed=3)
COPIES = TRAIN[torch.arange(128) % 8] + 0.01 * rows(128, seed=4)


def test_copies_of_eight_orbit_eight() -> None:
    found = orbited(COPIES, TRAIN)
    assert (found.pictures, found.seen) == (8, 8)
    assert found.low == found.high == 8


def test_fresh_pictures_orbit_many_and_the_interval_says_how_sure() -> None:
    few, many = orbited(FRESH[:12], TRAIN), orbited(FRESH, TRAIN)
    assert many.pictures > 20
    assert few.high - few.low > many.high - many.low


def test_the_orbit_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth, generator = 12, torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        drawn = torch.randint(truth, (20,), generator=generator)
        found = orbited(TRAIN[drawn], TRAIN)
        held += found.low <= truth <= found.high
    assert held >= 186  # 95 % of 200 less two deviations


def test_copies_sit_on_one_training_picture_and_fresh_ones_between() -> None:
    assert near_ratio(COPIES, TRAIN) == 1
    assert near_ratio(FRESH, TRAIN) == 0


def test_copies_are_not_authentic() -> None:
    assert authenticity(COPIES, TRAIN) == 0
    assert authenticity(FRESH, TRAIN) > 0.3


def test_authenticity_takes_narrowing_for_copying() -> None:
    # Its known confusion, kept here so that nobody makes a gate of it.
    assert authenticity(0.6 * FRESH, TRAIN) < authenticity(FRESH, TRAIN) / 2


def test_data_copying_is_far_below_zero_for_copies_and_near_it_for_fresh_ones() -> None:
    assert data_copying(COPIES, TRAIN, HELD_OUT) < -5
    assert abs(data_copying(FRESH, TRAIN, HELD_OUT)) < 2
    assert data_copying(FRESH + 3, TRAIN, HELD_OUT) > 5


def test_a_shared_style_is_no_memory_and_an_own_caption_is() -> None:
    style = 5 * rows(1, seed=9)
    train, drawn_from = TRAIN + style, torch.arange(128) % 60
    general = self_against_other(FRESH + style, train, drawn_from)
    assert general.mean < 0
    assert general.locked < 0.1
    locked = self_against_other(TRAIN[drawn_from] + style, train, drawn_from)
    assert locked.mean > 0
    assert locked.locked == 1


def test_copies_have_no_distance_within_their_cluster_but_much_between() -> None:
    kept = mean_pairwise_distance(COPIES) / mean_pairwise_distance(FRESH)
    assert kept > 0.8
    assert cluster_distance(COPIES, TRAIN) < 0.05 * cluster_distance(FRESH, TRAIN)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(FeaturesError, match="no other"):
        self_against_other(FRESH[:1], TRAIN[:1], torch.zeros(1, dtype=torch.long))
    with pytest.raises(FeaturesError, match="two samples"):
        cluster_distance(TRAIN[:3], TRAIN)
