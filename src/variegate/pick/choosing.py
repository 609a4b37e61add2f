"""Which checkpoint to use, how strongly, and at which guidance scale: drawn, measured, exported.

The search (`race`) goes by few pictures, and what it chooses was chosen for looking well. So the
choice is drawn once more, at prompts and seeds that the search never saw, beside the plain point
that it is compared with; what is told of the two comes from those pictures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from variegate.adapter import Adapter
from variegate.blended import sampling_of
from variegate.device import pick_device
from variegate.encoders import Encoder, load_encoders
from variegate.errors import AdapterError, Interrupted, RequestError
from variegate.formats import (
    own_notes,
    read,
    reading_of,
    stamp,
    trigger_of,
    write,
    write_sidecar,
)
from variegate.formats.metadata import OURS, usage_hint
from variegate.images import ImageSet, cache_dir
from variegate.judged import short_hash, write_json
from variegate.measure import (
    Evidence,
    PlannedPrompt,
    Verdict,
    find_copies,
    gather,
    measure,
    nearest_pictures,
    prompt_plan,
)
from variegate.measure.readings import likeness
from variegate.measure.versus import (
    gain,
    kept,
    likeness_versus,
    paired_likeness,
    paired_variety,
)
from variegate.measurement import Measurement, Missing
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.pick.points import MOST, Checkpoint, Point, checkpoints_of, grid
from variegate.pick.race import FEWEST, Differences, Race, Sight, race, too_unlike
from variegate.pick.votes import Strength, read_votes
from variegate.pick.votes import strengths as liked_in
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.report import write_picked
from variegate.run import Run
from variegate.sample import Named, Request, sample
from variegate.trial import learnt_and_held_out

STRENGTHS = (0.6, 0.8, 1.0)
EASED = 0.6  # of the base's guidance beyond 1, tried beside the whole of it
SHARE = 0.25  # of the full grid's pictures
CHECKED = 0.25  # of the budget at most, for the check at fresh prompts and seeds
MARGIN = 0.03  # of likeness, below that of the best plain point
PROMPTS = 16  # of each group, that the full grid would draw of every point
EACH = 4  # pictures of a prompt: fewer say too little about spread
BLOCK = 4  # prompts in turn that go to the search, then to the fresh pictures, and so on
FAR = 20_000  # how far fresh seeds lie from those of the search
GROUPS = ("class", "trigger")
SHOWN = 6  # pictures that go with the export
WHERE = "picked"  # the folder in a run or beside checkpoints


@dataclass(frozen=True)
class Placed:
    """A point as it is told: its numbers with their intervals, of prompts of each group.

    likeness is as the point stands to the subject; ruled_out: why, or "". tied: it cannot be told
    from the choice. votes: how much it was liked, where anybody was asked.
    """

    point: Point
    prompts: int
    variety: Measurement | Missing
    likeness: Measurement | Missing
    on_front: bool
    ruled_out: str = ""
    tied: bool = False
    votes: Strength | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.point.to_json(),
            "prompts": self.prompts,
            "variety": self.variety.to_json(),
            "likeness": self.likeness.to_json(),
            "on_front": self.on_front,
            "ruled_out": self.ruled_out,
            "tied": self.tied,
            "votes": self.votes.to_json() if self.votes else None,
        }


@dataclass(frozen=True)
class Picked:
    """The point that is recommended, why, and all that stood beside it. searched: what the search
    chose, which fresh pictures may have refused. gain, closeness: of the
    fresh pictures, its variety and likeness less those of the plain reference; Missing where it is
    the reference itself."""

    point: Point
    searched: Point
    reference: Point
    reason: str
    cannot_tell: str
    points: tuple[Placed, ...]
    gain: Measurement | Missing
    closeness: Measurement | Missing
    verdict: Verdict
    run: str | None
    base: str
    adapter: Path
    files: dict[str, str]
    page: Path
    samples_used: int
    samples_of_grid: int
    stopped_because: str
    checkpoint: Path
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "base": self.base,
            "adapter": str(self.adapter),
            "checkpoint": str(self.checkpoint),
            "step": self.point.step,
            "strength": self.point.strength,
            "guidance_scale": self.point.guidance_scale,
            "stopped_because": self.stopped_because,
            "point": self.point.name,
            "searched": self.searched.name,
            "reference": self.reference.name,
            "reason": self.reason,
            "cannot_tell": self.cannot_tell,
            "gain": self.gain.to_json(),
            "closeness": self.closeness.to_json(),
            "front": [p.to_json() for p in self.points if p.on_front],
            "points": [p.to_json() for p in self.points],
            "verdict": self.verdict.to_json(),
            "samples_used": self.samples_used,
            "samples_of_grid": self.samples_of_grid,
            "files": self.files,
            "page": str(self.page),
            "warnings": list(self.warnings),
        }


def pick(
    folder: Path,
    *,
    base: str | None = None,
    out: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    style: bool = False,
    train_images: Path | None = None,
    encoders: Sequence[str] = (),
    strengths: Sequence[float] = STRENGTHS,
    guidance: Sequence[float] = (),
    checkpoints: int = MOST,
    samples: int | None = None,
    share: float = SHARE,
    margin: float = MARGIN,
    prompts: int = PROMPTS,
    votes: Path | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> Picked:
    """The point of checkpoints x strengths x guidance scales with most variety whose likeness is at
    most `margin` below that of the best plain point.

    folder: a run, or LoRA files of any trainer. Plain is what a trainer hands over: strength 1 (or
    the nearest named) at the base's own guidance scale. Base, trigger, class noun and training
    pictures default to what the run, or the newest file's header, says. guidance: none named, the
    base's own scale and an eased one. samples: the budget in pictures; else a share of what the
    full grid would take, `prompts` prompts of each group for every point. votes: a file of people's
    comparisons (`votes.read_votes`). out: where the export goes; `picked` in the folder
    without it. What was drawn is kept in the cache: the same call goes on where it was stopped.

    Raises: RequestError for a folder without checkpoints, without a trigger, for numbers that make
    no sense and for a budget that is too small; Interrupted on Ctrl-C.
    """
    say = say or silent
    folder = Path(folder)
    _check(samples, share, margin, prompts)
    found, told = checkpoints_of(folder, most=checkpoints)
    run = Run.open(folder) if (folder / "recipe.toml").is_file() else None
    bench = Bench.on(
        found,
        run,
        base=base,
        trigger=trigger,
        class_noun=class_noun,
        style=style,
        train_images=train_images,
        encoders=encoders,
        prompts=prompts,
        seed=seed,
        say=say,
        told=told,
    )
    points = grid(found, strengths, guidance or guidance_of(bench.own))
    ballots = read_votes(votes, {p.name for p in points}) if votes else []
    whole = 2 * prompts * EACH
    budget = samples if samples is not None else int(share * len(points) * whole)
    # The choice and the reference are checked at two groups of prompts each.
    bench.fresh_prompts = max(2, min(prompts // 2, int(CHECKED * budget) // (4 * EACH)))
    fresh = 4 * bench.fresh_prompts * EACH + bench.extra + SHOWN
    out = (out or folder / WHERE).resolve()
    try:
        went = race(
            points,
            bench,
            plain=plain_of(points, bench.own),
            prompts=prompts,
            each=EACH,
            budget=budget - fresh,
            margin=margin,
        )
        liked = liked_in(ballots)
        choice = _by_votes(went, liked)
        seen = bench.fresh(choice, went, margin)
    except Interrupted as error:
        raise Interrupted(
            "stopped; what was drawn is kept: the same command goes on from there",
            error.signal_number,
        ) from error
    return _settled(bench, went, seen, liked, run, out, margin=margin, of_grid=len(points) * whole)


def guidance_of(own: SamplingPlan) -> tuple[float, ...]:
    """The base's own guidance scale, and one that is eased.

    >>> guidance_of(SamplingPlan(guidance_scale=7.5))
    (4.9, 7.5)
    """
    eased = round(1 + EASED * (own.guidance_scale - 1), 1)
    return tuple(dict.fromkeys((eased, own.guidance_scale)))


def plain_of(points: Sequence[Point], own: SamplingPlan) -> Callable[[Point], bool]:
    """Whether a point is how a trainer hands its checkpoint over: of the strengths and scales that
    are there, those nearest to 1 and to the base's own."""
    strength = min({p.strength for p in points}, key=lambda s: (abs(s - 1), s))
    scale = min({p.guidance_scale for p in points}, key=lambda g: (abs(g - own.guidance_scale), g))
    return lambda p: (p.strength, p.guidance_scale) == (strength, scale)


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
        notes = found[-1].adapter.metadata
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
        subject, held_out = _pictures(train_images, run, told)
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
        searched, checked = _split(plan, prompts)
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
            point, _first(self.searched, prompts), self.quick, f"look at {point.words}"
        )
        variety, like = self.variety(point), self.likeness(point)
        for found in (variety, like):
            if isinstance(found, Missing):
                raise RequestError(
                    f"the checkpoints cannot be compared: {found.name} is not known, {found.why}; "
                    "give --class and --train-images, or another --encoder"
                )
        assert isinstance(variety, Measurement)
        assert isinstance(like, Measurement)
        return Sight(prompts, variety.value, like.value)

    def differences(self, left: Point, right: Point) -> Differences:
        a, b = self.evidence[left], self.evidence[right]
        return Differences(paired_variety(a, b), paired_likeness(a, b))

    def variety(self, point: Point) -> Measurement | Missing:
        return kept(self.evidence[point])

    def likeness(self, point: Point) -> Measurement | Missing:
        return likeness(self.evidence[point])

    def draw_whole(self, point: Point) -> tuple[ImageSet, ImageSet]:
        """All of a point's pictures that the full grid would take, and the base's."""
        ours = self._draw(point, self.searched, self.quick, f"draw {point.words}")
        return ours, self._base(self.searched, self.quick)

    def home(self, point: Point, sampling: SamplingPlan) -> Path:
        of = self.adapter(point).digest(), str(point.guidance_scale), sampling.model_dump_json()
        return cache_dir() / "picked" / short_hash(*of, str(self.model.id))

    def fresh(self, choice: Point, went: Race, margin: float) -> Fresh:
        """The choice and the reference at fresh prompts and seeds, with all denoising steps. Where
        the choice's likeness then surely lies below the floor, or it is no more varied, the
        reference takes its place."""
        assert went.reference is not None
        reference = went.reference
        plan = _first(self.checked, self.fresh_prompts)
        drawn = {
            p: self._drawn(p, plan, self.own, f"check {p.words}")
            for p in dict.fromkeys((choice, reference))
        }
        pictures = len(drawn) * sum(len(line.seeds) for line in plan)
        fell = ""
        if choice != reference:
            gap = Differences((), paired_likeness(drawn[reference], drawn[choice]))
            grown = gain(drawn[reference], drawn[choice])
            if too_unlike(gap, margin):
                fell = (
                    f"{choice.words} looked better in the search, but on fresh pictures its "
                    f"likeness is surely more than {100 * margin:.0f} points lower"
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
        base = self._base(plan, sampling)
        ours = self._draw(point, plan, sampling, phase)
        return gather(
            ours,
            base,
            encoders=self.encoders,
            train_images=self.subject,
            held_out=self.held_out,
            trigger=self.trigger or None,
            class_noun=self.class_noun or None,
        )

    def _draw(
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

    def _base(self, plan: Sequence[PlannedPrompt], sampling: SamplingPlan) -> ImageSet:
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


def _check(samples: int | None, share: float, margin: float, prompts: int) -> None:
    if not 0 < share <= 1:
        raise RequestError(f"share {share:g}; expected more than 0 and at most 1")
    if samples is not None and samples < 1:
        raise RequestError(f"{samples} samples; expected 1 or more")
    if not 0 <= margin < 1:
        raise RequestError(
            f"margin {margin:g}; expected a difference of likeness from 0 to below 1"
        )
    if not FEWEST <= prompts <= PROMPTS:
        raise RequestError(f"{prompts} prompts; expected {FEWEST} to {PROMPTS}")


def _pictures(
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


def _split(
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


def _first(plan: Sequence[PlannedPrompt], prompts: int) -> tuple[PlannedPrompt, ...]:
    """The first so many prompts of each group."""
    return tuple(
        line
        for group in GROUPS
        for line in [line for line in plan if line.group == group][:prompts]
    )


def _by_votes(went: Race, liked: dict[str, Strength]) -> Point:
    """The choice, or what people like better among those that it cannot be told from."""
    assert went.choice is not None
    rivals = [p for p in (went.choice, *went.tied) if p.name in liked]
    best = max(rivals, key=lambda p: liked[p.name].value, default=went.choice)
    mine = liked[went.choice.name].value if went.choice.name in liked else 0.0
    return best if best.name in liked and liked[best.name].value > mine else went.choice


# --- what is told -------------------------------------------------------------------------------


def _settled(
    bench: Bench,
    went: Race,
    seen: Fresh,
    liked: dict[str, Strength],
    run: Run | None,
    out: Path,
    *,
    margin: float,
    of_grid: int,
) -> Picked:
    """The export, the page and the words."""
    placed = _placed(bench, went, liked, seen)
    point, reference = seen.point, seen.reference
    left, right = seen.evidence[reference], seen.evidence[point]
    none = "it is the plain point itself"
    same = point == reference
    grown = Missing("variety_gain", none) if same else gain(left, right)
    closer = Missing("likeness", none) if same else likeness_versus(left, right)
    verdict = measure(right)
    if not bench.learnt_known:
        verdict = replace(verdict, notes=(*verdict.notes, *bench.told[-1:]))
    checkpoint = bench.adapters[point.checkpoint]
    reason = _reason(seen, grown, closer, kept(right), went, liked, margin)
    cannot = _cannot_tell(went, grown, point, reference)
    warned = list(bench.told)
    files = _export(checkpoint, point, verdict, bench, out, warned)
    found = Picked(
        point=point,
        searched=seen.searched,
        reference=reference,
        reason=reason,
        cannot_tell=cannot,
        points=placed,
        gain=grown,
        closeness=closer,
        verdict=verdict,
        run=str(run.folder) if run else None,
        base=bench.base,
        adapter=Path(files["a1111"]),
        files=files,
        page=out / "pick.html",
        samples_used=went.pictures + seen.pictures + bench.extra + SHOWN,
        samples_of_grid=of_grid,
        stopped_because=went.stopped_because,
        checkpoint=checkpoint.file.resolve(),
        warnings=tuple(warned),
    )
    write_json(out / "pick.json", found.to_json())
    write_picked(found.to_json(), grid=_page_rows(bench, placed), out=found.page)
    return found


def _placed(
    bench: Bench, went: Race, liked: dict[str, Strength], seen: Fresh
) -> tuple[Placed, ...]:
    """Every point that was drawn, by checkpoint, strength and scale as the grid has them."""
    drawn = [p for p in went.points if p in went.sights]
    front = front_of({p: (went.sights[p].variety, went.sights[p].likeness) for p in drawn})
    front |= {seen.point, seen.reference}
    return tuple(
        Placed(
            p,
            went.sights[p].prompts,
            bench.variety(p),
            bench.likeness(p),
            p in front,
            went.ruled_out[p].why if p in went.ruled_out else "",
            p in went.tied and p != seen.point,
            liked.get(p.name),
        )
        for p in drawn
    )


def front_of(values: dict[Point, tuple[float, float]]) -> set[Point]:
    """The points that no other has both more variety and more likeness than."""
    return {
        p
        for p, (variety, likeness) in values.items()
        if not any(
            v >= variety and k >= likeness and (v, k) != (variety, likeness)
            for v, k in values.values()
        )
    }


def _reason(
    seen: Fresh,
    grown: Measurement | Missing,
    closer: Measurement | Missing,
    own: Measurement | Missing,
    went: Race,
    liked: dict[str, Strength],
    margin: float,
) -> str:
    """Why this point, in one plain sentence of the fresh pictures."""
    point, reference = seen.point, seen.reference
    keeps = ""
    if isinstance(own, Measurement):
        keeps = f"it keeps {own.value:.0%} of the base's variety ({own.low:.0%} to {own.high:.0%})"
    if point == reference:
        if seen.fell:
            return f"We would use {point.words}, as it was trained: {keeps}, and {seen.fell}."
        return (
            f"We would use {point.words}, as it was trained: {keeps}, and no other point keeps more "
            f"at a likeness at most {100 * margin:.0f} points lower."
        )
    beside = f"where {reference.words}, the best plain one, "
    if isinstance(grown, Measurement):
        assert grown.low is not None
        beside += f"has {_points(grown)} {'less' if grown.value >= 0 else 'more'}"
        beside += "" if grown.low > 0 else f", which {grown.n} prompts cannot tell from nothing"
    else:
        beside += "cannot be compared"
    like = "its likeness is not known"
    if isinstance(closer, Measurement):
        word = "higher" if closer.value >= 0 else "lower"
        like = f"its likeness is {_points(closer)} {word}"
    told = f"We would use {point.words}: {keeps}, {beside}, and {like}."
    if point != went.choice and point.name in liked:
        told = told[:-1] + (
            f"; people liked it better than {went.choice.words if went.choice else ''}, from which "
            "these pictures cannot tell it."
        )
    return told


def _points(m: Measurement) -> str:
    """The size of a difference in points of a hundred, with its interval on that side."""
    text = f"{abs(100 * m.value):.0f} points"
    if m.low is None or m.high is None:
        return text
    low, high = (m.low, m.high) if m.value >= 0 else (-m.high, -m.low)
    return f"{text} ({100 * low:.0f} to {100 * high:.0f})"


def _cannot_tell(went: Race, grown: Measurement | Missing, point: Point, reference: Point) -> str:
    """What these pictures leave open, or ""."""
    said = list[str]()
    if point != reference and not (isinstance(grown, Measurement) and (grown.low or 0) > 0):
        said.append(f"whether {point.words} is more varied than {reference.words}, the plain one")
    others = [p for p in went.tied if p not in (point, reference)]
    if others:
        named = ", ".join(p.words for p in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        said.append(f"whether {named}{more} would do as well or better")
    return f"These pictures cannot tell {'; nor '.join(said)}." if said else ""


def _export(
    checkpoint: Checkpoint,
    point: Point,
    verdict: Verdict,
    bench: Bench,
    out: Path,
    warned: list[str],
) -> dict[str, str]:
    """The chosen adapter in every form that can hold it, the recommendation in each header, and
    what A1111 reads beside."""
    learnt = checkpoint.adapter
    notes = own_notes(learnt.metadata) | {
        "recommended": {"strength": point.strength, "guidance_scale": point.guidance_scale}
    }
    if bench.class_noun:
        notes["class"] = bench.class_noun
    told = {
        **learnt.metadata,
        OURS: json.dumps(notes, sort_keys=True),
        "modelspec.usage_hint": usage_hint(point.strength, point.guidance_scale),
        "modelspec.trigger_phrase": bench.trigger,
    }
    learnt = replace(learnt, metadata=told)
    stem = _stem(checkpoint)
    main = write(learnt, out / f"{stem}.safetensors")
    stamp(main, verdict)
    shown = _pictures(bench, point, main, out / "pictures")
    beside = write_sidecar(main, preview=shown[0].file)
    files = {"a1111": str(main), "sidecar": str(beside[0])}
    files |= {"preview": str(beside[1])} if len(beside) > 1 else {}
    try:
        single = out / "diffusers" / "pytorch_lora_weights.safetensors"
        files["diffusers"] = str(write(learnt, single, "diffusers"))
        stamp(single, verdict)
        files["peft"] = str(write(learnt, out / "peft", "peft"))
    except AdapterError as error:  # a kind that their form cannot hold
        warned.append(f"not written for diffusers and PEFT: {error}")
    return files


def _stem(checkpoint: Checkpoint) -> str:
    """What the exported file is called: after what its header calls it, else after itself."""
    name = checkpoint.adapter.metadata.get("ss_output_name", "") or checkpoint.name
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    return kept[:80] or "adapter"


def _pictures(bench: Bench, point: Point, file: Path, out: Path) -> ImageSet:
    """Some pictures of the point under the trigger, drawn as it is recommended, with the text by
    which A1111 draws them again."""
    lines = [line for line in bench.checked if line.group == "trigger"]
    asked = [
        Request(line.adapter_prompt, seed, "trigger", point.strength)
        for line in lines[: bench.fresh_prompts]
        for seed in line.seeds
    ]
    learnt = bench.adapters[point.checkpoint].adapter
    shutil.rmtree(out, ignore_errors=True)  # of an earlier pick
    return sample(
        bench.model,
        learnt,
        asked[:: max(1, len(asked) // SHOWN)][:SHOWN],
        plan=bench.own.model_copy(update={"guidance_scale": point.guidance_scale}),
        out=out,
        named=Named.of(file, read(file).metadata),
    )


def _page_rows(bench: Bench, placed: Sequence[Placed]) -> dict[str, Any]:
    """What the page shows: prompts and seeds, the base's pictures, those of each point of the
    front, and what these come nearest to of what was learnt."""
    shown = [line for group in ("trigger", "class") for line in _of(bench.searched, group)[:2]]
    columns = [
        {"prompt": line.adapter_prompt, "asked": line.base_prompt, "seed": seed}
        for line in shown
        for seed in line.seeds
    ]
    base = {(p.prompt, p.seed): p.file for p in bench._base(shown, bench.quick)}
    rows = []
    for each in placed:
        if not each.on_front:
            continue
        evidence = bench.evidence[each.point]
        drawn = bench._draw(each.point, shown, bench.quick, "lay out")
        files = {(p.prompt, p.seed): p.file for p in drawn}
        near: list[dict[str, Any]] = []
        if bench.learnt_known:
            near = nearest_pictures(evidence, find_copies(evidence))[:8]
        rows.append(
            {
                "point": each.point.name,
                "files": [files.get((c["prompt"], c["seed"])) for c in columns],
                "nearest": near,
            }
        )
    return {
        "columns": columns,
        "base": [base.get((c["asked"], c["seed"])) for c in columns],
        "rows": rows,
        "trigger": bench.trigger,
        "base_name": bench.base,
    }


def _of(plan: Sequence[PlannedPrompt], group: str) -> list[PlannedPrompt]:
    return [line for line in plan if line.group == group]
