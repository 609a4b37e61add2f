"""What is asked of a run while it learns: it answers, and learns what it would have learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures

from variegate import formats
from variegate.errors import Interrupted, NoSpace
from variegate.images import ImageSet
from variegate.models import load
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import result, resume, train


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("control")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    return tiny_recipe(
        place / "base",
        place / "images",
        strategies=EVERYTHING,
        adapter={"dropout": 0.2, "text_encoder": True},
        sampling={"guidance_scale": 3.0, "steps": 2},
    )


@pytest.fixture(scope="module")
def undisturbed(place: Path, model: Any, recipe: Recipe) -> Run:
    return train(recipe, out=place / "undisturbed", model=model)


def asking(folder: Path, step: int, *asked: Any) -> Any:
    """Somebody who asks these things after a step."""

    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == step:
            for what in asked:
                Run.ask(folder, what)

    return say


def same(one: Path, other: Path) -> bool:
    ours, theirs = formats.read(one).layers, formats.read(other).layers
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[n].up, theirs[n].up) and torch.equal(ours[n].down, theirs[n].down)
        for n in ours
    )


def test_what_is_asked_changes_no_bit_of_what_is_learnt(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run
) -> None:
    folder = tmp_path / "run"
    say = asking(folder, 2, "sample", "keep")
    run = train(recipe, out=folder, model=model, say=say)
    assert same(run.adapter_file, undisturbed.adapter_file)
    losses = [[x["loss"] for x in r.read_journal("step")] for r in (run, undisturbed)]
    assert losses[0] == losses[1]
    assert not (folder / "control.json").exists()
    assert [(x["step"], x["path"]) for x in run.read_journal("kept")] == [
        (3, "kept/step-000003.safetensors")
    ]
    assert formats.read(run.kept(3)).layers.keys() == formats.read(run.adapter_file).layers.keys()
    assert [x["step"] for x in run.read_journal("panel")] == [0, 3]
    assert len(ImageSet.read(run.panel(3))) == len(ImageSet.read(run.panel(None)))


def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped by request after step 5 of 8") as stopped:
        train(recipe, out=folder, model=model, say=asking(folder, 4, "stop"))
    assert stopped.value.exit_code == 130
    assert result(Run.open(folder))["stopped_because"] == "request"
    Run.ask(folder, "stop")  # nobody is at work: it is not for the next one
    assert same(resume(folder, model=model).adapter_file, undisturbed.adapter_file)


def test_things_are_asked_once_and_what_is_no_order_asks_nothing(
    tmp_path: Path, recipe: Recipe
) -> None:
    run = Run.create(tmp_path / "run", recipe)
    assert run.asked() == []
    for what in ("sample", "keep", "sample"):
        Run.ask(run.folder, what)  # type: ignore[arg-type]
    assert run.asked() == ["keep", "sample"]
    assert run.asked() == []
    for text in ("", "{", "[]", '{"asked": 1}', '{"asked": ["rm -rf", "stop"]}'):
        (run.folder / "control.json").write_text(text)
        assert run.asked() == (["stop"] if "stop" in text else [])
    with pytest.raises(NoSpace, match=r"control\.json cannot be written"):
        Run.ask(tmp_path / "nowhere", "stop")
