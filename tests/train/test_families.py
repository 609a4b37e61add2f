"""Every family learns with every strategy, resumes, and is sampled with what it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures
from torch import Tensor

from variegate import formats, seeds
from variegate.errors import BaseError, RecipeError
from variegate.models import load
from variegate.recipe import Flip, SamplingPlan
from variegate.sample import Request, sample
from variegate.train import result, resume, train
from variegate.train.checkpoint import latest_checkpoint
from variegate.train.data import Latents
from variegate.train.frame import Frame
from variegate.train.strategies.flip import MirrorPictures

WRITERS: dict[str, Any] = {"sdxl": write_tiny_sdxl, "sd3": write_tiny_sd3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_family_learns_with_every_strategy_and_is_sampled_with_it(
    kind: str, images: Path, tmp_path: Path
) -> None:
    base = WRITERS[kind](tmp_path / kind)
    recipe = tiny_recipe(
        base,
        images,
        strategies=EVERYTHING,
        adapter={"layers": "attention+feedforward", "text_encoder": True},
        optimizer={"lr": 1e-2, "steps": 3},
        checkpoints={"every": 2},
        probes={"every": 3},
    )
    model = load(str(base))
    run = train(recipe, out=tmp_path / "run", model=model)
    assert result(run)["step"] == 3
    assert all(np.isfinite(entry["loss"]) for entry in run.read_journal("step"))
    measurements = run.read_journal("probe")[-1]["measurements"]
    assert all(np.isfinite(m["value"]) for m in measurements)
    learnt = formats.read(run.adapter_file)
    assert learnt.family == kind
    parts = {name.partition(".")[0] for name in learnt.layers}
    network = "transformer" if kind == "sd3" else "unet"
    assert parts == {network, "text_encoder", "text_encoder_2"}
    for part in parts:
        ups = [u.up for n, u in learnt.layers.items() if n.startswith(f"{part}.")]
        assert any(bool(up.any()) for up in ups), part
    checkpoint, faults = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    assert not faults
    plan = SamplingPlan(steps=2, guidance_scale=3.0)
    bare, own = (
        np.asarray(
            sample(model, adapter, [Request("a zqx", 0)], plan=plan, out=tmp_path / name)
            .pictures[0]
            .open()
        ).astype(int)
        for name, adapter in (("bare", None), ("own", learnt))
    )
    assert np.abs(bare - own).max() > 2


@pytest.mark.parametrize("kind", WRITERS)
def test_a_resumed_run_of_a_family_is_one_that_never_stopped(
    kind: str, images: Path, tmp_path: Path
) -> None:
    base = WRITERS[kind](tmp_path / kind)
    recipe = tiny_recipe(
        base,
        images,
        strategies={"stay_near": {}},
        adapter={"text_encoder": True, "dropout": 0.2},
        optimizer={"steps": 3},
        checkpoints={"every": 2},
        probes={"every": 9, "triples": 3},
    )
    model = load(str(base))
    whole = train(recipe, out=tmp_path / "whole", model=model)

    def crash(phase: str, done: int, total: int, note: str) -> None:
        if (phase, done) == ("train", 2):
            raise RuntimeError("pulled")

    with pytest.raises(RuntimeError, match="pulled"):
        train(recipe, out=tmp_path / "torn", model=model, say=crash)
    resumed = formats.read(resume(tmp_path / "torn", model=model).adapter_file).layers
    expected = formats.read(whole.adapter_file).layers
    assert resumed.keys() == expected.keys()
    for name, update in expected.items():
        assert torch.equal(resumed[name].down, update.down), name
        assert torch.equal(resumed[name].up, update.up), name


def test_a_flow_is_trained_on_its_own_levels_towards_noise_less_picture(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network is asked at a step is the noised picture at the drawn sigma, and the loss of
    a fresh adapter is its distance from noise - x0."""
    model = load(str(write_tiny_sd3(tmp_path / "base", t5=False)))
    recipe = tiny_recipe(
        tmp_path / "base", images, optimizer={"steps": 1}, probes={"every": 9, "triples": 3}
    )
    asked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    predict = model.predict

    def noting(latents: Any, timesteps: Any, words: Any) -> Any:
        answer = predict(latents, timesteps, words)
        asked.append((latents.detach(), timesteps, answer.detach()))
        return answer

    monkeypatch.setattr(model, "predict", noting)
    run = train(recipe, out=tmp_path / "run", model=model)
    t = model.schedule.draw(2, seeds.at(recipe.seed, "timesteps", 1))
    noised, _, answer = next(a for a in asked if torch.equal(a[1], t))
    noise = torch.randn(noised.shape, generator=seeds.at(recipe.seed, "noise", 1))
    sigma = (t / 1000).view(-1, 1, 1, 1)
    clean = (noised - sigma * noise) / (1 - sigma)
    loss = (answer - (noise - clean)).square().mean()
    assert run.read_journal("step")[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


PHOTOS = ((100, 60), (60, 100), (200, 80), (64, 64))  # width, height


def write_photos(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(PHOTOS):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def heard(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, list[list[float]]]]:
    """The timesteps and sizes of every call of the network from here on."""
    calls: list[tuple[Tensor, list[list[float]]]] = []
    predict = model.predict

    def noting(latents: Any, timesteps: Any, words: Any) -> Any:
        calls.append((timesteps.clone(), words.sizes.tolist()))
        return predict(latents, timesteps, words)

    monkeypatch.setattr(model, "predict", noting)
    return calls


def test_each_row_is_told_its_own_picture_as_diffusers_training_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle of a picture resized to 64 on its short side: original size, corner, target, in
    the order and type of the pipeline's own `_get_add_time_ids`; mirrored, the corner moves."""
    base = write_tiny_sdxl(tmp_path / "base")
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    theirs = {}
    for i, (width, height) in enumerate(PHOTOS):
        short = min(width, height)
        scaled = tuple(round(side * 64 / short) for side in (height, width))
        for mirrored in (False, True):
            top, left = ((side - 64) // 2 for side in scaled)
            left = scaled[1] - 64 - left if mirrored else left
            ids = pipeline._get_add_time_ids(
                (height, width), (top, left), (64, 64), torch.float32, 12
            )
            theirs[f"{i}.png", mirrored] = ids[0].tolist()
    assert len({tuple(ids) for ids in theirs.values()}) > len(PHOTOS)
    recipe = tiny_recipe(
        base,
        write_photos(tmp_path / "photos"),
        strategies={"flip": {}, "stay_near": {"batch_size": 1}},
        optimizer={"steps": 6},
        held_out={"share": 0},
        probes={"every": 99, "triples": 3},
    )
    model = load(str(base))
    calls = heard(model, monkeypatch)
    told = list[tuple[float, ...]]()
    deal = Latents.batch

    def noting(self: Latents, examples: Any, step: int, ranks: Any) -> Any:
        batch = deal(self, examples, step, ranks)
        mirrored = [MirrorPictures(Flip(), recipe).mirrors(step, row) for row in range(2)]
        expected = [theirs[key] for key in zip(batch.keys, mirrored, strict=True)]
        told.extend(map(tuple, expected))
        before = len(calls)
        heard_now.append((before, batch.timesteps, expected))
        return batch

    heard_now: list[tuple[int, Tensor, list[list[float]]]] = []
    monkeypatch.setattr(Latents, "batch", noting)
    train(recipe, out=tmp_path / "run", model=model)
    whole = [64.0, 64, 0, 0, 64, 64]
    for first, timesteps, expected in heard_now:
        base_call, call = calls[first : first + 2]
        assert base_call[1] == [whole]  # the base, silenced, of pure noise
        assert torch.equal(call[0][:2], timesteps)
        assert call[1] == [*expected, whole]
    assert len(set(told)) > 3


def test_shapes_crops_and_class_pictures_are_told_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, photos = write_tiny_sdxl(tmp_path / "base"), write_photos(tmp_path / "photos")
    recipe = tiny_recipe(
        base,
        photos,
        strategies={
            "buckets": {"multiple": 16},
            "crop": {"p": 1.0},
            "prior_pictures": {"images": str(photos), "batch_size": 2},
        },
        optimizer={"steps": 6},
        held_out={"share": 0},
        probes={"every": 99, "triples": 4},
    )
    model = load(str(base))
    calls = heard(model, monkeypatch)
    train(recipe, out=tmp_path / "run", model=model)
    rows = {tuple(row) for _, sizes in calls for row in sizes}
    originals, targets = {row[:2] for row in rows}, {row[4:] for row in rows}
    assert originals == {(height, width) for width, height in PHOTOS} | {(64, 64)}
    assert {(64, 64), (48, 80), (80, 48)} <= targets
    assert len({row[2:4] for row in rows}) > 8  # a crop has a corner of its own
    for height, width, top, left, *size in rows:
        assert top >= 0
        assert left >= 0
        assert min(height, width, *size) > 0


def test_pictures_of_other_crops_are_answered_otherwise(tmp_path: Path) -> None:
    model = load(str(write_tiny_sdxl(tmp_path / "base")))
    wide, tall = (Frame((60, 100), s, c, (64, 64)) for s, c in WIDE_AND_TALL)
    latents, t = torch.ones(2, 4, 8, 8), torch.tensor([7, 7])
    with torch.no_grad():
        words = model.embed(["a zqx"] * 2).sized([wide.told, tall.told])
        one, other = model.predict(latents, t, words)
    assert not torch.allclose(one, other)


WIDE_AND_TALL = (((64, 107), (0, 21)), ((107, 64), (21, 0)))


def test_clip_skip_is_part_of_what_a_run_stands_on(images: Path, tmp_path: Path) -> None:
    write_tiny_sd(tmp_path / "base")
    entries: dict[str, Any] = {"optimizer": {"steps": 1}, "probes": {"every": 9, "triples": 3}}
    runs = {
        skip: train(
            tiny_recipe(tmp_path / "base", images, clip_skip=skip, **entries),
            out=tmp_path / f"run{skip}",
        )
        for skip in (1, 2)
    }
    one, two = (runs[skip].read_journal("step")[0]["loss"] for skip in (1, 2))
    assert one != two
    one_file, two_file = (formats.read(runs[skip].adapter_file).metadata for skip in (1, 2))
    assert two_file["ss_clip_skip"] == "2"
    assert "ss_clip_skip" not in one_file
    assert [formats.reading_of(f)["clip_skip"] for f in (one_file, two_file)] == [1, 2]
    again = tiny_recipe(tmp_path / "base", images, clip_skip=2, **entries)
    with pytest.raises(RecipeError, match="clip_skip: found 2, but the model"):
        train(again, out=tmp_path / "other", model=load(str(tmp_path / "base")))


def test_pure_noise_is_trained_on_where_it_is_asked_for(images: Path, tmp_path: Path) -> None:
    """Training's noise levels, the file, and the base that the file is drawn with agree."""
    base = str(write_tiny_sd(tmp_path / "base", "v_prediction"))
    plain, pure = load(base), load(base, zero_terminal_snr=True)
    theirs = write_tiny_sd(
        tmp_path / "rescaled",
        "v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    assert torch.equal(pure.schedule.alpha_bar, load(str(theirs)).schedule.alpha_bar)
    assert pure.schedule.alpha_bar[-1] == 0 < plain.schedule.alpha_bar[-1]
    assert pure.id != plain.id
    entries: dict[str, Any] = {"optimizer": {"steps": 1}, "probes": {"every": 9, "triples": 3}}
    recipe = tiny_recipe(tmp_path / "base", images, zero_terminal_snr=True, **entries)
    run = train(recipe, out=tmp_path / "run")
    said = formats.read(run.adapter_file).metadata
    assert said["ss_zero_terminal_snr"] == "True"
    assert load(base, **formats.reading_of(said)).id == pure.id
    with pytest.raises(RecipeError, match="zero_terminal_snr: found True, but the model"):
        train(recipe, out=tmp_path / "other", model=plain)


def test_a_base_that_predicts_noise_cannot_be_shown_pure_noise(tmp_path: Path) -> None:
    base = str(write_tiny_sd(tmp_path / "base"))
    with pytest.raises(BaseError, match=r"it predicts noise.*noise_offset"):
        load(base, zero_terminal_snr=True)


def test_a_sampler_that_cannot_follow_a_flow_is_refused_before_training(
    images: Path, tmp_path: Path
) -> None:
    write_tiny_sd3(tmp_path / "base", t5=False)
    recipe = tiny_recipe(tmp_path / "base", images, sampling={"sampler": "euler_a"})
    with pytest.raises(BaseError, match="'euler_a' cannot follow"):
        train(recipe, out=tmp_path / "run")
