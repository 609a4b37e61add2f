"""The table of methods says what its rows say, and no more."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from variegate.recipe import SamplingMethods

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")  # where it finds what the tools share
        yield importlib.import_module("variety_table")


def row(key: int, way: str, trigger: float, likeness: float, seconds: float) -> dict[str, Any]:
    told = {"key": str(key), "way": way, "ailment": "one-sided", "contender": "plain", "seed": key}
    rest = dict.fromkeys(("class", "entropy", "named", "named_base", "class_kept", "copies"), 0.5)
    return told | rest | {"trigger": trigger, "likeness": likeness, "seconds": seconds}


def test_every_way_can_be_gone_and_every_method_is_measured_alone(tool: Any) -> None:
    names = [way.name for way in tool.WAYS]
    assert len(set(names)) == len(names)
    measured = set()
    for way in tool.WAYS:
        methods = SamplingMethods.model_validate(tool._methods(way) | tool._placeholders(way))
        measured |= set(methods.on)
    assert measured == set(SamplingMethods.model_fields)


def test_changes_are_paired_and_only_what_is_shown_is_called_so(tool: Any) -> None:
    rows = []
    for key in range(12):
        of_its_own = 0.02 * key  # adapters differ far more than what a way does to them
        rows.append(row(key, "plain", 0.2 + of_its_own, 0.8, 5.0))
        rows.append(row(key, "late_adapter", 0.3 + of_its_own, 0.75, 5.0))
        wobble = 0.1 if key % 2 else -0.1
        rows.append(row(key, "cads", 0.2 + of_its_own + wobble, 0.7, 6.0))
        rows.append(row(key, "spell", 0.15 + of_its_own, 0.85, 7.5))
    found = tool.changes(rows)
    late = found["late_adapter"]
    assert late["trigger"].mean == pytest.approx(0.1)
    assert late["trigger"].is_shown
    assert late["time"] == 1.0
    assert not found["cads"]["trigger"].is_shown
    assert found["spell"]["time"] == 1.5
    assert tool.on_the_front(found) == {"late_adapter", "spell", "plain"}
    page = tool.page_part(rows)
    assert "| late_adapter | 12 | +0.10 (+0.10 to +0.10) |" in page
    assert "is shown by: cads, spell." in page
    told = tool.effects(rows)
    assert "no difference shown" in told["sampling.methods.cads"]
    assert "no difference shown" not in told["sampling.methods.late_adapter"]


def test_a_row_of_other_settings_is_replaced_by_the_later_one(tool: Any) -> None:
    rows = [row(0, "plain", 0.2, 0.8, 5.0), row(0, "cads", 0.9, 0.8, 5.0)]
    found = tool.changes([*rows, row(0, "cads", 0.3, 0.8, 5.0)])
    assert found["cads"]["trigger"].mean == pytest.approx(0.1)
    assert tool.page_part([]) == "Not measured yet.\n"


def test_processes_share_the_adapters_and_each_is_taken_once(tool: Any) -> None:
    keys = [key for *_, key in tool._cells()]
    assert len(set(keys)) == tool.ADAPTERS >= 20
    assert tool._part("2/3") == (2, 3)
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="first of two"):
            tool._part(wrong)
