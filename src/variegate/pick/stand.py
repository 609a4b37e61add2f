"""Points drawn and measured at one plan, against one set of the base's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from variegate.adapter import Adapter
from variegate.blended import sampling_of
from variegate.device import pick_device
from variegate.encoders import Encoder, load_encoders
from variegate.errors import RequestError
from variegate.formats import own_notes, reading_of, trigger_of
from variegate.images import ImageSet, cache_dir
from variegate.judged import short_hash
from variegate.measure import Evidence, PlannedPrompt, gather, prompt_plan
from variegate.measure.gather import first_features
from variegate.measure.readings import likeness
from variegate.measure.versus import (
    gain,
    kept,
    paired_recognised,
    paired_variety,
    recognised,
)
from variegate.measurement import Measurement, Missing
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.pick.points import Checkpoint, Point
from variegate.pick.race import Differences, Race, Sight, too_unlike
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.run import Run
from variegate.sample import Request, sample
from variegate.trial import learnt_and_held_out

EACH = 4  # pictures of a prompt: fewer say too little about spread
BLOCK = 4  # prompts in turn that go to the search, then to the fresh pictures, and so on
SLACK = 0.1  # how far so few fresh pictures may lie below the floor by chance
FAR = 20_000  # how far fresh seeds lie from those of the search
GROUPS = ("class", "trigger")


@dataclass
class Bench:
    """Draws and measures points at one plan, against one set of the base's pictures.

    own: how the base is drawn. searched, checked: the prompts of the search and those of the fresh
    pictures, in turn, no prompt and no seed in both. subject: what likeness is measured to.
    learnt_known: whether that is what was learnt from; else it is what the last checkpoint draws.
    fresh_prompts: of each group. extra: pictures drawn beside those of the search.
    """

    model: DiffusionModel
    base: str
    own: SamplingPlan
    adapters: dict[str, Checkpoint]
    searched: tuple[PlannedPrompt, ...]
    checked: tuple[PlannedPrompt, ...]
    prompts: int
    encoders: tuple[Encoder, ...]
    subject: ImageSet | None
    held_out: ImageSet | None
    trigger: str
    class_noun: str
    say: Say
    told: list[str]
    learnt_known: bool
    fresh_prompts: int = 2
    extra: int = 0

    def __post_init__(self) -> None:
        self.evidence: dict[Point, Evidence] = {}
        # Two thirds of the steps tell points apart as well, in two thirds of the time.
        self.quick = self.own.model_copy(update={"steps": max(4, self.own.steps * 2 // 3)})

    @staticmethod
    def on(
        found: Sequence[Checkpoint],
        run: Run | None,
        *,
        prompts: int,
        told: list[str],
        base: str | None = None,
        trigger: str | None = None,
        class_noun: str | None = None,
        style: bool = False,
        train_images: Path | None = None,
        encoders: Sequence[str] = (),
        seed: int = 0,
        say: Say = silent,
    ) -> Bench:
        """What is known of the checkpoints, and their base. told: takes what weakens the claims.

        Raises: RequestError where nobody says what the trigger is.
        """
        notes = found[-1].metadata
        recipe = run.recipe if run else None
        base = base or (recipe.base if recipe else None) or "pocket"
        trigger = trigger or (recipe.trigger if recipe else "") or trigger_of(notes)
        noun = class_noun or (recipe.class_noun if recipe else "")
        noun = noun or str(own_notes(notes).get("class", ""))
        if not trigger:
            raise RequestError(
                "nobody says which word calls what these checkpoints learnt, and without it nobody "
                "can tell how like they are; give --trigger, and --class if you know it"
            )
        subject, held_out = _subject(train_images, run, told)
        eyes = tuple(load_encoders(encoders))
        model = load_model(base, device=pick_device(), **reading_of(notes))
        own = recipe.sampling if recipe and recipe.base == base else sampling_of(base)
        own = own.model_copy(update={"sampler": model.nearest_sampler(own.sampler)})
        plan = prompt_plan(
            noun,
            trigger,
            preset="thorough",
            pocket=model.pocket,
            subject=not style,
            first_seed=seed,
        )
        searched, checked = split(plan, prompts)
        bench = Bench(
            model=model,
            base=base,
            own=own,
            adapters={c.name: c for c in found},
            searched=searched,
            checked=checked,
            prompts=prompts,
            encoders=eyes,
            subject=subject,
            held_out=held_out,
            trigger=trigger,
            class_noun=noun,
            say=say,
            told=told,
            learnt_known=subject is not None,
        )
        if subject is None:
            bench.subject = bench._of_last(found[-1])
        return bench

    def adapter(self, point: Point) -> Adapter:
        learnt = self.adapters[point.checkpoint].adapter
        return learnt if point.strength == 1 else learnt.scaled(point.strength)

    def look(self, point: Point, prompts: int) -> Sight:
        self.evidence[point] = self._drawn(
            point, first_of(self.searched, prompts), self.quick, f"look at {point.words}"
        )
        variety, like = self.variety(point), likeness(self.evidence[point])
        for found in (variety, like):
            if isinstance(found, Missing):
                raise RequestError(
                    f"the checkpoints cannot be compared: {found.name} is not known, {found.why}; "
                    "give --class and --train-images, or another --encoder"
                )
        assert isinstance(variety, Measurement)
        assert isinstance(like, Measurement)
        return Sight(prompts, variety.value, like.value)

    @cached_property
    def ordinary(self) -> Tensor:
        """What the base draws at all prompts of the search: however little is drawn of a point, the
        subject is told from that."""
        return first_features(self.draw_base(self.searched, self.quick), self.encoders)

    def differences(self, left: Point, right: Point) -> Differences:
        return self._between(self.evidence[left], self.evidence[right])

    def _between(self, left: Evidence, right: Evidence) -> Differences:
        found = paired_recognised(left, right, self.ordinary)
        like = () if isinstance(found, Missing) else found
        return Differences(paired_variety(left, right), like)

    def variety(self, point: Point) -> Measurement | Missing:
        return kept(self.evidence[point])

    def likeness(self, reference: Point, point: Point) -> Measurement | Missing:
        return self.as_often(self.evidence[reference], self.evidence[point])

    def as_often(self, left: Evidence, right: Evidence) -> Measurement | Missing:
        return recognised(left, right, self.ordinary)

    def draw_whole(self, point: Point) -> tuple[ImageSet, ImageSet]:
        """All of a point's pictures that the full grid would take, and the base's."""
        ours = self.draw(point, self.searched, self.quick, f"draw {point.words}")
        return ours, self.draw_base(self.searched, self.quick)

    def home(self, point: Point, sampling: SamplingPlan) -> Path:
        of = self.adapters[point.checkpoint].digest, str(point.strength), str(point.guidance_scale)
        return (
            cache_dir() / "picked" / short_hash(*of, sampling.model_dump_json(), str(self.model.id))
        )

    def fresh(self, choice: Point, went: Race, margin: float) -> Fresh:
        """The choice and the reference at fresh prompts and seeds, with all denoising steps. Where
        the choice then shows the subject clearly less often, or is no more varied, the reference
        takes its place."""
        assert went.reference is not None
        reference = went.reference
        plan = first_of(self.checked, self.fresh_prompts)
        drawn = {
            p: self._drawn(p, plan, self.own, f"check {p.words}")
            for p in dict.fromkeys((choice, reference))
        }
        pictures = len(drawn) * sum(len(line.seeds) for line in plan)
        fell = ""
        if choice != reference:
            gap = self._between(drawn[reference], drawn[choice])
            grown = gain(drawn[reference], drawn[choice])
            if gap.like < 1 - margin - SLACK or too_unlike(gap, margin):
                fell = (
                    f"{choice.words} looked better in the search, but fresh pictures of it show "
                    f"the subject {gap.like:.0%} as often"
                )
            elif isinstance(grown, Measurement) and grown.value <= 0:
                fell = (
                    f"{choice.words} looked more varied in the search, but on fresh pictures it is "
                    f"not ({100 * grown.value:+.0f} points)"
                )
        return Fresh(reference if fell else choice, choice, reference, drawn, pictures, fell)

    def _drawn(
        self, point: Point, plan: Sequence[PlannedPrompt], sampling: SamplingPlan, phase: str
    ) -> Evidence:
        base = self.draw_base(plan, sampling)
        ours = self.draw(point, plan, sampling, phase)
        return gather(
            ours,
            base,
            encoders=self.encoders,
            train_images=self.subject,
            held_out=self.held_out,
            trigger=self.trigger or None,
            class_noun=self.class_noun or None,
        )

    def draw(
        self, point: Point, plan: Sequence[PlannedPrompt], sampling: SamplingPlan, phase: str
    ) -> ImageSet:
        def told(_: str, done: int, total: int, note: str) -> None:
            self.say(phase, done, total, note)

        return sample(
            self.model,
            self.adapter(point),
            [Request(p.adapter_prompt, seed, p.group) for p in plan for seed in p.seeds],
            plan=sampling.model_copy(update={"guidance_scale": point.guidance_scale}),
            out=self.home(point, sampling),
            say=told,
        )

    def draw_base(self, plan: Sequence[PlannedPrompt], sampling: SamplingPlan) -> ImageSet:
        def told(_: str, done: int, total: int, note: str) -> None:
            self.say("sample base", done, total, note)

        asked = [Request(p.base_prompt, seed, p.group) for p in plan for seed in p.seeds]
        return sample(
            self.model, None, asked, plan=sampling, out=self._base_home(sampling), say=told
        )

    def _base_home(self, sampling: SamplingPlan) -> Path:
        of = short_hash(str(self.model.id), sampling.model_dump_json(), "picked")
        return cache_dir() / "base" / of

    def _of_last(self, last: Checkpoint) -> ImageSet:
        """What the last checkpoint draws under the trigger at full strength, at seeds of its own:
        what likeness is measured to where nobody has the training pictures."""
        self.told.append(
            "no training pictures are known, so likeness is measured to what the last checkpoint "
            f"({last.name}) draws at strength 1: a later checkpoint counts as likelier than it may "
            "be, and copies cannot be told; give --train-images"
        )
        lines = [line for line in self.checked if line.group == "trigger"]
        asked = [Request(line.adapter_prompt, line.seeds[0] + 2 * FAR) for line in lines]
        self.extra += len(asked)

        def told(_: str, done: int, total: int, note: str) -> None:
            self.say("draw the subject", done, total, note)

        point = Point(last.name, last.step, 1.0, self.own.guidance_scale)
        out = self.home(point, self.quick) / "subject"
        return sample(self.model, last.adapter, asked, plan=self.quick, out=out, say=told)


@dataclass(frozen=True)
class Fresh:
    """What the fresh pictures show. point: what is recommended in the end. fell: why that is not
    what the search chose, or ""."""

    point: Point
    searched: Point
    reference: Point
    evidence: dict[Point, Evidence]
    pictures: int
    fell: str


def _subject(
    train_images: Path | None, run: Run | None, told: list[str]
) -> tuple[ImageSet | None, ImageSet | None]:
    """What likeness is measured to, and what was held out of the training."""
    if train_images is not None:
        return ImageSet.read(train_images), None
    if run is None:
        return None, None
    try:
        learnt, held_out = learnt_and_held_out(run)
    except RequestError as error:
        told.append(f"the run's training pictures cannot be read: {error}")
        return None, None
    return learnt, held_out if len(held_out) else None


def split(
    plan: Sequence[PlannedPrompt], prompts: int
) -> tuple[tuple[PlannedPrompt, ...], tuple[PlannedPrompt, ...]]:
    """So many prompts of each group for the search, and others for the fresh pictures."""
    sides: tuple[list[PlannedPrompt], list[PlannedPrompt]] = ([], [])
    for group in GROUPS:
        lines = [line for line in plan if line.group == group]
        for i, line in enumerate(lines):
            side = i // BLOCK % 2
            if sum(other.group == group for other in sides[side]) < prompts:
                first = line.seeds[0] + side * FAR
                sides[side].append(line._replace(seeds=tuple(range(first, first + EACH))))
    return tuple(sides[0]), tuple(sides[1])


def first_of(plan: Sequence[PlannedPrompt], prompts: int) -> tuple[PlannedPrompt, ...]:
    """The first so many prompts of each group."""
    return tuple(
        line
        for group in GROUPS
        for line in [line for line in plan if line.group == group][:prompts]
    )
