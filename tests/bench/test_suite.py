"""The harness: cells keep their name, rows outlive a crash, one command makes table and page."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from variegate.bench import suite
from variegate.bench.ailments import AILMENTS, HEALTHY
from variegate.bench.contenders import DEFAULT, PLAIN, Contender
from variegate.bench.scoreboard import FIGURES
from variegate.bench.suite import Cell, cells, rows_done, run_cell, run_suite
from variegate.cli import app
from variegate.errors import RequestError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nothing published."""
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(suite, "published", list)
    return tmp_path


def test_suites_hold_what_they_say() -> None:
    quick, full = cells("quick"), cells("full")
    assert {c.ailment.name for c in quick} == {"one-sided", "four pictures", "healthy"}
    core = {a.name for a in AILMENTS.values() if a.core}
    assert {c.seed for c in full if not c.ailment.held_out} == {0, 1, 2}
    gated = [c for c in full if c.ailment.held_out and c.contender.group in ("default", "field")]
    assert len(gated) == 6 * 5 * 6
    assert {c.seed for c in full if c.ailment.held_out} == {*range(6)}
    assert all(c in gated for c in full if c.seed > 2)
    assert len(full) == len(set(full))
    everywhere = {c.ailment.name for c in full if c.contender == DEFAULT}
    assert everywhere == {*AILMENTS, HEALTHY.name}
    assert {c.ailment.name for c in full if c.contender.name == "huber"} == core
    two = cells("full", strategies=["field", "ema"], ailments=["long"], seeds=2)
    assert len(two) == 5 * 2


@pytest.mark.parametrize("asked", [{"strategies": ["emma"]}, {"ailments": ["longg"]}])
def test_a_name_that_is_none_is_told_with_those_there_are(asked: dict[str, list[str]]) -> None:
    with pytest.raises(RequestError, match=r"emma.*ema|longg.*long"):
        cells("full", **asked)


def test_a_cell_is_named_by_all_that_its_row_depends_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(cell: Cell) -> str:
        return cell.key(cell.recipe())

    cell = Cell(AILMENTS["four pictures"], PLAIN, 0)
    assert key(cell) == key(Cell(AILMENTS["four pictures"], PLAIN, 0))
    other_seed = Cell(cell.ailment, PLAIN, 1)
    other_recipe = Cell(cell.ailment, Contender("x", "knob", ("optimizer.steps=3",)), 0)
    other_pictures = Cell(AILMENTS["one picture"], PLAIN, 0)
    assert len({key(c) for c in (cell, other_seed, other_recipe, other_pictures)}) == 4
    before = key(cell)
    monkeypatch.setenv("VARIEGATE_CACHE", str(place / "elsewhere"))
    assert key(cell) == before
    monkeypatch.setattr(suite, "VERSION", -1)
    assert key(cell) != before


class _Here(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        found: Future[Any] = Future()
        try:
            found.set_result(work(*given, **named))
        except Exception as error:
            found.set_exception(error)
        return found


def faked(monkeypatch: pytest.MonkeyPatch, fail_at: str = "") -> list[str]:
    """Cells that cost nothing; the names of those that were made."""
    made: list[str] = []

    def run(cell: Cell, home: Path) -> dict[str, Any]:
        if cell.ailment.name == fail_at:
            raise RuntimeError("lost")
        made.append(cell.name)
        return {
            "key": cell.key(cell.recipe()),
            "ailment": cell.ailment.name,
            "strategy": cell.contender.name,
            "group": cell.contender.group,
            "seed": cell.seed,
            "labels": "",
            "train_seconds": 1.0,
            **{f"true.{name}": 0.5 for name in (*FIGURES, "named_base")},
        }

    @contextmanager
    def here(on: str, jobs: int) -> Any:
        yield _Here()

    monkeypatch.setattr(suite, "run_cell", run)
    monkeypatch.setattr(suite, "workers", here)
    return made


def test_what_was_done_stays_done(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = faked(monkeypatch, fail_at="four pictures")
    asked = cells("quick", strategies=["plain"])
    with pytest.raises(RuntimeError, match="lost"):
        run_suite(asked)
    assert len(made) == 1
    rows = suite.home() / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"key": "cut sho')
    assert len(rows_done(suite.home())) == 1
    again = faked(monkeypatch)
    assert len(run_suite(asked)) == 3
    assert made[0] not in again
    assert len(again) == 2


def test_after_its_minutes_nothing_is_begun(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = faked(monkeypatch)
    assert run_suite(cells("quick"), minutes=0.0) == []
    assert made == []


def test_cells_travel_between_processes() -> None:
    for cell in cells("full", seeds=1):
        assert pickle.loads(pickle.dumps(cell)) == cell


def test_the_work_is_told_before_it_is_begun(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch)
    told: list[str] = []
    asked = cells("quick", strategies=["plain"])
    run_suite(asked, tell=told.append)
    steps = 3 * PLAIN.recipe().optimizer.steps
    assert len(told) == 1
    assert f"3 runs, {steps:,} training steps" in told[0]
    run_suite(asked, tell=told.append)
    assert len(told) == 1


def test_two_names_of_one_recipe_share_a_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = faked(monkeypatch)
    twin = Contender("twin", "knob")
    rows = run_suite([Cell(HEALTHY, PLAIN, 0), Cell(HEALTHY, twin, 0)])
    assert [r["strategy"] for r in rows] == ["plain", "twin"]
    assert len(made) == 1


def test_the_verb_writes_a_table_and_a_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch)
    words = ["bench", "--strategies", "plain, default", "--out", str(place / "out"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["cells"] == told["asked"] == 6
    assert (place / "out" / "rows.parquet").exists()
    assert "--strategies" in Path(told["page"]).read_text()


@pytest.mark.slow
def test_a_cell_is_trained_drawn_judged_and_measured(place: Path) -> None:
    few = Contender("few", "knob", ("optimizer.steps=40", "probes.every=20"))
    cell = Cell(AILMENTS["one-sided"], few, 0)
    row = run_cell(cell, place)
    assert row["key"] == cell.key(cell.recipe())
    assert 0 <= row["true.likeness"] <= 1
    assert 0 < row["true.class"] < 1.5
    assert row["seen.variety_vs_base"] > 0
    assert (place / "sheets" / f"{row['key']}.png").exists()
    assert not (place / "runs" / row["key"] / "drawn").exists()
