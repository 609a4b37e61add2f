"""Each augmentation does what its name says, and the mask goes along with the subject."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from variegate.bench import world
from variegate.recipe import Recipe
from variegate.train.frame import Frame
from variegate.train.strategies import Shot, Strategy, cook
from variegate.train.strategies.affine import warp
from variegate.train.strategies.colour import recolour
from variegate.train.strategies.crop import hold

GROUND = (250, 220, 70)
FRAME = Frame((128, 128), (64, 64), (0, 0), (64, 64))


def one(name: str, **settings: Any) -> Strategy:
    return cook(Recipe.build({"strategies": {name: settings}}))[name]


def robot(size: str = "medium", position: str = "center") -> Shot:
    """A robot on plain yellow, which it has none of."""
    scene = world.Scene("robot", "yellow", "plain", size, position)
    pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
    return Shot(pixels, torch.from_numpy(world.render_mask(scene)), True, FRAME)


def stands_out(shot: Shot) -> torch.Tensor:
    """Where the pixels are not the yellow ground."""
    return (shot.pixels - torch.tensor(GROUND)[:, None, None] / 255).abs().amax(0) > 0.1


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("name", ["crop", "affine"])
@pytest.mark.parametrize("position", ["center", "top left", "right"])
def test_the_mask_goes_with_the_subject_and_the_ground_stays_whole(
    name: str, position: str
) -> None:
    strategy = one(name, p=1.0)
    for variant in range(8):
        moved = strategy.alter(robot(position=position), ("a.png", variant))
        assert overlap(moved.mask > 0.5, stands_out(moved)) > 0.85
        assert moved.pixels.min() >= 0
        assert moved.pixels.max() <= 1


def test_a_picture_is_turned_counter_clockwise_about_its_subject() -> None:
    pixels = torch.zeros(3, 65, 65)
    pixels[0, 31:34, 36:60] = 1  # a bar to the right of the middle
    mask = torch.zeros(65, 65)
    mask[24:41, 24:41] = 1
    turned, moved, _ = warp(pixels, mask, degrees=90.0, shear=0.0)
    assert turned[0, 6:28, 31:34].min() > 0.9  # points up now
    assert turned[0, :, 36:].max() < 0.1
    torch.testing.assert_close(moved, mask, atol=1e-3, rtol=0)
    same, _, covered = warp(pixels, mask, degrees=0.0, shear=0.0)
    torch.testing.assert_close(same, pixels, atol=1e-5, rtol=0)
    assert bool(covered.all())


def test_a_lean_moves_what_is_above_and_below_the_subject_apart() -> None:
    pixels = torch.zeros(3, 64, 64)
    pixels[:, :, 32] = 1
    leaning, _, _ = warp(pixels, torch.ones(64, 64), degrees=0.0, shear=20.0)
    top, bottom = (float(leaning[0, row].argmax()) for row in (4, 59))
    assert (bottom - top) / 55 == pytest.approx(np.tan(np.radians(20)), abs=0.03)


def test_no_rotation_shows_the_subject_twice_or_a_black_corner() -> None:
    strategy = one("affine", p=1.0, rotation=40.0)
    for variant in range(6):
        turned = strategy.alter(robot("large"), ("a.png", variant))
        corners = turned.pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        ground = torch.tensor(GROUND)[:, None] / 255
        torch.testing.assert_close(corners, ground.expand(3, 4), atol=0.05, rtol=0)
        _, parts = ndimage.label(ndimage.binary_opening(stands_out(turned).numpy()))
        assert parts == 1


def test_a_crop_is_bigger_tells_its_frame_and_holds_the_subject() -> None:
    strategy = one("crop", p=1.0, area_min=0.5)
    grown = []
    for variant in range(20):
        whole = robot("small", "top left")
        part = strategy.alter(whole, ("a.png", variant))
        grown.append(float(part.mask.sum() / whole.mask.sum()))
        # Nothing of the subject is lost: the part's mask is the whole mask, stretched.
        assert part.frame is not None
        down, across = (a / b for a, b in zip(part.frame.scaled, (64, 64), strict=True))
        assert grown[-1] == pytest.approx(down * across, rel=0.1)
        assert part.frame.original == (128, 128)
        assert part.frame.size == (64, 64)
    assert max(grown) > 1.5
    assert min(grown) >= 0.95


def test_a_window_holds_the_subject_or_lies_within_it() -> None:
    profile = torch.zeros(10)
    profile[3:6] = 1
    assert [hold(profile, 5, start) for start in (0, 2, 5)] == [1, 2, 3]
    assert [hold(profile, 2, start) for start in (0, 3, 8)] == [3, 3, 4]
    assert hold(torch.zeros(10), 5, 4) == 4


def test_a_mirrored_frame_counts_from_the_other_side() -> None:
    frame = Frame((100, 200), (64, 128), (0, 20), (64, 64))
    assert frame.mirrored() == replace(frame, corner=(0, 44))
    assert frame.mirrored().mirrored() == frame


def test_colours_change_as_named() -> None:
    picture = robot().pixels
    torch.testing.assert_close(recolour(picture), picture)
    torch.testing.assert_close(recolour(picture, brightness=-0.5), picture / 2)
    gray = recolour(picture, saturation=-1.0)
    torch.testing.assert_close(gray[0], gray[2], atol=1e-5, rtol=0)
    flat = recolour(picture, contrast=-0.5)
    assert float(flat.std() / picture.std()) < 0.8
    red = torch.tensor([0.8, 0.1, 0.1])[:, None, None].expand(3, 4, 4)
    third = recolour(red, turns=1 / 3)
    torch.testing.assert_close(third, red[[2, 0, 1]], atol=0.01, rtol=0)


def test_colours_vary_within_their_limits_and_leave_the_mask() -> None:
    strategy, picture = one("colour", p=1.0, contrast=0, saturation=0, hue=0), robot()
    means = []
    for variant in range(30):
        other = strategy.alter(picture, ("a.png", variant))
        assert other.mask is picture.mask
        means.append(float(other.pixels[2].mean() / picture.pixels[2].mean()))
    assert 0.84 < min(means) < 0.93
    assert 1.07 < max(means) < 1.16


@pytest.mark.parametrize("fill", ["ground", "gray"])
def test_an_erased_rectangle_has_its_size_its_filling_and_no_subject(fill: str) -> None:
    strategy, picture = one("erase", p=1.0, area_min=0.05, area_max=0.1, fill=fill), robot("large")
    hit = 0
    for variant in range(20):
        erased = strategy.alter(picture, ("a.png", variant))
        changed = (erased.pixels != picture.pixels).any(0)
        lost = (picture.mask > 0) & (erased.mask == 0)
        assert not bool(erased.mask[changed].any())
        hit += int(lost.any())
        if fill == "gray":
            assert 0.045 * 4096 < int(changed.sum()) < 0.11 * 4096
            assert bool((erased.pixels[:, changed] == 0.5).all())
        elif lost.any():
            ground = torch.tensor(GROUND)[:, None] / 255
            assert float((erased.pixels[:, lost] - ground).abs().mean()) < 0.05
    assert hit > 10


def test_where_no_subject_was_found_the_whole_picture_goes_on_counting() -> None:
    unknown = replace(robot(), mask=torch.ones(64, 64), found=False)
    for name in ("crop", "affine", "colour", "erase"):
        altered = one(name, p=1.0).alter(unknown, ("a.png", 0))
        assert bool((altered.mask == 1).all()), name
        assert not altered.found
