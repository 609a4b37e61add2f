"""One training run, top to bottom.

    batch -> noised -> prediction -> loss terms -> weights -> probes -> journal

A step depends only on the recipe, the pictures, its number, the weights and the optimizer's
state: so a run that was stopped or killed goes on as if nothing had happened, to the bit on the
CPU in float32.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import formats, seeds
from variegate.adapter import Attached, attach
from variegate.errors import Interrupted, NotFinite, RunError
from variegate.images import ImageSet
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.run import Run, differences
from variegate.train.checkpoint import latest_checkpoint, save_checkpoint
from variegate.train.data import (
    Batch,
    Latents,
    TrainingSet,
    Words,
    fingerprints,
    picture_side,
    read_training_set,
)
from variegate.train.fit import Means, autocast, checkpointed, load_base, read_means, settle
from variegate.train.objective import join, row_losses, weigh_places, weigh_rows
from variegate.train.optimizers import Descent
from variegate.train.parts import cut, piece, within_memory
from variegate.train.signals import StopFlag, stop_on_signals
from variegate.train.strategies import Rows, Setting, Strategy, cook
from variegate.train.watch import Watch


def train(
    recipe: Recipe,
    *,
    out: Path,
    model: Any = None,
    images: ImageSet | None = None,
    say: Say | None = None,
) -> Run:
    """Learn an adapter as a recipe asks, in a run folder; a started run is gone on with.

    model: a loaded base, in place of recipe.base. images: in place of the folder recipe.images.

    Raises: RunError, RunLocked, ImagesError, BaseError, AdapterError, RecipeError for what was
    asked; NotFinite, NoSpace when the work fails; Interrupted after a signal, once all is saved.
    """
    run = Run.create(out, recipe)
    if _is_finished(run):
        images = images or ImageSet.read(Path(recipe.images))
        now = {"pictures": fingerprints(images)} | ({"base": str(model.id)} if model else {})
        _refuse_changes(run, run.read_journal("start"), now)
        return run
    return _learn(run, model, images, say or silent)


def resume(
    folder: Path,
    *,
    steps: int | None = None,
    model: Any = None,
    images: ImageSet | None = None,
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


def _learn(run: Run, model: Any, images: ImageSet | None, say: Say) -> Run:
    with run.locked(), stop_on_signals() as stop:
        if _is_finished(run):  # by another process, while this one waited
            return run
        say("read pictures", 0, 0, "")
        images = images or ImageSet.read(Path(run.recipe.images))
        say("load base", 0, 0, run.recipe.base)
        model = model or load_base(run.recipe)
        with _steady(model):
            _train(run, model, images, stop, say)
    return run


def result(run: Run) -> dict[str, Any]:
    """How a run stands: folder, adapter, last checkpoint, step, and why it stopped."""
    saved = run.read_journal("checkpoint")
    ends = run.read_journal("finish")
    return {
        "run": str(run.folder),
        "adapter": str(run.adapter_file) if run.adapter_file.exists() else None,
        "checkpoint": str(run.folder / saved[-1]["path"]) if saved else None,
        "step": ends[-1]["step"] if ends else saved[-1]["step"] if saved else 0,
        "stopped_because": ends[-1]["stopped_because"] if ends else None,
    }


def _train(run: Run, model: Any, images: ImageSet, stop: StopFlag, say: Say) -> None:
    # --- what was asked, and what it is asked of -------------------------------------------
    recipe, plan = run.recipe, run.recipe.optimizer
    strategies = cook(recipe)
    data = read_training_set(
        images,
        recipe,
        side=picture_side(recipe, model),
        pocket=model.pocket,
        needs_masks=any(s.needs_masks for s in strategies.values()),
    )
    checkpoint, faults = latest_checkpoint(run.checkpoints)
    _start(run, model, data, step=checkpoint.step if checkpoint else 0, faults=faults)
    for strategy in strategies.values():
        strategy.prepare(Setting(recipe, model, run.folder, say))
    _heed(stop, run, checkpoint.step if checkpoint else 0)

    # --- the adapter, its optimizer, and where they stood -----------------------------------
    on = attach(model, recipe.adapter, seed=recipe.seed)
    try:
        means = _means(run, model, on, strategies)
        learner = Learner(
            model, on, recipe, strategies, means, tell=lambda text: run.journal("note", text=text)
        )
        if checkpoint is not None:
            learner.restore(checkpoint.adapter, checkpoint.optimizer, checkpoint.state)
        latents = Latents(model, recipe, strategies)
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
        first = checkpoint.step if checkpoint else 0
        saved = first if checkpoint else -1
        if first == 0:
            _look(run, watch, learner, 0)

        # --- the steps -----------------------------------------------------------------------
        for step in range(first + 1, plan.steps + 1):
            batch = latents.batch(data.train, step)
            lr, terms = learner.learn(batch, step)
            run.journal("step", step=step, loss=sum(terms.values()), lr=lr, terms=terms)
            if step % recipe.probes.every == 0 or step == plan.steps:
                _look(run, watch, learner, step)
            stopping = stop.signal is not None
            if step % recipe.checkpoints.every == 0 or step == plan.steps or stopping:
                saved = _save(run, learner, data, step)
            say("train", step, plan.steps, f"loss {sum(terms.values()):.4f}")
            if stop.signal is not None and step < plan.steps:
                if saved != step:  # the signal came while the step was being noted
                    _save(run, learner, data, step)
                raise _interrupted(run, step, stop.signal)

        # --- what was learnt ---------------------------------------------------------------
        formats.write(learner.adapter(data), run.adapter_file)
        run.journal("finish", stopped_because="all steps done", step=plan.steps)
    finally:
        on.detach()


@dataclass
class Learner:
    """The adapter on its model, and the optimizer that moves it."""

    model: Any
    on: Attached
    recipe: Recipe
    strategies: dict[str, Strategy]
    means: Means
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        plan, precision = self.means.optimizer, self.means.precision
        self.descent = Descent(plan, self.on, device=self.model.device, precision=precision)
        self.at_once = plan.micro_batch  # rows per pass; None: all
        self.words = Words(self.model, self.on, learns=self.recipe.adapter.text_encoder)

    def learn(
        self, batch: Batch, step: int, *, factor: float = 1.0
    ) -> tuple[float, dict[str, float]]:
        """One optimizer step: the learning rate it took and its loss terms.

        factor: on the learning rate, beside the schedule's.
        Raises: NotFinite, naming the pictures, and NoMemory, before anything has moved.
        """
        beside = {name: r for name, s in self.strategies.items() if (r := s.beside(step))}
        rows = {"pictures": batch.rows(self.model.schedule), **beside}
        whole = sum(len(r.prompts) for r in rows.values())
        asked = min(self.at_once or whole, whole)
        terms, size = within_memory(
            lambda size: self._gradients(batch, rows, step, size), asked, tell=self.tell
        )
        if size < asked:
            self.at_once = size
        what = ", ".join(sorted(set(batch.keys)))
        return self.descent.take(step, factor=factor, what=what), terms

    def _gradients(
        self, batch: Batch, rows: dict[str, Rows], step: int, size: int
    ) -> dict[str, float]:
        """Let every part of a step's rows leave its gradient; the loss terms of the whole."""
        schedule, strategies = self.model.schedule, self.strategies.values()
        target = schedule.target(batch.latents, batch.noise, batch.timesteps)
        places = weigh_places(strategies, batch.masks)
        weights = weigh_rows(strategies, schedule, batch)
        counts = {name: len(r.prompts) for name, r in rows.items()}
        terms = dict.fromkeys(rows, 0.0)
        self.descent.clear()
        again = self.means.gradient_checkpointing
        with self._dropout(step), checkpointed(self.model, again):
            for part in cut(counts, size):
                here = {name: piece(rows[name], where) for name, where in part.items()}
                with self.on.silenced(), torch.no_grad():
                    held = {n: self.predict_base(r) for n, r in here.items() if n != "pictures"}
                answer = self.predict(join([*here.values()]))
                answers = torch.split(answer, [len(r.prompts) for r in here.values()])
                losses = []
                for (name, where), own in zip(part.items(), answers, strict=True):
                    if name == "pictures":
                        seen = places[where] if places is not None else None
                        missed = row_losses(own, target[where], seen)
                        _check_finite(missed, batch.keys[where], step)
                        loss = (missed * weights[where]).mean()
                    else:
                        weight = self.strategies[name].beside_weight()
                        loss = weight * row_losses(own, held[name]).mean()
                    losses.append(loss * (len(own) / counts[name]))
                    terms[name] += float(losses[-1].detach())
                self.descent.add(torch.stack(losses).sum())
        return terms

    def predict(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The network's answer with the adapter on, in float32."""
        with autocast(self.model, self.means.precision):
            return self._ask(rows, self.words.live(rows.prompts))

    def predict_base(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The base's answer; to be asked while the adapter is silenced."""
        with autocast(self.model, self.means.precision):
            return self._ask(rows, self.words.base(rows.prompts))

    def adapter(self, data: TrainingSet, step: int | None = None) -> Any:
        """What has been learnt, with what other tools want to know of it."""
        recipe = self.recipe
        described = formats.describe(
            name=recipe.trigger,
            trigger=recipe.trigger,
            base=recipe.base,
            family=self.model.family,
            prediction=self.model.schedule.prediction,
            resolution=picture_side(recipe, self.model),
            pictures=len(data.train),
            steps=recipe.optimizer.steps if step is None else step,
            seed=recipe.seed,
            lr=recipe.optimizer.lr,
            notes={"recipe": recipe.id, "class": recipe.class_noun, "base": self.model.id},
        )
        with self.descent.averaged():
            return self.on.adapter(described)

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.descent.numbers(), "at_once": self.at_once}

    def restore(self, adapter: Any, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Stand where a checkpoint stood."""
        self.on.load(adapter)
        self.descent.restore(optimizer, state["optimizer"])
        self.at_once = state["at_once"]

    def _ask(self, rows: Rows, embeddings: Float[Tensor, "b t d"]) -> Float[Tensor, "b c y x"]:
        device = self.model.device
        noised = rows.noised.to(device).contiguous(memory_format=torch.channels_last)
        answer: Tensor = self.model.predict(noised, rows.timesteps.to(device), embeddings)
        return answer.float()

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Dropout inside the updates draws from torch's global generator: give it an address."""
        if self.recipe.adapter.dropout == 0:
            yield
            return
        device = torch.device(self.model.device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeds.number(self.recipe.seed, "dropout", step))
            yield


def _start(run: Run, model: Any, data: TrainingSet, *, step: int, faults: list[str]) -> None:
    """Note what this run stands on; refuse to go on when that has changed.

    Raises: RunError with the differences.
    """
    stands_on = {
        "recipe": run.recipe.model_dump(mode="json"),
        "base": str(model.id),
        "pictures": data.fingerprint,
    }
    earlier = run.read_journal("start")
    _refuse_changes(run, earlier, stands_on)
    held_out = [example.key for example in data.held_out]
    run.journal("start", step=step, held_out=held_out, **stands_on)
    for fault in faults:
        run.journal("note", text=f"{fault}; the one before it was used")
    if not earlier:
        for note in data.notes:
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
    beside = [r for s in strategies.values() if (r := s.beside(1))]
    rows = recipe.optimizer.batch_size + sum(len(r.prompts) for r in beside)
    means = settle(recipe, model, on, rows=rows, side=picture_side(recipe, model))
    if means.why:
        run.journal("fit", **means.to_json())
    return means


def _look(run: Run, watch: Watch, learner: Learner, step: int) -> None:
    with learner.on.watched(), learner.descent.averaged():
        seen = watch.look(learner.predict, step)
    run.journal("probe", step=step, measurements=[m.to_json() for m in seen])


def _save(run: Run, learner: Learner, data: TrainingSet, step: int) -> int:
    path = save_checkpoint(
        run.checkpoints,
        step=step,
        adapter=learner.adapter(data, step),
        optimizer=learner.descent.tensors(),
        state=learner.state(),
        keep=run.recipe.checkpoints.keep,
    )
    run.journal("checkpoint", step=step, path=path.relative_to(run.folder).as_posix())
    return step


def _heed(stop: StopFlag, run: Run, step: int) -> None:
    """Raises: Interrupted when a stop was asked for before the first step."""
    if stop.signal is not None:
        raise _interrupted(run, step, stop.signal)


def _interrupted(run: Run, step: int, number: int) -> Interrupted:
    name = signal.Signals(number).name
    run.journal("finish", stopped_because=name, step=step)
    return Interrupted(
        f"stopped by {name} after step {step} of {run.recipe.optimizer.steps}, all saved; go on "
        f"with: variegate train --resume {shlex.quote(str(run.folder))}",
        number,
    )


def _is_finished(run: Run) -> bool:
    ends = run.read_journal("finish")
    return (
        run.adapter_file.exists()
        and bool(ends)
        and int(ends[-1]["step"]) >= run.recipe.optimizer.steps
    )


def _check_finite(losses: Float[Tensor, " b"], keys: list[str], step: int) -> None:
    if bool(losses.isfinite().all()):
        return
    bad = [k for k, ok in zip(keys, losses.isfinite().tolist(), strict=True) if not ok]
    raise NotFinite(
        f"the loss at step {step} is not a number on pictures {', '.join(sorted(set(bad)))}; the "
        "last checkpoint stands: lower optimizer.lr, or use precision float32 or bf16"
    )


@contextmanager
def _steady(model: Any) -> Iterator[None]:
    """The UNet in the memory layout that convolutions are quickest in, as it was afterwards."""
    model.unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.unet.to(memory_format=torch.contiguous_format)
