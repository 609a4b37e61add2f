"""A run that was stopped, killed or damaged ends exactly where an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures

import variegate
from variegate import formats
from variegate.adapter import Adapter
from variegate.errors import Interrupted, RunError
from variegate.models import load
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import result, resume, train
from variegate.train.checkpoint import checkpoint_folders

CHILD = {**os.environ, "PYTHONPATH": str(Path(variegate.__file__).parents[1])}
CODE = textwrap.dedent(
    """
    import sys, torch
    from pathlib import Path
    torch.set_num_threads(int(sys.argv[2]))
    from variegate.errors import Interrupted
    from variegate.train import resume
    def say(phase, done, total, note):
        print(phase, done, flush=True)
    try:
        resume(Path(sys.argv[1]), say=say)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    """
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("train")
    write_tiny_sd(folder / "base")
    images = write_pictures(folder / "images")
    for name in ("01.png", "04.png"):  # of another shape, so that there are two buckets
        with Image.open(images / name) as picture:
            wide = picture.crop((0, 8, 64, 56))
        wide.save(images / name)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    """All that draws: strategies, dropout, both parts of the model, a schedule."""
    return tiny_recipe(
        place / "base",
        place / "images",
        strategies=EVERYTHING,
        adapter={"dropout": 0.2, "text_encoder": True},
        optimizer={"schedule": "cosine", "warmup": 2},
    )


@pytest.fixture(scope="module")
def undisturbed(place: Path, model: Any, recipe: Recipe) -> Run:
    return train(recipe, out=place / "undisturbed", model=model)


def same(a: Adapter, b: Adapter) -> bool:
    return a.layers.keys() == b.layers.keys() and all(
        torch.equal(a.layers[n].down, b.layers[n].down)
        and torch.equal(a.layers[n].up, b.layers[n].up)
        for n in a.layers
    )


def learnt(run: Run) -> Adapter:
    return formats.read(run.adapter_file)


class Stop(Exception):
    """Stands for a crash between two steps."""


def crash_after(step: int) -> Any:
    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == step:
            raise Stop

    return say


def crashed(recipe: Recipe, folder: Path, model: Any, step: int) -> Run:
    with pytest.raises(Stop):
        train(recipe, out=folder, model=model, say=crash_after(step))
    return Run.open(folder)


def test_the_run_learnt_something_and_says_so(undisturbed: Run) -> None:
    found = learnt(undisturbed)
    assert all(bool(u.up.any()) for n, u in found.layers.items() if n.startswith("unet"))
    assert any(n.startswith("text_encoder") for n in found.layers)
    assert found.metadata["modelspec.trigger_phrase"] == "zqx"
    assert result(undisturbed) == {
        "run": str(undisturbed.folder),
        "adapter": str(undisturbed.adapter_file),
        "checkpoint": str(undisturbed.checkpoints / "step-000008"),
        "step": 8,
        "chosen_step": 8,
        "stopped_because": "all steps done",
    }
    assert [p.name for p in checkpoint_folders(undisturbed.checkpoints)] == [
        "step-000008",
        "step-000006",
    ]


@pytest.mark.parametrize("step", [1, 7])
def test_a_crash_at_any_step_changes_no_bit_of_the_end(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run, step: int
) -> None:
    run = crashed(recipe, tmp_path / "run", model, step)
    resume(run.folder, model=model)
    assert same(learnt(run), learnt(undisturbed))
    steps = [(e["step"], e["loss"]) for e in run.read_journal("step")]
    assert steps == [(e["step"], e["loss"]) for e in undisturbed.read_journal("step")]


def test_a_finished_run_is_returned_at_once(undisturbed: Run) -> None:
    before = undisturbed.journal_file.read_bytes()
    again = resume(undisturbed.folder, say=lambda *_: pytest.fail("nothing is to be done"))
    assert result(again) == result(undisturbed)
    assert undisturbed.journal_file.read_bytes() == before


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run
) -> None:
    run = crashed(recipe, tmp_path / "run", model, 7)
    latest = checkpoint_folders(run.checkpoints)[0]
    data = bytearray((latest / "adapter.safetensors").read_bytes())
    data[-5] ^= 1
    (latest / "adapter.safetensors").write_bytes(bytes(data))
    (run.checkpoints / ".step-000009.tmp-dead").mkdir()
    resume(run.folder, model=model)
    assert same(learnt(run), learnt(undisturbed))
    notes = [e["text"] for e in run.read_journal("note")]
    assert any("step-000006" in n and "sha256" in n and "one before" in n for n in notes)
    assert not list(run.checkpoints.glob(".*"))
    assert run.read_journal("start")[-1]["step"] == 3


def test_changed_pictures_recipe_or_base_are_refused_with_the_difference(
    tmp_path: Path, place: Path, model: Any, recipe: Recipe
) -> None:
    images = write_pictures(tmp_path / "images")
    mine = recipe.model_copy(update={"images": str(images)})
    run = crashed(mine, tmp_path / "run", model, 3)
    (images / "02.txt").write_text("another caption")
    (images / "05.png").rename(images / "99.png")
    with pytest.raises(RunError) as refused:
        resume(run.folder, model=model)
    told = str(refused.value)
    assert "pictures added: 99.png" in told
    assert "pictures removed: 05.png" in told
    assert "changed: 02.png" in told
    (images / "02.txt").unlink()
    (images / "99.png").rename(images / "05.png")
    other = load(str(write_tiny_sd(tmp_path / "other", seed=1)))
    with pytest.raises(RunError, match="base model's weights"):
        resume(run.folder, model=other)
    text = (run.folder / "recipe.toml").read_text()
    (run.folder / "recipe.toml").write_text(text.replace("steps = 8", "steps = 9"))
    with pytest.raises(RunError, match=r"optimizer\.steps: 8 there, 9 asked"):
        resume(run.folder, model=model)


def test_kill_9_changes_no_bit_of_the_end(tmp_path: Path, recipe: Recipe, undisturbed: Run) -> None:
    run = Run.create(tmp_path / "run", recipe)
    command = [sys.executable, "-c", CODE, str(run.folder), str(torch.get_num_threads())]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CHILD)
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "train 4":
            time.sleep(0.02)  # anywhere in the steps that follow
            child.kill()
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert not run.adapter_file.exists()
    again = [sys.executable, "-m", "variegate", "train", "--resume", str(run.folder), "--quiet"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(again, check=True, env=CHILD | threads, stdout=subprocess.DEVNULL)
    assert same(learnt(run), learnt(undisturbed))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run, number: int, code: int
) -> None:
    folder = tmp_path / "my run"

    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 4:
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match=r"train --resume '.*my run'") as stopped:
        train(recipe, out=folder, model=model, say=say)
    assert stopped.value.exit_code == code
    run = Run.open(folder)
    assert result(run)["stopped_because"] == signal.Signals(number).name
    assert checkpoint_folders(run.checkpoints)[0].name in ("step-000004", "step-000005")
    resume(folder, model=model)
    assert same(learnt(run), learnt(undisturbed))
    assert result(run)["stopped_because"] == "all steps done"
