"""What training promises beside resuming: it starts at the base, and watching changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures

from variegate import formats, seeds
from variegate.errors import NoSpace, NotFinite, RecipeError
from variegate.models import Conditioning, load
from variegate.recipe import AdamW
from variegate.train import result, train
from variegate.train.optimizers import rate_at


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("train")
    write_tiny_sd(
        folder / "base",
        "v_prediction",
        autoencoder="tiny",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


def test_zero_terminal_snr_with_every_strategy_learns_finite_weights(
    place: Path, model: Any, tmp_path: Path
) -> None:
    before = model.predict(*question(model))
    recipe = tiny_recipe(place / "base", place / "images", strategies=EVERYTHING)
    run = train(recipe, out=tmp_path / "run", model=model)
    assert result(run)["step"] == 8
    assert torch.equal(model.predict(*question(model)), before)
    probes = run.read_journal("probe")
    assert [e["step"] for e in probes] == [0, 4, 8]
    first = {m["name"]: m["value"] for m in probes[0]["measurements"]}
    none_yet = ("held_out_gap", "bits", "update", "one_step_copying")
    for name, value in first.items():
        assert value == pytest.approx(0 if name.startswith(none_yet) else 1, abs=1e-5), name
    assert {n for n in first if n.startswith("one_step")} == {
        "one_step_variety.class",
        "one_step_variety.trigger",
        "one_step_copying.trigger",
    }
    assert set(run.read_journal("step")[0]["terms"]) == {"pictures", "stay_near"}


def question(model: Any) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=seeds.at(0, "question"))
    with torch.no_grad():
        return latents, torch.tensor([0, 999]), model.embed(["a zqx", ""])


def test_watching_does_not_change_what_is_watched(place: Path, model: Any, tmp_path: Path) -> None:
    ends = []
    for every in (1, 100):
        recipe = tiny_recipe(
            place / "base",
            place / "images",
            optimizer={"steps": 3},
            adapter={"dropout": 0.3},
            probes={"every": every},
            checkpoints={"every": every},
        )
        run = train(recipe, out=tmp_path / str(every), model=model)
        ends.append(formats.read(run.adapter_file).layers)
    assert all(torch.equal(ends[0][n].up, ends[1][n].up) for n in ends[0])


def test_the_global_generator_is_left_as_it_was(place: Path, model: Any, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    recipe = tiny_recipe(
        place / "base", place / "images", optimizer={"steps": 2}, adapter={"dropout": 0.3}
    )
    train(recipe, out=tmp_path / "run", model=model)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_float32_factors(
    place: Path, model: Any, tmp_path: Path, precision: str
) -> None:
    recipe = tiny_recipe(
        place / "base", place / "images", optimizer={"steps": 2}, precision=precision
    )
    run = train(recipe, out=tmp_path / "run", model=model)
    layers = formats.read(run.adapter_file).layers
    assert {u.down.dtype for u in layers.values()} == {torch.float32}
    assert all(bool(u.up.isfinite().all()) for u in layers.values())


def test_nan_stops_the_run_names_the_picture_and_keeps_the_last_good_checkpoint(
    place: Path, tmp_path: Path
) -> None:
    model = load(str(place / "base"))
    recipe = tiny_recipe(place / "base", place / "images")

    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 4:
            model.unet.conv_out.bias.data.fill_(float("nan"))

    with pytest.raises(NotFinite, match=r"step 5 is not a number on pictures 0\d\.png") as stopped:
        train(recipe, out=tmp_path / "run", model=model, say=say)
    assert "last checkpoint stands" in str(stopped.value)
    assert (tmp_path / "run/checkpoints/step-000003/manifest.json").exists()
    assert not (tmp_path / "run/adapter.safetensors").exists()


def test_a_full_disk_keeps_earlier_checkpoints(
    place: Path, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    recipe = tiny_recipe(place / "base", place / "images")

    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 4:
            monkeypatch.setattr("variegate.train.checkpoint._sync", full)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(NoSpace, match="No space left on device; it takes about"):
        train(recipe, out=tmp_path / "run", model=model, say=say)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]


def test_few_pictures_hold_none_out_and_a_missing_trigger_is_told(
    place: Path, model: Any, tmp_path: Path
) -> None:
    images = write_pictures(tmp_path / "images", 3)
    (images / "00.txt").write_text("a robot")
    recipe = tiny_recipe(place / "base", images, optimizer={"steps": 1})
    run = train(recipe, out=tmp_path / "run", model=model)
    notes = " ".join(e["text"] for e in run.read_journal("note"))
    assert "there are 3, and below 5" in notes
    assert "1 of 3 captions do not name the trigger 'zqx'" in notes
    names = [m["name"] for m in run.read_journal("probe")[0]["measurements"]]
    assert not any("held_out" in name for name in names)


def test_grounds_are_drawn_from_the_base_once(place: Path, model: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        place / "base",
        place / "images",
        optimizer={"steps": 1},
        sampling={"steps": 2},
        strategies={"new_background": {"source": "base", "count": 2, "p": 1.0}},
    )
    run = train(recipe, out=tmp_path / "run", model=model)
    drawn = sorted((run.folder / "grounds").glob("*.png"))
    assert len(drawn) == 2
    before = [file.stat().st_mtime_ns for file in drawn]
    run.adapter_file.unlink()
    train(recipe, out=tmp_path / "run", model=model)
    assert [file.stat().st_mtime_ns for file in drawn] == before


def test_an_impossible_resolution_is_refused_with_a_possible_one(
    place: Path, model: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe(place / "base", place / "images", resolution=100)
    with pytest.raises(RecipeError, match="multiples of 64, such as 128"):
        train(recipe, out=tmp_path / "run", model=model)


def test_the_rate_warms_up_and_falls() -> None:
    plan = AdamW(lr=1.0, steps=10, warmup=4, schedule="cosine")
    rates = [rate_at(step, plan) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert rate_at(7, AdamW(lr=1.0)) == 1.0
