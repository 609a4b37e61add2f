"""A run that goes on from somebody's adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_sd, write_tiny_sdxl
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


def test_somebodys_lora_of_xl_is_gone_on_with_under_the_original_names(
    place: Path, tmp_path: Path
) -> None:
    """Names and parts as kohya's trainer for XL writes them, of ranks and alphas of its own."""
    base = write_tiny_sdxl(tmp_path / "xl")
    xl = load(str(base))
    stems = {
        "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_k": (32, 40),
        "lora_unet_middle_block_1_proj_in": (32, 32),
        "lora_unet_input_blocks_1_1_transformer_blocks_0_ff_net_2": (16, 64),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (32, 16),
        "lora_te2_text_model_encoder_layers_1_self_attn_out_proj": (24, 24),
    }
    stored = {}
    for rank, (stem, (out, inputs)) in enumerate(stems.items(), start=1):
        stored[f"{stem}.lora_down.weight"] = torch.randn(rank, inputs)
        stored[f"{stem}.lora_up.weight"] = torch.randn(out, rank) * 0.01
        stored[f"{stem}.alpha"] = torch.tensor(1.5)
    file = tmp_path / "theirs.safetensors"
    save_file(stored, file, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    recipe = tiny_recipe(
        *(base, place / "images"),
        adapter={"rank": 2, "start": str(file)},
        optimizer={"steps": 2},
        strategies={},
    )
    run = train(recipe, out=tmp_path / "run", model=xl)
    before, after = formats.read(file).layers, formats.read(run.adapter_file).layers
    assert set(after) == set(before)
    assert {n: u.rank for n, u in after.items()} == {n: u.rank for n, u in before.items()}
    assert any(not torch.equal(u.up, after[n].up) for n, u in before.items())  # type: ignore[attr-defined]
    keys = set(load_file(run.adapter_file))
    assert keys == set(stored)
