"""Recipes that collapse on purpose, each through one cause.

An ailment says which pictures are learnt and what is done too much of; the contender says how. So
every contender is asked to survive the same mistakes, with its own rate, rank and length as the
measure of "too much". A third of the ailments are held out: defaults are chosen without them, and
they are judged on subjects that no choice has seen.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from variegate.bench import world
from variegate.images import cache_dir
from variegate.recipe import Recipe

TRIGGER, OTHER_TRIGGER = "zqx", "vwk"
# All of them are held out of the pocket, its codec and its encoder.
KNOWN = ("robot", "unicorn", "cupcake", "yoyo")  # those on which defaults were chosen
NEW = ("parrot", "taco", "ghost", "saucer", "tulip", "camera")
SURROUNDINGS = ("colour", "pattern", "size", "position")

Captions = Literal["varied", "word", "sentence"]
Concept = Literal["subject", "two subjects", "style"]


@dataclass(frozen=True)
class Pictures:
    """What is learnt from.

    same: the factors that all pictures share. copies: how many of `count` are the first again.
    captions: what the base is used to, naming factors by chance; the trigger word alone; or one
    sentence for all. concept: one subject; two, each with a trigger of its own; or a style, the
    colour and pattern of the ground under subjects of all kinds.
    """

    count: int = 12
    same: frozenset[str] = frozenset()
    copies: int = 0
    captions: Captions = "varied"
    concept: Concept = "subject"


def _no_worse(tables: dict[str, Any]) -> None:
    """What harms is in the pictures alone."""


@dataclass(frozen=True)
class Ailment:
    """One cause of collapse. worse: what it does to any recipe. core: in every full comparison."""

    name: str
    cause: str
    pictures: Pictures = Pictures()
    worse: Callable[[dict[str, Any]], None] = _no_worse
    core: bool = False
    held_out: bool = False

    def subject(self, seed: int) -> str:
        """Who is learnt with a seed: another for each, from a list of its own when held out."""
        known = NEW if self.held_out else KNOWN
        return known[seed % len(known)]

    def recipe(
        self, contender: Recipe, seed: int, given: Mapping[str, str] | None = None
    ) -> Recipe:
        """The contender's recipe with the ailment's pictures, for one seed.

        given: the entries that say what is learnt from, and on which base; None: those of `drawn`.
        """
        tables = contender.model_dump(mode="json", exclude_none=True)
        self.worse(tables)
        told: dict[str, Any] = dict(self.drawn(seed) if given is None else given)
        return Recipe.build(tables, where=self.name, **told, seed=seed)

    def drawn(self, seed: int) -> dict[str, str]:
        """What a recipe is given of pictures of the pocket's world, rendered into the cache."""
        subject = self.subject(seed)
        style = self.pictures.concept == "style"
        return {
            "images": str(draw_pictures(self.pictures, subject, seed)),
            "trigger": TRIGGER,
            "class_noun": "picture" if style else world.CLASS_OF[subject],
        }


def fixed_factors(pictures: Pictures, seed: int) -> dict[str, str]:
    """What all pictures share, drawn anew for each seed."""
    rng = np.random.default_rng((31, seed))
    drawn = {name: str(rng.choice(world.FACTORS[name])) for name in SURROUNDINGS}
    shared = {"colour", "pattern"} if pictures.concept == "style" else pictures.same
    return {name: value for name, value in drawn.items() if name in shared}


def scenes_of(pictures: Pictures, subject: str, seed: int) -> list[world.Scene]:
    """The scenes that are learnt from, in order."""
    fixed, scenes = fixed_factors(pictures, seed), list[world.Scene]()
    for i in range(pictures.count):
        if 0 < i <= pictures.copies:
            scenes.append(scenes[0])
            continue
        rng = np.random.default_rng((29, seed, i))
        kinds: tuple[str, ...] = (subject,)
        if pictures.concept == "two subjects" and i % 2:
            kinds = (second_subject(subject),)
        elif pictures.concept == "style":
            kinds = world.BASE_SUBJECTS
        scenes.append(world.draw_scene(rng, kinds, **fixed))
    return scenes


def second_subject(subject: str) -> str:
    """Who is learnt beside a subject: the next of its list."""
    known = KNOWN if subject in KNOWN else NEW
    return known[(known.index(subject) + 1) % len(known)]


def draw_pictures(pictures: Pictures, subject: str, seed: int) -> Path:
    """A folder of rendered pictures with captions, in the cache; rendered anew at each call."""
    parts = [subject, str(seed), pictures.concept, str(pictures.count), str(pictures.copies)]
    parts += [pictures.captions, *sorted(pictures.same)]
    folder = cache_dir() / "bench" / "pictures" / "-".join(parts).replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes_of(pictures, subject, seed)):
        picture = folder / f"{i:02d}.png"
        drawn = io.BytesIO()
        Image.fromarray(world.render(scene)).save(drawn, format="PNG")
        write_whole(picture, drawn.getvalue())
        words = _caption(pictures, scene, subject, np.random.default_rng((37, seed, i)))
        write_whole(picture.with_suffix(".txt"), f"{words}\n".encode())
    return folder


def _caption(pictures: Pictures, scene: world.Scene, subject: str, rng: np.random.Generator) -> str:
    word = TRIGGER if scene.subject == subject else OTHER_TRIGGER
    if pictures.concept == "style":
        word = f"{TRIGGER} {scene.subject}"
    if pictures.captions == "word":
        return f"a {word}"
    if pictures.captions == "sentence":
        return f"a picture of a {word} in the center, striped background"
    named = frozenset(
        name
        for name in SURROUNDINGS
        if rng.random() < 0.5
        and not (pictures.concept == "style" and name in ("colour", "pattern"))
    )
    return world.caption(scene, named=named, noun=word, rng=rng)


def write_whole(file: Path, content: bytes) -> None:
    """Whole at any time: another process may be reading it."""
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)


# --- what is done too much of -------------------------------------------------------------------


def _longer(tables: dict[str, Any]) -> None:
    tables["optimizer"]["steps"] *= 4


def _hotter(tables: dict[str, Any]) -> None:
    for name in ("lr", "text_encoder_lr"):
        if name in tables["optimizer"]:
            tables["optimizer"][name] = min(1.0, tables["optimizer"][name] * 4)


def _wider(tables: dict[str, Any]) -> None:
    """Eight times the rank, its scale kept."""
    plan = tables["adapter"]
    if "rank" in plan:
        grown = min(256, plan["rank"] * 8)
        if "alpha" in plan:
            plan["alpha"] *= grown / plan["rank"]
        plan["rank"] = grown


def _bare(tables: dict[str, Any]) -> None:
    tables["optimizer"]["weight_decay"] = 0.0
    if "dropout" in tables["adapter"]:
        tables["adapter"]["dropout"] = 0.0
    for name in ("flip", "caption_dropout"):
        tables["strategies"].pop(name, None)


def _text_first(tables: dict[str, Any]) -> None:
    """The text encoder learns four times as fast as the UNet, instead of at half its rate."""
    if "text_encoder" in tables["adapter"] or tables["adapter"]["kind"] == "lora":
        tables["adapter"]["text_encoder"] = True
    if "text_encoder_lr" in tables["optimizer"] or "lr" in tables["optimizer"]:
        tables["optimizer"]["text_encoder_lr"] = min(1.0, 4 * tables["optimizer"]["lr"])


def _biased_start(tables: dict[str, Any]) -> None:
    """Noise that is never of mean zero in training, though it is when pictures are drawn."""
    tables["strategies"]["noise_offset"] = {"amount": 0.5}


_GROUND, _PLACE = frozenset({"colour", "pattern"}), frozenset({"size", "position"})
_ALL = frozenset(SURROUNDINGS)
AILMENTS: dict[str, Ailment] = {
    found.name: found
    for found in (
        Ailment(
            "one-sided",
            "one background, one size, one place, captions of the trigger alone",
            Pictures(same=_ALL, captions="word"),
            core=True,
        ),
        Ailment("four pictures", "too few pictures", Pictures(count=4), core=True),
        Ailment("duplicates", "9 of 12 pictures are one", Pictures(copies=8), core=True),
        Ailment("long", "four times the steps", Pictures(captions="word"), _longer, core=True),
        Ailment("hot", "four times the learning rate", Pictures(), _hotter, core=True),
        Ailment("one picture", "one picture", Pictures(count=1)),
        Ailment("two pictures", "two pictures", Pictures(count=2), held_out=True),
        Ailment("eight pictures", "few pictures", Pictures(count=8)),
        Ailment("one background", "the same ground in all", Pictures(same=_GROUND)),
        Ailment(
            "one place", "the same size and place in all", Pictures(same=_PLACE), held_out=True
        ),
        Ailment("silent captions", "captions of the trigger alone", Pictures(captions="word")),
        Ailment(
            "one caption",
            "the same sentence for all, one ground",
            Pictures(same=_GROUND, captions="sentence"),
            held_out=True,
        ),
        Ailment("wide", "eight times the rank", Pictures(captions="word"), _wider, held_out=True),
        Ailment("bare", "no weight decay, dropout or flip", Pictures(captions="word"), _bare),
        Ailment(
            "text encoder",
            "the text encoder learns fastest",
            Pictures(captions="word"),
            _text_first,
            held_out=True,
        ),
        Ailment(
            "biased noise",
            "training noise with an offset that drawing lacks",
            Pictures(captions="word"),
            _biased_start,
        ),
        Ailment(
            "two subjects",
            "two concepts in one adapter",
            Pictures(count=16, concept="two subjects"),
            held_out=True,
        ),
        Ailment("style", "a look, not a subject", Pictures(concept="style")),
    )
}
# Nothing wrong: what the detector must not call ill.
HEALTHY = Ailment("healthy", "24 varied pictures with captions", Pictures(count=24))
