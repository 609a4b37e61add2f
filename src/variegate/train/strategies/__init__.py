"""The kitchen: every strategy that a recipe can name, in the order in which they act on a picture.

A picture is moved first, then gets its new ground, so that the ground is whole; a gap is cut into
what it then is, and the light comes last. A caption is shortened and edited before what is seen is
added to it.
"""

from __future__ import annotations

from typing import Any

from variegate.recipe import Recipe
from variegate.train.strategies.affine import TurnPictures
from variegate.train.strategies.base import Frame, Rows, Seen, Setting, Shot, Strategy
from variegate.train.strategies.buckets import KeepShapes
from variegate.train.strategies.caption_dropout import DropCaptions
from variegate.train.strategies.caption_edits import EditCaptions
from variegate.train.strategies.caption_scene import NameScene
from variegate.train.strategies.caption_shuffle import ShuffleTags
from variegate.train.strategies.colour import VaryColours
from variegate.train.strategies.crop import ShowParts
from variegate.train.strategies.erase import EraseParts
from variegate.train.strategies.even_pictures import ShareVotes
from variegate.train.strategies.flip import MirrorPictures
from variegate.train.strategies.masked_loss import CountTheSubject
from variegate.train.strategies.min_snr import CapEasyLevels
from variegate.train.strategies.new_background import ChangeGround
from variegate.train.strategies.stay_near import HoldToBase
from variegate.train.strategies.token_dropout import DropTokens
from variegate.train.strategies.zoom_shift import MovePictures

KITCHEN: dict[str, Any] = {
    "even_pictures": ShareVotes,
    "buckets": KeepShapes,
    "crop": ShowParts,
    "affine": TurnPictures,
    "zoom_shift": MovePictures,
    "new_background": ChangeGround,
    "erase": EraseParts,
    "colour": VaryColours,
    "flip": MirrorPictures,
    "caption_shuffle": ShuffleTags,
    "token_dropout": DropTokens,
    "caption_edits": EditCaptions,
    "caption_scene": NameScene,
    "caption_dropout": DropCaptions,
    "min_snr": CapEasyLevels,
    "masked_loss": CountTheSubject,
    "stay_near": HoldToBase,
}

__all__ = ["KITCHEN", "Frame", "Rows", "Seen", "Setting", "Shot", "Strategy", "cook"]


def cook(recipe: Recipe) -> dict[str, Strategy]:
    """The strategies that are on in a recipe, by name, in their order."""
    return {
        name: kind(entry, recipe)
        for name, kind in KITCHEN.items()
        if (entry := getattr(recipe.strategies, name)) is not None
    }
