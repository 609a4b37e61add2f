"""Every optimizer learns, resumes to the bit, and refuses what does not fit it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe, write_pictures

from variegate import formats, seeds
from variegate.adapter import Adapter, attach
from variegate.errors import NoMemory, RecipeError, RunError
from variegate.images import ImageSet
from variegate.models import load
from variegate.progress import silent
from variegate.recipe import (
    AdamW,
    AdamW8bit,
    LoraPlan,
    OptimizerPlan,
    Recipe,
    Restarts,
)
from variegate.run import Run
from variegate.train import resume, train
from variegate.train.checkpoint import read_checkpoint
from variegate.train.data import Latents, read_training_set
from variegate.train.fit import Means
from variegate.train.loop import Learner
from variegate.train.optimizers import MAKERS, Descent, rate_at
from variegate.train.strategies import Setting, cook

KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2},
    "adafactor": {"lr": 1e-2, "schedule": "linear"},
    "prodigy": {"d_coef": 2.0, "lr": 1.0},
    "schedulefree": {"lr": 3e-2, "warmup": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("optimizers")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images", 3)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


def plan_of(kind: str, **settings: Any) -> OptimizerPlan:
    return Recipe.build({"optimizer": {"kind": kind, **settings}}).optimizer


def recipe_of(place: Path, optimizer: dict[str, Any], **entries: Any) -> Recipe:
    return tiny_recipe(
        place / "base",
        place / "images",
        optimizer={"lr": 1e-3, "steps": 4, "batch_size": 2, **optimizer},
        **{"checkpoints": {"every": 2}, "probes": {"every": 50, "triples": 1}, **entries},
    )


def ends_alike(a: Run, b: Run) -> bool:
    one, other = (formats.read(run.adapter_file) for run in (a, b))
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(one.layers[n].down, other.layers[n].down)
        and torch.equal(one.layers[n].up, other.layers[n].up)
        for n in one.layers
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_learns(model: Any, kind: str) -> None:
    """A known update of low rank, from what `attach` begins with."""
    on = attach(model, LoraPlan(rank=4, alpha=4.0), seed=0)
    try:
        down, up = (p for _, p in list(on.named_parameters())[:2])
        target = torch.randn(len(up), 2, generator=seeds.at(0, "a")) @ torch.randn(
            2, down.shape[1], generator=seeds.at(0, "b")
        )

        def miss() -> torch.Tensor:
            return (up @ down - target).square().mean()

        descent = Descent(plan_of(kind, **KINDS[kind]), on, device="cpu", precision="float32")
        before, rates = float(miss().detach()), []
        for step in range(1, 201):
            descent.clear()
            descent.add(miss())
            rates.append(descent.take(step))
        with torch.no_grad(), descent.averaged():
            after = float(miss())
    finally:
        on.detach()
    assert after < 0.1 * before
    if kind == "prodigy":
        assert rates[-1] > 100 * rates[0]  # it found a rate by itself


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_resumes_to_the_bit(
    place: Path, model: Any, tmp_path: Path, kind: str
) -> None:
    extras: dict[str, Any] = {"adafactor": {"weight_decay_on": "product"}}.get(kind, {})
    recipe = recipe_of(
        place,
        {"kind": kind, **KINDS[kind], **extras, "micro_batch": 1},
        adapter={"dropout": 0.2},
    )
    whole = train(recipe, out=tmp_path / "whole", model=model)
    run = crash(recipe, tmp_path / "crashed", model, 3)
    resume(run.folder, model=model)
    assert run.read_journal("start")[-1]["step"] == 2
    assert ends_alike(run, whole)
    told = [[(e["loss"], e["lr"]) for e in r.read_journal("step")] for r in (run, whole)]
    assert told[0] == told[1]


def crash(recipe: Recipe, folder: Path, model: Any, step: int) -> Run:
    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=folder, model=model, say=say)
    return Run.open(folder)


def test_watching_and_saving_do_not_move_what_a_schedule_free_run_goes_on_from(
    place: Path, model: Any, tmp_path: Path
) -> None:
    ends = []
    for every in (1, 100):
        recipe = recipe_of(
            place,
            {"kind": "schedulefree", "lr": 1e-2},
            probes={"every": every, "triples": 1},
            checkpoints={"every": every},
        )
        ends.append(train(recipe, out=tmp_path / str(every), model=model))
    assert ends_alike(*ends)


def test_a_schedule_free_checkpoint_hands_over_the_average_and_keeps_the_training_point(
    place: Path, model: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(place, {"kind": "schedulefree", "lr": 1e-2})
    run = train(recipe, out=tmp_path / "run", model=model)
    kept = read_checkpoint(run.checkpoints / "step-000004")
    name, update = next(iter(kept.adapter.layers.items()))
    point, z = (kept.optimizer[f"{name}.up.{key}"] for key in ("training_point", "z"))
    average = (point - 0.1 * z) / 0.9  # y = (1 - beta1) z + beta1 x: section 2 of the paper
    assert not torch.equal(update.up, point)
    assert torch.allclose(update.up, average, atol=1e-6)
    assert torch.equal(formats.read(run.adapter_file).layers[name].up, update.up)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"kind": "prodigy", "lr": 1e-4}, "optimizer.lr: found 0.0001 of kind 'prodigy'"),
        ({"kind": "prodigy", "text_encoder_lr": 1e-4}, "text_encoder_lr: no such key of kind 'pro"),
        ({"kind": "prodigy", "schedule": "restarts"}, "schedule.kind: found 'restarts'"),
        ({"kind": "schedulefree", "schedule": "cosine"}, "optimizer.schedule.kind: found 'cosine'"),
        ({"kind": "schedulefree", "weight_decay_on": "product"}, "optimizer.weight_decay_on"),
        ({"kind": "adamw", "d_coef": 1.0}, "optimizer.d_coef: no such key of kind 'adamw'"),
        ({"kind": "adam"}, "optimizer.kind: found 'adam'"),
        ({"schedule": {"kind": "cosine", "cycels": 2}}, "optimizer.schedule.cycels: no such key"),
        ({"lrr": 1}, "optimizer.lrr: no such key of kind 'adamw'; did you mean 'lr'?"),
    ],
)
def test_what_does_not_fit_an_optimizer_is_refused(optimizer: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.build({"optimizer": optimizer})
    assert told in str(refused.value)


def test_a_missing_library_or_the_wrong_device_is_told_with_what_to_do(
    model: Any, monkeypatch: Any
) -> None:
    on = attach(model, LoraPlan(rank=1), seed=0)
    try:
        with pytest.raises(RecipeError, match="NVIDIA GPUs only, and this run is on 'cpu'; use ad"):
            Descent(AdamW8bit(), on, device="cpu", precision="float32")
        monkeypatch.setitem(sys.modules, "prodigyopt", None)
        with pytest.raises(RecipeError, match=r"pip install 'variegate\[optimizers\]'"):
            Descent(plan_of("prodigy"), on, device="cpu", precision="float32")
    finally:
        on.detach()


def test_the_8_bit_optimizer_is_asked_for_with_the_plans_settings(monkeypatch: Any) -> None:
    asked = {}

    def make(groups: Any, **settings: Any) -> str:
        asked.update(settings)
        return "made"

    library = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=make))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    plan = AdamW8bit(lr=2e-4, beta2=0.99)
    assert MAKERS[AdamW8bit]([], plan, 0.02, "cuda") == "made"
    assert asked == {"lr": 2e-4, "betas": (0.9, 0.99), "weight_decay": 0.02}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ({"kind": "linear", "floor": 0.2}, [0.5, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
        ({"kind": "restarts", "cycles": 2}, [0.5, 1, 1, 0.5, 1, 0.5]),
        ({"kind": "polynomial", "power": 2.0}, [0.5, 1, 1, 0.5625, 0.25, 0.0625]),
    ],
)
def test_schedules_follow_their_formulas_after_warm_up(schedule: Any, expected: Any) -> None:
    plan = plan_of("adamw", steps=6, warmup=2, schedule=schedule)
    assert [rate_at(step, plan) for step in range(1, 7)] == pytest.approx(expected, abs=1e-6)


def test_restarts_begin_at_the_peak_each_time() -> None:
    plan = AdamW(steps=30, schedule=Restarts(cycles=3))
    assert [rate_at(step, plan) for step in (1, 11, 21)] == pytest.approx([1, 1, 1])


def test_a_factor_scales_the_rate_of_one_step(model: Any) -> None:
    on = attach(model, LoraPlan(rank=1), seed=0)
    try:
        descent = Descent(AdamW(lr=1e-3), on, device="cpu", precision="float32")
        sum(p.sum() for _, p in on.named_parameters()).backward()  # type: ignore[union-attr]
        before = {n: p.detach().clone() for n, p in on.named_parameters()}
        assert descent.take(1, factor=0.25) == pytest.approx(2.5e-4)
        # The first step of Adam is as long as its rate, whatever the gradient; decay is lr * .01.
        moved = max(float((p.detach() - before[n]).abs().max()) for n, p in on.named_parameters())
        assert moved == pytest.approx(2.5e-4, rel=0.02)
    finally:
        on.detach()


def test_decay_on_the_product_shrinks_each_update_by_the_rate_times_the_decay(model: Any) -> None:
    """Without gradients, since those of zero do not move AdamW."""
    ratios = {}
    for where in ("factors", "product"):
        on = attach(model, LoraPlan(rank=2), seed=0)
        try:
            with torch.no_grad():
                for _, parameter in on.named_parameters():
                    parameter.fill_(0.1)
            plan = AdamW(lr=0.1, weight_decay=0.5, weight_decay_on=where)
            descent = Descent(plan, on, device="cpu", precision="float32")
            before = on.adapter()
            sum((0 * p).sum() for _, p in on.named_parameters()).backward()  # type: ignore[union-attr]
            descent.take(1)
            ratios[where] = shrunk(before, on.adapter())
        finally:
            on.detach()
    assert ratios["product"] == pytest.approx(1 - 0.05, rel=1e-5)
    assert ratios["factors"] == pytest.approx((1 - 0.05) ** 2, rel=1e-5)


def shrunk(before: Adapter, after: Adapter) -> float:
    name = next(iter(before.layers))
    return float((after.delta(name) / before.delta(name)).mean())


def test_a_finished_run_made_longer_ends_as_one_that_was_asked_for_that_length(
    place: Path, model: Any, tmp_path: Path
) -> None:
    short = train(recipe_of(place, {"steps": 2}), out=tmp_path / "short", model=model)
    longer = resume(short.folder, steps=4, model=model)
    assert ends_alike(
        longer, train(recipe_of(place, {"steps": 4}), out=tmp_path / "4", model=model)
    )
    assert [e["text"] for e in longer.read_journal("extend")] == [
        "made longer: 4 steps in place of 2"
    ]
    assert longer.read_journal("finish")[-1]["step"] == 4
    assert resume(short.folder, steps=4, model=model).recipe.optimizer.steps == 4
    with pytest.raises(RunError, match="was asked for 4 steps; found --steps 3"):
        resume(short.folder, steps=3)
    text = (short.folder / "recipe.toml").read_text()
    (short.folder / "recipe.toml").write_text(text.replace("lr = 0.001", "lr = 0.01"))
    with pytest.raises(RunError, match=r"optimizer\.lr: 0\.001 there, 0\.01 asked"):
        resume(short.folder, steps=5, model=model)


def gradients(learner: Learner, batch: Any, size: int | None) -> tuple[list[torch.Tensor], Any]:
    learner.at_once = size
    kept: list[torch.Tensor] = []

    def take(*_: Any, **__: Any) -> float:
        kept.extend(p.grad.clone() for _, p in learner.on.named_parameters() if p.grad is not None)
        return 0.0

    learner.descent.take = take  # type: ignore[method-assign]
    _, terms = learner.learn(batch, 1)
    return kept, terms


def test_a_batch_in_parts_leaves_the_same_gradient(place: Path, model: Any) -> None:
    recipe = tiny_recipe(
        place / "base",
        place / "images",
        strategies=EVERYTHING,
        optimizer={"batch_size": 3},
        adapter={"text_encoder": True},
    )
    strategies = cook(recipe)
    data = read_training_set(
        ImageSet.read(place / "images"), recipe, side=64, pocket=False, needs_masks=True
    )
    for strategy in strategies.values():
        strategy.prepare(Setting(recipe, model, place, silent))
    on = attach(model, recipe.adapter, seed=0)
    try:
        with torch.no_grad():  # away from the start, where half of the gradients are zero
            for name, parameter in on.named_parameters():
                noise = torch.randn(parameter.shape, generator=seeds.at(0, name))
                parameter.add_(noise, alpha=0.05)
        means = Means(recipe.optimizer, "float32", gradient_checkpointing=False)
        learner = Learner(model, on, recipe, strategies, means, tell=lambda text: None)
        batch = Latents(model, recipe, strategies).batch(data.train, 1)
        whole, terms = gradients(learner, batch, None)
        assert len(whole) == len(list(on.named_parameters()))
        for size in (1, 2, 4):
            parts, own = gradients(learner, batch, size)
            for a, b in zip(whole, parts, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
            assert own == pytest.approx(terms, rel=1e-5)
    finally:
        on.detach()


class Small:
    """A base whose memory holds `limit` rows at once while it learns."""

    def __init__(self, model: Any, limit: int) -> None:
        self._model = model
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, latents: Any, timesteps: Any, embeddings: Any) -> Any:
        if torch.is_grad_enabled() and len(latents) > self._limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._model.predict(latents, timesteps, embeddings)


def test_running_out_of_memory_halves_the_rows_and_keeps_the_batch(
    place: Path, model: Any, tmp_path: Path
) -> None:
    asked = {"batch_size": 4, "steps": 2}
    run = train(recipe_of(place, asked), out=tmp_path / "small", model=Small(model, 2))
    notes = [e["text"] for e in run.read_journal("note") if "ran out of memory" in e["text"]]
    assert len(notes) == 1
    assert "4 rows at once" in notes[0]
    assert "from here on 2 at a time" in notes[0]
    by_hand = recipe_of(place, {**asked, "micro_batch": 2})
    assert ends_alike(run, train(by_hand, out=tmp_path / "hand", model=model))
    kept = read_checkpoint(run.checkpoints / "step-000002")
    assert kept.state["at_once"] == 2


def test_memory_for_less_than_half_is_an_error_that_says_what_to_try(
    place: Path, model: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(place, {"batch_size": 4, "steps": 3})
    with pytest.raises(NoMemory, match=r"2 rows at once do not fit .*gradient_checkpointing=true"):
        train(recipe, out=tmp_path / "run", model=Small(model, 1))
