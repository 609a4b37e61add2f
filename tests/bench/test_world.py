"""The world: scenes are data, pictures are functions of them, captions say what is there."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.bench import world


def scenes(n: int, *, subjects: tuple[str, ...] = world.SUBJECTS) -> list[world.Scene]:
    rng = np.random.default_rng(41)
    return [world.draw_scene(rng, subjects) for _ in range(n)]


def test_a_scene_always_renders_the_same_picture() -> None:
    for scene in scenes(20):
        assert np.array_equal(world.render(scene), world.render(scene))


def test_changing_any_factor_changes_the_picture() -> None:
    rng = np.random.default_rng(1)
    scene = world.draw_scene(rng, ("owl",), colour="red", pattern="plain", size="small", dx=0)
    changes = {
        "subject": "frog",
        "colour": "blue",
        "pattern": "dotted",
        "size": "large",
        "position": "top" if scene.position != "top" else "left",
        "flip": not scene.flip,
    }
    for factor, value in changes.items():
        other = world.Scene(**{**vars(scene), factor: value})
        assert not np.array_equal(world.render(scene), world.render(other)), factor


def test_the_mask_is_where_the_subject_changes_the_ground() -> None:
    for scene in scenes(40):
        ground = np.round(world.paint_background(world.COLOURS[scene.colour], scene.pattern) * 255)
        changed = np.abs(world.render(scene).astype(float) - ground).max(-1) > 2
        assert not changed[world.render_mask(scene) == 0].any()


def test_every_subject_has_a_class_and_the_held_out_ones_are_apart() -> None:
    assert len(world.BASE_SUBJECTS) >= 64
    assert len(world.HELD_OUT) >= 12
    assert not set(world.BASE_SUBJECTS) & set(world.HELD_OUT)
    for noun, members in world.CLASSES.items():
        assert set(members) & set(world.BASE_SUBJECTS), noun
        assert all(world.CLASS_OF[m] == noun for m in members)


@pytest.mark.parametrize("factor", ["colour", "pattern", "size", "position"])
def test_a_caption_names_a_factor_when_told_to_and_only_then(factor: str) -> None:
    rng = np.random.default_rng(2)
    for scene in scenes(60):
        value = getattr(scene, factor)
        named = world.caption(scene, named=frozenset({factor}), rng=rng)
        silent = world.caption(scene, named=frozenset(), rng=rng)
        assert value in named
        assert scene.subject in silent
        assert len(silent.split()) <= 5


def test_captions_of_the_base_never_name_a_held_out_subject() -> None:
    rng = np.random.default_rng(3)
    text = " ".join(world.draw_caption(s, rng) for s in scenes(2000, subjects=world.BASE_SUBJECTS))
    assert not set(text.replace(",", "").split()) & set(world.HELD_OUT)
    for noun in world.CLASSES:
        assert noun in text
