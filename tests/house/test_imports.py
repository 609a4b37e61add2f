"""Presets of other trainers: what can be taken over is, and nothing goes without a word."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import RecipeError
from variegate.imports import LARGEST, Imported, read_preset
from variegate.recipe import Recipe

GUI: dict[str, Any] = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
    "max_resolution": "512,512",
    "network_dim": 64,
    "network_alpha": 32,
    "network_dropout": 0.1,
    "learning_rate": 0.0001,
    "unet_lr": 0.0002,
    "text_encoder_lr": 5e-05,
    "optimizer": "AdamW8bit",
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": "4",
    "lr_warmup": 10,
    "max_train_steps": "2000",
    "epoch": 5,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "min_snr_gamma": 5,
    "noise_offset": 0.0357,
    "scale_weight_norms": 1,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "clip_skip": 2,
    "reg_data_dir": "/photos/dogs",
    "xformers": "xformers",
}
DATASET = """
[general]
shuffle_caption = true
enable_bucket = true
caption_extension = ".txt"
flip_aug = true

[[datasets]]
resolution = [512, 768]
batch_size = 4

  [[datasets.subsets]]
  image_dir = "/photos/mine"
  class_tokens = "zqx toy dog"
  num_repeats = 10
  caption_dropout_rate = 0.05

  [[datasets.subsets]]
  is_reg = true
  image_dir = "/photos/dogs"

  [[datasets.subsets]]
  image_dir = "/photos/others"
"""


def write(tmp_path: Path, preset: Any) -> Path:
    file = tmp_path / "preset"
    file.write_text(preset if isinstance(preset, str) else json.dumps(preset))
    return file


def lines(found: Imported) -> list[str]:
    return [*found.taken, *found.changed, *found.left_out]


def test_a_gui_preset_becomes_a_recipe_with_every_key_accounted_for(tmp_path: Path) -> None:
    found = read_preset(write(tmp_path, GUI))
    recipe = found.recipe()
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (64, 32.0, 0.1)
    plan: Any = recipe.optimizer
    assert (plan.kind, plan.lr, plan.text_encoder_lr) == ("adamw8bit", 2e-4, 5e-5)
    assert recipe.adapter.text_encoder
    assert (plan.schedule.kind, plan.schedule.cycles, plan.warmup) == ("restarts", 4, 200)
    assert (plan.steps, plan.batch_size, plan.micro_batch) == (2000, 6, 2)
    assert recipe.strategies.min_snr is not None
    assert (recipe.precision, recipe.resolution) == ("bf16", 512)
    assert recipe.memory.gradient_checkpointing is True
    told = (
        " ".join(lines(found))
        .replace("learning rate", "unet_lr")
        .replace("text encoder's", "text_encoder_lr")
    )
    assert all(key in told for key in GUI)
    chosen = recipe.strategies
    assert chosen.noise_offset is not None
    assert chosen.max_norm is not None
    assert chosen.prior_pictures is not None
    assert (chosen.noise_offset.amount, chosen.max_norm.limit) == (0.0357, 1.0)
    assert (chosen.prior_pictures.images, recipe.clip_skip) == ("/photos/dogs", 2)
    left = " ".join(found.left_out)
    assert all(key in left for key in ("epoch", "xformers"))


def test_the_printed_recipe_can_be_used_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path, {**GUI, "odd\nkey = 1": "odd\nvalue"})
    done = CliRunner().invoke(app, ["recipe", "--from", str(file)])
    assert done.exit_code == 0
    assert "# left out: epoch = 5" in done.stdout
    assert Recipe.build(tomllib.loads(done.stdout)) == read_preset(file).recipe()


def test_a_dataset_config_is_taken_over_level_by_level(tmp_path: Path) -> None:
    found = read_preset(write(tmp_path, DATASET))
    recipe = found.recipe()
    assert (recipe.images, recipe.trigger, recipe.class_noun) == ("/photos/mine", "zqx", "toy dog")
    assert (recipe.resolution, recipe.optimizer.batch_size) == (512, 4)
    assert recipe.strategies.flip is not None
    assert recipe.strategies.caption_dropout is not None
    assert recipe.strategies.caption_dropout.p == 0.05
    left = " ".join(found.left_out)
    assert "num_repeats = 10: counted in steps" in left
    assert "is_reg" in left
    assert "/photos/others" in left
    assert recipe.strategies.caption_shuffle is not None
    assert recipe.strategies.buckets is not None


def test_onetrainer_names_its_optimizer_in_a_table(tmp_path: Path) -> None:
    preset = {
        "training_method": "LORA",
        "lora_rank": 16,
        "lora_alpha": 1.0,
        "learning_rate": 3e-4,
        "resolution": "512",
        "optimizer": {"optimizer": "ADAFACTOR", "eps": 1e-30},
        "train_dtype": "BFLOAT_16",
    }
    found = read_preset(write(tmp_path, preset))
    recipe = found.recipe()
    assert (recipe.optimizer.kind, recipe.optimizer.lr) == ("adafactor", 3e-4)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.precision) == (16, 1.0, "bf16")
    assert not recipe.adapter.text_encoder
    assert any("eps" in line for line in found.left_out)


def test_what_an_optimizer_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    preset = {**GUI, "optimizer": "Prodigy", "unet_lr": 1e-4}
    found = read_preset(write(tmp_path, preset))
    assert found.recipe().optimizer.lr == 1.0
    left = " ".join(found.left_out)
    assert "optimizer.lr: found 0.0001 of kind 'prodigy'" in left
    assert "optimizer.text_encoder_lr: no such key of kind 'prodigy'" in left
    assert "optimizer.schedule.kind: found 'restarts'" in left


HOSTILE: list[Any] = [
    None,
    True,
    [],
    {},
    "",
    "x\0y",
    "NaN",
    -1,
    1e999,
    10**30,
    0.5,
    [[1]],
    "9" * 500,
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda v: str(v)[:8])
def test_values_of_the_wrong_type_are_left_out_and_never_raise(tmp_path: Path, value: Any) -> None:
    for preset in ({**dict.fromkeys(GUI, value)}, {"training_method": value, "optimizer": value}):
        found = read_preset(write(tmp_path, preset))
        assert isinstance(found.recipe(), Recipe)
        assert all("\n" not in line for line in lines(found))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{" * 50_000, "neither TOML nor JSON"),
        ('{"network_dim": ' + "[" * 100 + "]" * 100 + "}", "nested deeper"),
        ("not = [a preset", "neither TOML nor JSON"),
        ('{"a": 1}', "no preset that is known"),
        ("[general]\n[[datasets]]\nresolution = 512\n", "no pictures to learn"),
        ("x" * (LARGEST + 1), "more than"),
    ],
)
def test_what_is_no_preset_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_preset(write(tmp_path, text))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_preset(tmp_path / "nowhere")
