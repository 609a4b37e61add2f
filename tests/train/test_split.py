"""Held-out pictures: enough of them to ask, few enough to spare, and no twin on the other side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from variegate.bench import world
from variegate.recipe import HeldOut
from variegate.train.split import Split, split


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(world.render(world.draw_scene(rng))) for _ in range(count)]


def parted(pictures: list[Image.Image], *, seed: int = 0, share: float = 0.15) -> Split:
    hashes = [str(hash(picture.tobytes())) for picture in pictures]
    return split(pictures, hashes, HeldOut(share=share), seed=seed)


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_twins_are_never_on_both_sides_of_the_split(share: float) -> None:
    first = scenes(7)
    again = [first[0].copy(), ImageOps.mirror(first[1]), first[2].resize((80, 80)), first[0].copy()]
    pictures = [*first, *again]
    twins = ({0, 7, 10}, {1, 8}, {2, 9})
    held = set()
    for seed in range(20):
        parts = parted(pictures, seed=seed, share=share)
        assert sorted(parts.train + parts.held_out) == list(range(11))
        for family in twins:
            assert family <= set(parts.train) or family <= set(parts.held_out)
        held |= set(parts.held_out)
    assert held == {3, 4, 5, 6}  # single pictures are spared first


@pytest.mark.parametrize("count", range(5, 31))
def test_of_5_to_30_pictures_one_to_four_are_left_out_and_never_more_than_a_fifth(
    count: int,
) -> None:
    parts = parted(scenes(count))
    k = len(parts.held_out)
    assert 1 <= k <= 4
    assert k <= count / 5
    assert parts.why == f"held out {k} of {count} pictures"
    assert parted(scenes(count)) == parts
    assert sorted(parts.train + parts.held_out) == list(range(count))


@pytest.mark.parametrize("count", [1, 4])
def test_below_5_pictures_none_is_held_out_and_that_is_said(count: int) -> None:
    parts = parted(scenes(count))
    assert (parts.train, parts.held_out) == (tuple(range(count)), ())
    assert f"there are {count}, and below 5 each is needed for training" in parts.why
    assert "variety of first guesses" in parts.why


def test_copies_do_not_make_few_pictures_many() -> None:
    four = scenes(4)
    parts = parted([*four, *(ImageOps.mirror(p) for p in four), *(p.copy() for p in four)])
    assert parts.held_out == ()
    assert "there are 12, 4 of them different, and below 5" in parts.why


def test_pictures_that_all_have_a_twin_are_held_out_with_it() -> None:
    six = scenes(6)
    parts = parted([*six, *(p.copy() for p in six)])
    assert len(parts.held_out) == 2
    assert parts.held_out[1] == parts.held_out[0] + 6
    assert "held out 2 of 12 pictures (1 of 6 after joining twins)" in parts.why


def test_a_recipe_can_ask_for_none() -> None:
    assert parted(scenes(9), share=0).held_out == ()
