"""One training run, top to bottom.

    batch -> noised -> prediction -> loss terms -> weights -> probes -> journal

A step depends only on the recipe, the pictures, its number, the weights and the optimizer's
state: so a run that was stopped or killed goes on as if nothing had happened, to the bit on the
CPU in float32. Started as several processes, each does its share of every step (`ranks.py`).
"""

from __future__ import annotations

import hashlib
import shlex
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from variegate import formats
from variegate.adapter import Adapter, Attached, attach, attach_from
from variegate.errors import Interrupted, RecipeError, RunError
from variegate.images import ImageSet, Shards, open_pictures
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.run import Run, differences
from variegate.signals import StopFlag, stop_on_signals
from variegate.train.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint
from variegate.train.course import Course, way_of
from variegate.train.data import (
    Latents,
    fingerprints,
    picture_side,
    read_training_set,
)
from variegate.train.divided import divider, held_here, lender
from variegate.train.examples import TrainingSet
from variegate.train.fit import (
    Means,
    compiled,
    imitated,
    laid_out,
    load_base,
    precision_of,
    read_means,
    settle,
)
from variegate.train.lean import lean
from variegate.train.learner import Learner
from variegate.train.packed import packed
from variegate.train.ranks import Ranks, joined
from variegate.train.strategies import Setting, Strategy, cook, spare
from variegate.train.watch import Watch


def train(
    recipe: Recipe,
    *,
    out: Path,
    model: Any = None,
    images: ImageSet | Shards | None = None,
    say: Say | None = None,
) -> Run:
    """Learn an adapter as a recipe asks, in a run folder; a started run is gone on with.

    model: a loaded base, in place of recipe.base. images: in place of what recipe.images names.

    Raises: RunError, RunLocked, ImagesError, BaseError, AdapterError, RecipeError for what was
    asked; NotFinite, NoSpace when the work fails; Interrupted after a signal, once all is saved.
    """
    with Run.claimed(out, recipe) as run:
        if _is_finished(run):
            images = images or open_pictures(recipe.images)
            now = {"pictures": fingerprints(images)} | ({"base": str(model.id)} if model else {})
            _refuse_changes(run, run.read_journal("start"), now)
            return run
        return _learn(run, model, images, say or silent)


def resume(
    folder: Path,
    *,
    steps: int | None = None,
    model: Any = None,
    images: ImageSet | Shards | None = None,
    say: Say | None = None,
) -> Run:
    """Go on with the run in a folder from its last whole checkpoint; a finished one is returned.

    steps: make the run that long, finished or not; nothing else of its recipe can be changed.
    Raises: as `train`, and RunError when the pictures, base or recipe are not what they were, or
    `steps` is less than it had.
    """
    run = Run.open(folder)
    if steps is not None:
        run = run.extended(steps)
    return run if _is_finished(run) else _learn(run, model, images, say or silent)


def _learn(run: Run, model: Any, images: ImageSet | Shards | None, say: Say) -> Run:
    with joined() as ranks, ranks.owning(run.locked), stop_on_signals() as stop:
        if ranks.shared(_is_finished(run)):  # by another process, while this one waited
            return run
        if ranks.first:
            run.asked()  # what was left was asked of another process
        say("read pictures", 0, 0, "")
        images = images or open_pictures(
            run.recipe.images,
            share=ranks.share,
            say=lambda done, total: say("read tars", done, total, ""),
        )
        say("load base", 0, 0, run.recipe.base)
        divide = divider(run.recipe, ranks, handed_over=model is not None)
        model = model or load_base(run.recipe, divide)
        _check_fit(model, run.recipe)
        if divide:
            ranks = replace(ranks, network=model.network, lend=lender(model))
            if ranks.first:
                run.journal("note", text=held_here(ranks))
        compiling = run.recipe.memory.compile
        plain = not (compiling or divide)
        with laid_out(model), packed(model, plain), compiled(model, compiling):
            _train(run, model, images, ranks, stop, say)
        ranks.wait()
    return run


def _check_fit(model: Any, recipe: Recipe) -> None:
    """Raises: RecipeError or BaseError now for what would fail, or mislead, once all is learnt."""
    for name in ("clip_skip", "zero_terminal_snr"):
        asked, has = getattr(recipe, name), getattr(model, name)
        if asked != has:
            raise RecipeError(
                f"{name}: found {asked}, but the model that was handed over was loaded with {has}; "
                "load it with the recipe's"
            )
    if model.bits != recipe.memory.base_bits:
        found = f"in {model.bits} bits" if model.bits else "whole"
        raise RecipeError(
            f"memory.base_bits: found {recipe.memory.base_bits}, but the model that was handed "
            f"over holds its weights {found}, and is never changed; load it with "
            f"bits={recipe.memory.base_bits}, or hand none over"
        )
    model.sampler(recipe.sampling.sampler)


def result(run: Run) -> dict[str, Any]:
    """How a run stands: folder, adapter, last checkpoint, step, and why it stopped."""
    saved = run.read_journal("checkpoint")
    ends = run.read_journal("finish")
    chosen = ends[-1].get("chosen") if ends else None
    taken = [line for line in saved if line["step"] == chosen] or saved
    return {
        "run": str(run.folder),
        "adapter": str(run.adapter_file) if run.adapter_file.exists() else None,
        "checkpoint": str(run.folder / taken[-1]["path"]) if taken else None,
        "chosen_step": chosen,
        "step": ends[-1]["step"] if ends else saved[-1]["step"] if saved else 0,
        "stopped_because": ends[-1]["stopped_because"] if ends else None,
    }


def _train(
    run: Run, model: Any, images: ImageSet | Shards, ranks: Ranks, stop: StopFlag, say: Say
) -> None:
    # --- what was asked, and what it is asked of -------------------------------------------
    recipe, plan = run.recipe, run.recipe.optimizer
    strategies = cook(recipe) | (spare(recipe) if recipe.guard.mode == "autopilot" else {})
    data = read_training_set(
        images,
        recipe,
        side=picture_side(recipe, model),
        pocket=model.pocket,
        needs_masks=any(s.needs_masks for s in strategies.values()),
        base=model,
    )
    begun = _begun_from(recipe)
    checkpoint = None
    with ranks.as_one():
        if ranks.first:
            checkpoint, faults = latest_checkpoint(run.checkpoints)
            _start(run, model, data, checkpoint, begun=begun, faults=faults)
    if found := ranks.shared(checkpoint and str(checkpoint.path)):
        checkpoint = checkpoint or read_checkpoint(Path(found))
    with ranks.in_turn():  # what one draws the others find
        for strategy in strategies.values():
            strategy.prepare(Setting(recipe, model, run.folder, say))
    _heed(stop, ranks, run, checkpoint.step if checkpoint else 0)

    # --- the adapter, its optimizer, and where they stood -----------------------------------
    on = (
        attach(model, recipe.adapter, seed=recipe.seed)
        if begun is None
        else attach_from(model, begun, recipe.adapter)
    )
    with ExitStack() as ends:
        ends.callback(on.detach)
        ends.callback(data.close)
        ends.enter_context(lean(model, not recipe.memory.compile))
        with ranks.in_turn():
            means = _means(run, model, on, strategies)
        learner = Learner(
            model,
            on,
            recipe,
            strategies,
            means,
            tell=lambda text: run.journal("note", text=text),
            ranks=ranks,
        )
        if checkpoint is not None:
            learner.restore(checkpoint.adapter, checkpoint.optimizer, checkpoint.state)
        latents = Latents(model, recipe, strategies)
        watch = None
        with ranks.led():
            if ranks.first:
                with on.silenced(), on.watched():
                    watch = Watch(
                        recipe,
                        model.schedule,
                        latents,
                        train=data.train,
                        held_out=data.held_out,
                        predict=learner.predict_base,
                        pocket=model.pocket,
                    )
        course = Course(run, learner, data, watch)
        course.begin(checkpoint)

        # --- the steps -----------------------------------------------------------------------
        step = course.step
        while step < plan.steps and not course.stopping:
            step += 1
            batch = latents.batch(data.stream or data.train, step, ranks)
            lr, terms = learner.learn(batch, step)
            if ranks.first:
                run.journal("step", step=step, loss=sum(terms.values()), lr=lr, terms=terms)
                _tell(run, data)
            order = course.look(step)
            if "stop" in course.answer(step):
                stop.ask()
            course.save(step, due=stop.signal is not None or bool(course.stopping))
            say("train", step, plan.steps, f"loss {sum(terms.values()):.4f}")
            if order.do == "rewind":
                step = course.go_back(order)
            asked = ranks.most(stop.signal or 0)
            if asked and step < plan.steps and not course.stopping:
                course.save(step, due=True)  # where the signal came while the step was being noted
                ranks.wait()
                raise _interrupted(run, ranks, step, stop, asked)

        # --- what was learnt ---------------------------------------------------------------
        if not ranks.first:
            return
        chosen = course.choose(step)
        formats.write(learner.adapter(data), run.adapter_file)
        reason = course.stopping or "all steps done"
        run.journal("finish", stopped_because=reason, step=step, chosen=chosen, of=plan.steps)


def _tell(run: Run, data: TrainingSet) -> None:
    """Note what was found of pictures when their turn came."""
    for text in data.stream.notes() if data.stream else ():
        run.journal("note", text=text)


def _begun_from(recipe: Recipe) -> Adapter | None:
    """The adapter that the recipe names to go on from, if it names one."""
    start = getattr(recipe.adapter, "start", None)
    return None if start is None else formats.read(Path(start))


def _start(
    run: Run,
    model: Any,
    data: TrainingSet,
    found: Checkpoint | None,
    *,
    begun: Adapter | None,
    faults: list[str],
) -> None:
    """Note what this run stands on; refuse to go on when that has changed.

    Raises: RunError with the differences.
    """
    stands_on = {
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
        "base": str(model.id),
        "pictures": data.fingerprint,
    }
    if begun is not None:
        digest = hashlib.sha256()
        for name, update in sorted(begun.layers.items()):
            digest.update(name.encode())
            for factor in update.factors().values():
                digest.update(factor.numpy().tobytes())
        stands_on["start"] = digest.hexdigest()[:16]
    earlier = run.read_journal("start")
    _refuse_changes(run, earlier, stands_on)
    held_out = [example.key for example in data.held_out]
    at = {"step": found.step if found else 0, "way": way_of(found)}
    run.journal("start", **at, held_out=held_out, **stands_on)
    for fault in faults:
        run.journal("note", text=f"{fault}; the one before it was used")
    if not earlier:
        slow = imitated(precision_of(run.recipe, model.device), model.device)
        cautions = run.recipe.cautions
        for note in (*cautions, *model.notes, *data.notes, *([slow] if slow else [])):
            run.journal("note", text=note)


def _refuse_changes(run: Run, starts: list[dict[str, Any]], now: dict[str, Any]) -> None:
    """Raises: RunError with the differences to what the run first stood on."""
    changed = _changes(_as_extended(run, starts[0]), {**starts[0], **now}) if starts else []
    if changed:
        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(
            f"{run.folder} cannot be gone on with: what it stood on has changed:\n{listed}\n"
            "restore that, or start a new run in another folder"
        )


def _as_extended(run: Run, start: dict[str, Any]) -> dict[str, Any]:
    """What a run first stood on, with the length that it was made since."""
    recipe = start["recipe"]
    for entry in run.read_journal("extend"):
        plan = {**recipe["optimizer"], "steps": entry["steps"]}
        recipe = {**recipe, "optimizer": plan}
    return {**start, "recipe": recipe}


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = differences(then["recipe"], now["recipe"])
    if then["base"] != now["base"]:
        changed.append(f"the base model's weights or settings: {then['base']}, now {now['base']}")
    if then.get("start") != now.get("start", then.get("start")):
        changed.append(f"the adapter it began from: {then.get('start')}, now {now.get('start')}")
    before, after = then["pictures"], now["pictures"]
    sets = (
        ("pictures added", sorted(after.keys() - before.keys())),
        ("pictures removed", sorted(before.keys() - after.keys())),
        (
            "pictures, captions or masks changed",
            sorted(k for k in before.keys() & after.keys() if before[k] != after[k]),
        ),
    )
    for what, keys in sets:
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            changed.append(f"{what}: {', '.join(keys[:5])}{more}")
    return changed


def _means(run: Run, model: Any, on: Attached, strategies: dict[str, Strategy]) -> Means:
    """By what means this run began, else what is asked or fits, noted in the journal."""
    if earlier := run.read_journal("fit"):
        means = read_means(earlier[0])
        length = {"steps": run.recipe.optimizer.steps}  # the run may be longer since
        return replace(means, optimizer=means.optimizer.model_copy(update=length))
    recipe = run.recipe
    beside = [extra.rows for s in strategies.values() if (extra := s.beside(1))]
    rows = recipe.optimizer.batch_size + sum(len(r.prompts) for r in beside)
    means = settle(recipe, model, on, rows=rows, side=picture_side(recipe, model))
    if means.why:
        run.journal("fit", **means.to_json())
    return means


def _heed(stop: StopFlag, ranks: Ranks, run: Run, step: int) -> None:
    """Raises: Interrupted when a stop was asked for before the first step."""
    if asked := ranks.most(stop.signal or 0):
        raise _interrupted(run, ranks, step, stop, asked)


def _interrupted(run: Run, ranks: Ranks, step: int, stop: StopFlag, number: int) -> Interrupted:
    by = stop.by or signal.Signals(number).name  # "": another process was asked
    if ranks.first:
        run.journal("finish", stopped_because=by, step=step)
    return Interrupted(
        f"stopped by {by} after step {step} of {run.recipe.optimizer.steps}, all saved; go on "
        f"with: variegate train --resume {shlex.quote(str(run.folder))}",
        number,
    )


def _is_finished(run: Run) -> bool:
    ends = run.read_journal("finish")
    return (
        run.adapter_file.exists()
        and bool(ends)
        and run.recipe.optimizer.steps in (ends[-1].get("of"), ends[-1]["step"])
    )
