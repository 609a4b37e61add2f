"""Adapters that changed nothing must not alarm; planted collapse must, by its right name.

Twenty nulls on the pocket itself: updates of zero, random updates of a tiny norm, and the base
against itself at other seeds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from variegate import encoders, recipes, seeds
from variegate.adapter import Adapter, LayerUpdate, attach
from variegate.images import ImageSet, Picture
from variegate.measure import PlannedPrompt, gather, measure, prompt_plan
from variegate.measurement import Verdict
from variegate.models import DiffusionModel, load
from variegate.recipe import LoraPlan
from variegate.recipes import read
from variegate.sample import Request, sample

pytestmark = pytest.mark.slow
COLLAPSE = {"narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying"}
TRAIN = Path(recipes.__file__).parent.parent / "demo" / "pictures"
FIRST = {"zero": 0, "tiny": 1, "other seeds": 10}


@pytest.fixture(scope="module")
def pocket() -> DiffusionModel:
    return load("pocket")


@pytest.fixture(scope="module")
def plan() -> tuple[PlannedPrompt, ...]:
    return prompt_plan("face", "zqx", preset="standard", pocket=True)


def adapter_of(model: DiffusionModel, number: int, *, norm: float) -> Adapter:
    """A rank-4 adapter whose every update has this share of a thousandth of unit norm."""
    on = attach(model, LoraPlan(rank=4), seed=number)
    blank = on.adapter({})
    on.detach()
    layers = {}
    for name, layer in blank.layers.items():
        up = torch.randn(layer.up.shape, generator=seeds.at(number, "null", name))
        size = float((up @ layer.down).norm())
        layers[name] = LayerUpdate(layer.down, up * (norm / size if norm else 0.0), layer.alpha)
    return Adapter(blank.family, layers, {})


def draw(
    model: DiffusionModel,
    plan: tuple[PlannedPrompt, ...],
    out: Path,
    *,
    adapter: Adapter | None = None,
    shift: int = 0,
) -> ImageSet:
    asked = [
        Request(p.adapter_prompt if adapter else p.base_prompt, seed + shift, p.group)
        for p in plan
        for seed in p.seeds
    ]
    return sample(model, adapter, asked, plan=read("pocket").sampling, out=out)


@pytest.fixture(scope="module")
def base(
    pocket: DiffusionModel,
    plan: tuple[PlannedPrompt, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> ImageSet:
    return draw(pocket, plan, tmp_path_factory.mktemp("base"))


def judged(ours: ImageSet, base: ImageSet) -> Verdict:
    return measure(
        gather(
            ours,
            base,
            encoders=[encoders.load("pocket")],
            train_images=ImageSet.read(TRAIN),
            trigger="zqx",
            class_noun="face",
        )
    )


@pytest.mark.parametrize("number", range(20))
def test_a_null_adapter_raises_no_alarm(
    pocket: DiffusionModel,
    plan: tuple[PlannedPrompt, ...],
    base: ImageSet,
    tmp_path: Path,
    number: int,
) -> None:
    if number < FIRST["other seeds"]:
        adapter = adapter_of(pocket, number, norm=0.0 if number < FIRST["tiny"] else 1e-3)
        ours = draw(pocket, plan, tmp_path, adapter=adapter)
    else:
        ours = draw(pocket, plan, tmp_path, shift=1000 * number)
    assert not set(judged(ours, base).labels) & COLLAPSE


def replaced(base: ImageSet, files: list[Path], out: Path) -> ImageSet:
    """The base's pictures with each file's content taken from the given ones, in turn."""
    out.mkdir()
    pictures = []
    for i, picture in enumerate(base):
        at = out / f"{i:04d}.png"
        shutil.copyfile(files[i % len(files)], at)
        pictures.append(Picture(**{**vars(picture), "file": at}))
    return ImageSet(tuple(pictures), str(out))


def test_one_picture_everywhere_is_narrowed(base: ImageSet, tmp_path: Path) -> None:
    first = base.pictures[0].file
    assert first is not None
    labels = judged(replaced(base, [first], tmp_path / "one"), base).labels
    assert {"narrowed", "trigger-narrowed"} <= set(labels)


def test_copies_of_training_pictures_are_copying(base: ImageSet, tmp_path: Path) -> None:
    files = [p.file for p in ImageSet.read(TRAIN) if p.file is not None]
    assert "copying" in judged(replaced(base, files, tmp_path / "copies"), base).labels
