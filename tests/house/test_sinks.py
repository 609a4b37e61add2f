"""A sink hears what the journal gains, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import RequestError
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.sinks import Follower, open_sink

MEASURED = [
    {"name": "held_out_gap", "value": 0.25, "low": 0.1, "high": 0.4},
    {"name": "one_step_variety.class", "missing": "no class noun"},
]


class Heard:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def numbers(self, found: dict[str, float], step: int) -> None:
        self.told.append((step, found))

    def text(self, words: str, step: int) -> None:
        self.told.append((step, words))

    def close(self) -> None:
        self.told.append("closed")


def test_a_follower_tells_new_whole_lines_once_and_only_those(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Recipe())
    run.journal("step", step=1, loss=9.0, lr=1e-4, terms={})
    heard = Heard()
    follower = Follower(run.journal_file, heard)
    run.journal("step", step=2, loss=0.5, lr=1e-4, terms={"pictures": 0.5})
    run.journal("probe", step=2, measurements=MEASURED)
    run.journal("note", text="a note")
    with run.journal_file.open("ab") as file:
        file.write(b'{"kind": "step", "step": 3, "lo')
    follower.catch_up()
    follower.catch_up()
    with run.journal_file.open("ab") as file:
        file.write(b'ss": 0.25, "lr": 0.5}\nnot json\n')
    follower.close()
    assert heard.told == [
        (2, {"train/loss": 0.5, "train/lr": 1e-4, "terms/pictures": 0.5}),
        (2, {"probe/held_out_gap": 0.25}),
        (2, "a note"),
        (3, {"train/loss": 0.25, "train/lr": 0.5}),
        "closed",
    ]


def test_tensorboard_is_written_beside_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            calls.append(log_dir)

        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            calls.append((name, value, global_step))

        def add_text(self, name: str, words: str, global_step: int) -> None:
            calls.append((name, words, global_step))

        def close(self) -> None:
            calls.append("closed")

    library = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    sink = open_sink("tensorboard", tmp_path)
    sink.numbers({"train/loss": 0.5}, 7)
    sink.text("why", 8)
    sink.close()
    assert calls == [
        str(tmp_path / "tensorboard"),
        ("train/loss", 0.5, 7),
        ("note", "why", 8),
        "closed",
    ]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_trackers_take_the_step_as_a_number(tmp_path: Path, monkeypatch: Any, package: str) -> None:
    calls: list[Any] = []
    library = SimpleNamespace(
        init=lambda **given: calls.append(given),
        log=calls.append,
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, package, library)
    sink = open_sink(package, tmp_path / "mine")
    sink.numbers({"train/loss": 0.5}, 7)
    sink.close()
    assert calls == [
        {"project": "variegate", "name": "mine"},
        {"train/loss": 0.5, "step": 7},
        "finished",
    ]


def test_a_sink_that_is_none_or_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: Any
) -> None:
    with pytest.raises(RequestError, match="'csv' is none of tensorboard, wandb, trackio"):
        open_sink("csv", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["train", str(tmp_path), "--out", str(tmp_path / "run"), "--sink", "wandb"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "pip install 'variegate[track]'" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
