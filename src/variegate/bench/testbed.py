"""What a benchmark runs on: a base, the ailments and contenders that fit it, and who reads it.

The pocket is one; a base of the user's, with pictures of the user's, is the other (`own.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from variegate.bench.ailments import AILMENTS, HEALTHY, TRIGGER, Ailment, fixed_factors, scenes_of
from variegate.bench.bank import weights_mark
from variegate.bench.contenders import Contender, contenders
from variegate.bench.scoreboard import JUDGED, Yardstick
from variegate.bench.truth import read_folder, truth
from variegate.images import ImageSet
from variegate.measure import PlannedPrompt, prompt_plan
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.recipe import Recipe

FIRST_SEED = 5000  # which no training and no verdict of a run itself has seen
# Of the pocket. Seeds of each prompt: a prompt's variety is read from its own pictures.
SEEDS = {"class": 6, "trigger": 8, "unrelated": 2}
PROMPTS = {"class": 24, "trigger": 16, "unrelated": 16}


class Testbed(ABC):
    """What `suite` asks of a base and its pictures. Frozen, and small enough to travel between
    processes.

    trigger: the word that calls the subject. encoders: through which the measures see. rivals: the
    contenders of the small suite. sheet: columns, and pixels of a picture's side, of the pictures
    that are kept of a run.
    """

    trigger: str
    encoders: tuple[str, ...]
    rivals: tuple[str, ...]
    sheet: tuple[int, int]

    @property
    @abstractmethod
    def yardstick(self) -> Yardstick:
        """What rows are compared by."""

    @property
    @abstractmethod
    def mark(self) -> str:
        """What names the weights, and all else that every row depends on, by content."""

    @property
    @abstractmethod
    def ailments(self) -> Mapping[str, Ailment]:
        """Those that can be made here, in the order of the table, and what is healthy."""

    @property
    @abstractmethod
    def quick(self) -> tuple[str, ...]:
        """The ailments of the small suite."""

    @property
    @abstractmethod
    def contenders(self) -> Mapping[str, Contender]:
        """All that can be compared here, plain and default first."""

    @abstractmethod
    def left_out(self) -> Mapping[str, str]:
        """The ailments that cannot be made here, and why."""

    @abstractmethod
    def given(self, ailment: Ailment, seed: int) -> dict[str, str]:
        """A recipe's base, pictures, trigger and class noun for one seed of an ailment."""

    @abstractmethod
    def subject(self, ailment: Ailment, seed: int) -> str:
        """Who or what is learnt."""

    @abstractmethod
    def load(self, recipe: Recipe) -> DiffusionModel:
        """The base as it is drawn with, loaded once in each process."""

    @abstractmethod
    def plan(self, recipe: Recipe) -> Sequence[PlannedPrompt]:
        """What adapter and base are asked, at which seeds."""

    @abstractmethod
    def subject_pictures(self, recipe: Recipe) -> ImageSet:
        """The pictures that likeness and copies are looked for in."""

    @abstractmethod
    def truth(self, ailment: Ailment, seed: int, drawn: Path) -> dict[str, float]:
        """What is known of the pictures in a folder beside what is measured of them."""

    @abstractmethod
    def words(self) -> list[str]:
        """Its words on the command line."""


@dataclass(frozen=True)
class Pocket(Testbed):
    """The pocket, with pictures of its own world, read by its judge."""

    trigger: str = TRIGGER
    encoders: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("one-sided", "four pictures", HEALTHY.name)
    rivals: tuple[str, ...] = ("plain", "default", "diffusers")
    sheet: tuple[int, int] = (8, 64)

    @property
    def yardstick(self) -> Yardstick:
        return JUDGED

    @property
    def mark(self) -> str:
        return weights_mark()

    @property
    def ailments(self) -> Mapping[str, Ailment]:
        return AILMENTS | {HEALTHY.name: HEALTHY}

    @property
    def contenders(self) -> Mapping[str, Contender]:
        return contenders()

    def left_out(self) -> Mapping[str, str]:
        return {}

    def given(self, ailment: Ailment, seed: int) -> dict[str, str]:
        return ailment.drawn(seed)

    def subject(self, ailment: Ailment, seed: int) -> str:
        return ailment.subject(seed)

    def load(self, recipe: Recipe) -> DiffusionModel:
        return _pocket()

    def plan(self, recipe: Recipe) -> Sequence[PlannedPrompt]:
        whole = prompt_plan(recipe.class_noun, self.trigger, preset="standard", pocket=True)
        kept, counts = [], dict.fromkeys(PROMPTS, 0)
        for i, line in enumerate(whole):
            if counts.get(line.group, 99) >= PROMPTS.get(line.group, 0):
                continue
            counts[line.group] += 1
            first = FIRST_SEED + 8 * i
            kept.append(line._replace(seeds=tuple(range(first, first + SEEDS[line.group]))))
        return kept

    def subject_pictures(self, recipe: Recipe) -> ImageSet:
        return ImageSet.read(Path(recipe.images))

    def truth(self, ailment: Ailment, seed: int, drawn: Path) -> dict[str, float]:
        pictures, subject = ailment.pictures, ailment.subject(seed)
        return truth(
            read_folder(drawn / "adapter"),
            read_folder(drawn / "base"),
            subject=subject,
            learnt=scenes_of(pictures, subject, seed),
            style=fixed_factors(pictures, seed) if pictures.concept == "style" else None,
        )

    def words(self) -> list[str]:
        return []


@cache
def _pocket() -> DiffusionModel:
    return load_model("pocket")


POCKET = Pocket()
