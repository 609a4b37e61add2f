"""How strongly an adapter acts is said picture by picture, whatever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl
from typer.testing import CliRunner

from variegate import seeds
from variegate.adapter import Adapter, Ensemble, LayerUpdate
from variegate.adapter.updates import FullUpdate
from variegate.cli import app
from variegate.errors import RequestError
from variegate.formats import write
from variegate.images import ImageSet
from variegate.models import DiffusionModel, load
from variegate.recipe import SamplingPlan
from variegate.sample import Request, contact_sheet, grid, sample

PLAN = SamplingPlan(steps=3, guidance_scale=2.0)
MAKE: dict[str, Any] = {"sd1": write_tiny_sd, "sdxl": write_tiny_sdxl, "sd3": write_tiny_sd3}


@pytest.fixture(scope="module", params=MAKE)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load(str(MAKE[request.param](tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")))


def learnt(model: Any, seed: int = 0) -> Adapter:
    """A random update of attention layers, text encoder included."""
    layers: dict[str, Any] = {}
    network = "unet" if hasattr(model, "unet") else "transformer"
    for part, ends in ((network, "to_q"), ("text_encoder", "q_proj")):
        for path, module in getattr(model, part).named_modules():
            if path.endswith(ends):
                name = f"{part}.{path}"
                layers[name] = LayerUpdate(
                    torch.randn(2, module.in_features, generator=seeds.at(seed, name, "down")),
                    torch.randn(module.out_features, 2, generator=seeds.at(seed, name, "up")),
                    alpha=2.0,
                )
    return Adapter(model.family, layers)


def whole(model: Any) -> Adapter:
    """Differences of whole weights, a norm's among them, which no row can have of its own."""
    layers = {
        f"unet.{path}": FullUpdate(
            0.3 * torch.randn(module.weight.shape, generator=seeds.at(0, path))
        )
        for path, module in model.unet.named_modules()
        if path.endswith(("to_q", "norm1"))
    }
    return Adapter("sd1", layers)


def pixels(pictures: ImageSet) -> dict[tuple[Any, ...], np.ndarray]:
    return {(p.prompt, p.seed, p.strength): np.asarray(p.open(), int) for p in pictures}


def alike(one: np.ndarray, two: np.ndarray) -> bool:
    return int(np.abs(one - two).max()) <= 2  # of 255


def check(model: DiffusionModel, adapter: Any, out: Path) -> None:
    """Pictures of several strengths together are those of the scaled adapter alone."""
    requests = grid(["an owl", "a fox"], range(2), strengths=(0.0, 0.4, 1.0))
    together = pixels(sample(model, adapter, requests, plan=PLAN, out=out / "all"))
    assert len(together) == 12
    looks = [r for r in requests if r.seed == 1]
    for request in looks:
        scaled = adapter.scaled(request.strength)
        plain = Request(request.prompt, request.seed)
        (alone,) = sample(model, scaled, [plain], plan=PLAN, out=out / f"{request.strength}")
        assert alike(together[request.look], np.asarray(alone.open(), int))
    base = pixels(sample(model, None, grid(["an owl", "a fox"], [0, 1]), plan=PLAN, out=out / "b"))
    for (prompt, seed, _), picture in base.items():
        assert not alike(picture, together[prompt, seed, 1.0])
        assert not alike(together[prompt, seed, 0.4], together[prompt, seed, 1.0])


def test_strengths_in_one_batch_are_those_of_the_scaled_adapter(
    model: DiffusionModel, tmp_path: Path
) -> None:
    check(model, learnt(model), tmp_path)


def test_what_is_laid_on_whole_weights_is_drawn_strength_by_strength(
    sd: DiffusionModel, tmp_path: Path
) -> None:
    own = {n: p.detach().clone() for n, p in sd.network.named_parameters()}
    check(sd, whole(sd), tmp_path)
    assert all(torch.equal(p, own[n]) for n, p in sd.network.named_parameters())


@pytest.mark.parametrize("way", ["member", "switch", "average"])
def test_an_ensemble_has_strengths_too(way: Any, sd: DiffusionModel, tmp_path: Path) -> None:
    check(sd, Ensemble((learnt(sd, 0), learnt(sd, 1)), (1.0, 2.0), way), tmp_path)


@pytest.mark.parametrize("make", [learnt, whole])
def test_at_no_strength_the_base_draws_to_the_bit(
    make: Any, sd: DiffusionModel, tmp_path: Path
) -> None:
    ours = grid(["an owl", "a fox"], range(3), strengths=(0.0,))
    theirs = grid(["an owl", "a fox"], range(3))
    silent = sample(sd, make(sd), ours, plan=PLAN, out=tmp_path / "silent")
    base = sample(sd, None, theirs, plan=PLAN, out=tmp_path / "base")
    for one, two in zip(silent, base, strict=True):
        assert np.array_equal(one.open(), two.open())


def test_plain_pictures_keep_their_names_and_other_strengths_have_their_own(
    sd: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sample(sd, learnt(sd), [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    both = grid(["an owl"], [0], strengths=(1.0, 0.5))
    first = sample(sd, learnt(sd), both, plan=PLAN, out=tmp_path)
    assert first.pictures[0].file == plain.pictures[0].file
    assert first.pictures[1].file != plain.pictures[0].file

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a picture was drawn anew")

    monkeypatch.setattr("variegate.sample.draw.denoise", fail)
    assert sample(sd, learnt(sd), both, plan=PLAN, out=tmp_path) == first
    read = ImageSet.read(tmp_path)
    assert [p.strength for p in read] == [1.0, 0.5]
    contact_sheet(read, tmp_path / "sheets" / "sheet.png")


def test_without_an_adapter_a_strength_says_nothing(sd: DiffusionModel, tmp_path: Path) -> None:
    asked = sample(sd, None, [Request("an owl", 0, strength=0.3)], plan=PLAN, out=tmp_path)
    plain = sample(sd, None, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    assert asked == plain


def test_a_strength_that_nobody_can_have_is_refused(sd: DiffusionModel, tmp_path: Path) -> None:
    asks: dict[str, Any] = {"plan": PLAN, "out": tmp_path}
    with pytest.raises(RequestError, match="strength nan; expected a finite number"):
        sample(sd, learnt(sd), [Request("a", 0, strength=float("nan"))], **asks)
    with pytest.raises(RequestError, match="the model carries already"):
        sample(sd, None, [Request("a", 0, strength=0.5)], worn="x", **asks)


def test_the_command_draws_every_strength(tmp_path: Path, sd: DiffusionModel) -> None:
    base = write_tiny_sd(tmp_path / "base")
    file = write(learnt(sd), tmp_path / "a.safetensors")
    words = ["sample", "--base", str(base), "--prompt", "an owl", "--seeds", "2", "--steps", "2"]
    words += ["--out", str(tmp_path / "out"), "--json", "--quiet", "--strength", "0.5"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    answer = CliRunner().invoke(app, [*words, "--strength", "1", "--adapter", str(file)])
    assert answer.exit_code == 0, answer.output
    images = json.loads(answer.stdout)["images"]
    assert [(i["seed"], i["strength"]) for i in images] == [(0, 0.5), (1, 0.5), (0, 1.0), (1, 1.0)]
