"""Variety given back to a collapsed adapter without training: edits searched for, drawn, measured.

What the search finds is chosen because it measured well, so it looks better than it is. The choice
is therefore drawn once more beside the unrepaired adapter, at seeds that the search never saw, and
only what those pictures show is reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from variegate.adapter import Adapter
from variegate.blend.cast import NAME, open_learnt
from variegate.blend.edits import (
    Align,
    Cap,
    Contrast,
    Edit,
    Ground,
    Late,
    Part,
    ShrinkIntruders,
    Truncate,
    Weaken,
    edited,
    parts_of,
    told,
)
from variegate.blend.extract import base_weights
from variegate.blend.notes import shared_notes
from variegate.blended import Judge, sampling_of
from variegate.errors import RequestError
from variegate.formats import own_notes, read, stamp, write
from variegate.formats.metadata import OURS
from variegate.images import cache_dir
from variegate.judged import keep_verdict, short_hash
from variegate.measure import Evidence, PlannedPrompt, Verdict, measure, prompt_plan
from variegate.measure import read as read_off
from variegate.measure.versus import (
    gain,
    likeness_versus,
    subject_kept,
    subject_spread,
    versus,
)
from variegate.measurement import Measurement, Missing
from variegate.pick.hearing import heard
from variegate.pick.search import Knob, Score, Try, best_of, search
from variegate.progress import Say, silent
from variegate.report import write_comparison

PRICE = 0.1  # of the likeness that is measured, that may be lost for variety
LEAST_PRICE = 0.03  # for an adapter whose own pictures are all alike: what chance moves
TRIES = 24
SEARCHED = {"class": 8, "trigger": 6}  # prompts that every try is drawn at
FRESH = {"class": 16, "trigger": 12}  # prompts that the choice is drawn at once more
FAR = 10_000  # how far fresh seeds lie from those of the search
HEARD = {"class": 32, "unrelated": 16, "trigger": 16}  # prompts that layers are listened to at
LOST = 0.03  # of the base's variety: what is lost too little to be searched for
LEARNT = 0.1  # of likeness, below which there is nothing to be kept
BOTH = ("variety_vs_base", "trigger_variety_vs_base")
# Beyond these the judge saw more of the subject go than the measures do.
CONTRASTS = (0.3, 1.0, 3.0, 5.0)
TIMED = (Late(0.9, 0.7), Late(0.8, 0.5), Late(0.6, 0.4))
BESIDE = TIMED[:2]  # what is tried of them, only to be told, where they are not asked for


@dataclass(frozen=True)
class Repaired:
    """What was found. edits: those of the choice. Of the fresh pictures: gain, of variety, the mean
    of class and trigger prompts; kept, how much of the subject; differences, right minus left, of
    both varieties and of the likeness to the training pictures.
    file: None when nothing was written. timed: the best try that also acts later in the noise, of
    the search's own pictures, when that was not asked for. pictures: where the fresh ones lie, in
    `before/samples` and `after/samples`."""

    adapter: Adapter
    edits: tuple[Edit, ...]
    tried: tuple[Try, ...]
    before: Verdict
    after: Verdict | None
    gain: Measurement | Missing
    kept: Measurement | Missing
    differences: tuple[Measurement | Missing, ...]
    file: Path | None
    page: Path | None
    said: str
    timed: Try | None = None
    warnings: tuple[str, ...] = ()
    pictures: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file) if self.file else None,
            "page": str(self.page) if self.page else None,
            "said": self.said,
            "edits": [told(edit) for edit in self.edits],
            "words": [edit.words for edit in self.edits],
            "gain": self.gain.to_json(),
            "kept": self.kept.to_json(),
            "differences": [difference.to_json() for difference in self.differences],
            "before": self.before.to_json(),
            "after": self.after.to_json() if self.after else None,
            "tried": [each.to_json() for each in self.tried],
            "timed": self.timed.to_json() if self.timed else None,
        }


def repair(
    adapter: Path,
    *,
    base: str,
    out: Path | None = None,
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    encoders: Sequence[str] = (),
    price: float = PRICE,
    tries: int = TRIES,
    timed: bool = False,
    anyway: bool = False,
    seed: int = 0,
    say: Say | None = None,
) -> Repaired:
    """Look for the edits that give an adapter most variety at no more than this price in likeness.

    Trigger and class noun default to what the adapter's file says. price: the share of its likeness
    that may be lost: of what its own trigger pictures show, and of that to the training pictures
    where these are given; no more than its own pictures differ in. tries: adapters that are drawn
    in the search, beside the unrepaired one. timed: also let it act later in the noise, which only
    tools that know T-LoRA's masks can draw. out: the file to write, beside the adapter by default;
    written only when the fresh pictures show a gain within the price, or anyway. A page of the same
    name shows both either way. What was drawn is kept in the cache: the same call goes on where it
    stopped.

    Raises: RequestError for an ensemble, an adapter without a trigger or likeness, and numbers that
    make no sense; AdapterError when it does not fit the base.
    """
    say = say or silent
    adapter = Path(adapter)
    _check(adapter, out, price, tries)
    learnt = read(adapter)
    out = out or adapter.with_name(f"{adapter.stem}.repaired.safetensors")
    judge = Judge.on(
        base,
        [learnt],
        encoders=encoders,
        train_images=train_images,
        trigger=trigger,
        class_noun=class_noun,
        seed=seed,
        say=say,
    )
    if not judge.trigger:
        raise RequestError(
            f"{adapter} does not say which word calls what it learnt, and without it nobody can "
            "tell whether that is kept; give --trigger, and --class if you know it"
        )
    beside = 0 if timed or learnt.masking else len(BESIDE)
    bench = Bench(learnt, judge, seed=seed, tries=tries + beside)
    kept = bench.kept()
    if kept >= 1 - LOST:
        return _nothing_lost(bench, kept, adapter)
    liked = _likeness(bench.before)
    if liked is not None and liked < LEARNT:
        raise RequestError(
            f"{adapter} went {liked:.0%} of the way to its subject's likeness: there is nothing to "
            "keep while variety is given back; train it longer, or look whether the trigger is the "
            "right one"
        )
    price = bench.fair(price)
    knobs = knobs_of(learnt, timed=timed, timesteps=int(judge.model.schedule.timesteps))
    tried = search(knobs, bench.score, tries=tries, price=price)
    later = _later(bench, tried, price) if beside else None
    drawn = list[_Fresh]()
    for choice in _finalists(tried, price):
        drawn.append(bench.compared(choice, price))
        if drawn[-1].held:
            break
    found = next((fresh for fresh in drawn if fresh.held), drawn[0])
    return _settled(bench, found, tried, later, adapter, out, anyway=anyway)


def knobs_of(adapter: Adapter, *, timed: bool, timesteps: int) -> tuple[Knob, ...]:
    """What can be turned of an adapter, what gives most on the pocket first; see docs/repairing.md.
    Each is applied before those that follow."""
    if adapter.masking:
        return (_strengths("whole", (0.85, 0.7, 0.55, 0.4), (0, 1)),)
    late = tuple(replace(edit, timesteps=timesteps) for edit in TIMED)
    found = [Knob("contrast", tuple(Contrast(p) for p in CONTRASTS), (1, 2), True)]
    found += [Knob("late", late, (0, 1), True)] if timed else []
    found.append(_strengths("whole", (1.15, 1.3, 0.85, 0.7), (2,)))
    there = parts_of(adapter)
    places: tuple[tuple[Part, tuple[float, ...]], ...] = (
        *(("self", (0.5, 0.0)), ("cross", (0.7, 0.4)), ("text", (0.5, 0.0))),
        *(("up", (0.75, 0.5)), ("late", (0.75, 0.5)), ("feedforward", (0.5, 0.0))),
        *(("convolution", (0.5, 0.0)), ("down", (0.5, 0.0)), ("mid", (0.5, 0.0))),
        *(("early", (0.5, 0.0)), ("middle", (0.5, 0.0))),
    )
    for part, levels in places:
        if there[part] and there[part] != set(adapter.layers):
            found.append(_strengths(part, levels, (0,)))
    found += [
        Knob("intruders", (ShrinkIntruders(0.5), ShrinkIntruders(0.0)), (1,)),
        Knob("align", (Align(0.1, "outside"), Align(0.3, "within"))),
        Knob("cap", (Cap(0.5), Cap(0.0))),
        Knob("truncate", (Truncate(0.5, "smallest"), Truncate(0.5, "largest"))),
    ]
    # What depends on the noise can only come last: no other edit knows such an adapter.
    return tuple(sorted(found, key=lambda knob: knob.name == "late"))


def _strengths(part: Part, levels: tuple[float, ...], first: tuple[int, ...]) -> Knob:
    return Knob(f"strength of {part}", tuple(Weaken(part, to) for to in levels), first)


@dataclass(frozen=True)
class _Fresh:
    """One choice drawn once more. held: the whole interval of the gain is above zero, and the
    likeness within the price."""

    edits: tuple[Edit, ...]
    adapter: Adapter
    gain: Measurement | Missing
    kept: Measurement | Missing
    differences: tuple[Measurement | Missing, ...]
    before: Verdict
    after: Verdict
    home: Path
    held: bool
    why: str


class Bench:
    """The adapter and its edits at one plan, with what the edits stand on."""

    def __init__(self, learnt: Adapter, judge: Judge, *, seed: int, tries: int) -> None:
        self.learnt = learnt
        self._seed = seed
        self._asked = 0
        self._tries = tries
        self._say = judge.say
        self._whole = sampling_of(judge.base)
        self._whole = self._whole.model_copy(
            update={"sampler": judge.model.nearest_sampler(self._whole.sampler)}
        )
        # Two thirds of the steps tell candidates apart as well, in two thirds of the time.
        quick = self._whole.model_copy(update={"steps": max(4, self._whole.steps * 2 // 3)})
        plan = _some(self._plan(judge, "standard", seed), SEARCHED)
        self.judge = replace(judge, plan=plan, sampling=quick, say=self._tell)

    @cached_property
    def ground(self) -> Ground:
        """The base's weights, and what layers hear."""
        judge = self.judge
        self._say("listen", 0, 1, "")
        plan = _some(self._plan(judge, "standard", self._seed), HEARD)
        assert judge.sampling is not None
        trigger, others = heard(judge.model, self.learnt, plan, judge.sampling)
        self._say("listen", 1, 1, "")
        return Ground(base_weights(judge.model, [self.learnt]), trigger, others)

    def edited(self, edits: tuple[Edit, ...]) -> Adapter:
        return edited(self.learnt, edits, self.ground) if edits else self.learnt

    def kept(self) -> float:
        """The unrepaired adapter's variety."""
        return _variety(self.before)

    def fair(self, price: float) -> float:
        """The price, or less: no more of the subject may go than its own pictures differ in. Where
        all are of one look, an encoder sees little of what is lost."""
        spread = subject_spread(self.before)
        return price if spread is None else min(price, max(spread, LEAST_PRICE))

    @cached_property
    def before(self) -> Evidence:
        """The unrepaired adapter's pictures, of the search."""
        return self.judge.evidence(self.learnt)

    def score(self, edits: tuple[Edit, ...]) -> Score:
        """Variety, and likeness as a share of the unrepaired adapter's: how much of its subject is
        kept, and how much of its likeness to the training pictures, whichever is less.

        Raises: RequestError where variety or likeness cannot be measured at all.
        """
        self._asked += bool(edits)
        evidence = self.judge.evidence(self.edited(edits)) if edits else self.before
        kept = subject_kept(self.before, evidence)
        if isinstance(kept, Missing):
            raise _unmeasured(kept)
        like, liked = (_likeness(each) for each in (evidence, self.before))
        share = 1.0 if like is None or not liked else like / liked
        return Score(_variety(evidence), min(kept.value, share))

    def compared(self, choice: Try, price: float) -> _Fresh:
        """A choice and the unrepaired adapter at fresh seeds and more prompts."""
        adapter = self.edited(choice.edits)
        plan = _some(self._plan(self.judge, "standard", self._seed + FAR), FRESH)
        judge = replace(self.judge, plan=plan, sampling=self._whole, say=self._say)
        home = cache_dir() / "repaired" / short_hash(adapter.digest(), repr(plan), judge.base)
        sides = {}
        for side, learnt in (("before", self.learnt), ("after", adapter)):
            sides[side] = judge.evidence(learnt, out=home / side / "samples")
        before, after = sides["before"], sides["after"]
        grown, kept = gain(before, after), subject_kept(before, after)
        liker = likeness_versus(before, after)
        verdicts = {side: measure(evidence) for side, evidence in sides.items()}
        for side, evidence in sides.items():
            keep_verdict(home / side, verdicts[side], evidence, None)
        why = _judged(grown, kept, liker, verdicts["before"], price)
        return _Fresh(
            choice.edits,
            adapter,
            grown,
            kept,
            (*versus(before, after), liker),
            verdicts["before"],
            verdicts["after"],
            home,
            held=not why,
            why=why,
        )

    def warnings(self, verdict: Verdict) -> tuple[str, ...]:
        """What weakens all that is said here."""
        if not verdict.weak_encoder:
            return ()
        return (
            "the encoder does not know such pictures, so its numbers are weak: name one that does, "
            "such as --encoder facebook/dinov2-base",
        )

    def _plan(self, judge: Judge, preset: Any, first_seed: int) -> tuple[PlannedPrompt, ...]:
        return prompt_plan(
            judge.class_noun,
            judge.trigger,
            preset=preset,
            pocket=judge.model.pocket,
            first_seed=first_seed,
        )

    def _tell(self, phase: str, done: int, total: int, note: str) -> None:
        which = f"try {self._asked} of {self._tries}" if self._asked > 0 else "unrepaired"
        self._say(which if phase == "sample adapter" else phase, done, total, note)


def _check(adapter: Path, out: Path | None, price: float, tries: int) -> None:
    if adapter.suffix == ".toml" or (adapter / NAME).is_file():
        open_learnt(adapter)
        raise RequestError(f"{adapter} is an ensemble; repair its members, one by one")
    if not 0 <= price < 1:
        raise RequestError(f"price {price}; expected a share of the likeness from 0 to below 1")
    if tries < 1:
        raise RequestError(f"{tries} tries; expected 1 or more")
    if out is not None and out.resolve() == adapter.resolve():
        raise RequestError(f"{out} is the adapter itself; name another file for the repaired one")


def _some(plan: Sequence[PlannedPrompt], counts: dict[str, int]) -> tuple[PlannedPrompt, ...]:
    """The first so many prompts of each group."""
    taken, left = list[PlannedPrompt](), dict(counts)
    for line in plan:
        if left.get(line.group, 0) > 0:
            left[line.group] -= 1
            taken.append(line)
    return tuple(taken)


def _variety(evidence: Evidence) -> float:
    """The mean of both headlines, or the one there is."""
    found = {m.name: m for m in read_off(evidence)}
    known = [m.value for name in BOTH if isinstance(m := found[name], Measurement)]
    if not known:
        missing = found[BOTH[0]]
        assert isinstance(missing, Missing)
        raise _unmeasured(missing)
    return sum(known) / len(known)


def _likeness(evidence: Evidence) -> float | None:
    """To the training pictures, where there are any that tell."""
    found = {m.name: m for m in read_off(evidence)}["likeness"]
    return found.value if isinstance(found, Measurement) else None


def _unmeasured(missing: Missing) -> RequestError:
    return RequestError(
        f"the adapter cannot be repaired by measuring: {missing.name} is not known, {missing.why}; "
        "give --class and --train-images, or another --encoder"
    )


def _later(bench: Bench, tried: Sequence[Try], price: float) -> Try | None:
    """The best choice acting later in the noise too, where that is worth more."""
    best = best_of(tried, price=price)
    floor = (1 - price) * tried[0].score.likeness
    timesteps = int(bench.judge.model.schedule.timesteps)
    found = []
    for late in BESIDE:
        edits = (*best.edits, replace(late, timesteps=timesteps))
        found.append(Try(edits, bench.score(edits)))
    most = max(found, key=lambda t: t.worth(floor))
    return most if most.worth(floor) > best.worth(floor) else None


def _finalists(tried: Sequence[Try], price: float) -> list[Try]:
    """The best within the price, then the best within half of it: where chance flattered the first
    one's likeness, the second has room."""
    found = [best_of(tried, price=price), best_of(tried, price=price / 2)]
    kept = [t for t in found if t.edits]
    return list({t.edits: t for t in kept}.values()) or [tried[0]]


def _judged(
    grown: Measurement | Missing,
    kept: Measurement | Missing,
    liker: Measurement | Missing,
    before: Verdict,
    price: float,
) -> str:
    """Why a choice did not hold on fresh pictures; "" where it did."""
    if isinstance(grown, Missing):
        return f"the gain in variety is not known: {grown.why}"
    assert grown.low is not None
    if grown.low <= 0:
        return (
            f"no gain in variety that {grown.n} prompts show ({grown.value:+.2f}, {grown.low:+.2f} "
            f"to {grown.high:+.2f} of the base's)"
        )
    # The search kept within the price; what chance alone adds on other pictures is no breach.
    if isinstance(kept, Missing):
        return f"nobody can tell whether the subject is kept: {kept.why}"
    assert kept.high is not None
    if kept.high < 1 - price:
        return (
            f"{kept.value:.0%} of its subject is kept ({kept.low:.0%} to {kept.high:.0%}), less "
            f"than the price of {price:.0%} allows"
        )
    liked = before.find("likeness")
    if liked is None or isinstance(liker, Missing):
        return ""
    assert liker.high is not None
    if liker.high < -price * liked.value:
        return (
            f"likeness to the training pictures fell by {-liker.value:.2f} ({-liker.high:.2f} at "
            f"least), more than the price of {price:.0%}"
        )
    return ""


def _nothing_lost(bench: Bench, kept: float, adapter: Path) -> Repaired:
    verdict = measure(bench.judge.evidence(bench.learnt))
    said = (
        f"Nothing was written: {adapter} keeps {kept:.0%} of its base's variety, and "
        "there is too little to give back"
    )
    none, all_ = (Missing(n, "nothing was searched for") for n in ("variety_gain", "subject_kept"))
    return Repaired(bench.learnt, (), (), verdict, None, none, all_, (), None, None, said)


def _settled(
    bench: Bench,
    fresh: _Fresh,
    tried: Sequence[Try],
    later: Try | None,
    adapter: Path,
    out: Path,
    *,
    anyway: bool,
) -> Repaired:
    """The file, the page and the words."""
    done = "; ".join(edit.words for edit in fresh.edits)
    written, learnt = None, fresh.adapter
    if fresh.edits and (fresh.held or anyway):
        notes = shared_notes([fresh.adapter], repair=_note(fresh))
        own = {k: v for k, v in own_notes(notes).items() if k != "verdict"}
        learnt = replace(fresh.adapter, metadata=notes | {OURS: json.dumps(own, sort_keys=True)})
        written = write(learnt, out).resolve()
        stamp(written, fresh.after)
    if not fresh.edits:
        said = (
            f"Nothing was written: none of {len(tried) - 1} tries gave {adapter} variety back at "
            "this price; a higher --price, more --tries or --timed may, training anew will"
        )
    elif written is None:
        said = (
            f"Nothing was written: {fresh.why}; the best of {len(tried) - 1} tries was: {done}; "
            "--anyway writes it, a higher --price or more --tries may find better"
        )
    else:
        said = f"{written}: {done}" + (f". Written anyway: {fresh.why}" if fresh.why else "")
    page = None
    if fresh.edits:
        why = f" Not written: {fresh.why}." if written is None else ""
        intro = f"{adapter.name} and its repair without training: {done}. {_gained(fresh)}{why}"
        page = _page(fresh, tried, later, out.with_suffix(".html").resolve(), intro)
    return Repaired(
        learnt,
        fresh.edits,
        tuple(tried),
        fresh.before,
        fresh.after if fresh.edits else None,
        fresh.gain,
        fresh.kept,
        fresh.differences,
        written,
        page,
        said,
        later,
        bench.warnings(fresh.after),
        fresh.home,
    )


def _gained(fresh: _Fresh) -> str:
    """Gain and price in a sentence, of the fresh pictures."""
    told = []
    for m, words in (
        (fresh.gain, "Its variety changed by {:+.2f} of the base's ({:+.2f} to {:+.2f})."),
        (fresh.kept, "It keeps {:.0%} of the subject ({:.0%} to {:.0%})."),
    ):
        if isinstance(m, Measurement):
            told.append(words.format(m.value, m.low, m.high))
    return " ".join(told)


def _note(fresh: _Fresh) -> dict[str, Any]:
    grown = fresh.gain
    measured = [grown.value, grown.low, grown.high] if isinstance(grown, Measurement) else None
    return {"edits": [told(edit) for edit in fresh.edits], "variety_gain": measured}


def _page(fresh: _Fresh, tried: Sequence[Try], later: Try | None, file: Path, intro: str) -> Path:
    first = tried[0].score
    ordered = sorted(tried[1:], key=lambda t: -t.score.variety)
    rows = [
        (t.words, f"{t.score.variety:.2f}", f"{t.score.likeness:.2f}")
        for t in [tried[0], *ordered, *([later] if later else [])]
    ]
    table = (
        "What was tried, and what each gave",
        "Pictures of the search: few, and the same prompts and seeds for all. The unrepaired "
        f"adapter had {first.variety:.2f} of the base's variety there. What is best here was "
        "chosen for being best, so it looks better than it is; the numbers above come from other "
        "pictures.",
        ("edits", "variety of the base's", "likeness kept"),
        rows,
    )
    return write_comparison(
        fresh.home / "before",
        fresh.home / "after",
        titles=("before", "after"),
        intro=intro,
        out=file,
        differences=fresh.differences,
        tables=(table,),
    )
