"""Pictures drawn while training: the same questions each time, and nothing is changed by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures

from variegate import formats
from variegate.errors import NotFinite, RecipeError
from variegate.images import ImageSet
from variegate.models import load
from variegate.recipe import Panels, Recipe, SamplingPlan
from variegate.run import Run
from variegate.sample import grid, sample
from variegate.train import resume, train
from variegate.train.panels import cadence, requests

PROMPTS = ["a photo of a zqx", "a photo of a face", "a zqx in the snow"]
PANELS = {"every": 3, "pictures": 2, "steps": 2, "prompts": ["a zqx in the snow"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("panels")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


def drawing(place: Path, **entries: Any) -> Recipe:
    """All that draws numbers, with panels at steps 3, 6 and 8."""
    asked: dict[str, Any] = {
        "strategies": EVERYTHING,
        "adapter": {"dropout": 0.2, "text_encoder": True},
        "optimizer": {"lr": 1e-2},
        "sampling": {"guidance_scale": 3.0},
        "panels": PANELS,
    }
    return tiny_recipe(place / "base", place / "images", **{**asked, **entries})


@pytest.fixture(scope="module")
def drawn(place: Path, model: Any) -> Run:
    return train(drawing(place), out=place / "drawn", model=model)


def learnt(run: Run) -> dict[str, torch.Tensor]:
    layers = formats.read(run.adapter_file).layers
    return {f"{n}.{k}": getattr(u, k) for n, u in layers.items() for k in ("up", "down")}


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(p.open(), np.int16) for p in ImageSet.read(folder)])


def test_panels_change_no_bit_of_what_is_learnt(
    place: Path, model: Any, drawn: Run, tmp_path: Path
) -> None:
    state = torch.random.get_rng_state()
    without = train(drawing(place, panels=None), out=tmp_path / "run", model=model)
    one, other = learnt(drawn), learnt(without)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[line["loss"] for line in run.read_journal("step")] for run in (drawn, without)]
    assert losses[0] == losses[1]
    assert not without.samples.exists()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_look_asks_the_same_and_is_noted(drawn: Run) -> None:
    noted = drawn.read_journal("panel")
    assert [(line["step"], line["path"]) for line in noted] == [
        (0, "samples/panels/base"),
        (3, "samples/panels/step-000003"),
        (6, "samples/panels/step-000006"),
        (8, "samples/panels/step-000008"),
    ]
    for line in noted:
        there = ImageSet.read(drawn.folder / line["path"])
        assert [(p.prompt, p.seed) for p in there] == [(x, s) for x in PROMPTS for s in (0, 1)]
        assert [p.group for p in there] == ["trigger"] * 2 + ["class"] * 2 + [None] * 2


def test_panels_are_what_sampling_gives_with_those_weights(
    drawn: Run, model: Any, tmp_path: Path
) -> None:
    plan = SamplingPlan(steps=2, guidance_scale=3.0)
    for adapter, panel in (
        (None, drawn.panel(None)),
        (formats.read(drawn.adapter_file), drawn.panel(8)),
    ):
        out = tmp_path / panel.name
        sample(model, adapter, grid(PROMPTS, range(2)), plan=plan, out=out)
        assert np.abs(pixels(out) - pixels(panel)).max() <= 2
    moved = np.abs(pixels(drawn.panel(8)) - pixels(drawn.panel(None)))
    assert (moved.max((1, 2, 3)) > 2).all()


def test_a_resumed_run_draws_nothing_twice(
    place: Path, model: Any, drawn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            drawing(place, checkpoints={"every": 5}), out=tmp_path / "run", model=model, say=crash
        )
    run = Run.open(tmp_path / "run")
    for left in run.checkpoints.glob("step-000008/*"):
        left.unlink()  # it goes on from step 5, and comes to 6 and 8 again

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a picture was drawn anew")

    monkeypatch.setattr("variegate.sample.draw.denoise", fail)
    resume(run.folder, model=model)
    assert run.read_journal("start")[-1]["step"] == 5
    paths = [line["path"] for line in run.read_journal("panel")]
    assert paths == [line["path"] for line in drawn.read_journal("panel")]
    assert all(torch.equal(x, learnt(drawn)[name]) for name, x in learnt(run).items())


def test_a_picture_that_comes_to_nothing_is_told_and_the_run_goes_on(
    place: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotFinite("the picture turned NaN")

    monkeypatch.setattr("variegate.train.panels.sample", fail)
    recipe = drawing(place, strategies={}, optimizer={"steps": 3})
    run = train(recipe, out=tmp_path / "run", model=model)
    assert run.adapter_file.exists()
    assert not run.read_journal("panel")
    notes = " ".join(line["text"] for line in run.read_journal("note"))
    assert "the base's panel could not be drawn: the picture turned NaN" in notes
    assert "the panel of step 3 could not" in notes


def test_drawing_takes_a_tenth_of_a_runs_time_in_whole_looks() -> None:
    plan = Panels()
    for batch_size, looks, every in ((1, 20, 400), (4, 30, 120), (1, 1000, 1000)):
        recipe = Recipe.build({"optimizer": {"batch_size": batch_size}})
        assert cadence(recipe, plan, 6, looks=looks) == every
        assert every % looks == 0
        assert 6 * plan.steps * 2 <= 0.1 * 3 * batch_size * every
    unguided = Recipe.build({"sampling": {"guidance_scale": 1.0}})
    assert cadence(unguided, plan, 6, looks=20) == 200
    assert cadence(unguided, Panels(every=7), 6, looks=20) == 7


def test_what_is_asked_is_trigger_and_class_else_the_recipes_prompts_else_nothing() -> None:
    both = requests(Recipe(trigger="zqx", class_noun="dog", seed=5), Panels(), pocket=True)
    assert [(r.prompt, r.seed) for r in both] == [
        (prompt, seed) for prompt in ("a zqx", "a dog") for seed in (5, 6, 7)
    ]
    own = requests(Recipe(), Panels(prompts=("a hill",), pictures=1), pocket=True)
    assert [(r.prompt, r.seed, r.group) for r in own] == [("a hill", 0, "")]
    assert [r.prompt for r in requests(Recipe(), Panels(pictures=1), pocket=False)] == [""]


def test_panels_are_switched_on_and_off_by_a_setting() -> None:
    assert Recipe().panels is None
    on = Recipe.build(settings=("panels=on", "panels.pictures=2"))
    assert on.panels == Panels(pictures=2)
    assert Recipe.build(on.model_dump(), settings=("panels=off",)).panels is None
    with pytest.raises(RecipeError, match=r"panels.picture: no such key; did you mean 'pictures'"):
        Recipe.build(settings=("panels.picture=2",))


def test_pictures_are_decoded_in_the_autoencoders_own_precision(model: Any) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.decode(latents)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.decode(latents), plain)
