"""The leak measure sees what it is to see; on the pocket mirroring leaks, gray boxes do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import leak

from variegate.bench import world
from variegate.recipe import Recipe
from variegate.train.strategies import Shot, cook


def rendered(pattern: str = "plain", **fixed: Any) -> np.ndarray:
    """The learnt subject at every place."""
    return np.stack(
        [
            world.render(world.Scene(leak.SUBJECT, leak.COLOUR, pattern, leak.SIZE, place, **fixed))
            for place in world.POSITIONS
        ]
    )


def altered(name: str, **settings: Any) -> np.ndarray:
    """The same, each once altered."""
    strategy = cook(Recipe.build({"strategies": {name: {**settings, "p": 1.0}}}))[name]
    found = []
    for i, position in enumerate(world.POSITIONS):
        scene = world.Scene(leak.SUBJECT, leak.COLOUR, "plain", leak.SIZE, position)
        pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
        shot = Shot(pixels, torch.from_numpy(world.render_mask(scene)), True)
        pixels = strategy.alter(shot, (i,)).pixels
        found.append((pixels.permute(1, 2, 0) * 255).round().byte().numpy())
    return np.stack(found)


def test_each_statistic_is_nothing_without_its_augmentation_and_seen_with_it() -> None:
    plain = rendered()
    assert leak.is_mirrored(plain).sum() == 0
    assert leak.is_mirrored(rendered(flip=True)).mean() == 1
    assert leak.is_turned(rendered("striped")).sum() == 0
    assert leak.is_turned(rendered("striped")[:, ::-1]).mean() == 1
    assert leak.size(plain) == pytest.approx(1, abs=0.12)
    assert leak.size(altered("crop", area_min=0.3, ratio_max=1.0)).mean() > 1.1
    assert leak.ground_off(plain).max() < 0.01
    assert leak.ground_off(altered("colour", hue=0.3, brightness=0.3)).mean() > 0.1
    assert leak.has_gray_box(plain).sum() == 0
    assert leak.has_gray_box(altered("erase", fill="gray", area_min=0.05)).mean() == 1


def test_a_leak_is_the_samples_share_of_the_way_to_the_altered_pictures() -> None:
    trial = leak.Trial({}, "", lambda pictures: pictures.astype(float))
    ones, zeros = np.ones(50), np.zeros(50)
    quarter = np.repeat([1.0, 0.0, 0.0, 0.0], 25)
    assert leak.leak(trial, zeros, ones, ones)["leak"] == 1
    assert leak.leak(trial, zeros, ones, zeros)["leak"] == 0
    found = leak.leak(trial, zeros, ones, quarter)
    assert found["leak"] == 0.25
    low, high = found["interval"]  # type: ignore[misc]
    assert 0.1 < low < 0.25 < high < 0.4


@pytest.mark.slow
def test_on_the_pocket_mirroring_leaks_and_gray_boxes_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["leak", "--out", str(tmp_path), "--only", "flip", "erase gray"]
    )
    leak.main()
    flip, erase = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert flip["leak"] > 0.5
    assert erase["leak"] < 0.3
