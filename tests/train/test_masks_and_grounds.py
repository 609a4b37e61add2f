"""Masks found in pixels against the world's true ones, and grounds that leave the subject be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from variegate import seeds
from variegate.bench import world
from variegate.train.masks import find_masks
from variegate.train.paint import continue_ground, lay_on, paint_ground


def scenes(pattern: str, size: str, count: int) -> list[world.Scene]:
    rng = np.random.default_rng(7)
    subjects = world.SUBJECTS
    return [world.draw_scene(rng, subjects, pattern=pattern, size=size) for _ in range(count)]


def pictures(drawn: list[world.Scene]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(world.render(s)).permute(2, 0, 1) for s in drawn])


@pytest.mark.parametrize("pattern", world.PATTERNS)
@pytest.mark.parametrize("size", list(world.SIZES))
def test_masks_agree_with_the_truth_on_every_ground(pattern: str, size: str) -> None:
    drawn = scenes(pattern, size, 30)
    masks, confidence = find_masks(pictures(drawn))
    truth = torch.stack([torch.from_numpy(world.render_mask(s)) for s in drawn]) > 0.5
    found = masks > 0.5
    iou = (truth & found).sum((1, 2)) / (truth | found).sum((1, 2))
    assert float(iou.mean()) >= 0.8
    assert float((confidence > 0).float().mean()) >= 0.96


def test_a_picture_without_a_subject_counts_as_a_whole() -> None:
    blank = torch.full((1, 3, 64, 64), 120, dtype=torch.uint8)
    noise = torch.randint(0, 255, (1, 3, 64, 64), generator=seeds.at(0, "n"), dtype=torch.uint8)
    masks, confidence = find_masks(torch.cat([blank, noise]))
    assert confidence.tolist() == [0.0, 0.0]
    assert bool((masks == 1).all())


def test_on_a_cluttered_ground_no_mask_is_believed() -> None:
    rng = np.random.default_rng(3)
    cluttered = []
    for scene in scenes("plain", "medium", 30):
        picture = world.render(scene)
        true = world.render_mask(scene)[..., None]
        ground = np.zeros_like(picture)
        for _ in range(60):
            y, x = rng.integers(0, 60, 2)
            h, w = rng.integers(4, 20, 2)
            ground[y : y + h, x : x + w] = rng.integers(0, 255, 3)
        mixed = true * picture + (1 - true) * ground
        cluttered.append(torch.from_numpy(mixed.astype(np.uint8)).permute(2, 0, 1))
    masks, confidence = find_masks(torch.stack(cluttered))
    lost = confidence == 0
    assert float(lost.float().mean()) > 0.6
    assert bool((masks[lost] == 1).all())


def test_large_pictures_keep_their_size() -> None:
    small = pictures(scenes("plain", "large", 1))
    large = small.repeat_interleave(5, -1).repeat_interleave(5, -2)[:, :, :, :300]
    masks, confidence = find_masks(large)
    assert masks.shape == (1, 320, 300)
    assert float(confidence[0]) > 0


@pytest.mark.parametrize("pattern", world.PATTERNS)
def test_a_continued_ground_is_the_ground_that_was_hidden(pattern: str) -> None:
    errors = []
    for scene in scenes(pattern, "large", 5):
        pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
        hole = torch.from_numpy(world.render_mask(scene) > 0)
        ground = torch.from_numpy(world._background(scene.colour, pattern)).permute(2, 0, 1)
        filled = continue_ground(pixels, hole=hole.float(), usable=1 - hole.float())
        assert torch.equal(filled[:, ~hole], pixels[:, ~hole])
        errors.append(float((filled - ground)[:, hole].abs().mean()))
    assert np.mean(errors) < 0.02


def test_painted_grounds_differ_and_stay_in_range() -> None:
    grounds = [paint_ground((64, 48), seeds.at(0, "ground", i)) for i in range(40)]
    assert all(g.shape == (3, 64, 48) and g.min() >= 0 and g.max() <= 1 for g in grounds)
    assert torch.stack([g.mean((1, 2)) for g in grounds]).std(0).min() > 0.1


def test_the_subject_is_laid_on_whole_and_without_its_old_edge() -> None:
    scene = scenes("plain", "large", 1)[0]
    pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
    mask = torch.from_numpy(world.render_mask(scene))
    ground = torch.zeros(3, 64, 64)
    laid = lay_on(pixels, mask, ground)
    inside = mask > 0.9
    torch.testing.assert_close(laid[:, inside], pixels[:, inside] * mask[inside], atol=1e-6, rtol=0)
    assert not bool(laid[:, mask == 0].any())
