"""The whole story: audit, train, sample, measure, report, into one run folder.

Also sample and measure for an adapter that was made elsewhere, and for folders of samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from variegate import recipes
from variegate.adapter import Adapter
from variegate.audit import audit
from variegate.device import pick_device
from variegate.encoders import Encoder
from variegate.encoders import load as load_encoder
from variegate.errors import Interrupted, NoSpace, RequestError, RunError
from variegate.formats import own_notes, trigger_of
from variegate.formats import read as read_adapter
from variegate.images import ImageSet, Picture, cache_dir
from variegate.measure import (
    Evidence,
    PlannedPrompt,
    Verdict,
    find_copies,
    fit_advice,
    gather,
    measure,
    nearest_pictures,
    prompt_plan,
)
from variegate.measure.gather import as_base
from variegate.measure.versus import versus
from variegate.models import StableDiffusion
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import Recipe, SamplingPlan
from variegate.report import write_comparison, write_report
from variegate.run import Run, write_atomically
from variegate.sample import Request, sample
from variegate.train import result, train


def trial(
    recipe: Recipe, *, out: Path, encoders: Sequence[str] = (), say: Say | None = None
) -> dict[str, Any]:
    """Audit the pictures, learn the adapter, draw from it and its base, judge, write the page.

    Every part that is already in `out` under the same recipe is kept, so a trial that was
    stopped goes on where it was. encoders: as `measure_adapter`; none: the pocket's.
    Returns what `trial --json` prints.
    """
    eyes = _encoders(encoders)
    document, _ = _trial(recipe, out=out, encoders=eyes, say=say or silent)
    return document


def _trial(
    recipe: Recipe,
    *,
    out: Path,
    encoders: Sequence[Encoder],
    say: Say,
    model: StableDiffusion | None = None,
) -> tuple[dict[str, Any], Evidence]:
    try:
        return _tell_story(recipe, out=out, encoders=encoders, say=say, model=model)
    except Interrupted as error:
        raise Interrupted(
            f"stopped; what is done is kept in {out}: the same command goes on from there",
            error.signal_number,
        ) from error


def _tell_story(
    recipe: Recipe,
    *,
    out: Path,
    encoders: Sequence[Encoder],
    say: Say,
    model: StableDiffusion | None,
) -> tuple[dict[str, Any], Evidence]:
    run = Run.create(out, recipe)
    pictures = ImageSet.read(Path(recipe.images))
    model = model or load_model(recipe.base, device=pick_device())
    looked = audit(
        pictures,
        trigger=recipe.trigger or None,
        resolution=recipe.resolution or model.resolution,
        say=lambda stage: say(f"audit {stage}", 0, 0, ""),
    )
    _write_json(run.folder / "audit.json", looked.to_json())
    run = train(recipe, out=out, model=model, say=say)
    plan = prompt_plan(
        recipe.class_noun,
        recipe.trigger,
        preset=recipe.sampling.preset,
        pocket=model.pocket,
        first_seed=recipe.seed,
    )
    adapter = read_adapter(run.adapter_file)
    ours, base = _draw(model, adapter, plan, recipe.sampling, out=run.samples, say=say)
    held_out = _held_out(run, pictures)
    say("measure", 0, 1, "")
    evidence = gather(
        ours,
        base,
        encoders=encoders,
        train_images=_without(pictures, held_out),
        held_out=held_out if len(held_out) else None,
        trigger=recipe.trigger,
        class_noun=recipe.class_noun,
    )
    verdict = measure(evidence)
    verdict = replace(verdict, advice=fit_advice(verdict.advice, recipe))
    _write_json(run.verdict_file, verdict.to_json())
    _write_json(run.folder / "evidence.json", _evidence(evidence, run.folder))
    run.journal("phase", name="verdict", labels=list(verdict.labels))
    say("measure", 1, 1, "")
    say("report", 0, 1, "")
    page = write_report(run.folder)
    say("report", 1, 1, "")
    document = {**result(run), "report": str(page), "verdict": verdict.to_json()}
    return document, evidence


def demo(
    *, out: Path, seed: int = 0, settings: tuple[str, ...] = (), say: Say | None = None
) -> dict[str, Any]:
    """Two trials on the same twelve one-sided pictures, plain and guarded, and one page of both.

    settings: `key.sub=value`, laid on both recipes. Runs of an older demo in `out` (another recipe
    or another pocket) are made anew.
    """
    say = say or silent
    pictures = out / "pictures"
    with resources.as_file(resources.files("variegate") / "demo" / "pictures") as folder:
        shutil.copytree(folder, pictures, dirs_exist_ok=True)
    asked: dict[str, Any] = {
        "images": str(pictures),
        "trigger": "zqx",
        "class_noun": "face",
        "seed": seed,
    }
    model = load_model("pocket", device=pick_device())
    eyes = _encoders(())
    documents: dict[str, dict[str, Any]] = {}
    evidence: dict[str, Evidence] = {}
    for name, recipe_name in (("plain", "pocket-plain"), ("guarded", "pocket")):
        recipe = recipes.read(recipe_name, settings=settings, **asked)
        _clear_stale(out / name, recipe, model)

        def told(phase: str, done: int, total: int, note: str, of: str = name) -> None:
            say(f"{of}: {phase}", done, total, note)

        documents[name], evidence[name] = _trial(
            recipe, out=out / name, encoders=eyes, say=told, model=model
        )
    gaps = versus(evidence["plain"], evidence["guarded"])
    page = write_comparison(
        out / "plain",
        out / "guarded",
        titles=("Plain LoRA", "Guarded by variegate"),
        intro=(
            "Twelve pictures of one robot, every one of them large, centred and on the same red "
            "stripes: a training set such as artists often have. The plain adapter is what common "
            "scripts make by default; the guarded one has variegate's strategies, a larger rank "
            "and more steps. The base has never seen a robot."
        ),
        out=out / "report.html",
        differences=gaps,
        next_steps=(
            ("Look at your own pictures first", "variegate audit MY_PICTURES"),
            (
                "Learn your subject and get the verdict",
                "variegate trial MY_PICTURES --base BASE --trigger zqx --class NOUN",
            ),
            ("Check an adapter you have", "variegate measure ADAPTER --base BASE"),
        ),
    )
    return {
        "plain": documents["plain"]["verdict"],
        "guarded": documents["guarded"]["verdict"],
        "differences": [m.to_json() for m in gaps],
        "runs": {name: d["run"] for name, d in documents.items()},
        "report": str(page),
    }


def measure_adapter(
    adapter: Path,
    *,
    base: str,
    encoders: Sequence[str],
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    preset: str = "standard",
    prompts: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> Verdict:
    """Draw from a finished adapter and from its base at the same prompts and seeds, and judge.

    The trigger and class noun default to what the adapter's file says. prompts: a file of one
    prompt per line; those with the trigger in them are trigger prompts, the others neutral.
    out: where the samples and `verdict.json` stay; None keeps the samples in the cache.
    """
    say = say or silent
    learnt = read_adapter(adapter)
    trigger = trigger or trigger_of(learnt.metadata)
    class_noun = class_noun or str(own_notes(learnt.metadata).get("class", ""))
    eyes = _encoders(encoders)
    model = load_model(base, device=pick_device())
    sampling = recipes.read(recipes.default_for(base)).sampling
    if prompts is None:
        plan = prompt_plan(
            class_noun,
            trigger,
            preset=preset,  # type: ignore[arg-type]
            pocket=model.pocket,
            first_seed=seed,
        )
    else:
        plan = _own_prompts(prompts, trigger, class_noun, preset, seed)
    home = out or cache_dir() / "measured" / _short_hash(adapter.read_bytes(), repr(plan), base)
    ours, theirs = _draw(model, learnt, plan, sampling, out=home, say=say)
    verdict = _measure_sets(ours, theirs, eyes, train_images, trigger, class_noun, say)
    if out is not None:
        _write_json(out / "verdict.json", verdict.to_json())
    return verdict


def measure_folders(
    images: Path,
    reference: Path,
    *,
    encoders: Sequence[str],
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    say: Say | None = None,
) -> Verdict:
    """Judge a folder of samples against a folder of the base's, without any model.

    trigger: pictures whose prompt names it are trigger pictures, unless their folder says what
    they are; class_noun: what stands in its place in the reference's prompts.
    """
    eyes = _encoders(encoders)
    ours, theirs = ImageSet.read(images), ImageSet.read(reference)
    if trigger:
        ours, theirs = _with_groups(ours, theirs, trigger, class_noun or "")
    return _measure_sets(ours, theirs, eyes, train_images, trigger, class_noun, say or silent)


def _with_groups(
    ours: ImageSet, theirs: ImageSet, trigger: str, class_noun: str
) -> tuple[ImageSet, ImageSet]:
    """Which pictures were asked with the trigger: by its word, and in the reference by having the
    prompt that the class noun would make of such a one."""
    called = {p.prompt for p in ours if p.prompt and _names(p.prompt, trigger)}
    plain = {p.prompt for p in ours} - called
    swapped = {as_base(prompt, trigger, class_noun or "thing") for prompt in called} | called

    def grouped(pictures: ImageSet, prompts: Collection[str | None]) -> ImageSet:
        marked: list[Picture] = []
        for p in pictures:
            asked = p.group is None and p.prompt in prompts
            if asked:
                marked.append(replace(p, group="trigger"))
            if not asked or p.prompt in plain:  # the reference's may answer both
                marked.append(p)
        return ImageSet(tuple(marked), pictures.origin)

    return grouped(ours, called), grouped(theirs, swapped)


def _names(prompt: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", prompt) is not None


def _measure_sets(
    ours: ImageSet,
    theirs: ImageSet,
    encoders: Sequence[Encoder],
    train_images: Path | None,
    trigger: str | None,
    class_noun: str | None,
    say: Say,
) -> Verdict:
    say("measure", 0, 1, "")
    evidence = gather(
        ours,
        theirs,
        encoders=encoders,
        train_images=ImageSet.read(train_images) if train_images else None,
        trigger=trigger or None,
        class_noun=class_noun or None,
    )
    verdict = measure(evidence)
    say("measure", 1, 1, "")
    return verdict


def _encoders(names: Sequence[str]) -> list[Encoder]:
    return [load_encoder(name) for name in names or ("pocket",)]


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
    seeds = tuple(range(seed, seed + (8 if preset == "thorough" else 4)))
    plan = []
    for line in dict.fromkeys(lines):
        named = bool(trigger) and _names(line, trigger)
        asked = as_base(line, trigger, class_noun or "thing") if named else line
        plan.append(PlannedPrompt("trigger" if named else "class", line, asked, seeds))
    return tuple(plan)


def _draw(
    model: StableDiffusion,
    adapter: Adapter,
    plan: Sequence[PlannedPrompt],
    sampling: SamplingPlan,
    *,
    out: Path,
    say: Say,
) -> tuple[ImageSet, ImageSet]:
    """The adapter's and the base's pictures of a plan. The base's are drawn once per base and
    plan, kept in the cache, and laid beside the adapter's."""
    theirs = [Request(p.base_prompt, seed, p.group) for p in plan for seed in p.seeds]
    ours = [Request(p.adapter_prompt, seed, p.group) for p in plan for seed in p.seeds]
    key = _short_hash(model.name, sampling.model_dump_json(), repr(theirs))
    kept = cache_dir() / "base" / key

    def base_said(phase: str, done: int, total: int, note: str) -> None:
        say("sample base", done, total, note)

    def adapter_said(phase: str, done: int, total: int, note: str) -> None:
        say("sample adapter", done, total, note)

    try:
        base = sample(model, None, theirs, plan=sampling, out=kept, say=base_said)
        base = _lay_beside(base, kept, out / "base")
    except NoSpace:  # a cache costs time, never the work
        base = sample(model, None, theirs, plan=sampling, out=out / "base", say=base_said)
    drawn = sample(model, adapter, ours, plan=sampling, out=out / "adapter", say=adapter_said)
    return drawn, base


def _clear_stale(folder: Path, recipe: Recipe, model: StableDiffusion) -> None:
    """Remove a demo's run that stands on another recipe or on other weights."""
    if not (folder / "recipe.toml").is_file():
        return
    try:
        run = Run.open(folder)
    except RunError:
        return  # creating the run will say what is wrong
    start = next(iter(run.read_journal("start")), {})
    if run.recipe.images != recipe.images:
        return  # somebody else's run, which creating ours will refuse
    if run.recipe.id != recipe.id or start.get("base", str(model.id)) != str(model.id):
        shutil.rmtree(folder)


def _lay_beside(pictures: ImageSet, source: Path, target: Path) -> ImageSet:
    """The same pictures in another folder, hard-linked where the file system can."""
    target.mkdir(parents=True, exist_ok=True)
    moved: list[Picture] = []
    for picture in pictures:
        assert picture.file is not None
        at = target / picture.file.name
        at.unlink(missing_ok=True)
        try:
            os.link(picture.file, at)
        except OSError:
            shutil.copyfile(picture.file, at)
        moved.append(Picture(**{**vars(picture), "file": at}))
    shutil.copyfile(source / "metadata.jsonl", target / "metadata.jsonl")
    return ImageSet(tuple(moved), str(target))


def _held_out(run: Run, pictures: ImageSet) -> ImageSet:
    start = next(iter(run.read_journal("start")), {})
    keys = set(start.get("held_out", ()))
    return ImageSet(tuple(p for p in pictures if p.key in keys), pictures.origin)


def _without(pictures: ImageSet, others: ImageSet) -> ImageSet:
    keys = {p.key for p in others}
    return ImageSet(tuple(p for p in pictures if p.key not in keys), pictures.origin)


def _evidence(evidence: Evidence, run: Path) -> dict[str, Any]:
    """What the report shows beside its numbers: samples next to the pictures they come nearest."""
    near = nearest_pictures(evidence, find_copies(evidence))[:64]
    for pair in near:
        pair["sample"] = os.path.relpath(pair["sample"], run)
    return {"nearest": near, "encoder": evidence.views[0].encoder}


def _write_json(file: Path, document: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def _short_hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]
