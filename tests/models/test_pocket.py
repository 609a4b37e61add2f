"""The shipped pocket: a plain diffusers folder that does what its words say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from variegate.bench import judge, world
from variegate.models import DiffusionModel, load, sd
from variegate.recipe import SamplingPlan
from variegate.recipes import read
from variegate.sample import grid, sample

FOLDER = Path(sd.__file__).parent / "pocket"
FACTORS = ("colour", "pattern", "size", "position")


def test_the_pocket_is_small_and_holds_no_pickle() -> None:
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 16 * 2**20
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    assert (FOLDER / "README.md").is_file()


@pytest.mark.filterwarnings("default")
def test_diffusers_loads_the_pocket_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline("an owl", num_inference_steps=3, guidance_scale=2.0, output_type="np")
    assert out.images.shape == (1, 64, 64, 3)
    assert np.isfinite(out.images).all()


@pytest.fixture(scope="module")
def pocket() -> DiffusionModel:
    return load("pocket")


def pictures(model: DiffusionModel, prompts: list[str], seeds: int, out: Path) -> judge.Reading:
    plan: SamplingPlan = read("pocket").sampling
    drawn = sample(model, None, grid(prompts, range(seeds)), plan=plan, out=out)
    return judge.read([np.asarray(p.open()) for p in drawn])


def test_named_factors_are_followed(pocket: DiffusionModel, tmp_path: Path) -> None:
    """The card's thresholds less what 160 samples may stray by chance (about 3 errors)."""
    rng = np.random.default_rng(43)
    scenes = [world.draw_scene(rng) for _ in range(160)]
    prompts = [world.caption(s, named=frozenset(FACTORS)) for s in scenes]
    reading = pictures(pocket, prompts, 1, tmp_path)
    least = {"subject": 0.84, "colour": 0.91, "pattern": 0.84, "size": 0.78, "position": 0.66}
    for factor, share in least.items():
        values = zip(reading.values[factor], scenes, strict=True)
        right = np.mean([v == getattr(s, factor) for v, s in values])
        assert right >= share, factor


def test_what_a_prompt_leaves_out_stays_varied(pocket: DiffusionModel, tmp_path: Path) -> None:
    reading = pictures(pocket, ["an animal", "a picture of a toy"], 64, tmp_path)
    for factor in FACTORS:
        assert reading.entropy(factor) >= 0.85, factor
