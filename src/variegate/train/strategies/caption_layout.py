"""Name the subject's size and place in some captions, as its mask shows them.

Captions that never say where the subject is or how large leave both to the trigger; and beside
words that training never put there ("a small zqx"), the trigger may lose its subject. Captions
that say what is seen keep the words apart from the trigger (the idea of synthetic captions, Betker
et al. 2023, "Improving Image Generation with Better Captions", brought to size and place).
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.recipe import CaptionLayout, Recipe
from variegate.train.strategies.base import Setting, Strategy

# What the words mean: longer side of the subject, and its distance from the middle, as shares of
# the picture's side. The pocket's own world is built on these.
POCKET_SIZES = ((0.42, "small"), (0.535, "medium"), (9.0, "large"))
POCKET_OFF = 0.08
SIZES = ((0.35, "seen from afar"), (0.8, ""), (9.0, "close-up"))
OFF = 0.14
SAID = re.compile(
    r"\b(small|medium|large|tiny|big|huge|left|right|top|bottom|cent(?:er|re)|middle|close-?up|"
    r"afar|distan(?:t|ce))\b",
    re.IGNORECASE,
)


class NameLayout(Strategy):
    needs_masks = True

    def __init__(self, plan: CaptionLayout, recipe: Recipe) -> None:
        self.p = plan.p
        self.seed = recipe.seed
        self.word = recipe.trigger or recipe.class_noun

    def prepare(self, setting: Setting) -> None:
        self.pocket = bool(setting.model.pocket)

    def caption(self, caption: str, step: int, row: int, mask: Float[Tensor, "y x"] | None) -> str:
        p, which = torch.rand(
            2, generator=seeds.at(self.seed, "caption_layout", step, row)
        ).tolist()
        if p >= self.p or mask is None or not caption or SAID.search(caption):
            return caption
        side, down, right = measure(mask)
        size = next(
            word for limit, word in (POCKET_SIZES if self.pocket else SIZES) if side < limit
        )
        place = name_place(down, right, off=POCKET_OFF if self.pocket else OFF)
        if which < 1 / 3:
            place = ""
        elif which < 2 / 3:
            size = ""
        if self.pocket:
            return " ".join(filter(None, (_sized(caption, self.word, size), place)))
        return ", ".join(filter(None, (caption, size, place)))


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


def _sized(caption: str, word: str, size: str) -> str:
    """The caption with the size before the word that calls the subject."""
    if not size or not word:
        return caption
    found = re.search(rf"(?:\ban? )?\b{re.escape(word)}\b", caption)
    if found is None:
        return caption
    article = "a " if found.group().startswith(("a ", "an ")) else ""
    return f"{caption[: found.start()]}{article}{size} {word}{caption[found.end() :]}"
