"""The scoreboard on rows whose answers are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from variegate import catalogue
from variegate.bench.ailments import AILMENTS
from variegate.bench.contenders import contenders
from variegate.bench.scoreboard import (
    FIGURES,
    as_text,
    detector,
    difference,
    effects,
    gate,
    labels_of,
    leaderboard,
    summary,
)
from variegate.bench.suite import published, write_table
from variegate.measure import RULES
from variegate.report import write_scoreboard

CORE = [a.name for a in AILMENTS.values() if a.core]
HELD_OUT = [a.name for a in AILMENTS.values() if a.held_out]


def row(ailment: str, strategy: str, seed: int, **figures: Any) -> dict[str, Any]:
    found: dict[str, Any] = {f"true.{name}": 0.5 for name in FIGURES}
    found |= {f"true.{name}": value for name, value in figures.items() if name in FIGURES}
    found["true.named_base"] = 0.5
    found |= {f"seen.{gate.measurement}": 0.0 for gate in RULES.gates}
    found["seen.likeness"] = 0.0
    return found | {
        "key": f"{ailment}{strategy}{seed}",
        "ailment": ailment,
        "strategy": strategy,
        "group": figures.get("group", "strategy"),
        "seed": seed,
        "labels": figures.get("labels", ""),
        "rules": RULES.version,
        "train_seconds": figures.get("seconds", 10.0),
        "first_order": figures.get("first_order"),
    }


def board(**gains: float) -> list[dict[str, Any]]:
    """Plain and others that keep more than it on every core ailment, seed by seed."""
    rng = np.random.default_rng(7)
    rows = []
    for ailment in CORE:
        for seed in range(3):
            level = rng.uniform(0.2, 0.6)
            rows.append(row(ailment, "plain", seed, entropy=level, likeness=0.8, group="plain"))
            for name, gain in gains.items():
                rows.append(
                    row(
                        ailment,
                        name,
                        seed,
                        entropy=level + gain + rng.normal(0, 0.02),
                        likeness=0.8 - gain,
                        seconds=20.0,
                    )
                )
    return rows


def test_a_paired_difference_sees_through_the_ailments() -> None:
    lines = {line["strategy"]: line for line in leaderboard(board(better=0.1, same=0.0))}
    better, same = lines["better"]["entropy_vs_plain"], lines["same"]["entropy_vs_plain"]
    assert better["low"] > 0.05
    assert better["high"] < 0.15
    assert abs(same["low"]) < 0.03
    assert abs(same["high"]) < 0.03
    assert lines["better"]["time"] is None  # rows of a world are made on many machines
    assert lines["better"]["cells"] == 15


def test_a_mean_over_fewer_cells_stands_after_those_over_all() -> None:
    rows = board(better=0.1)
    rows.append(row(CORE[0], "once", 0, entropy=1.0))
    lines = leaderboard(rows)
    assert [line["strategy"] for line in lines] == ["better", "plain", "once"]
    assert lines[-1]["cells"] == 1


def test_the_front_is_what_nothing_beats_on_both() -> None:
    rows = board(more=0.2, alike=-0.05)
    worst = [row(r["ailment"], "worst", r["seed"], entropy=0.0, likeness=0.1) for r in rows]
    front = {line["strategy"] for line in leaderboard(rows + worst) if line["front"]}
    assert front == {"plain", "more", "alike"}


def test_a_difference_of_one_cell_is_never_shown() -> None:
    one = difference({1: {"x": 1.0}}, {1: {"x": 0.0}}, "x", [1])
    assert one is not None
    assert one.value == 1.0
    assert not one.shown
    assert one.to_json() == {"value": 1.0, "low": None, "high": None, "cells": 1}


def test_a_table_of_one_seed_can_be_told_and_shown(tmp_path: Path) -> None:
    found = summary([r for r in rival(0.5, 0.7) + board(better=0.1) if r["seed"] == 0])
    json.dumps(found, allow_nan=False)
    assert "wins 0 of 1" in as_text(found)
    write_scoreboard(found, command="x", sheets=[], out=tmp_path / "page.html")


def test_a_table_without_plain_can_be_told_and_shown(tmp_path: Path) -> None:
    found = summary(rival(0.5, 0.7))
    assert "kohya" in as_text(found)
    page = write_scoreboard(found, command="x", sheets=[], out=tmp_path / "page.html")
    assert "kohya" in page.read_text(encoding="utf8")


def rival(entropy: float, likeness: float) -> list[dict[str, Any]]:
    rows = []
    for seed in range(3):
        jitter = 0.01 * seed
        rows += [
            row(HELD_OUT[0], "default", seed, entropy=0.9 + jitter, likeness=0.7, group="default"),
            row(HELD_OUT[0], "kohya", seed, entropy=entropy, likeness=likeness, group="field"),
            row(HELD_OUT[0], "ema", seed, entropy=0.0, likeness=0.0),
            row(CORE[0], "kohya", seed, entropy=0.0, likeness=0.0, group="field"),
        ]
    return rows


@pytest.mark.parametrize(
    ("entropy", "likeness", "wins"),
    [(0.5, 0.7, True), (0.5, 0.729, True), (0.5, 0.74, False), (0.9, 0.5, False)],
)
def test_the_gate_asks_for_variety_at_likeness_on_held_out_ailments_of_the_field(
    entropy: float, likeness: float, wins: bool
) -> None:
    lines = gate(rival(entropy, likeness))
    assert [(line["ailment"], line["against"]) for line in lines] == [(HELD_OUT[0], "kohya")]
    assert lines[0]["wins"] == wins


def test_the_detector_is_counted_where_the_truth_is_plain() -> None:
    ill = {"class": 0.5, "trigger": 0.3}
    well = {"class": 0.97, "trigger": 0.95}
    between = {"class": 0.85, "trigger": 0.75}
    rows = [
        row(CORE[0], "a", 0, **ill, labels="narrowed trigger-narrowed", first_order=0.25),
        row(CORE[0], "b", 0, **ill, labels="narrowed", first_order=0.75),
        row(CORE[0], "c", 0, **well, labels="trigger-narrowed"),
        row(CORE[0], "d", 0, **between, labels="narrowed"),
    ]
    every = detector(rows)[-1]
    assert every["ailment"] == "all"
    assert every["runs"] == 4
    assert counted(every["narrowed"]) == {"ill": 2, "found": 2, "well": 1, "false": 0}
    assert counted(every["trigger-narrowed"]) == {"ill": 2, "found": 1, "well": 1, "false": 1}
    assert every["guard_first_order"] == 0.5


def test_labels_of_other_rules_are_given_again_and_those_of_none_do_not_count() -> None:
    seen = {
        "seen.variety_vs_base": 0.5,
        "seen.variety_vs_base.low": 0.4,
        "seen.variety_vs_base.high": 0.6,
        "seen.variety_vs_base_p": 0.0001,
        "seen.world_drift": 0.5,
    }
    older = row(CORE[0], "a", 0, **{"class": 0.5}, labels="healthy") | {"rules": "0"}
    older = {name: value for name, value in older.items() if not name.startswith("seen.")}
    assert labels_of(older | seen) == "narrowed"
    assert labels_of(older | seen | {"seen.variety_vs_base.high": 0.95}) == "inconclusive"
    oldest = {k: v for k, v in older.items() if k != "rules"}
    assert labels_of(oldest) is None
    every = detector([older | seen, oldest])[-1]
    assert every["runs"] == 1
    assert counted(every["narrowed"]) == {"ill": 1, "found": 1, "well": 0, "false": 0}
    assert detector([oldest]) == []
    assert counted(every["class-forgotten"]) == {"ill": 0, "found": 0, "well": 0, "false": 0}


@pytest.mark.parametrize(
    ("label", "ill", "well"),
    [
        ("class-forgotten", {"class_kept": 0.5}, {"class_kept": 0.97}),
        ("prompt-ignored", {"named": 0.3}, {"named": 0.5}),  # the base's: 0.5
        ("copying", {"copies": 0.4}, {"copies": -0.02}),
        ("undertrained", {"likeness": 0.1}, {"likeness": 0.8}),
    ],
)
def test_every_label_that_the_judge_knows_is_asked_after(
    label: str, ill: dict[str, float], well: dict[str, float]
) -> None:
    rows = [
        row(CORE[0], "a", 0, **ill, labels=f"narrowed {label}"),
        row(CORE[0], "b", 0, **ill, labels="narrowed"),
        row(CORE[0], "c", 0, **well, labels=label),
        row(CORE[0], "d", 0, **well),
        row(CORE[0], "e", 0, **well),
    ]
    found = detector(rows)[-1][label]
    assert counted(found) == {"ill": 2, "found": 1, "well": 3, "false": 1}
    low, high = found["found_interval"]
    assert low < 0.5 < high


def counted(found: dict[str, Any]) -> dict[str, int]:
    return {name: found[name] for name in ("ill", "found", "well", "false")}


def test_text_and_page_hold_what_was_found(tmp_path: Path) -> None:
    rows = board(better=0.1) + rival(0.5, 0.9)
    found = summary(rows)
    text = as_text(found)
    assert "better" in text
    assert "wins 0 of 1" in text
    assert f"not against kohya on {HELD_OUT[0]}" in text
    page = write_scoreboard(
        found,
        command="variegate bench <b>",
        sheets=[{"title": "a", "text": "b", "file": tmp_path / "none.png"}],
        out=tmp_path / "page.html",
    ).read_text()
    assert "better" in page
    assert "variegate bench &lt;b&gt;" in page
    assert HELD_OUT[0] in page


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    found = summary([])
    assert as_text(found).startswith("0 cells")
    write_scoreboard(found, command="x", sheets=[], out=tmp_path / "page.html")


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    rows = board(better=0.1)[:4]
    write_table(rows, tmp_path / "rows.parquet")
    again = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert sorted(again, key=lambda r: r["key"]) == sorted(rows, key=lambda r: r["key"])


def test_effects_are_told_with_their_intervals_and_only_where_runs_are_enough() -> None:
    rows = board(ema=0.1)
    rows.append(row(CORE[0], "swa", 0, entropy=0.9))
    told = effects(rows)
    assert list(told) == ["ema"]
    assert re.match(r"variety \+0\.\d\d \(\+0\.\d\d, \+0\.\d\d\) and likeness -0\.10", told["ema"])
    assert f"{3 * len(CORE)} runs" in told["ema"]
    assert effects(rows, figures=["copies"])["ema"].startswith("copies +0.00 (+0.00, +0.00) beside")
    kinds = effects([{**r, "group": "kind"} if r["strategy"] == "ema" else r for r in rows])
    assert list(kinds) == ["adapter.kind=ema"]


def test_the_menu_tells_what_the_published_rows_say() -> None:
    told = effects(published())
    menu = {entry["name"]: entry["effect"] for entry in catalogue.strategies()}
    measured = catalogue.measured()
    drawing = {name: text for name, text in measured.items() if name.startswith("sampling.")}
    assert measured == told | drawing
    on_it = told.keys() & menu.keys()
    assert all(menu[name] == told[name] for name in on_it)
    settings = {name for name, found in contenders().items() if found.group == "knob"}
    assert told.keys() - on_it <= settings
    untold = {effect for name, effect in menu.items() if name not in measured}
    assert untold <= {catalogue.UNTESTED}


def test_the_menu_tells_of_drawing_what_the_table_of_its_page_says() -> None:
    docs = Path(__file__).parents[2] / "docs"
    _, page = (docs / "sampling.md").read_text(encoding="utf8").split("made by tools/variety_table")
    drawing = {k: v for k, v in catalogue.measured().items() if k.startswith("sampling.methods.")}
    assert drawing
    for name, text in drawing.items():
        row = next(x for x in page.splitlines() if x.startswith(f"| {name.split('.')[-1]} | "))
        of_trigger, of_likeness = row.split(" | ")[2], row.split(" | ")[5]
        assert f"variety under the trigger {of_trigger}" in text
        assert f"likeness {of_likeness} points" in text
