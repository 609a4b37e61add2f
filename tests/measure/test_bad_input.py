"""What cannot be measured is refused in words, or comes out as an honest `inconclusive`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from measure.planted import told
from variegate.drawn import measure_adapter
from variegate.elsewhere import measure_features, measure_folders
from variegate.errors import AdapterError, FeaturesError, ImagesError

COLLAPSED = {"narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying"}
Paint = Callable[[int], np.ndarray]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "cache"))


def blobs(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (16, 16, 3)).repeat(4, 0).repeat(4, 1)


def plain(i: int) -> np.ndarray:
    return np.full((64, 64, 3), 90)


def folder(at: Path, prompts: dict[str, int], paint: Paint = blobs) -> Path:
    for p, (prompt, count) in enumerate(prompts.items()):
        (at / prompt).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(paint(100 * p + i).astype(np.uint8)).save(at / prompt / f"{i}.png")
    return at


def test_folders_of_other_prompts_are_refused_with_both_named(tmp_path: Path) -> None:
    ours, theirs = folder(tmp_path / "a", {"a cat": 4}), folder(tmp_path / "b", {"a dog": 4})
    with pytest.raises(ImagesError, match=r"'a cat'.*'a dog'"):
        measure_folders(ours, theirs, encoders=["pocket"])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ImagesError, match="no pictures in"):
        measure_folders(tmp_path / "a", folder(tmp_path / "b", {"x": 4}), encoders=["pocket"])


def test_one_picture_is_inconclusive_and_says_how_many_it_takes(tmp_path: Path) -> None:
    ours, theirs = folder(tmp_path / "a", {"x": 1}), folder(tmp_path / "b", {"x": 1})
    verdict = measure_folders(ours, theirs, encoders=["pocket"])
    assert verdict.labels == ("inconclusive",)
    assert "4 seeds or more" in told(verdict)


def test_a_base_all_alike_says_nothing_of_the_adapter(tmp_path: Path) -> None:
    ours = folder(tmp_path / "a", {"x": 8})
    theirs = folder(tmp_path / "b", {"x": 8}, plain)
    verdict = measure_folders(ours, theirs, encoders=["pocket"])
    assert verdict.labels == ("inconclusive",)
    assert "the base's own pictures of each prompt are all alike" in told(verdict)


def test_an_adapter_all_alike_is_narrowed(tmp_path: Path) -> None:
    prompts = {f"prompt {i}": 6 for i in range(8)}
    ours, theirs = folder(tmp_path / "a", prompts, plain), folder(tmp_path / "b", prompts)
    verdict = measure_folders(ours, theirs, encoders=["pocket"])
    assert "narrowed" in verdict.labels
    assert verdict.weak_encoder


def test_features_that_are_no_numbers_or_of_two_encoders_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "wide.npy", np.concatenate([rows, rows], 1))
    broken = rows.copy()
    broken[3, 1] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    with pytest.raises(FeaturesError, match="row 3"):
        measure_features(tmp_path / "broken.npy", tmp_path / "a.npy")
    with pytest.raises(FeaturesError, match="compute all with one encoder"):
        measure_features(tmp_path / "a.npy", tmp_path / "wide.npy")


def test_features_kept_give_the_same_variety_again(tmp_path: Path) -> None:
    prompts = {f"prompt {i}": 6 for i in range(8)}
    ours = folder(tmp_path / "a", prompts)
    theirs = folder(tmp_path / "b", prompts, lambda i: blobs(i + 10_000))
    first = measure_folders(ours, theirs, encoders=["pocket"], features=tmp_path / "kept")
    again = measure_features(tmp_path / "kept/samples.npy", tmp_path / "kept/reference.npy")
    values = [v.find("variety_vs_base") for v in (first, again)]
    assert values[0] is not None
    assert values[1] is not None
    assert values[0].value == pytest.approx(values[1].value)
    assert not COLLAPSED & set(again.labels)


XL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
ELSEWHERE = "lora_unet_down_blocks_7_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("stem", "width", "family"),
    [(XL, 2048, "Stable Diffusion XL"), (ELSEWHERE, 128, "does not fit")],
)
def test_an_adapter_for_another_model_is_refused_by_its_family(
    stem: str, width: int, family: str, tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, width),
            f"{stem}.lora_up.weight": torch.ones(64, 2),
        },
        file,
    )
    with pytest.raises(AdapterError, match=family):
        measure_adapter(file, "pocket", encoders=["pocket"], preset="quick")
