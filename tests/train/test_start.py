"""A run that goes on from somebody's adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate import formats
from variegate.adapter import attach_from, attached
from variegate.errors import AdapterError, RunError
from variegate.models import load
from variegate.recipe import LoraPlan, Recipe
from variegate.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("start")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


@pytest.fixture(scope="module")
def theirs(place: Path, model: Any) -> Path:
    """An adapter of another rank and alpha than any recipe here asks for."""
    more = {"rank": 3, "alpha": 6.0, "text_encoder": True}
    recipe = tiny_recipe(place / "base", place / "images", adapter=more)
    return train(recipe, out=place / "theirs", model=model).adapter_file


def going_on(place: Path, start: Path, **entries: Any) -> Recipe:
    adapter = {"rank": 2, "start": str(start), **entries.pop("adapter", {})}
    return tiny_recipe(place / "base", place / "images", adapter=adapter, **entries)


def test_it_answers_as_that_adapter_before_the_first_step(model: Any, theirs: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    latents, t = torch.randn(1, 4, 8, 8, generator=rng), torch.tensor([500])
    adapter = formats.read(theirs)
    with torch.no_grad():
        with attached(model, adapter):
            before = model.predict(latents, t, model.embed(["a zqx"]))
        on = attach_from(model, adapter, LoraPlan())
        try:
            after = model.predict(latents, t, model.embed(["a zqx"]))
            with on.silenced():
                base = model.predict(latents, t, model.embed(["a zqx"]))
        finally:
            on.detach()
    assert torch.equal(before, after)
    assert not torch.equal(base, after)


def test_it_is_learnt_further_with_its_own_ranks_and_layers(
    place: Path, model: Any, theirs: Path, tmp_path: Path
) -> None:
    run = train(going_on(place, theirs), out=tmp_path / "run", model=model)
    before, after = formats.read(theirs).layers, formats.read(run.adapter_file).layers
    assert set(before) == set(after)
    assert {update.rank for update in after.values()} == {3}
    moved = {n for n in before if not torch.equal(before[n].up, after[n].up)}  # type: ignore[attr-defined]
    assert any(name.startswith("unet.") for name in moved)
    assert any(name.startswith("text_encoder.") for name in moved)


def test_another_file_in_its_place_is_refused_and_so_is_another_kind(
    place: Path, model: Any, theirs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "copy.safetensors"
    file.write_bytes(theirs.read_bytes())
    recipe = going_on(place, file)
    train(recipe, out=tmp_path / "run", model=model)
    adapter = formats.read(theirs)
    name = next(iter(adapter.layers))
    other = {**adapter.layers, name: adapter.layers[name].scaled(2.0)}
    formats.write(replace(adapter, layers=other), file)
    (tmp_path / "run" / "adapter.safetensors").unlink()
    with pytest.raises(RunError, match="the adapter it began from"):
        train(recipe, out=tmp_path / "run", model=model)
    dora = going_on(place, theirs, adapter={"kind": "dora"})
    with pytest.raises(
        AdapterError, match=r"adapter\.start is a lora and the recipe asks for dora"
    ):
        train(dora, out=tmp_path / "dora", model=model)


def test_a_file_that_is_not_there_is_told(place: Path, model: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nowhere"):
        train(going_on(place, tmp_path / "nowhere.safetensors"), out=tmp_path / "run", model=model)
