"""The verdict on an adapter: it and its base draw what a plan asks, and the pictures are judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from variegate import recipes
from variegate.adapter import Adapter, Ensemble
from variegate.blend.cast import open_learnt
from variegate.device import pick_device
from variegate.elsewhere import check_free, measure_sets, names_word
from variegate.encoders import load_encoders
from variegate.encoders.faces import load_faces
from variegate.errors import NoSpace, RequestError
from variegate.formats import own_notes, reading_of, trigger_of
from variegate.images import ImageSet, cache_dir
from variegate.judged import link, short_hash
from variegate.measure import PlannedPrompt, Verdict, foresee, prompt_plan
from variegate.measure.prompts import as_base
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.sample import Hands, Request, Source, sample, sample_apart, seconds_to_draw


def measure_adapter(
    adapter: Path,
    base: str,
    *,
    encoders: Sequence[str],
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    style: bool = False,
    preset: str = "standard",
    prompts: Path | None = None,
    out: Path | None = None,
    features: Path | None = None,
    faces: Path | None = None,
    t5_tokenizer: Path | None = None,
    seed: int = 0,
    jobs: int = 1,
    on: str = "",
    say: Say | None = None,
    tell: Callable[[str], None] | None = None,
) -> Verdict:
    """Draw from an adapter or ensemble and its base at the same prompts and seeds, and judge.

    The trigger and class noun default to what the adapter's file says. style: it learnt a look and
    no subject, so its trigger is asked of scenes of all kinds. prompts: a file of one
    prompt per line; those with the trigger in them are trigger prompts, the others neutral.
    out: where the samples, `verdict.json` and `report.html` stay; None keeps the samples in the
    cache. features: a folder for the first encoder's features, as `measure_features` reads them.
    faces: a face detector's file, to tell whether faces became alike. t5_tokenizer: as
    `models.load` takes it. jobs, on: who draws, as `workers` takes them. tell: hears, before
    anything is drawn, what the plan can show.
    """
    say = say or silent
    check_free(out)
    learnt = open_learnt(adapter)
    trigger = trigger or trigger_of(learnt.metadata)
    class_noun = class_noun or str(own_notes(learnt.metadata).get("class", ""))
    eyes, finder = load_encoders(encoders), load_faces(faces) if faces else None
    train = ImageSet.read(train_images) if train_images else None
    reading = reading_of(learnt.metadata)
    model = load_model(base, device=pick_device(), **reading, t5_tokenizer=t5_tokenizer)
    hands = Hands(Source.of(base, adapter, t5_tokenizer=t5_tokenizer, **reading), jobs, on)
    sampling = recipes.read(recipes.default_for(base)).sampling
    sampling = sampling.model_copy(update={"sampler": model.nearest_sampler(sampling.sampler)})
    if prompts is None:
        plan = prompt_plan(
            class_noun,
            trigger,
            preset=preset,  # type: ignore[arg-type]
            pocket=model.pocket,
            subject=not style,
            captions=[p.prompt for p in train or () if p.prompt],
            first_seed=seed,
        )
    else:
        plan = _own_prompts(prompts, trigger, class_noun, preset, seed)
    if tell:
        count = 2 * sum(len(line.seeds) for line in plan)
        seconds = seconds_to_draw(model, sampling, count)
        about = "" if seconds is None else f" Drawing takes {_spell(seconds)} at most."
        tell(foresee(plan) + about)
    home = cache_dir() / "measured" / short_hash(learnt.digest(), repr(plan), base)
    at = out / "samples" if out else home
    ours, theirs = draw_both(model, learnt, plan, sampling, out=at, say=say, hands=hands)
    return measure_sets(
        *(ours, theirs, eyes, train, trigger, class_noun),
        faces=finder,
        out=out,
        features=features,
        say=say,
    )


def draw_both(
    model: DiffusionModel,
    adapter: Adapter | Ensemble,
    plan: Sequence[PlannedPrompt],
    sampling: SamplingPlan,
    *,
    out: Path,
    say: Say,
    hands: Hands | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The adapter's and the base's pictures of a plan. The base's are drawn once per base and
    plan, kept in the cache, and laid beside the adapter's. hands: who draws; None: this process."""
    draw: Callable[..., ImageSet] = sample
    if hands is not None:
        draw = partial(sample_apart, hands=hands)
    theirs = [Request(p.base_prompt, seed, p.group) for p in plan for seed in p.seeds]
    ours = [Request(p.adapter_prompt, seed, p.group) for p in plan for seed in p.seeds]
    key = short_hash(model.name, sampling.model_dump_json(exclude_none=True), repr(theirs))
    kept = cache_dir() / "base" / key

    def base_said(phase: str, done: int, total: int, note: str) -> None:
        say("sample base", done, total, note)

    def adapter_said(phase: str, done: int, total: int, note: str) -> None:
        say("sample adapter", done, total, note)

    try:
        base = draw(model, None, theirs, plan=sampling, out=kept, say=base_said)
        base = _lay_beside(base, kept, out / "base")
    except NoSpace:  # a cache costs time, never the work
        base = draw(model, None, theirs, plan=sampling, out=out / "base", say=base_said)
    drawn = draw(model, adapter, ours, plan=sampling, out=out / "adapter", say=adapter_said)
    return drawn, base


def _lay_beside(pictures: ImageSet, source: Path, target: Path) -> ImageSet:
    """The same pictures in another folder, with the list that came with them."""
    target.mkdir(parents=True, exist_ok=True)
    moved = [replace(p, file=link(p, target / p.file.name)) for p in pictures if p.file]
    shutil.copyfile(source / "metadata.jsonl", target / "metadata.jsonl")
    return ImageSet(tuple(moved), str(target))


def _spell(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, seconds):.0f} s"


def _own_prompts(
    file: Path, trigger: str, class_noun: str, preset: str, seed: int
) -> tuple[PlannedPrompt, ...]:
    try:
        text = file.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the prompts in {file} cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"{file} holds no prompt; expected one per line")
    count = 8 if preset == "thorough" else 4
    plan: list[PlannedPrompt] = []
    first_of: dict[str, int] = {}  # by what the base hears: the same words, the same pictures
    for i, line in enumerate(dict.fromkeys(lines)):
        named = bool(trigger) and names_word(line, trigger)
        asked = as_base(line, trigger, class_noun or "thing") if named else line
        first = first_of.setdefault(asked, seed + i * count)
        seeds = tuple(range(first, first + count))
        plan.append(PlannedPrompt("trigger" if named else "class", line, asked, seeds))
    return tuple(plan)
