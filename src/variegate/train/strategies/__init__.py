"""The kitchen: every strategy that a recipe can name, in the order in which they act on a picture.

A picture is moved first, then gets its new ground, so that the ground is whole; a gap is cut into
what it then is, and the light comes last. A caption is shortened and edited before what is seen is
added to it. An update is capped before it is averaged.
"""

from __future__ import annotations

from typing import Any

from variegate.plugins import plugins
from variegate.recipe import RankDropout, Recipe, StayNear
from variegate.train.strategies.affine import TurnPictures
from variegate.train.strategies.base import (
    Beside,
    Control,
    Dropout,
    Rows,
    Seen,
    Setting,
    Shot,
    Strategy,
)
from variegate.train.strategies.buckets import KeepShapes
from variegate.train.strategies.caption_dropout import DropCaptions
from variegate.train.strategies.caption_edits import EditCaptions
from variegate.train.strategies.caption_noise import StirWords
from variegate.train.strategies.caption_scene import NameScene
from variegate.train.strategies.caption_shuffle import ShuffleTags
from variegate.train.strategies.colour import VaryColours
from variegate.train.strategies.crop import ShowParts
from variegate.train.strategies.debiased import WeighByNoise
from variegate.train.strategies.ema import FollowSlowly
from variegate.train.strategies.erase import EraseParts
from variegate.train.strategies.even_pictures import ShareVotes
from variegate.train.strategies.flip import MirrorPictures
from variegate.train.strategies.huber import BendSquares
from variegate.train.strategies.input_perturbation import PerturbInput
from variegate.train.strategies.layout_prior import KeepLayout
from variegate.train.strategies.low_rank import KeepRankLow
from variegate.train.strategies.masked_loss import CountTheSubject
from variegate.train.strategies.max_norm import CapNorm
from variegate.train.strategies.min_snr import CapEasyLevels
from variegate.train.strategies.module_dropout import DropModules
from variegate.train.strategies.neuron_dropout import DropNeurons
from variegate.train.strategies.new_background import ChangeGround
from variegate.train.strategies.noise_offset import ShiftNoise
from variegate.train.strategies.prior_pictures import TrainTheClassToo
from variegate.train.strategies.rank_dropout import DropRanks
from variegate.train.strategies.soft_high_noise import CountLayoutLess
from variegate.train.strategies.spectral_cap import CapSpectrum
from variegate.train.strategies.stay_near import HoldToBase
from variegate.train.strategies.swa import AverageTheEnd
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
    "caption_noise": StirWords,
    "min_snr": CapEasyLevels,
    "masked_loss": CountTheSubject,
    "stay_near": HoldToBase,
    "layout_prior": KeepLayout,
    "prior_pictures": TrainTheClassToo,
    "low_rank": KeepRankLow,
    "spectral_cap": CapSpectrum,
    "max_norm": CapNorm,
    "neuron_dropout": DropNeurons,
    "rank_dropout": DropRanks,
    "module_dropout": DropModules,
    "debiased": WeighByNoise,
    "soft_high_noise": CountLayoutLess,
    "noise_offset": ShiftNoise,
    "input_perturbation": PerturbInput,
    "huber": BendSquares,
    "ema": FollowSlowly,
    "swa": AverageTheEnd,
    **{name: plugin.load() for name, plugin in plugins().items()},
}

__all__ = [
    "KITCHEN",
    "Beside",
    "Control",
    "Dropout",
    "Rows",
    "Seen",
    "Setting",
    "Shot",
    "Strategy",
    "cook",
    "spare",
]


def cook(recipe: Recipe) -> dict[str, Strategy]:
    """The strategies that are on in a recipe, by name, in their order."""
    return {
        name: kind(entry, recipe)
        for name, kind in KITCHEN.items()
        if (entry := getattr(recipe.strategies, name)) is not None
    }


def spare(recipe: Recipe) -> dict[str, Strategy]:
    """What the guard may bring in that the recipe did not ask for; idle until it does."""
    found: dict[str, Strategy] = {}
    if recipe.strategies.stay_near is None:
        found["stay_near"] = HoldToBase(StayNear(), recipe, idle=True)
    if recipe.strategies.rank_dropout is None and recipe.adapter.kind == "lora":
        found["rank_dropout"] = DropRanks(RankDropout(p=0.0), recipe)
    return found
