"""How much of each augmentation shows up in what the adapter draws, measured on the pocket.

    python tools/leak.py [--steps 240] [--samples 48] [--p 0.5] [--out FOLDER]

A generator may learn the augmented pictures instead of the pictures (a leak). For a GAN's
discriminator, augmentations with p below about 0.8 do not leak (Karras et al. 2020, arXiv
2006.06676); a diffusion model is asked to draw what it is shown, so nothing promises that here.

One subject that faces one way, upright, at one size on one ground, is learnt without and with each
augmentation. Each augmentation has one statistic that is about nothing without it. The leak is how
far the samples' statistic lies from no augmentation (0) to the altered training pictures' (1).
Interval: 95 %, bootstrap over samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from variegate import formats, models, recipes
from variegate.bench import world
from variegate.images import ImageSet
from variegate.sample import grid, sample
from variegate.train import train
from variegate.train.data import read_training_set
from variegate.train.strategies import cook

SUBJECT, COLOUR, SIZE = "unicorn", "green", "medium"
PICTURES = 12
TURNED = 20  # degrees
GRAY_SIDE = 8  # pixels of the smallest patch that counts as a gray box

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """One augmentation, its settings, a number for each picture that it moves, and the ground."""

    settings: dict[str, Any]
    what: str
    statistic: Statistic
    pattern: str = "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--p", type=float, default=0.5)
    parser.add_argument("--only", nargs="*", default=list(TRIALS))
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "leak")
    asked = parser.parse_args()
    model = models.load("pocket")
    for name in asked.only:
        trial = TRIALS[name]
        pictures = write_pictures(asked.out / "pictures" / trial.pattern, trial.pattern)
        plain = draw(asked.out / f"without-{trial.pattern}", {}, pictures, asked, model)
        strategy = {name.split()[0]: {**trial.settings, "p": asked.p}}
        drawn = draw(asked.out / name.replace(" ", "-"), strategy, pictures, asked, model)
        shown = altered(pictures, strategy)
        print(json.dumps({"augmentation": name, **leak(trial, plain, shown, drawn)}), flush=True)


def leak(
    trial: Trial, plain: np.ndarray, shown: np.ndarray, drawn: np.ndarray
) -> dict[str, str | float | list[float]]:
    """The statistic of samples without it, of altered pictures, of samples with it; the leak."""
    without, target, found = (trial.statistic(x) for x in (plain, shown, drawn))
    rng = np.random.default_rng(0)

    def share(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        reach = float(b.mean() - a.mean())
        return float(c.mean() - a.mean()) / reach if reach else float("nan")

    sets = (without, target, found)
    again = [share(*(rng.choice(x, len(x)) for x in sets)) for _ in range(1000)]
    low, high = np.nanquantile(again, [0.025, 0.975])
    return {
        "what": trial.what,
        "without": round(float(without.mean()), 3),
        "altered pictures": round(float(target.mean()), 3),
        "samples": round(float(found.mean()), 3),
        "leak": round(share(*sets), 2),
        "interval": [round(float(low), 2), round(float(high), 2)],
    }


def draw(
    folder: Path, strategies: dict[str, Any], pictures: Path, asked: Any, model: Any
) -> np.ndarray:
    """Samples of the trigger after training with these strategies: uint8 `[n, 64, 64, 3]`."""
    recipe = recipes.read(
        "pocket-plain",
        settings=("strategies.flip=off", f"optimizer.steps={asked.steps}"),
        images=str(pictures),
        trigger="zqx",
        class_noun=world.CLASS_OF[SUBJECT],
        strategies=strategies,
    )
    run = train(recipe, out=folder / "run", model=model)
    adapter = formats.read(run.adapter_file)
    requests = grid(["a zqx"], range(9000, 9000 + asked.samples))
    found = sample(model, adapter, requests, plan=recipe.sampling, out=folder / "samples")
    return np.stack([np.asarray(picture.open()) for picture in found])


def write_pictures(folder: Path, pattern: str) -> Path:
    """The subject as drawn in the atlas, at every place."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(PICTURES):
        place = world.POSITIONS[i % len(world.POSITIONS)]
        scene = world.Scene(SUBJECT, COLOUR, pattern, SIZE, place)
        Image.fromarray(world.render(scene)).save(folder / f"{i:02d}.png")
    return folder


def altered(pictures: Path, strategies: dict[str, Any]) -> np.ndarray:
    """The training pictures as the network is shown them: uint8 `[n, 64, 64, 3]`."""
    recipe = recipes.read("pocket-plain", strategies=strategies, images=str(pictures))
    kitchen = cook(recipe).values()
    examples = read_training_set(
        ImageSet.read(pictures), recipe, side=world.PIXELS, pocket=True, needs_masks=True
    ).train
    shown = []
    for example in examples:
        for variant in range(recipe.variants):
            shot = example.shot
            for strategy in kitchen:
                shot = strategy.alter(shot, (example.key, variant))
            pixels = shot.pixels
            if any(s.mirrors(variant, len(shown)) for s in kitchen):
                pixels = pixels.flip(-1)
            shown.append((pixels.permute(1, 2, 0) * 255).round().byte().numpy())
    return np.stack(shown)


def ground_of(pictures: np.ndarray) -> np.ndarray:
    """The border's middle colour of each picture `[n, 3]`, in 0..1."""
    ring = np.ones((world.PIXELS, world.PIXELS), bool)
    ring[4:-4, 4:-4] = False
    found: np.ndarray = np.median(pictures[:, ring], axis=1).astype(np.float32) / 255
    return found


def best_templates(pictures: np.ndarray, shapes: list[tuple[int, bool]]) -> np.ndarray:
    """Which of the sprites (angle, mirrored) fits each picture best, anywhere in it.

    Mean squared difference to the sprite with the picture's own ground around it, least over all
    places.
    """
    ground = torch.from_numpy(ground_of(pictures))
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    off = images - ground[:, :, None, None]
    errors = []
    for angle, mirrored in shapes:
        sprite = world.shape_sprite(
            world._atlas()[SUBJECT], world.SIZES[SIZE], float(angle), mirrored
        )
        cut = F.pad(torch.from_numpy(sprite).permute(2, 0, 1), (4, 4, 4, 4))
        alpha, colours = cut[3:], cut[:3]  # premultiplied
        whole = torch.ones_like(alpha)
        squares = F.conv2d(off.square().sum(1, keepdim=True), whole[None])
        cross = F.conv2d(off, colours[None]) - F.conv2d(
            (off * ground[:, :, None, None]).sum(1, keepdim=True), alpha[None]
        )
        own = (colours - alpha * ground[:, :, None, None]).square().sum((1, 2, 3))
        errors.append((squares - 2 * cross).amin((1, 2, 3)) + own)
    return torch.stack(errors, 1).argmin(1).numpy()


def is_mirrored(pictures: np.ndarray) -> np.ndarray:
    shapes = [(angle, mirrored) for mirrored in (False, True) for angle in (-10, 0, 10)]
    return (best_templates(pictures, shapes) >= 3).astype(float)


def is_turned(pictures: np.ndarray) -> np.ndarray:
    """Whether the ground's stripes, drawn along the diagonal, lean off it.

    From the structure tensor of the pixels that are near the ground's colour. The subject itself
    is drawn too vaguely to tell its turn.
    """
    off = np.abs(pictures / 255 - ground_of(pictures)[:, None, None]).max(-1)
    grey = pictures.mean(-1) / 255
    down, across = np.gradient(grey, axis=(1, 2))
    near = ndimage.minimum_filter((off < 0.3).astype(float), (1, 3, 3))
    xx, yy, xy = ((near * product).sum((1, 2)) for product in (across**2, down**2, across * down))
    degrees = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
    lean = np.abs((degrees - 45 + 90) % 180 - 90)
    return (lean >= TURNED).astype(float)


def size(pictures: np.ndarray) -> np.ndarray:
    """The root of the area that is not ground, over that of the subject as it was drawn."""
    ground = ground_of(pictures)[:, None, None]
    area = (np.abs(pictures / 255 - ground).max(-1) > 0.15).mean((1, 2))
    mask = world.render_mask(world.Scene(SUBJECT, COLOUR, "plain", SIZE, "center"))
    return np.sqrt(area / float((mask > 0.5).mean()))


def ground_off(pictures: np.ndarray) -> np.ndarray:
    """How far the ground's colour is from the training pictures', white's length being 1.7."""
    return np.linalg.norm(ground_of(pictures) - np.array(world.COLOURS[COLOUR]) / 255, axis=1)


def has_gray_box(pictures: np.ndarray) -> np.ndarray:
    """Whether there is a patch in which every pixel is about the erased gray."""
    near = torch.from_numpy(np.abs(pictures.astype(float) - 127.5).max(-1) < 20).float()
    share = F.avg_pool2d(near[:, None], GRAY_SIDE, stride=1)
    return (share.amax((1, 2, 3)) > 0.9).numpy().astype(float)


TRIALS: dict[str, Trial] = {
    "flip": Trial({}, "share that faces the other way", is_mirrored),
    "affine": Trial(
        {"rotation": 60.0, "shear": 0.0}, "share turned by 20 degrees or more", is_turned, "striped"
    ),
    "crop": Trial({"area_min": 0.3, "ratio_max": 1.0}, "size over that in the pictures", size),
    "colour": Trial({"hue": 0.3, "brightness": 0.3}, "ground's distance in colour", ground_off),
    "erase gray": Trial({"fill": "gray", "area_min": 0.05}, "share with a gray box", has_gray_box),
}


if __name__ == "__main__":
    main()
