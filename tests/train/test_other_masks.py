"""Masks that do not come from the pixels: the base's attention, and a segmenter the user has."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import write_tiny_sd

from variegate.bench import world
from variegate.errors import RecipeError
from variegate.images import ImageSet, Picture
from variegate.models import load
from variegate.recipe import Recipe
from variegate.train.attention import attention_map, laid_out
from variegate.train.data import read_training_set
from variegate.train.masks import mask_from_map


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load("pocket")


def scenes(count: int) -> list[world.Scene]:
    rng = np.random.default_rng(5)
    return [
        world.draw_scene(rng, world.BASE_SUBJECTS, size="large", pattern="plain")
        for _ in range(count)
    ]


def test_the_base_attends_to_the_subject_at_its_noun_more_than_to_the_ground(pocket: Any) -> None:
    inside, outside = [], []
    for scene in scenes(12):
        pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
        map_ = attention_map(pocket, pixels, f"a {scene.subject}", scene.subject)
        assert map_ is not None
        assert (float(map_.min()), float(map_.max())) == (0, 1)
        truth = torch.from_numpy(world.render_mask(scene)) > 0.5
        inside.append(float(map_[truth].mean()))
        outside.append(float(map_[~truth].mean()))
    assert np.mean(inside) > np.mean(outside) + 0.15


def test_looking_at_attention_leaves_the_model_as_it_was_and_repeats(pocket: Any) -> None:
    latents = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    words = pocket.embed(["a dog"])
    pixels = torch.from_numpy(world.render(scenes(1)[0])).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        before = pocket.predict(latents, torch.tensor([500]), words)
    kinds = {name: type(p) for name, p in pocket.unet.attn_processors.items()}
    first = attention_map(pocket, pixels, "a toy on the left", "toy")
    again = attention_map(pocket, pixels, "a toy on the left", "toy")
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert {name: type(p) for name, p in pocket.unet.attn_processors.items()} == kinds
    with torch.no_grad():
        assert torch.equal(pocket.predict(latents, torch.tensor([500]), words), before)
    assert attention_map(pocket, pixels, "a toy", "camera") is None


def test_a_layers_places_are_laid_out_row_by_row_in_the_pictures_shape() -> None:
    for height, width, rows, columns in (
        (6, 10, 6, 10),
        (6, 10, 3, 5),
        (5, 9, 3, 5),
        (16, 8, 4, 2),
    ):
        places = torch.arange(rows * columns).float()
        grid = laid_out(places, height, width)
        assert grid.shape == (rows, columns)
        assert torch.equal(grid[0], places[:columns])


def test_a_wide_picture_has_a_wide_map(tmp_path: Path) -> None:
    model = load(str(write_tiny_sd(tmp_path / "base")))
    pixels = torch.rand(3, 48, 80, generator=torch.Generator().manual_seed(0))
    map_ = attention_map(model, pixels, "a dog", "dog")
    assert map_ is not None
    assert map_.shape == (48, 80)


def test_what_stands_out_of_a_map_is_the_mask_and_nothing_is_none() -> None:
    map_ = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 0.2
    map_[10:30, 20:50] += 0.8
    mask = mask_from_map(map_)
    assert mask is not None
    truth = torch.zeros(64, 64)
    truth[10:30, 20:50] = 1
    assert torch.equal(mask, truth)
    dot = torch.zeros(64, 64)
    dot[3, 3] = 1
    assert mask_from_map(dot) is None


def noise_picture(folder: Path) -> ImageSet:
    """One picture in whose pixels no subject can be found."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "a.png")
    return ImageSet((Picture("a.png", folder / "a.png"),), str(folder))


def test_attention_is_asked_only_where_the_pixels_do_not_tell(tmp_path: Path, pocket: Any) -> None:
    def notes(images: ImageSet, unsure: str) -> str:
        recipe = Recipe.build({"masks": {"unsure": unsure}, "class_noun": "toy"})
        found = read_training_set(
            images, recipe, side=64, pocket=True, needs_masks=True, base=pocket
        )
        return next(note for note in found.notes if note.startswith("masks:"))

    lost = noise_picture(tmp_path)
    assert "1 not found" in notes(lost, "whole")
    assert notes(lost, "attention") == "masks: 1 by the base's attention"
    Image.fromarray(world.render(scenes(1)[0])).save(tmp_path / "a.png")
    assert notes(lost, "attention") == "masks: 1 found in the pixels"


@pytest.fixture
def rembg(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands for rembg: the left half of any picture is the subject."""
    asked: list[dict[str, Any]] = []
    module = ModuleType("rembg")

    def new_session(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return "session"

    def remove(picture: Image.Image, *, session: str, only_mask: bool) -> Image.Image:
        assert (session, only_mask) == ("session", True)
        mask = Image.new("L", picture.size, 0)
        mask.paste(255, (0, 0, picture.width // 2, picture.height))
        return mask

    vars(module).update(new_session=new_session, remove=remove)
    monkeypatch.setitem(sys.modules, "rembg", module)
    return asked


def test_a_segmenter_is_opened_on_the_users_file_and_hand_drawn_masks_still_win(
    tmp_path: Path, rembg: list[dict[str, Any]]
) -> None:
    weights = tmp_path / "u2net.onnx"
    weights.write_bytes(b"weights")
    recipe = Recipe.build({"masks": {"segmenter": str(weights)}})

    def mask(images: ImageSet) -> torch.Tensor:
        found = read_training_set(images, recipe, side=64, pocket=True, needs_masks=True)
        return found.train[0].shot.mask

    images = noise_picture(tmp_path)
    left = mask(images)
    assert float(left[:, :32].min()) == 1
    assert float(left[:, 32:].max()) == 0
    assert rembg == [{"name": "u2net_custom", "model_path": str(weights)}]
    Image.new("L", (64, 64), 255).save(tmp_path / "m.png")
    drawn = Picture("a.png", tmp_path / "a.png", mask_file=tmp_path / "m.png")
    assert float(mask(ImageSet((drawn,), "")).min()) == 1


def test_a_segmenter_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise_picture(tmp_path)

    def read(file: Path) -> None:
        recipe = Recipe.build({"masks": {"segmenter": str(file)}})
        read_training_set(images, recipe, side=64, pocket=True, needs_masks=True)

    with pytest.raises(RecipeError, match=r"missing\.onnx': found no such file; expected an ONNX"):
        read(tmp_path / "missing.onnx")
    (tmp_path / "u2net.pth").write_bytes(b"")
    with pytest.raises(RecipeError, match="a file of another kind"):
        read(tmp_path / "u2net.pth")
    (tmp_path / "u2net.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(RecipeError, match=r"not installed; install variegate\[masks\]"):
        read(tmp_path / "u2net.onnx")
