"""What can be picked: checkpoints of any trainer, in their order."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.blend.random_adapters import random_adapter

from variegate import formats
from variegate.errors import RequestError
from variegate.pick.points import checkpoints_of, grid, place_of


@pytest.mark.parametrize(
    ("name", "noted", "step", "order"),
    [
        ("owl-step00000500", "", 500, 500),  # kohya, by steps
        ("owl-000004", "", None, 4),  # kohya, by epochs
        ("owl-000004", "800", 800, 800),
        ("owl", "", None, math.inf),  # kohya's last
        ("owl", "1600", 1600, 1600),
        ("checkpoint-500", "", 500, 500),  # diffusers
        ("owl_000000500", "", 500, 500),  # ai-toolkit
        ("owl-2025-01-01_10-00-00-save-500-5-0", "", 500, 500),  # OneTrainer
        ("step-000060", "", 60, 60),
        ("owl_v2", "", None, math.inf),
        ("owl", "9" * 40, None, math.inf),
        ("owl", "²", None, math.inf),
    ],
)
def test_a_checkpoint_knows_its_step(name: str, noted: str, step: int | None, order: float) -> None:
    assert place_of(name, {"ss_steps": noted} if noted else {}) == (step, order)


def test_a_folder_of_any_trainer_is_read_in_order(tmp_path: Path) -> None:
    for number, name in enumerate(("owl-000002", "owl-000010", "owl")):
        formats.write(random_adapter(number), tmp_path / f"{name}.safetensors")
    formats.write(random_adapter(7), tmp_path / "checkpoint-1" / "pytorch_lora_weights.safetensors")
    formats.write(random_adapter(2), tmp_path / "twice.safetensors")
    save_file(
        {"exp_avg": random_adapter(0).delta(next(iter(random_adapter(0).layers)))},
        tmp_path / "optimizer.safetensors",
    )
    (tmp_path / "notes.txt").write_text("no adapter")
    found, told = checkpoints_of(tmp_path)
    assert [c.name for c in found] == ["checkpoint-1", "owl-000002", "owl-000010", "owl"]
    assert any("optimizer.safetensors" in line for line in told)
    assert any("twice.safetensors holds what owl holds" in line for line in told)
    few, told = checkpoints_of(tmp_path, most=2)
    assert [c.name for c in few] == ["checkpoint-1", "owl"]
    assert "2 of 4 checkpoints are looked at, evenly spread" in told


def test_what_holds_no_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no folder"):
        checkpoints_of(tmp_path / "nowhere")
    (tmp_path / "old.safetensors").write_bytes(b"not one")
    with pytest.raises(RequestError, match=r"(?s)holds no checkpoint.*old\.safetensors"):
        checkpoints_of(tmp_path)


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    formats.write(random_adapter(0), tmp_path / "owl.safetensors")
    found, _ = checkpoints_of(tmp_path)
    assert len(grid(found, (0.6, 1.0, 1.0), (1.0, 7.5))) == 4
    for strengths, scales, words in (
        ((0.0,), (1.0,), "strength 0; expected"),
        ((float("nan"),), (1.0,), "strength nan"),
        ((1.0,), (0.5,), "guidance scale 0.5; expected"),
        ((1.0,), (), "one guidance scale at least"),
    ):
        with pytest.raises(RequestError, match=words):
            grid(found, strengths, scales)
