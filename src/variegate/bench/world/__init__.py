"""The pocket's world: pictures whose every factor is known.

A scene is one emoji sprite (its subject) on a composed background. Its factors are subject,
background colour, pattern, size, position, and a small rotation and flip. Scenes are plain data,
rendering is a pure function, captions name a random subset of the factors in natural word orders.
The world stands on numpy and Pillow alone, so tests and bench render fresh scenes on any machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

PIXELS = 64

# Every subject belongs to one class, whose noun stands in for it in some captions.
CLASSES: dict[str, tuple[str, ...]] = {
    "animal": (
        *("elephant", "giraffe", "penguin", "owl", "frog", "turtle", "octopus", "butterfly"),
        *("ladybug", "crab", "fish", "whale", "fox", "panda", "lion", "pig", "snail", "flamingo"),
        *("unicorn", "parrot", "dragon", "hedgehog"),
    ),
    "vehicle": (
        *("car", "bus", "rocket", "bicycle", "airplane", "helicopter", "sailboat", "train"),
        *("tractor", "scooter", "saucer"),
    ),
    "food": (
        *("apple", "banana", "pizza", "burger", "donut", "strawberry", "grapes", "carrot"),
        *("watermelon", "pineapple", "avocado", "cake", "mushroom", "cupcake", "taco"),
    ),
    "face": (
        *("smiley", "clown", "alien", "skull", "pumpkin", "cowboy"),
        *("robot", "ghost", "ogre"),
    ),
    "toy": ("teddy", "ball", "kite", "balloon", "dice", "yoyo"),
    "plant": ("cactus", "sunflower", "palm", "rose", "clover", "tulip"),
    "instrument": ("guitar", "trumpet", "drum", "piano", "saxophone"),
    "object": ("key", "clock", "diamond", "umbrella", "camera"),
}
# The concepts that adapters learn: the base, its codec and its encoder have never seen them.
HELD_OUT = (
    *("unicorn", "parrot", "dragon", "hedgehog", "scooter", "saucer", "cupcake", "taco"),
    *("robot", "ghost", "ogre", "yoyo", "tulip", "saxophone", "camera"),
)
SUBJECTS = tuple(s for members in CLASSES.values() for s in members)
BASE_SUBJECTS = tuple(s for s in SUBJECTS if s not in HELD_OUT)
CLASS_OF = {s: noun for noun, members in CLASSES.items() for s in members}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (245, 145, 40),
    "yellow": (250, 220, 70),
    "green": (60, 165, 85),
    "blue": (50, 105, 215),
    "purple": (135, 70, 185),
    "pink": (250, 160, 195),
    "brown": (125, 80, 50),
    "gray": (125, 128, 132),
    "white": (246, 246, 242),
}
PATTERNS = ("plain", "striped", "checkered", "dotted")
SIZES: dict[str, int] = {"small": 24, "medium": 32, "large": 44}  # pixels of the longer side
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
ANGLES = (-14, -7, 0, 7, 14)  # degrees
STRIDE = 10  # pixels between neighbouring positions

FACTORS: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "size": tuple(SIZES),
    "position": POSITIONS,
}


@dataclass(frozen=True)
class Scene:
    """One picture's factors, by name."""

    subject: str
    colour: str
    pattern: str
    size: str
    position: str
    angle: int = 0
    flip: bool = False
    dx: int = 0
    dy: int = 0

    @property
    def class_noun(self) -> str:
        return CLASS_OF[self.subject]


def draw_scene(
    rng: np.random.Generator, subjects: tuple[str, ...] = BASE_SUBJECTS, **fixed: object
) -> Scene:
    """A scene with every factor uniform, except those given by name."""
    scene = Scene(
        subject=subjects[rng.integers(len(subjects))],
        colour=FACTORS["colour"][rng.integers(len(COLOURS))],
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        size=FACTORS["size"][rng.integers(len(SIZES))],
        position=POSITIONS[rng.integers(len(POSITIONS))],
        angle=ANGLES[rng.integers(len(ANGLES))],
        flip=bool(rng.integers(2)),
        dx=int(rng.integers(-1, 2)),
        dy=int(rng.integers(-1, 2)),
    )
    return replace(scene, **fixed)  # type: ignore[arg-type]


@cache
def _atlas() -> dict[str, Image.Image]:
    folder = resources.files(__name__)
    index = json.loads((folder / "atlas.json").read_text(encoding="utf8"))
    with (folder / "atlas.png").open("rb") as file:
        sheet = Image.open(file).convert("RGBA")
    cell, columns = index["cell"], index["columns"]
    return {
        name: sheet.crop((x := i % columns * cell, y := i // columns * cell, x + cell, y + cell))
        for i, name in enumerate(index["subjects"])
    }


def shape_sprite(sprite: Image.Image, pixels: int, angle: float, flip: bool) -> np.ndarray:
    """A square RGBA sprite turned, scaled and premultiplied: float32 `[pixels, pixels, 4]`."""
    if flip:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        sprite = sprite.rotate(angle, Image.Resampling.BICUBIC)
    rgba = np.asarray(sprite, np.float32) / 255
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    bands = [
        np.asarray(Image.fromarray(band).resize((pixels, pixels), Image.Resampling.BOX))
        for band in rgba.transpose(2, 0, 1)
    ]
    return np.clip(np.stack(bands, -1), 0, 1)


@cache
def _sprite(subject: str, size: str, angle: int, flip: bool) -> np.ndarray:
    return shape_sprite(_atlas()[subject], SIZES[size], float(angle), flip)


def paint_background(
    rgb: tuple[int, int, int], pattern: str, *, phase: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """A patterned field in one hue: float32 `[64, 64, 3]` in 0..1."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS]
    y, x = y + phase[0], x + phase[1]
    if pattern == "plain":
        ink = np.zeros((PIXELS, PIXELS), np.float32)
    elif pattern == "striped":
        ink = ((x + y) % 16 < 8).astype(np.float32)
    elif pattern == "checkered":
        ink = ((x // 8 + y // 8) % 2).astype(np.float32)
    elif pattern == "dotted":
        radius = np.hypot(x % 16 - 7.5, y % 16 - 7.5)
        ink = np.clip(4.6 - radius, 0, 1).astype(np.float32)
    else:
        raise ValueError(f"pattern {pattern!r} is none of {', '.join(PATTERNS)}")
    colour = np.asarray(rgb, np.float32) / 255
    return (colour * (1 - 0.24 * ink[..., None])).astype(np.float32)


@cache
def _background(colour: str, pattern: str) -> np.ndarray:
    return paint_background(COLOURS[colour], pattern)


def _corner(scene: Scene) -> tuple[int, int]:
    row, column = divmod(POSITIONS.index(scene.position), 3)
    half = SIZES[scene.size] // 2
    return (
        PIXELS // 2 + (row - 1) * STRIDE + scene.dy - half,
        PIXELS // 2 + (column - 1) * STRIDE + scene.dx - half,
    )


def paste(picture: np.ndarray, sprite: np.ndarray, top: int, left: int) -> None:
    """Lay a premultiplied sprite over a picture in place, cut at the edges."""
    height, width = sprite.shape[:2]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, picture.shape[0]), min(left + width, picture.shape[1])
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    picture[y0:y1, x0:x1] *= 1 - part[..., 3:]
    picture[y0:y1, x0:x1] += part[..., :3] if picture.shape[-1] == 3 else part[..., 3:]


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 `[64, 64, 3]`."""
    picture = _background(scene.colour, scene.pattern).copy()
    paste(picture, _sprite(scene.subject, scene.size, scene.angle, scene.flip), *_corner(scene))
    return np.round(picture * 255).astype(np.uint8)


def render_mask(scene: Scene) -> np.ndarray:
    """The true share of the subject in each pixel: float32 `[64, 64]` in 0..1."""
    mask = np.zeros((PIXELS, PIXELS, 1), np.float32)
    paste(mask, _sprite(scene.subject, scene.size, scene.angle, scene.flip), *_corner(scene))
    return mask[..., 0]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(
    scene: Scene,
    *,
    named: frozenset[str],
    noun: str | None = None,
    rng: np.random.Generator | None = None,
) -> str:
    """Natural words that name just the factors in `named` (of colour, pattern, size, position).

    noun: what the subject is called; its own name when None. rng picks among the word orders;
    None takes the first.
    """

    def pick(n: int) -> int:
        return 0 if rng is None else int(rng.integers(n))

    noun = scene.subject if noun is None else noun
    thing = f"{scene.size} {noun}" if "size" in named else noun
    look = " ".join(getattr(scene, f) for f in ("colour", "pattern") if f in named)
    place = ""
    if "position" in named:
        place = {
            "center": "in the center",
            "left": ("on the left", "at the left")[pick(2)],
            "right": ("on the right", "at the right")[pick(2)],
        }.get(scene.position, f"at the {scene.position}")
    opening = ("", "", "a picture of ")[pick(3)]
    text = opening + _article(thing)
    if look and place:
        return (
            f"{text} on {_article(look)} background {place}",
            f"{text} {place} on {_article(look)} background",
            f"{text}, {look} background, {place}",
            f"{text} {place}, {look} background",
        )[pick(4)]
    if look:
        return (f"{text} on {_article(look)} background", f"{text}, {look} background")[pick(2)]
    return f"{text} {place}" if place else text


def draw_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption as the base learnt them: each factor named or not by chance, at times only the
    class noun, at times no subject at all."""
    named = frozenset(
        f
        for f, p in (("colour", 0.5), ("pattern", 0.4), ("size", 0.45), ("position", 0.5))
        if rng.random() < p
    )
    kind = rng.random()
    noun = "picture" if kind < 0.04 else scene.class_noun if kind < 0.24 else None
    words = caption(scene, named=named, noun=noun, rng=rng)
    return words.replace("a picture of a picture", "a picture")
