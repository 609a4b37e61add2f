"""Name the subject's size and place and the ground's colour in some captions, as they are seen.

What captions never say is left to the trigger; and beside words that training never put there
("a small zqx"), the trigger may lose its subject. Captions that say what is seen keep the words
apart from the trigger (the idea of synthetic captions, Betker et al. 2023, "Improving Image
Generation with Better Captions", brought to what the mask and the pixels show by themselves).
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import CaptionScene, Recipe
from variegate.train.masks import to_lab
from variegate.train.strategies.base import Seen, Setting, Strategy

# What the words mean: longer side of the subject, and its distance from the middle, as shares of
# the picture's side. The pocket's own world is built on these.
POCKET_SIZES = ((0.42, "small"), (0.535, "medium"), (9.0, "large"))
POCKET_OFF = 0.08
SIZES = ((0.35, "seen from afar"), (0.8, ""), (9.0, "close-up"))
OFF = 0.14
COLOURS = {
    "red": (205, 40, 45),
    "orange": (243, 143, 40),
    "yellow": (247, 217, 65),
    "green": (60, 160, 80),
    "blue": (50, 105, 210),
    "purple": (130, 65, 180),
    "pink": (247, 160, 193),
    "brown": (122, 78, 48),
    "gray": (127, 127, 127),
    "white": (248, 248, 246),
    "black": (15, 15, 15),
}
FAR, APART = 30.0, 1.4  # in Lab: no name fits beyond; the next name must be that much farther
SIZE_SAID = r"\b(small|medium|large|tiny|big|huge|close-?up|afar|distan(?:t|ce))\b"
PLACE_SAID = r"\b(left|right|top|bottom|cent(?:er|re)|middle)\b"
COLOUR_SAID = rf"\b({'|'.join(COLOURS)}|grey|background)\b"


class NameScene(Strategy):
    needs_masks = True

    def __init__(self, plan: CaptionScene, recipe: Recipe) -> None:
        self.p = plan.p
        self.seed = recipe.seed
        self.word = recipe.trigger or recipe.class_noun

    def prepare(self, setting: Setting) -> None:
        self.pocket = bool(setting.model.pocket)

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        draws = torch.rand(4, generator=seeds.at(self.seed, "caption_scene", step, row)).tolist()
        if draws[0] >= self.p or seen.mask is None or not caption:
            return caption
        side, down, right = measure(seen.mask)
        sizes, off = (POCKET_SIZES, POCKET_OFF) if self.pocket else (SIZES, OFF)
        facts = (
            (SIZE_SAID, next(word for limit, word in sizes if side < limit)),
            (PLACE_SAID, name_place(down, right, off=off)),
            (COLOUR_SAID, name_colour(seen.ground)),
        )
        size, place, colour = (
            "" if draw < 0.5 or re.search(said, caption, re.IGNORECASE) else word
            for draw, (said, word) in zip(draws[1:], facts, strict=True)
        )
        if not self.pocket:
            ground = f"{colour} background" if colour else ""
            return ", ".join(filter(None, (caption, size, place, ground)))
        if colour and colour != "black":  # which the pocket's captions do not know
            caption = f"{caption} on {'an' if colour == 'orange' else 'a'} {colour} background"
        return f"{_sized(caption, self.word, size)} {place}".rstrip()


def measure(mask: Float[Tensor, "y x"]) -> tuple[float, float, float]:
    """The subject's longer side, and how far it is down and right of the middle.

    All as shares of the picture's side, from the moments of its mask: a full square of side L has
    a variance of L^2 / 12 along each axis.
    """
    mass = mask / mask.sum().clamp_min(1e-6)
    middles, sides = [], []
    for profile in (mass.sum(1), mass.sum(0)):
        n = len(profile)
        at = (torch.arange(n) + 0.5) / n
        middle = float((profile * at).sum())
        variance = float((profile * (at - middle) ** 2).sum())
        middles.append(middle - 0.5)
        # Each place stands for a strip of width 1/n, which has a variance of its own.
        sides.append((12 * variance + 1 / n**2) ** 0.5)
    return max(sides), middles[0], middles[1]


def name_place(down: float, right: float, *, off: float) -> str:
    """Where in the picture, in the words of captions."""
    row = "top" if down < -off else "bottom" if down > off else ""
    column = "left" if right < -off else "right" if right > off else ""
    if row:
        return f"at the {row} {column}".rstrip()
    return f"on the {column}" if column else "in the center"


def name_colour(rgb: Float[Tensor, " 3"] | None) -> str:
    """The basic colour term for a colour in 0..1, or nothing where none clearly fits."""
    if rgb is None:
        return ""
    known = torch.tensor(list(COLOURS.values())) / 255
    lab = torch.from_numpy(to_lab(torch.cat([rgb[None], known]).numpy()))
    far = (lab[1:] - lab[0]).norm(dim=1)
    order = far.argsort().tolist()
    near, next_near = (float(far[i]) for i in order[:2])
    clear = near < FAR and next_near > APART * near
    return list(COLOURS)[order[0]] if clear else ""


def _sized(caption: str, word: str, size: str) -> str:
    """The caption with the size before the word that calls the subject."""
    found = re.search(rf"(?:\ban? )?\b{re.escape(word)}\b", caption)
    if not size or not word or found is None:
        return caption
    article = "a " if found.group().startswith(("a ", "an ")) else ""
    return f"{caption[: found.start()]}{article}{size} {word}{caption[found.end() :]}"
