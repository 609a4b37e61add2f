"""The guard sees collapse coming, eases, goes back, and stops; a crash changes none of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate import formats
from variegate.errors import RecipeError
from variegate.measurement import Measurement
from variegate.models import load
from variegate.recipe import Guard, Recipe
from variegate.run import Run
from variegate.train import result, train
from variegate.train.checkpoint import checkpoint_folders, step_of
from variegate.train.guard import Look, Stand, decide
from variegate.train.strategies import Control, cook, spare

PLAN = Guard()
WELL = Look(50, class_variety=1.0, trigger_variety=0.95, loss=0.9)


def after(*looks: Look, plan: Guard = PLAN) -> tuple[Stand, list[str]]:
    stand, orders = Stand(), []
    for look in looks:
        stand, order = decide(plan, stand, look)
        orders.append(order.do)
    return stand, orders


def test_while_all_is_well_it_goes_on_and_remembers_the_best() -> None:
    stand, orders = after(
        WELL, replace(WELL, step=100, loss=0.8), replace(WELL, step=150, loss=0.81)
    )
    assert orders == ["continue"] * 3
    assert (stand.best_step, stand.well, stand.since) == (100, 150, 1)
    assert stand.control == Control()


def test_between_warning_and_alarm_it_eases_once_and_waits() -> None:
    warned = Look(100, class_variety=0.84, trigger_variety=0.95, loss=0.8)
    stand, orders = after(WELL, warned, replace(warned, step=150), replace(warned, step=200))
    assert orders == ["continue", "ease", "continue", "continue"]
    assert stand.control == Control(lr=0.5, hold=2.0, dropout=0.1)
    later = [replace(warned, step=s) for s in (100, 150, 200, 250)]
    _, orders = after(WELL, *later, plan=Guard(patience=9))
    assert orders[-1] == "ease"


@pytest.mark.parametrize(
    ("class_variety", "trigger_variety", "words"),
    [(0.5, 0.95, "without the trigger"), (1.0, 0.3, "with the trigger"), (0.5, None, "50 %")],
)
def test_below_an_alarm_it_goes_back_to_the_last_step_that_was_well(
    class_variety: float, trigger_variety: float | None, words: str
) -> None:
    stand, _ = after(WELL)
    ill = Look(100, class_variety, trigger_variety, loss=0.7)
    stand, order = decide(PLAN, stand, ill)
    assert (order.do, order.to) == ("rewind", 50)
    assert words in order.reason
    assert stand.control.lr == 0.5
    for _ in range(PLAN.rewinds - 1):
        stand, order = decide(PLAN, stand, ill)
        assert order.do == "rewind"
    stand, order = decide(PLAN, stand, ill)
    assert order.do == "stop"
    assert "did not help" in order.reason


def test_what_came_after_the_step_it_goes_back_to_is_no_longer_the_best() -> None:
    warned = Look(100, class_variety=0.84, trigger_variety=0.95, loss=0.7)
    stand, orders = after(WELL, warned, replace(warned, step=150, class_variety=0.5))
    assert orders[-1] == "rewind"
    assert (stand.well, stand.best_step, stand.best_loss) == (50, None, None)
    stand, orders = after(
        WELL,
        replace(WELL, step=100, loss=0.95),
        replace(warned, step=150, loss=1.0, class_variety=0.5),
    )
    assert (stand.well, stand.best_step) == (100, 50)


def test_copying_is_read_only_where_no_picture_can_be_held_out() -> None:
    def seen(**values: float) -> Look:
        return Look.of(50, [Measurement(n.replace("__", "."), v) for n, v in values.items()])

    alone = seen(one_step_copying__trigger=0.9, loss_vs_base__train__low=0.8)
    beside = seen(
        one_step_copying__trigger=0.9,
        loss_vs_base__train__low=0.8,
        loss_vs_base__held_out__low=0.9,
    )
    assert (alone.copying, beside.copying) == (0.9, None)
    stand, _ = after(WELL)
    stand, order = decide(PLAN, stand, alone)
    assert (order.do, order.to) == ("rewind", 50)
    assert "copies of those learnt from" in order.reason
    assert decide(PLAN, Stand(), beside)[1].do == "continue"


def test_one_who_only_stops_stops_at_the_alarm_and_never_eases() -> None:
    plan = Guard(mode="stop")
    warned = Look(100, class_variety=0.84, trigger_variety=0.95, loss=0.8)
    ill = replace(warned, step=150, class_variety=0.5)
    assert after(WELL, warned, ill, plan=plan)[1] == ["continue", "continue", "stop"]


def test_it_stops_when_nothing_more_is_learnt() -> None:
    looks = [replace(WELL, step=50 * i, loss=0.9 + 0.001 * i) for i in range(1, PLAN.patience + 2)]
    stand, orders = after(*looks)
    assert orders == ["continue"] * PLAN.patience + ["stop"]
    assert stand.best_step == 50


def test_a_stand_survives_the_journey_through_json() -> None:
    stand = Stand(Control(0.5, 2.0, 0.1), 1, 1, 50, 0.8, 2, 50, 1)
    assert Stand.from_json(stand.to_json()) == stand


def test_a_warning_must_lie_above_its_alarm() -> None:
    with pytest.raises(RecipeError, match="warning must lie above"):
        Recipe.build({"guard": {"class_warning": 0.5}})
    with pytest.raises(RecipeError, match="copying_warning must lie below"):
        Recipe.build({"guard": {"copying_warning": 0.99}})


def test_what_the_guard_may_bring_in_is_idle_until_it_does() -> None:
    found: dict[str, Any] = spare(Recipe())
    assert found["stay_near"].beside_weight() == 0
    assert found["rank_dropout"].chance == 0
    for strategy in found.values():
        strategy.control = Control(hold=2.0, dropout=0.1)
    assert found["stay_near"].beside_weight() == 1
    assert found["rank_dropout"].chance == pytest.approx(0.1)
    everything = Recipe.build({"strategies": {"stay_near": {}, "rank_dropout": {}}})
    assert spare(everything) == {}
    assert cook(everything)["stay_near"].beside_weight() == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("guard")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


def strict(place: Path, **guard: Any) -> Recipe:
    """A guard for whom any change at all is collapse."""
    lines: dict[str, Any] = {
        "mode": "autopilot",
        "class_warning": 1.0,
        "class_alarm": 0.9999,
        "trigger_warning": 1.0,
    }
    lines |= {"trigger_alarm": 0.9999, "rewinds": 2}
    return tiny_recipe(
        place / "base",
        place / "images",
        optimizer={"lr": 3e-2, "steps": 14},
        probes={"every": 2},
        checkpoints={"every": 3, "keep": 2},
        guard={**lines, **guard},
    )


def learnt(run: Run) -> dict[str, torch.Tensor]:
    layers = formats.read(run.adapter_file).layers
    return {f"{n}.{k}": getattr(u, k) for n, u in layers.items() for k in ("up", "down")}


def orders(run: Run) -> list[tuple[int, str, int | None]]:
    return [(x["step"], x["do"], x.get("to")) for x in run.read_journal("order")]


@pytest.fixture(scope="module")
def guarded(place: Path, model: Any) -> Run:
    return train(strict(place), out=place / "guarded", model=model)


def test_a_collapsing_run_is_taken_back_and_stopped_with_its_reasons(guarded: Run) -> None:
    told = orders(guarded)
    assert [do for _, do, _ in told][-1] == "stop"
    assert [do for _, do, _ in told].count("rewind") == 2
    end = guarded.read_journal("finish")[-1]
    assert "growing alike" in end["stopped_because"]
    found = result(guarded)
    assert found["stopped_because"] == end["stopped_because"]
    assert Path(found["checkpoint"]).is_dir()
    rates = [line["lr"] for line in guarded.read_journal("step")]
    assert rates[-1] == pytest.approx(3e-2 / 4)
    steps = [line["step"] for line in guarded.read_journal("step")]
    assert steps == sorted(set(steps))  # what was taken back is not told twice


@pytest.mark.parametrize("nth", [1, 3, 5, 6])
def test_a_crash_at_any_time_changes_no_order_and_no_bit(
    place: Path, model: Any, guarded: Run, tmp_path: Path, nth: int
) -> None:
    calls = 0

    def crash(phase: str, done: int, total: int, note: str) -> None:
        nonlocal calls
        calls += phase == "train"
        if calls == nth and phase == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(strict(place), out=tmp_path / "cut", model=model, say=crash)
    again = train(strict(place), out=tmp_path / "cut", model=model)
    assert orders(again) == orders(guarded)
    one, other = learnt(guarded), learnt(again)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_watching_alone_gives_no_orders(place: Path, model: Any, tmp_path: Path) -> None:
    run = train(strict(place, mode="watch"), out=tmp_path / "run", model=model)
    assert orders(run) == []
    assert result(run)["step"] == 14


def test_what_the_guard_may_want_again_is_kept(place: Path, model: Any, tmp_path: Path) -> None:
    lines = {"class_warning": 1e-6, "class_alarm": 1e-7, "patience": 50}
    lines |= {"trigger_warning": 1e-6, "trigger_alarm": 1e-7}
    run = train(strict(place, **lines), out=tmp_path / "run", model=model)
    kept = {step_of(path) for path in checkpoint_folders(run.checkpoints)}
    looks = {line["step"]: line for line in run.read_journal("probe")}
    losses = {s: Look.of(s, _measurements(x)).loss for s, x in looks.items()}
    chosen = run.read_journal("finish")[-1]["chosen"]
    assert chosen in kept
    assert losses[chosen] <= min(losses.values()) + 0.002


def _measurements(line: dict[str, Any]) -> list[Any]:
    from variegate.measurement import measurement_from_json

    return [measurement_from_json(m) for m in line["measurements"]]


def test_a_run_that_ends_below_its_alarm_still_gives_an_adapter(
    place: Path, model: Any, tmp_path: Path
) -> None:
    """No step but the first is well, and what was best was forgotten on the way back."""
    lines = {"class_warning": 1.0, "class_alarm": 0.5, "trigger_warning": 1.0}
    run = train(
        strict(place, **lines, trigger_alarm=0.9999, rewinds=1), out=tmp_path / "run", model=model
    )
    end = run.read_journal("finish")[-1]
    assert run.adapter_file.exists()
    assert (run.checkpoints / f"step-{end['chosen']:06d}").is_dir()
