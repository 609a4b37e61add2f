"""One training run, top to bottom.

    batch -> noised -> prediction -> loss terms -> weights -> probes -> journal

A step depends only on the recipe, the pictures, its number, the weights and the optimizer's
state: so a run that was stopped or killed goes on as if nothing had happened, to the bit on the
CPU in float32.
"""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import formats, models, seeds
from variegate.adapter import Attached, attach
from variegate.errors import Interrupted, NotFinite, RecipeError, RunError
from variegate.images import ImageSet
from variegate.progress import Say, silent
from variegate.recipe import OptimizerPlan, Recipe
from variegate.run import Run, differences
from variegate.train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
)
from variegate.train.course import Course, way_of
from variegate.train.data import (
    Batch,
    Latents,
    TrainingSet,
    Words,
    fingerprints,
    picture_side,
    read_training_set,
)
from variegate.train.objective import (
    answers,
    cost_of,
    row_losses,
    row_means,
    weigh_places,
    weigh_rows,
)
from variegate.train.signals import StopFlag, stop_on_signals
from variegate.train.strategies import Beside, Control, Rows, Setting, Strategy, cook, spare
from variegate.train.watch import Watch

STRATEGY = "strategy/"  # before the names of a strategy's tensors in a checkpoint
DROPOUTS = {"neuron_dropout", "rank_dropout", "module_dropout"}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    folder: Path, *, model: Any = None, images: ImageSet | None = None, say: Say | None = None
) -> Run:
    """Go on with the run in a folder from its last whole checkpoint; a finished one is returned.

    Raises: as `train`, and RunError when the pictures, base or recipe are not what they were.
    """
    run = Run.open(folder)
    return run if _is_finished(run) else _learn(run, model, images, say or silent)


def _learn(run: Run, model: Any, images: ImageSet | None, say: Say) -> Run:
    with run.locked(), stop_on_signals() as stop:
        if _is_finished(run):  # by another process, while this one waited
            return run
        say("read pictures", 0, 0, "")
        images = images or ImageSet.read(Path(run.recipe.images))
        say("load base", 0, 0, run.recipe.base)
        model = model or models.load(
            run.recipe.base, device=models.pick_device(), clip_skip=run.recipe.clip_skip
        )
        _check_fit(model, run.recipe)
        with _steady(model):
            _train(run, model, images, stop, say)
    return run


def _check_fit(model: Any, recipe: Recipe) -> None:
    """Raises: RecipeError or BaseError now for what would fail, or mislead, once all is learnt."""
    if model.clip_skip != recipe.clip_skip:
        raise RecipeError(
            f"clip_skip: found {recipe.clip_skip}, but the model that was handed over was loaded "
            f"with {model.clip_skip}; load it with the recipe's"
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


def _train(run: Run, model: Any, images: ImageSet, stop: StopFlag, say: Say) -> None:
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
    checkpoint, faults = latest_checkpoint(run.checkpoints)
    _start(run, model, data, checkpoint, faults=faults)
    for strategy in strategies.values():
        strategy.prepare(Setting(recipe, model, run.folder, say))
    _heed(stop, run, checkpoint.step if checkpoint else 0)

    # --- the adapter, its optimizer, and where they stood -----------------------------------
    on = attach(model, recipe.adapter, seed=recipe.seed)
    try:
        learner = Learner(model, on, recipe, strategies)
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
        course = Course(run, learner, data, watch)
        course.begin(checkpoint)

        # --- the steps -----------------------------------------------------------------------
        step = course.step
        while step < plan.steps and not course.stopping:
            step += 1
            batch = latents.batch(data.train, step)
            lr, terms = learner.learn(batch, step)
            run.journal("step", step=step, loss=sum(terms.values()), lr=lr, terms=terms)
            order = course.look(step)
            course.save(step, due=stop.signal is not None or bool(course.stopping))
            say("train", step, plan.steps, f"loss {sum(terms.values()):.4f}")
            if order.do == "rewind":
                step = course.go_back(order)
            if stop.signal is not None and step < plan.steps and not course.stopping:
                course.save(step, due=True)  # where the signal came while the step was being noted
                raise _interrupted(run, step, stop.signal)

        # --- what was learnt ---------------------------------------------------------------
        chosen = course.choose(step)
        formats.write(learner.adapter(data), run.adapter_file)
        reason = course.stopping or "all steps done"
        run.journal("finish", stopped_because=reason, step=step, chosen=chosen, done=True)
    finally:
        on.detach()


@dataclass
class Learner:
    """The adapter on its model, and the optimizer that moves it."""

    model: Any
    on: Attached
    recipe: Recipe
    strategies: dict[str, Strategy]

    def __post_init__(self) -> None:
        plan = self.recipe.optimizer
        reading = plan.text_encoder_lr or plan.lr / 2
        parts = [group["name"] for group in self.on.parameters]
        self.rates = {p: reading if p.startswith("text") else plan.lr for p in parts}
        groups = [
            {"params": group["params"], "name": group["name"], "lr": self.rates[group["name"]]}
            for group in self.on.parameters
        ]
        device = torch.device(self.model.device)
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=plan.lr,
            weight_decay=plan.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.recipe.precision == "fp16")
        self.words = Words(
            self.model,
            self.on,
            learns=self.recipe.adapter.text_encoder,
            pixels=picture_side(self.recipe, self.model),
        )
        self.control = Control()
        for strategy in self.strategies.values():
            strategy.attached(self.on)

    def learn(self, batch: Batch, step: int) -> tuple[float, dict[str, float]]:
        """One optimizer step: the learning rate it took and its loss terms.

        Raises: NotFinite, naming the pictures, before anything has moved.
        """
        schedule, strategies = self.model.schedule, self.strategies.values()
        beside = {n: extra for n, s in self.strategies.items() if (extra := s.beside(step))}
        held = [self._wanted(extra) for extra in beside.values()]
        noise = batch.noise
        for strategy in strategies:
            noise = strategy.noise(noise, step)
        added = noise
        for strategy in strategies:
            added = strategy.perturb(added, step)
        noised = schedule.noised(batch.latents, added, batch.timesteps)
        own = Rows(noised, batch.timesteps, batch.captions)
        with self._dropout(step):
            asked = [own, *(extra.rows for extra in beside.values())]
            prediction, *others = answers(asked, self.predict)

        target = schedule.target(batch.latents, noise, batch.timesteps)
        costs = cost_of(strategies, prediction - target, schedule, batch.timesteps)
        missed = row_means(costs, weigh_places(strategies, batch.masks))
        _check_finite(missed, batch, step)
        terms = {"pictures": (missed * weigh_rows(strategies, schedule, batch)).mean()}
        drifts = {}
        for name, said, wanted in zip(beside, others, held, strict=True):
            drifts[name] = row_losses(said, wanted).mean()
            terms[name] = self.strategies[name].beside_weight() * drifts[name]
        for name, strategy in self.strategies.items():
            if (penalty := strategy.penalty(self.on)) is not None:
                terms[name] = penalty

        rate = self._move(torch.stack(list(terms.values())).sum(), batch, step)
        for strategy in strategies:
            strategy.moved(self.on, step)
        for name, drift in drifts.items():
            self.strategies[name].heard(float(drift.detach()))
        return rate, {name: float(term.detach()) for name, term in terms.items()}

    def _wanted(self, extra: Beside) -> Float[Tensor, "b c y x"]:
        """What rows beside the pictures are held to."""
        if extra.target is not None:
            return extra.target.to(self.model.device)
        with self.on.silenced(), torch.no_grad():
            return self.predict_base(replace(extra.rows, prompts=extra.base_prompts))

    def turn(self, control: Control) -> None:
        """Go on as the guard wants it."""
        self.control = control
        for strategy in self.strategies.values():
            strategy.control = control

    def predict(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The network's answer with the adapter on, in float32."""
        with self._autocast():
            return self._ask(rows, self.words.live(rows.prompts))

    def predict_base(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The base's answer; to be asked while the adapter is silenced."""
        with self._autocast():
            return self._ask(rows, self.words.base(rows.prompts))

    def adapter(self, data: TrainingSet, step: int | None = None) -> Any:
        """What has been learnt, with what other tools want to know of it.

        step: None for the finished adapter, which a strategy may have averaged.
        """
        recipe = self.recipe
        finals = [found for s in self.strategies.values() if (found := s.final())]
        return self.on.adapter(
            formats.describe(
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
                clip_skip=recipe.clip_skip,
                notes={"recipe": recipe.id, "class": recipe.class_noun, "base": self.model.id},
            ),
            factors=finals[-1] if finals and step is None else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps beside the factors: the optimizer's and the strategies'."""
        kept = optimizer_tensors(self.optimizer, self.on)
        for name, strategy in self.strategies.items():
            for key, value in strategy.state().items():
                if isinstance(value, Tensor):
                    kept[f"{STRATEGY}{name}/{key}"] = value.detach().cpu().clone()
        return kept

    def state(self) -> dict[str, Any]:
        plain = {
            name: {k: v for k, v in strategy.state().items() if not isinstance(v, Tensor)}
            for name, strategy in self.strategies.items()
        }
        return {
            "scaler": self.scaler.state_dict(),
            "strategies": {name: values for name, values in plain.items() if values},
        }

    def restore(self, adapter: Any, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Stand where a checkpoint stood."""
        self.on.load(adapter)
        mine = {k: v for k, v in tensors.items() if not k.startswith(STRATEGY)}
        restore_optimizer(self.optimizer, self.on, mine)
        for name, strategy in self.strategies.items():
            prefix = f"{STRATEGY}{name}/"
            own = {
                key.removeprefix(prefix): value.to(self.model.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if plain := state.get("strategies", {}).get(name, {}):
                own |= plain
            if own:
                strategy.restore(own)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def _ask(self, rows: Rows, words: models.Conditioning) -> Float[Tensor, "b c y x"]:
        device = self.model.device
        noised = rows.noised.to(device).contiguous(memory_format=torch.channels_last)
        answer: Tensor = self.model.predict(noised, rows.timesteps.to(device), words)
        return answer.float()

    def _move(self, loss: Tensor, batch: Batch, step: int) -> float:
        plan = self.recipe.optimizer
        share = rate_at(step, plan) * self.control.lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[group["name"]] * share
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        # With fp16 the scaler skips a step whose gradients overflow, and eases its scale.
        if not self.scaler.is_enabled() and not math.isfinite(float(norm)):
            raise NotFinite(
                f"the gradient at step {step} is {float(norm)} on pictures "
                f"{', '.join(sorted(set(batch.keys)))}; the last checkpoint stands: lower "
                f"optimizer.lr (found {plan.lr:g}) or use precision float32"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return plan.lr * share

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Dropout inside the updates draws from torch's global generator: give it an address."""
        dropping: list[Any] = [self.strategies[n] for n in DROPOUTS & self.strategies.keys()]
        if not self.recipe.adapter.dropout and not any(s.chance for s in dropping):
            yield
            return
        device = torch.device(self.model.device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeds.number(self.recipe.seed, "dropout", step))
            yield

    def _autocast(self) -> Any:
        device, kind = torch.device(self.model.device).type, DTYPES[self.recipe.precision]
        return torch.autocast(device, dtype=kind, enabled=kind != torch.float32)


def rate_at(step: int, plan: OptimizerPlan) -> float:
    """The share of the peak learning rate at a step (from 1): warm-up, then constant or cosine."""
    if step <= plan.warmup:
        return step / plan.warmup
    if plan.schedule == "constant":
        return 1.0
    done = (step - plan.warmup - 1) / max(1, plan.steps - plan.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _start(
    run: Run, model: Any, data: TrainingSet, found: Checkpoint | None, *, faults: list[str]
) -> None:
    """Note what this run stands on; refuse to go on when that has changed.

    Raises: RunError with the differences.
    """
    stands_on = {
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
        "base": str(model.id),
        "pictures": data.fingerprint,
    }
    earlier = run.read_journal("start")
    _refuse_changes(run, earlier, stands_on)
    held_out = [example.key for example in data.held_out]
    at = {"step": found.step if found else 0, "way": way_of(found)}
    run.journal("start", **at, held_out=held_out, **stands_on)
    for fault in faults:
        run.journal("note", text=f"{fault}; the one before it was used")
    if not earlier:
        for note in data.notes:
            run.journal("note", text=note)


def _refuse_changes(run: Run, starts: list[dict[str, Any]], now: dict[str, Any]) -> None:
    """Raises: RunError with the differences to what the run first stood on."""
    changed = _changes(starts[0], {**starts[0], **now}) if starts else []
    if changed:
        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(
            f"{run.folder} cannot be gone on with: what it stood on has changed:\n{listed}\n"
            "restore that, or start a new run in another folder"
        )


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
        and bool(ends[-1].get("done") or int(ends[-1]["step"]) >= run.recipe.optimizer.steps)
    )


def _check_finite(losses: Float[Tensor, " b"], batch: Batch, step: int) -> None:
    if bool(losses.isfinite().all()):
        return
    bad = [k for k, ok in zip(batch.keys, losses.isfinite().tolist(), strict=True) if not ok]
    raise NotFinite(
        f"the loss at step {step} is not a number on pictures {', '.join(sorted(set(bad)))}; the "
        "last checkpoint stands: lower optimizer.lr, or use precision float32 or bf16"
    )


@contextmanager
def _steady(model: Any) -> Iterator[None]:
    """The network in the memory layout that convolutions are quickest in, as it was afterwards."""
    model.network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.network.to(memory_format=torch.contiguous_format)
