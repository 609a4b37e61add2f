"""The whole story: audit, train, sample, measure, report, into one run folder.

Also sample and measure for an adapter that was made elsewhere, and for folders of samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
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
from variegate.encoders.faces import FaceFinder, load_faces
from variegate.errors import Interrupted, NoSpace, RequestError, RunError
from variegate.formats import own_notes, trigger_of
from variegate.formats import read as read_adapter
from variegate.images import ImageSet, Picture, cache_dir
from variegate.measure import (
    Evidence,
    Line,
    PlannedPrompt,
    Verdict,
    evidence_of_features,
    find_copies,
    fit_advice,
    foresee,
    gather,
    measure,
    nearest_pictures,
    prompt_plan,
    read_features,
    write_features,
)
from variegate.measure.gather import match_lines
from variegate.measure.prompts import as_base, bare
from variegate.measure.versus import versus
from variegate.models import StableDiffusion
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import Recipe, SamplingPlan
from variegate.report import write_comparison, write_report
from variegate.run import Run, write_atomically
from variegate.sample import Request, sample, seconds_to_draw
from variegate.train import caption_of, result, train

PANEL = 8  # training pictures that the report shows


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
        captions=[caption_of(p, recipe, pocket=model.pocket) for p in pictures],
        first_seed=recipe.seed,
    )
    adapter = read_adapter(run.adapter_file)
    ours, base = _draw(model, adapter, plan, recipe.sampling, out=run.samples, say=say)
    held_out = _held_out(run, pictures)
    learnt = _without(pictures, held_out)
    say("measure", 0, 1, "")
    evidence = gather(
        ours,
        base,
        encoders=encoders,
        train_images=learnt,
        held_out=held_out if len(held_out) else None,
        trigger=recipe.trigger,
        class_noun=recipe.class_noun,
    )
    verdict = measure(evidence)
    verdict = replace(verdict, advice=fit_advice(verdict.advice, recipe))
    _write_json(run.verdict_file, verdict.to_json())
    _write_json(run.folder / "evidence.json", _evidence(evidence, run.folder, learnt))
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
    style: bool = False,
    preset: str = "standard",
    prompts: Path | None = None,
    out: Path | None = None,
    features: Path | None = None,
    faces: Path | None = None,
    seed: int = 0,
    say: Say | None = None,
    tell: Callable[[str], None] | None = None,
) -> Verdict:
    """Draw from a finished adapter and from its base at the same prompts and seeds, and judge.

    The trigger and class noun default to what the adapter's file says. style: it learnt a look and
    no subject, so its trigger is asked of scenes of all kinds. prompts: a file of one
    prompt per line; those with the trigger in them are trigger prompts, the others neutral.
    out: where the samples, `verdict.json` and `report.html` stay; None keeps the samples in the
    cache. features: a folder for the first encoder's features, as `measure_features` reads them.
    faces: a face detector's file, to tell whether faces became alike. tell: hears, before anything
    is drawn, what the plan can show.
    """
    say = say or silent
    _check_free(out)
    learnt = read_adapter(adapter)
    trigger = trigger or trigger_of(learnt.metadata)
    class_noun = class_noun or str(own_notes(learnt.metadata).get("class", ""))
    eyes, finder = _encoders(encoders), load_faces(faces) if faces else None
    train = ImageSet.read(train_images) if train_images else None
    model = load_model(base, device=pick_device())
    sampling = recipes.read(recipes.default_for(base)).sampling
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
    home = cache_dir() / "measured" / _short_hash(adapter.read_bytes(), repr(plan), base)
    at = out / "samples" if out else home
    ours, theirs = _draw(model, learnt, plan, sampling, out=at, say=say)
    return _measure_sets(
        *(ours, theirs, eyes, train, trigger, class_noun),
        faces=finder,
        out=out,
        features=features,
        say=say,
    )


def measure_folders(
    images: Path,
    reference: Path,
    *,
    encoders: Sequence[str],
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    out: Path | None = None,
    features: Path | None = None,
    faces: Path | None = None,
    say: Say | None = None,
) -> Verdict:
    """Judge a folder of samples against a folder of the base's, without any model.

    trigger: pictures whose prompt names it are trigger pictures, unless their folder says what
    they are; class_noun: what stands in its place in the reference's prompts. out: where
    `verdict.json` and `report.html` stay, the pictures beside them. features: a folder
    for the first encoder's features, as `measure_features` reads them. faces: a face detector's
    file, to tell whether faces became alike.
    """
    _check_free(out)
    eyes, finder = _encoders(encoders), load_faces(faces) if faces else None
    ours, theirs = ImageSet.read(images), ImageSet.read(reference)
    if trigger:
        ours, theirs = _with_groups(ours, theirs, trigger, class_noun or "")
    train = ImageSet.read(train_images) if train_images else None
    if out is not None:
        home = (out / "samples").resolve()
        for pictures in (ours, theirs):
            if Path(pictures.origin).resolve().is_relative_to(home):
                raise RequestError(f"{pictures.origin} lies in {out}; name another folder to keep")
        lines = match_lines(ours, theirs, trigger=trigger, class_noun=class_noun)
        ours = _lay_out(ours, [s.adapter_rows for s in lines], lines, home / "adapter")
        theirs = _lay_out(theirs, [s.base_rows for s in lines], lines, home / "base")
    return _measure_sets(
        *(ours, theirs, eyes, train, trigger, class_noun),
        faces=finder,
        out=out,
        features=features,
        say=say or silent,
    )


def measure_features(features: Path, reference: Path, *, train: Path | None = None) -> Verdict:
    """Judge tables of features made elsewhere: `.npy` with prompts in a `.txt` beside it, or
    `.parquet`. What only pictures can show (copies, layout) is missing from the verdict."""
    ours, theirs = read_features(features), read_features(reference)
    if (ours.prompts is None) != (theirs.prompts is None):
        which = reference if theirs.prompts is None else features
        raise RequestError(f"{which} has no prompts and the other table has; give both or none")
    return measure(
        evidence_of_features(
            ours.rows,
            theirs.rows,
            prompts=ours.prompts,
            reference_prompts=theirs.prompts,
            train=read_features(train).rows if train else None,
            encoder=f"features in {features.name}",
        )
    )


def _spell(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, seconds):.0f} s"


def _check_free(out: Path | None) -> None:
    """A training run's own verdict must not be overwritten by another's."""
    if out is not None and (out / "recipe.toml").exists():
        raise RequestError(f"{out} is a training run; name another folder for this verdict")


def _with_groups(
    ours: ImageSet, theirs: ImageSet, trigger: str, class_noun: str
) -> tuple[ImageSet, ImageSet]:
    """Which pictures were asked with the trigger: by its word, and in the reference by having the
    prompt that the class noun would make of such a one."""
    called = {p.prompt for p in ours if p.prompt and _names(p.prompt, trigger)}
    plain = {bare(p.prompt or "") for p in ours if p.prompt not in called}
    swapped = {as_base(prompt, trigger, class_noun or "thing") for prompt in called} | called

    def grouped(pictures: ImageSet, prompts: Collection[str]) -> ImageSet:
        known = {bare(prompt) for prompt in prompts}
        marked: list[Picture] = []
        for p in pictures:
            asked = p.group is None and bare(p.prompt or "") in known
            if asked:
                marked.append(replace(p, group="trigger"))
            if not asked or bare(p.prompt or "") in plain:  # the reference's may answer both
                marked.append(p)
        return ImageSet(tuple(marked), pictures.origin)

    return grouped(ours, called), grouped(theirs, swapped)


def _names(prompt: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", prompt) is not None


def _measure_sets(
    ours: ImageSet,
    theirs: ImageSet,
    encoders: Sequence[Encoder],
    train: ImageSet | None,
    trigger: str | None,
    class_noun: str | None,
    *,
    faces: FaceFinder | None,
    out: Path | None,
    features: Path | None,
    say: Say,
) -> Verdict:
    say("measure", 0, 1, "")
    evidence = gather(
        ours,
        theirs,
        encoders=encoders,
        train_images=train,
        trigger=trigger or None,
        class_noun=class_noun or None,
        faces=faces,
    )
    verdict = measure(evidence)
    if features is not None:
        _write_features(features, evidence)
    if out is not None:
        _write_json(out / "verdict.json", verdict.to_json())
        _write_json(out / "evidence.json", _evidence(evidence, out, train))
        write_report(out)
    say("measure", 1, 1, "")
    return verdict


def _write_features(folder: Path, evidence: Evidence) -> None:
    """What `measure_features` judges as these pictures were: those of class prompts, whose tables
    know no other group."""
    view, lines = evidence.views[0], evidence.of_group("class")
    for name, rows, prompts in (
        (
            "samples",
            view.adapter[[row for line in lines for row in line.adapter_rows]],
            [line.prompt for line in lines for _ in line.adapter_rows],
        ),
        (
            "reference",
            view.base[[row for line in lines for row in line.base_rows]],
            [line.prompt for line in lines for _ in line.base_rows],
        ),
    ):
        write_features(folder / f"{name}.npy", rows, prompts)
    if view.train is not None:
        write_features(folder / "train.npy", view.train)


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
    """The same pictures in another folder, with the list that came with them."""
    target.mkdir(parents=True, exist_ok=True)
    moved = [replace(p, file=_link(p, target / p.file.name)) for p in pictures if p.file]
    shutil.copyfile(source / "metadata.jsonl", target / "metadata.jsonl")
    return ImageSet(tuple(moved), str(target))


def _lay_out(
    pictures: ImageSet, rows: Sequence[Sequence[int]], lines: Sequence[Line], target: Path
) -> ImageSet:
    """Somebody's pictures under names of ours in another folder, and a list of them: those that
    are compared, line by line. Seeds are told where both models have them."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        moved, listed = list[Picture](), list[dict[str, Any]]()
        for line, own in zip(lines, rows, strict=True):
            for place, row in enumerate(own):
                p = pictures.pictures[row]
                assert p.file is not None
                at = _link(p, target / f"{len(moved):05d}{p.file.suffix.lower()}")
                moved.append(replace(p, file=at))
                facts: dict[str, Any] = {"file_name": at.name, "prompt": p.prompt or ""}
                facts["group"] = line.group
                listed.append(facts | ({"seed": p.seed} if place < line.paired else {}))
        text = "".join(json.dumps(facts) + "\n" for facts in listed)
        write_atomically(target / "metadata.jsonl", text.encode())
    except OSError as error:
        raise NoSpace(f"{target} cannot be written: {error.strerror or error}") from error
    return ImageSet(tuple(moved), str(target))


def _link(picture: Picture, at: Path) -> Path:
    """A hard link where the file system can, else a copy."""
    assert picture.file is not None
    if at.exists() and at.samefile(picture.file):
        return at
    at.unlink(missing_ok=True)
    try:
        os.link(picture.file.resolve(), at)
    except OSError:
        shutil.copyfile(picture.file, at)
    return at


def _held_out(run: Run, pictures: ImageSet) -> ImageSet:
    start = next(iter(run.read_journal("start")), {})
    keys = set(start.get("held_out", ()))
    return ImageSet(tuple(p for p in pictures if p.key in keys), pictures.origin)


def _without(pictures: ImageSet, others: ImageSet) -> ImageSet:
    keys = {p.key for p in others}
    return ImageSet(tuple(p for p in pictures if p.key not in keys), pictures.origin)


def _evidence(evidence: Evidence, run: Path, learnt: ImageSet | None) -> dict[str, Any]:
    """What the report shows beside its numbers: samples next to the pictures they come nearest,
    and some of the pictures that were learnt."""
    near = nearest_pictures(evidence, find_copies(evidence))[:64]
    for pair in near:
        pair["sample"] = os.path.relpath(pair["sample"], run)
    found: dict[str, Any] = {"nearest": near, "encoder": evidence.views[0].encoder}
    if learnt is not None:
        shown = [
            {"file": str(p.file.resolve()), "caption": p.prompt or ""}
            for p in learnt.pictures[:PANEL]
            if p.file is not None
        ]
        text = f"The first {PANEL} of {len(learnt)}." if len(learnt) > PANEL else ""
        found["panels"] = [{"title": "What it learnt from", "text": text, "pictures": shown}]
    return found


def _write_json(file: Path, document: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def _short_hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]
