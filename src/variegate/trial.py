"""The whole story: audit, train, sample, measure, report, into one run folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from variegate import recipes
from variegate.audit import audit
from variegate.device import pick_device
from variegate.drawn import draw_both
from variegate.encoders import Encoder, load_encoders
from variegate.errors import Interrupted, RunError
from variegate.formats import read as read_adapter
from variegate.formats import stamp
from variegate.images import ImageSet
from variegate.judged import keep_verdict, write_json
from variegate.measure import Evidence, fit_advice, gather, measure, prompt_plan
from variegate.measure.versus import versus
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.report import write_comparison, write_report
from variegate.run import Run
from variegate.train import caption_of, result, train


def trial(
    recipe: Recipe, *, out: Path, encoders: Sequence[str] = (), say: Say | None = None
) -> dict[str, Any]:
    """Audit the pictures, learn the adapter, draw from it and its base, judge, write the page.

    Every part that is already in `out` under the same recipe is kept, so a trial that was
    stopped goes on where it was. encoders: as `measure_adapter`; none: the pocket's.
    Returns what `trial --json` prints.
    """
    eyes = load_encoders(encoders)
    document, _ = _trial(recipe, out=out, encoders=eyes, say=say or silent)
    return document


def _trial(
    recipe: Recipe,
    *,
    out: Path,
    encoders: Sequence[Encoder],
    say: Say,
    model: DiffusionModel | None = None,
) -> tuple[dict[str, Any], Evidence]:
    try:
        with Run.claimed(out, recipe) as run:
            return _tell_story(run, out=out, encoders=encoders, say=say, model=model)
    except Interrupted as error:
        raise Interrupted(
            f"stopped; what is done is kept in {out}: the same command goes on from there",
            error.signal_number,
        ) from error


def _tell_story(
    run: Run,
    *,
    out: Path,
    encoders: Sequence[Encoder],
    say: Say,
    model: DiffusionModel | None,
) -> tuple[dict[str, Any], Evidence]:
    recipe = run.recipe
    pictures = ImageSet.read(Path(recipe.images))
    model = model or _load_whole(recipe)
    looked = audit(
        pictures,
        trigger=recipe.trigger or None,
        resolution=recipe.resolution or model.resolution,
        say=lambda stage: say(f"audit {stage}", 0, 0, ""),
    )
    write_json(run.folder / "audit.json", looked.to_json())
    if recipe.memory.base_bits:
        # Learnt on a base in few bits, judged on the one that it will be used on.
        model = None
        run = train(recipe, out=out, say=say)
        model = _load_whole(recipe)
    else:
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
    ours, base = draw_both(model, adapter, plan, recipe.sampling, out=run.samples, say=say)
    learnt, held_out = learnt_and_held_out(run)
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
    keep_verdict(run.folder, verdict, evidence, learnt)
    stamp(run.adapter_file, verdict)
    run.journal("phase", name="verdict", labels=list(verdict.labels))
    say("measure", 1, 1, "")
    say("report", 0, 1, "")
    page = write_report(run.folder)
    say("report", 1, 1, "")
    document = {**result(run), "report": str(page), "verdict": verdict.to_json()}
    return document, evidence


def _load_whole(recipe: Recipe) -> DiffusionModel:
    return load_model(
        recipe.base,
        device=pick_device(),
        clip_skip=recipe.clip_skip,
        zero_terminal_snr=recipe.zero_terminal_snr,
        t5_tokenizer=recipe.t5_tokenizer,
    )


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
    eyes = load_encoders(())
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
            "Twelve pictures of one robot, every one of them large, centred and on the same green "
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


def _clear_stale(folder: Path, recipe: Recipe, model: DiffusionModel) -> None:
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


def learnt_and_held_out(run: Run) -> tuple[ImageSet, ImageSet]:
    """The pictures of a run's folder that it was trained on, and those it never saw."""
    pictures = ImageSet.read(Path(run.recipe.images))
    start = next(iter(run.read_journal("start")), {})
    keys = set(start.get("held_out", ()))
    held_out = ImageSet(tuple(p for p in pictures if p.key in keys), pictures.origin)
    return _without(pictures, held_out), held_out


def _without(pictures: ImageSet, others: ImageSet) -> ImageSet:
    keys = {p.key for p in others}
    return ImageSet(tuple(p for p in pictures if p.key not in keys), pictures.origin)
