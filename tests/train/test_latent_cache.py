"""Latents on disk: the same bits as encoded, never stale, mended when damaged, bounded in size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import write_pictures

from variegate.images import ImageSet
from variegate.models import load
from variegate.recipe import Recipe
from variegate.train.data import Example, Latents, read_training_set
from variegate.train.latent_cache import LatentCache
from variegate.train.strategies import cook


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Any:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base"))))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def encodings(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the autoencoder was asked."""
    asked: list[int] = []
    encode = model.encode

    def counted(*given: Any) -> Any:
        asked.append(len(asked))
        return encode(*given)

    monkeypatch.setattr(model, "encode", counted)
    return asked


def prepared(place: Path, **entries: Any) -> tuple[Recipe, tuple[Example, ...]]:
    recipe = Recipe.build({"trigger": "zqx", "held_out": {"share": 0}, **entries})
    images = ImageSet.read(write_pictures(place / "images", 2))
    found = read_training_set(images, recipe, side=64, pocket=False, needs_masks=False)
    return recipe, found.train


def all_of(model: Any, recipe: Recipe, examples: tuple[Example, ...]) -> list[torch.Tensor]:
    latents = Latents(model, recipe, cook(recipe))
    return [
        latents.encoded(example, variant, mirrored=mirrored).latent
        for example in examples
        for variant in (-1, 0)
        for mirrored in (False, True)
    ]


def entries(place: Path) -> list[Path]:
    return sorted((place / "cache/latents").glob("*/*.safetensors"))


def test_a_second_run_reads_the_same_bits(place: Path, model: Any, encodings: list[int]) -> None:
    recipe, examples = prepared(place, strategies={"crop": {"p": 1.0}})
    first = all_of(model, recipe, examples)
    assert len(encodings) == len(entries(place)) == 8
    again = all_of(model, recipe, examples)
    assert len(encodings) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"strategies": {"crop": {"p": 1.0, "area_min": 0.3}}}],
    ids=["seed", "alteration"],
)
def test_what_would_be_encoded_otherwise_is_encoded(
    place: Path, model: Any, encodings: list[int], change: dict[str, Any]
) -> None:
    asked = {"strategies": {"crop": {"p": 1.0}}}
    all_of(model, *prepared(place, **asked))
    before = len(encodings)
    all_of(model, *prepared(place, **{**asked, **change}))
    # Another seed draws all anew; another alteration only the altered variants.
    assert len(encodings) == before + (8 if "seed" in change else 4)


def test_another_base_or_picture_has_entries_of_its_own(place: Path, model: Any) -> None:
    other = load(str(write_tiny_sd(place / "other", seed=1)))
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    files = {
        LatentCache(maker).file_of(x, seed)
        for maker in (model, other)
        for x in (pixels, pixels + 1e-3, pixels.reshape(3, 4, 16))
        for seed in (1, 2)
    }
    assert len(files) == 12


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "empty"])
def test_a_damaged_entry_is_made_anew(
    place: Path, model: Any, encodings: list[int], damage: str
) -> None:
    recipe, examples = prepared(place)
    first = all_of(model, recipe, examples)
    for file in entries(place):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(
            {"flipped bit": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage]
        )
    count = len(encodings)
    again = all_of(model, recipe, examples)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(encodings) == 2 * count
    all_of(model, recipe, examples)  # and what was made anew stands
    assert len(encodings) == 2 * count


def test_the_folder_is_bounded_and_what_was_used_longest_ago_goes(place: Path, model: Any) -> None:
    cache = LatentCache(model, place / "few", most_bytes=12_000)
    latent = torch.zeros(4, 16, 16)  # 4 kB and a header
    files = [place / "few" / "aa" / f"{i}.safetensors" for i in range(3)]
    for i, file in enumerate(files[:2]):
        cache.write(file, latent)
        os.utime(file, ns=(i, i))
    assert cache.read(files[0]) is not None  # which is used again
    cache.write(files[2], latent)
    assert [file.exists() for file in files] == [True, False, True]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    place: Path, model: Any, encodings: list[int]
) -> None:
    (place / "cache").write_text("a file where the folder should be")
    recipe, examples = prepared(place)
    assert len(all_of(model, recipe, examples)) == len(encodings) == 8


def test_the_pocket_keeps_nothing_on_disk(place: Path) -> None:
    pocket = load("pocket")
    recipe, examples = prepared(place)
    Latents(pocket, recipe, {}).encoded(examples[0])
    assert entries(place) == []
