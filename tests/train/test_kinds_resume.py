"""Runs of every way of keeping a kind end, after a crash, exactly where undisturbed ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.scenes import write_pictures

from variegate import formats
from variegate.models import load
from variegate.recipe import Recipe, SamplingPlan
from variegate.run import Run
from variegate.sample import Request, sample
from variegate.train import resume, train
from variegate.train.checkpoint import checkpoint_folders, read_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alphas": {"attn2": 3.0}, "dropout": 0.2},
    "dora": {"rank": 4},
    "lokr": {"rank": 4, "dropout": 0.1},
    "tlora": {"rank": 4, "dropout": 0.2},
}


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load("pocket")


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> Path:
    return write_pictures(tmp_path_factory.mktemp("kinds") / "images", 3)


class Stop(Exception):
    """Stands for a crash between two steps."""


def crash(phase: str, done: int, total: int, note: str) -> None:
    if phase == "train" and done == 1:
        raise Stop


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_changes_no_bit_of_the_end(
    kind: str, pocket: Any, images: Path, tmp_path: Path
) -> None:
    recipe = Recipe.build(
        {
            "images": str(images),
            "trigger": "zqx",
            "class_noun": "face",
            "variants": 1,
            "adapter": {"kind": kind, **KINDS[kind]},
            "optimizer": {"lr": 1e-3, "steps": 2},
            "checkpoints": {"every": 1},
            "probes": {"every": 50, "triples": 1},
        }
    )
    whole = train(recipe, out=tmp_path / "whole", model=pocket)
    with pytest.raises(Stop):
        train(recipe, out=tmp_path / "run", model=pocket, say=crash)
    run = Run.open(tmp_path / "run")
    resume(run.folder, model=pocket)
    ends = [formats.read(r.adapter_file) for r in (whole, run)]
    assert ends[0].kind == kind
    assert ends[0].digest() == ends[1].digest()
    last = [read_checkpoint(checkpoint_folders(r.checkpoints)[0]) for r in (whole, run)]
    for key, tensor in last[0].optimizer.items():
        assert torch.equal(tensor, last[1].optimizer[key])
    kept = bool(last[0].adapter.factors)
    assert kept == (kind in ("lora", "tlora"))  # what a file would not give back to the bit
    if kind == "tlora":
        _sample_masked(pocket, ends[0], tmp_path)


def _sample_masked(pocket: Any, found: Any, folder: Path) -> None:
    """The door to sampling takes masks without knowing of them."""
    plan = SamplingPlan(steps=2)
    drawn = sample(pocket, found, [Request("zqx", 0)], plan=plan, out=folder / "drawn")
    assert len(drawn.pictures) == 1
    assert not pocket.unet._forward_pre_hooks
