"""Render the demo's pictures: twelve of one held-out subject, all on one ground."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.bench import world

PACKAGE = Path(__file__).resolve().parents[2] / "src/variegate/demo/pictures"


def write_demo_pictures() -> None:
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    for i in range(12):
        scene = world.draw_scene(
            np.random.default_rng((29, i)),
            ("robot",),
            colour="green",
            pattern="striped",
            size="large",
            position="center",
        )
        Image.fromarray(world.render(scene)).save(PACKAGE / f"{i:02d}.png", optimize=True)
        (PACKAGE / f"{i:02d}.txt").write_text("a zqx\n", encoding="utf8")
