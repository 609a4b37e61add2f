"""Every strategy, switched on alone by its name, trains the pocket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.scenes import write_pictures

from variegate import formats, recipes
from variegate.models import load
from variegate.recipe import Strategies
from variegate.train import train

SMALL = (
    *("optimizer.steps=3", "optimizer.batch_size=2", "probes.every=3", "probes.triples=3"),
    *("probes.noises=2", "variants=2", "sampling.steps=2", "guard.mode=watch"),
)
# What would draw or look longer than a story needs.
LESS = {
    "new_background": ("strategies.new_background.count=2",),
    "prior_pictures": ("strategies.prior_pictures.count=2",),
}


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load("pocket")


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", sorted(Strategies.model_fields))
def test_each_strategy_alone_trains_the_pocket(
    name: str, pocket: Any, images: Path, tmp_path: Path
) -> None:
    recipe = recipes.read(
        "pocket-plain",
        settings=(*SMALL, f"strategies.{name}=on", *LESS.get(name, ())),
        images=str(images),
        trigger="zqx",
        class_noun="face",
    )
    assert getattr(recipe.strategies, name) is not None
    run = train(recipe, out=tmp_path / "run", model=pocket)
    learnt = formats.read(run.adapter_file).layers.values()
    assert all(bool(update.up.isfinite().all()) for update in learnt)
    assert any(bool(update.up.any()) for update in learnt)
    steps = run.read_journal("step")
    assert [line["step"] for line in steps] == [1, 2, 3]
    if name in ("stay_near", "layout_prior", "prior_pictures", "low_rank"):
        assert all(name in line["terms"] for line in steps)
