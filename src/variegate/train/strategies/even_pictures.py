"""Let pictures that are one picture twice share one vote.

A picture that is there ten times is learnt by heart ten times as fast, and copying follows repeats
(Somepalli et al. 2023, arXiv 2305.20086). Copies are found as the audit finds them, mirrored, cut
and brightened ones among them; they take the one turn that they share in turns, so nothing is
thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from variegate.audit.descriptors import Look, look
from variegate.audit.duplicates import families, find_duplicates
from variegate.recipe import EvenPictures, Recipe
from variegate.train.strategies.base import Strategy


class ShareVotes(Strategy):
    """Acts before the first step, where the turns are dealt: see `votes`."""

    def __init__(self, plan: EvenPictures, recipe: Recipe) -> None:
        self.plan = plan


def look_at(picture: Image.Image) -> Look:
    """What copies are recognised by."""
    return look(picture)


def votes(looks: list[Look], hashes: Sequence[str]) -> list[int]:
    """For each picture, the first picture that it is a copy of; itself where it is none.

    hashes: of each picture's content.
    """
    first = list(range(len(looks)))
    for family in families(len(looks), find_duplicates(list(hashes), looks)):
        for member in family:
            first[member] = min(family)
    return first
