"""The benchmark on a base of the user's: the same causes of collapse, made of the user's pictures.

Nobody knows the truth of these pictures, so runs are compared by what the product measures. What
needs a world that is drawn (one background, two subjects) is left out, and said. No file of the
user's is touched: the pictures of each ailment are copies in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from variegate.bench.ailments import AILMENTS, HEALTHY, Ailment, Pictures, write_whole
from variegate.bench.contenders import Contender, assemble, field
from variegate.bench.scoreboard import MEASURED, Yardstick
from variegate.bench.testbed import FIRST_SEED, Testbed
from variegate.device import pick_device
from variegate.encoders import load_encoders
from variegate.errors import RequestError
from variegate.images import ImageSet, Picture, cache_dir
from variegate.measure import PlannedPrompt, prompt_plan
from variegate.models import DiffusionModel, fingerprint
from variegate.models import load as load_model
from variegate.recipe import Recipe

PLAIN, DEFAULT = "subject-plain", "subject"
# The most telling that can be made are taken for the small suite, beside the pictures as they are.
TELLING = ("four pictures", "duplicates", "hot", "long")
DRAWN = frozenset({"one-sided", "one background", "one place", "two subjects", "style"})
LEAST = 2  # pictures, below which likeness cannot be measured
ARTICLES = frozenset({"a", "an", "the", "photo", "picture", "image", "of"})


@dataclass(frozen=True)
class Own(Testbed):
    """A base of the user's and the pictures that its ailments are made from.

    base, images: as `models.load` and `ImageSet.read` take them, paths whole. encoders: none, the
    pocket's. settings: laid on every contender, before an ailment worsens it.
    """

    base: str
    images: str
    trigger: str
    class_noun: str
    encoders: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ("plain", "default", "kohya")  # the plain one is diffusers' own
    sheet: tuple[int, int] = (4, 128)

    @staticmethod
    def open(
        base: str,
        images: Path,
        *,
        trigger: str,
        class_noun: str,
        encoders: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> Own:
        """The bed, once all that can be wrong with what was asked is looked at, and before a weight
        is loaded; a hub's model is fetched.

        Raises: ImagesError, BaseError, EncoderError and RecipeError for pictures, base, encoders
        and settings that cannot be used; RequestError where the pictures are too few, or no caption
        names the trigger.
        """
        home = Path(base).expanduser()
        found = Own(
            str(home.resolve()) if home.exists() else base,
            str(images.expanduser().resolve()),
            trigger.strip(),
            class_noun.strip(),
            tuple(encoders),
            tuple(settings),
        )
        found._check_pictures()
        for name in ("plain", "default"):
            found.contenders[name].recipe()
        assert found.mark
        return found

    def _check_pictures(self) -> None:
        count, captions = len(self.pictures), self.captions
        if count < LEAST:
            raise RequestError(
                f"{self.images} holds {count} picture; likeness needs {LEAST} or more: add pictures"
            )
        if not any(self.trigger in caption for caption in captions):
            raise RequestError(
                f"none of the {count} captions in {self.images} names the trigger "
                f"{self.trigger!r}, such as {captions[0]!r}, so no run would learn it: name it in "
                "the captions, give the word that they use, or take the captions away"
            )

    # --- what there is to learn from ------------------------------------------------------------

    @cached_property
    def _found(self) -> tuple[tuple[str, Picture], ...]:
        """The pictures with what names their content, in an order that no file name decides."""
        told = []
        for picture in ImageSet.read(self.images):
            mask = picture.mask_file
            marks = [picture.content_hash(), "" if mask is None else _digest_file(mask)]
            told.append((_short([*marks, picture.prompt]), picture))
        return tuple(sorted(told, key=lambda one: one[0]))

    @property
    def pictures(self) -> ImageSet:
        return ImageSet(tuple(picture for _, picture in self._found), self.images)

    @property
    def silent(self) -> str:
        """The caption that says nothing but what is learnt; also of pictures that have none."""
        return f"a photo of {self.trigger} {self.class_noun}"

    @property
    def captions(self) -> list[str]:
        return [self.silent if p.prompt is None else p.prompt for p in self.pictures]

    def _says_nothing(self, caption: str) -> bool:
        own = {*self.trigger.lower().split(), *self.class_noun.lower().split()}
        return not set(caption.lower().replace(",", " ").split()) - own - ARTICLES

    # --- what can be made of it -----------------------------------------------------------------

    @property
    def ailments(self) -> Mapping[str, Ailment]:
        return {name: found for name, found in self._fitted.items() if isinstance(found, Ailment)}

    def left_out(self) -> Mapping[str, str]:
        return {name: why for name, why in self._fitted.items() if isinstance(why, str)}

    @cached_property
    def _fitted(self) -> dict[str, Ailment | str]:
        every = {**AILMENTS, HEALTHY.name: HEALTHY}
        return {name: self._fit(ailment) for name, ailment in every.items()}

    def _fit(self, ailment: Ailment) -> Ailment | str:
        """The ailment with pictures of the user's, or why it cannot be had."""
        asked, count = ailment.pictures, len(self.pictures)
        if ailment.name in DRAWN:
            return "needs a world that the benchmark draws itself; it is on the pocket only"
        few = asked.count < Pictures.count
        if few and count <= asked.count:
            return f"needs more than {asked.count} pictures to take them from; there are {count}"
        copies = 2 * count // 3 if asked.copies else 0
        if asked.copies and count < 4:
            return f"needs 4 pictures or more; there are {count}"
        silent = all(map(self._says_nothing, self.captions))
        if ailment.name == "silent captions" and silent:
            return "the captions say nothing but the trigger as they are"
        if asked.captions == "sentence" and (silent or len(set(self.captions)) < 2):
            return "needs captions that differ and say more than the trigger"
        causes = {
            HEALTHY.name: "your pictures and captions as they are",
            "duplicates": f"{copies + 1} of {count} pictures are one",
            "one caption": "the same sentence for all",
        }
        own = replace(asked, count=asked.count if few else count, copies=copies, same=frozenset())
        return replace(ailment, pictures=own, cause=causes.get(ailment.name, ailment.cause))

    @property
    def quick(self) -> tuple[str, ...]:
        return (*[name for name in TELLING if name in self.ailments][:2], HEALTHY.name)

    @cached_property
    def contenders(self) -> Mapping[str, Contender]:
        shared = self.settings
        plain = Contender("plain", "plain", (), PLAIN, shared=shared)
        default = Contender("default", "default", (), DEFAULT, shared=shared)
        return assemble(plain, default, field(1.0))

    def chosen(self, pictures: Pictures, seed: int) -> list[tuple[Picture, str]]:
        """Which pictures are learnt with a seed, and their captions; of one seed the fewer are
        among the more."""
        every = self.pictures.pictures
        order = np.random.default_rng((43, seed)).permutation(len(every))
        picked = [every[i] for i in order[: pictures.count]]
        picked = [picked[0] if 0 < i <= pictures.copies else p for i, p in enumerate(picked)]
        told = [self.silent if p.prompt is None else p.prompt for p in picked]
        if pictures.captions == "word":
            told = [self.silent] * len(picked)
        elif pictures.captions == "sentence":
            telling = [c for c in told if not self._says_nothing(c)]
            named = [c for c in telling if self.trigger in c]
            told = [(named or telling)[0]] * len(picked)
        return list(zip(picked, told, strict=True))

    def given(self, ailment: Ailment, seed: int) -> dict[str, str]:
        return {
            "base": self.base,
            "images": str(_copied(self, ailment.pictures, seed)),
            "trigger": self.trigger,
            "class_noun": self.class_noun,
        }

    def subject(self, ailment: Ailment, seed: int) -> str:
        return self.class_noun

    # --- what it is drawn with, and read by -----------------------------------------------------

    @property
    def yardstick(self) -> Yardstick:
        return MEASURED

    @cached_property
    def mark(self) -> str:
        """Of the base's weights, the encoders and all pictures, wherever they lie."""
        told = self.contenders["plain"].recipe()
        weights = fingerprint(self.base, t5_tokenizer=told.t5_tokenizer)
        eyes = [encoder.id for encoder in load_encoders(self.encoders)]
        return _short([weights, eyes, [mark for mark, _ in self._found]])

    def load(self, recipe: Recipe) -> DiffusionModel:
        reading = (recipe.clip_skip, recipe.zero_terminal_snr, recipe.t5_tokenizer)
        # A run on a base in few bits is short of memory: nothing is left there for the next one.
        load = _load.__wrapped__ if recipe.memory.base_bits else _load
        return load(recipe.base, *reading)

    def plan(self, recipe: Recipe) -> Sequence[PlannedPrompt]:
        """As a trial's, the same for all runs: of the user's captions too, where copies show."""
        return prompt_plan(
            self.class_noun,
            self.trigger,
            preset=recipe.sampling.preset,
            captions=self.captions,
            first_seed=FIRST_SEED,
        )

    def subject_pictures(self, recipe: Recipe) -> ImageSet:
        """All of the user's, whichever were learnt: the subject is what they show."""
        return self.pictures

    def truth(self, ailment: Ailment, seed: int, drawn: Path) -> dict[str, float]:
        return {}

    def words(self) -> list[str]:
        words = ["--base", self.base, "--images", self.images]
        words += ["--trigger", self.trigger, "--class", self.class_noun]
        words += [word for name in self.encoders for word in ("--encoder", name)]
        return words + [word for told in self.settings for word in ("--set", told)]


def _copied(own: Own, pictures: Pictures, seed: int) -> Path:
    """A folder of copies, in the cache, named by what is in it."""
    chosen = own.chosen(pictures, seed)
    marks = {picture.key: mark for mark, picture in own._found}
    mark = _short([(marks[picture.key], caption) for picture, caption in chosen])
    folder = cache_dir() / "bench" / "pictures" / f"own-{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, caption) in enumerate(chosen):
        assert picture.file is not None
        files = {folder / f"{i:03d}{picture.file.suffix.lower()}": picture.file}
        if mask := picture.mask_file:
            files[folder / f"{i:03d}-masklabel{mask.suffix.lower()}"] = mask
        for target, source in files.items():
            if not target.exists():
                write_whole(target, source.read_bytes())
        write_whole(folder / f"{i:03d}.txt", f"{caption}\n".encode())
    return folder


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _load(
    base: str, clip_skip: int, zero_terminal_snr: bool, t5_tokenizer: str | None
) -> DiffusionModel:
    return load_model(
        base,
        device=pick_device(),
        clip_skip=clip_skip,
        zero_terminal_snr=zero_terminal_snr,
        t5_tokenizer=t5_tokenizer,
    )
