"""Hold prompts without the trigger to what the silenced adapter (the base) predicts for them.

The rows start from pure noise at high noise levels, where a picture's layout is decided and where
no sample is needed: the base's own answer is the whole target, so no class pictures are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from variegate import seeds
from variegate.recipe import Recipe, StayNear
from variegate.train.strategies.base import Beside, Rows, Setting, Strategy

GAIN = 0.1  # of the logarithm of an adaptive weight, per step
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the center")
COLOURS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "gray", "white"),
)
# What the pocket knows by name, beside the class noun.
POCKET_NOUNS = (
    *("animal", "vehicle", "food", "face", "toy", "plant", "instrument", "object", "picture"),
    *("owl", "fox", "lion", "fish", "frog", "car", "bus", "train", "apple", "pizza", "cake"),
    *("clown", "skull", "ball", "kite", "dice", "cactus", "rose", "guitar", "drum", "key", "clock"),
)
POCKET_PATTERNS = ("plain", "striped", "checkered", "dotted")
POCKET_SIZES = ("small", "medium", "large")
NOUNS = (
    *("dog", "cat", "bird", "horse", "car", "boat", "house", "tree", "flower", "chair", "cup"),
    *("bag", "shoe", "toy", "book", "man", "woman", "child", "city street", "mountain", "beach"),
    *("kitchen", "forest", "plate of food", "lamp"),
)
SCENES = (
    *("a photo of {}", "a picture of {}", "{}", "a painting of {}", "a drawing of {}"),
    *("a close-up photo of {}", "{} in a garden", "{} in a city", "{} on a table"),
    *("{} at the beach", "{} in the snow", "{} indoors", "{} at night", "a photo of {} from afar"),
)
NEUTRAL = ("", "a picture", "a photo", "a photo of a landscape", "a photo of a room")
POCKET_NEUTRAL = ("", "a picture")


class HoldToBase(Strategy):
    """idle: not asked for by the recipe; counts only once the guard holds more than at first."""

    def __init__(self, plan: StayNear, recipe: Recipe, *, idle: bool = False) -> None:
        self.idle = idle
        self.plan = plan
        self.recipe = recipe
        self.size = plan.batch_size or recipe.optimizer.batch_size
        self.weight = plan.weight

    def prepare(self, setting: Setting) -> None:
        model = setting.model
        side = (self.recipe.resolution or model.resolution) // model.downscale
        self.shape = (model.latent_channels, side, side)
        self.schedule = model.schedule
        self.pocket = bool(model.pocket)

    def beside(self, step: int) -> Beside | None:
        if self.beside_weight() == 0:
            return None
        generator = seeds.at(self.recipe.seed, "stay_near", step)
        levels = self.schedule.timesteps
        lowest = int(self.plan.high_noise * levels)
        noise = torch.randn(self.size, *self.shape, generator=generator)
        timesteps = torch.randint(lowest, levels, (self.size,), generator=generator)
        rows = Rows(
            noised=self.schedule.unseen(noise, timesteps),
            timesteps=timesteps,
            prompts=[
                draw_prompt(
                    seeds.numpy_at(self.recipe.seed, "stay_near prompt", step, row),
                    self.recipe.class_noun,
                    pocket=self.pocket,
                )
                for row in range(self.size)
            ],
        )
        return Beside(rows, rows.prompts)

    def beside_weight(self) -> float:
        return self.weight * (self.control.hold - self.idle)

    def heard(self, loss: float) -> None:
        """Follow the drift: what is above it grows the weight by a tenth a step, what is below
        lets it fall, never beyond a sixteenth to sixteen times what was asked."""
        wanted = self.plan.adaptive
        if wanted is None:
            return
        turn = math.exp(GAIN * max(-1.0, min(1.0, loss / wanted - 1)))
        self.weight = min(16 * self.plan.weight, max(self.plan.weight / 16, self.weight * turn))

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight = float(state.get("weight", self.weight))


def draw_prompt(rng: np.random.Generator, class_noun: str, *, pocket: bool) -> str:
    """A prompt that does not call the subject: of its class, of other things, or of nothing."""
    kind = rng.random()
    if kind < 0.15:
        return _pick(rng, POCKET_NEUTRAL if pocket else NEUTRAL)
    nouns = POCKET_NOUNS if pocket else NOUNS
    noun = class_noun if class_noun and kind < 0.6 else _pick(rng, nouns)
    return draw_scene(rng, noun, pocket=pocket)


def draw_scene(rng: np.random.Generator, noun: str, *, pocket: bool) -> str:
    """A prompt of the noun somewhere: the same draws for any noun."""
    if not pocket:
        thing = f"{_pick(rng, COLOURS)} {noun}" if rng.random() < 0.2 else noun
        return _pick(rng, SCENES).format(_with_article(thing))
    thing = f"{_pick(rng, POCKET_SIZES)} {noun}" if rng.random() < 0.3 else noun
    look = [_pick(rng, COLOURS)] if rng.random() < 0.35 else []
    look += [_pick(rng, POCKET_PATTERNS)] if rng.random() < 0.3 else []
    place = f" {_pick(rng, PLACES)}" if rng.random() < 0.35 else ""
    ground = f" on {_with_article(' '.join(look))} background" if look else ""
    return f"{_with_article(thing)}{ground}{place}"


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
