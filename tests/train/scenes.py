"""Folders of training pictures whose truth is known, and tiny recipes to learn them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from variegate.bench import world
from variegate.recipe import Recipe


def write_pictures(folder: Path, count: int = 6, *, seed: int = 0) -> Path:
    """Pictures of a held-out subject, all on red stripes, as an artist might have them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        scene = world.draw_scene(rng, ("robot",), colour="red", pattern="striped")
        Image.fromarray(world.render(scene)).save(folder / f"{i:02d}.png")
    return folder


def tiny_recipe(base: Path, images: Path, **entries: Any) -> Recipe:
    """Eight steps of two pictures, a checkpoint every third, nobody but the plan deciding."""
    tables: dict[str, Any] = {
        "base": str(base),
        "images": str(images),
        "trigger": "zqx",
        "class_noun": "face",
        "variants": 3,
        "adapter": {"rank": 2, "alpha": 2.0},
        "optimizer": {"lr": 1e-3, "steps": 8, "batch_size": 2},
        "probes": {"every": 4, "triples": 3},
        "checkpoints": {"every": 3, "keep": 2},
        "guard": {"mode": "watch"},
    }
    for key, value in entries.items():
        tables[key] = {**tables[key], **value} if isinstance(tables.get(key), dict) else value
    return Recipe.build(tables)


EVERYTHING: dict[str, Any] = {
    "min_snr": {},
    "caption_scene": {"p": 0.5},
    "caption_dropout": {"p": 0.3},
    "flip": {},
    "stay_near": {},
    "zoom_shift": {},
    "masked_loss": {},
    "new_background": {"source": "painted"},
    "crop": {},
    "affine": {},
    "colour": {},
    "erase": {},
    "caption_shuffle": {},
    "token_dropout": {"unit": "word"},
    "caption_edits": {},
    "caption_noise": {},
    "even_pictures": {},
    "buckets": {"multiple": 16},
}
