"""Ranges are parsed at the door: every fault is told at once, and what passes can be tried."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from variegate import recipes
from variegate.errors import RequestError
from variegate.recipe import Recipe
from variegate.tune.explain import NOTHING, explain, explain_text
from variegate.tune.ranges import SCALE, Knob, Space, presets, read_space, with_preset

PLAIN = recipes.read("pocket-plain")


def space(*texts: str, recipe: Recipe = PLAIN) -> Space:
    return read_space(texts, recipe)


def test_all_faults_of_all_ranges_are_told_at_once() -> None:
    texts = (
        "adapter.ranc=2,4",
        "adapter.rank=0,4",
        "adapter.rank=8,16",
        "optimizer.lr=1e-3..1e-5:log",
        "optimizer.steps=1..9.5",
        "optimizer.warmup=5",
        "strategies.stay_nar=on,off",
        "sampling.preset=quick,standard",
        "adapter.dropout=0..0.1:lgo",
        "nonsense",
    )
    with pytest.raises(RequestError) as told:
        space(*texts)
    for part in (
        "adapter.ranc: no such key of kind 'lora'; did you mean 'rank'?",
        "adapter.rank: found 0",
        "adapter.rank has a range already, adapter.rank=0,4",
        "the low end 1e-3 is not below the high end 1e-5",
        "this entry is a whole number",
        "one value is no range; use --set optimizer.warmup=5",
        "strategies.stay_nar: no such key; did you mean 'stay_near'?",
        "trials are compared at one sampling.preset",
        "did you mean :log?",
        "nonsense: expected KEY=VALUES",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ([], "nothing is varied"),
        (["optimizer.lr=0..1:log"], "needs a low end above 0"),
        (["optimizer.lr=1e-5..nan"], "must be finite"),
        (["optimizer.lr=a..b"], "expected two numbers"),
        (["adapter.rank=4,8:log"], "a list has no scale"),
        (["adapter.rank=4,,8"], "an empty value"),
        (["adapter.rank=4,4"], "a value comes twice"),
        (["optimizer.lr=1e-5..2:log"], "less than or equal to 1"),
        ([f"{SCALE}=1,2", "adapter.alpha=1,2"], "are one thing"),
        (
            ["strategies.ema=on,off", "strategies.swa=on,off"],
            "strategies.ema=on, strategies.swa=on",
        ),
        (["adapter.kind=lora,oft", "strategies.low_rank=on,off"], "adapter.kind=oft"),
        (["seed=1,2"], "trials are compared at one seed"),
    ],
)
def test_what_cannot_be_varied_is_said(texts: list[str], fault: str) -> None:
    with pytest.raises(RequestError, match=re.escape(fault)):
        space(*texts)


def test_a_range_is_whole_where_the_entry_is() -> None:
    found = space("optimizer.steps=100..300", "optimizer.lr=1e-4..1e-3:log", "adapter.rank=8,2")
    steps, lr, rank = (
        next(k for k in found.knobs if k.key == key)
        for key in ("optimizer.steps", "optimizer.lr", "adapter.rank")
    )
    assert (steps.whole, steps.ends) == (True, (100, 300))
    assert (lr.log, lr.whole) == (True, False)
    assert (rank.choices, rank.ordered) == ((2, 8), True)


def test_what_is_set_of_a_strategy_counts_only_while_that_is_on() -> None:
    found = space("strategies.stay_near.weight=1..4", "strategies.stay_near=on,off")
    switch, weight = found.knobs
    assert switch.key == "strategies.stay_near"
    assert not found.asked_of({switch.key: "off"}, weight, PLAIN)
    assert found.asked_of({switch.key: "on"}, weight, PLAIN)
    off = found.recipe({switch.key: "off"}, PLAIN)
    on = found.recipe({switch.key: "on", weight.key: 2.0}, PLAIN)
    assert off.strategies.stay_near is None
    assert on.strategies.stay_near is not None
    assert on.strategies.stay_near.weight == 2.0


def test_what_a_kind_of_adapter_does_not_know_is_not_varied_in_it() -> None:
    found = space("adapter.kind=lora,oft", "adapter.rank=4,8", f"{SCALE}=0.5,1")
    kind, *others = found.knobs
    assert kind.key == "adapter.kind"
    assert all(found.asked_of({kind.key: "lora"}, knob, PLAIN) for knob in others)
    assert not any(found.asked_of({kind.key: "oft"}, knob, PLAIN) for knob in others)


def test_the_scale_stays_what_was_asked_whatever_the_rank() -> None:
    found = space("adapter.rank=4,16,32", f"{SCALE}=0.5,1,2")
    for rank in (4, 32):
        made = found.recipe({"adapter.rank": rank, SCALE: 0.5}, PLAIN)
        assert made.adapter.alpha / made.adapter.rank == 0.5
    assert found.notes(PLAIN) == []
    (note,) = space("adapter.rank=4,16,32").notes(PLAIN)
    assert "from 4 to 0.5" in note


def test_the_recipe_s_own_values_are_found_where_the_ranges_have_them() -> None:
    found = space(
        "adapter.rank=4,16", "optimizer.lr=1e-3..1e-2", "strategies.flip=on,off", f"{SCALE}=1,2"
    )
    assert found.own(PLAIN) == {"adapter.rank": 16, "strategies.flip": "on", SCALE: 1.0}


def test_entries_of_the_recipe_that_lie_outside_their_range_are_told() -> None:
    shipped = recipes.read("pocket")
    found = read_space(with_preset("pocket", []), shipped)
    (note,) = found.notes(shipped)
    assert "optimizer.lr is 0.008, and its range is 0.0002..0.004:log" in note
    assert "optimizer.steps is 700, and its range is 120..480" in note
    assert "adapter.rank" not in note
    assert found.notes(PLAIN) == []
    (unset,) = space("strategies.stay_near.weight=1..4").notes(PLAIN)
    assert "strategies.stay_near.weight is not set" in unset


@given(seed=some.integers(0, 2**32))
def test_every_combination_that_means_something_is_listed_once(seed: int) -> None:
    found = space(
        "strategies.stay_near=on,off", "strategies.stay_near.weight=1,2", "optimizer.steps=10..13"
    )
    listed = list(found.combinations(PLAIN, np.random.default_rng(seed)))
    assert found.finite
    assert len({tuple(sorted(values.items())) for values in listed}) == len(listed) == 12
    for values in listed:
        on = values["strategies.stay_near"] == "on"
        assert ("strategies.stay_near.weight" in values) == on
        assert values["optimizer.steps"] in range(10, 14)


def test_a_range_of_fractions_has_no_end_of_combinations() -> None:
    assert not space("adapter.rank=4,16", "optimizer.lr=1e-4..1e-3").finite


@given(
    low=some.integers(1, 40),
    wide=some.integers(1, 400),
    log=some.booleans(),
    choices=some.lists(some.integers(1, 64), min_size=2, max_size=5, unique=True),
)
def test_what_is_told_of_a_range_reads_as_the_same_range(
    low: int, wide: int, log: bool, choices: list[int]
) -> None:
    texts = (
        f"optimizer.steps={low}..{low + wide}{':log' if log else ''}",
        f"adapter.rank={','.join(map(str, choices))}",
    )
    once = space(*texts)
    assert space(*[knob.told() for knob in once.knobs]) == once


@given(text=some.text(max_size=40))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert space(text).knobs


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_tried_on_the_recipe_it_is_for(name: str) -> None:
    recipe = PLAIN if name == "pocket" else recipes.read("subject")
    found = read_space(with_preset(name, ["optimizer.lr=1e-4,2e-4"]), recipe)
    lr = [k for k in found.knobs if k.key == "optimizer.lr"]
    assert lr == [Knob("optimizer.lr", (1e-4, 2e-4))]
    assert {"about", "source", "ranges"} == presets()[name].keys()


def test_a_preset_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'subject'"):
        with_preset("subjct", [])


def test_every_knob_is_explained_and_what_is_not_measured_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = read_space(with_preset("pocket", ["variants=4,8"]), PLAIN)
    told: dict[str, str] = {"rank 4": "variety +0.10", "stay_near": "variety +0.20"}
    monkeypatch.setattr("variegate.tune.explain.measured", lambda: told)
    monkeypatch.setattr("variegate.tune.explain.effect_of", lambda n: told.get(n, "untested"))
    lines: dict[str, Any] = {line["knob"]: line for line in explain(found, PLAIN)}
    assert lines.keys() == {knob.key for knob in found.knobs}
    assert all(len(line["does"]) > 20 for line in lines.values())
    assert lines["adapter.rank"]["measured"] == ["rank 4: variety +0.10"]
    assert lines["strategies.stay_near"]["measured"] == ["stay_near: variety +0.20"]
    assert lines["variants"]["measured"] == [NOTHING]
    assert "now 16" in explain_text(list(lines.values()))
