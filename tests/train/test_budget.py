"""A run that looks at each picture far too often is told so before it starts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.train.test_turns import planted

from variegate import recipes
from variegate.recipe import Recipe
from variegate.train.budget import MOST, budget, budget_note
from variegate.train.data import read_training_set


@pytest.mark.parametrize("altered", [False, True])
def test_steps_advised_grow_with_the_pictures_and_keep_within_bounds(altered: bool) -> None:
    few, many = (budget(pictures=n, steps=4000, batch_size=4, altered=altered) for n in (5, 50))
    assert many.steps == pytest.approx(10 * few.steps, rel=0.01)
    assert few.views == pytest.approx(10 * many.views)
    for spent, n in ((few, 5), (many, 50)):
        again = budget(pictures=n, steps=spent.steps, batch_size=4, altered=altered)
        assert not again.exceeded
    assert few.exceeded
    edge = budget(pictures=10, steps=MOST * 10, batch_size=1, altered=altered)
    assert not edge.exceeded


def test_the_warning_tells_the_count_and_the_steps() -> None:
    recipe = Recipe.build({"optimizer": {"steps": 3000, "batch_size": 2}})
    assert budget_note(recipe, 6) == (
        "3000 steps of 2 on 6 pictures show each of them 1000 times; beyond about 400 they are "
        "learnt by heart: set optimizer.steps=450, or add pictures"
    )
    assert budget_note(recipe, 60) is None
    moved = Recipe.build({"optimizer": {"steps": 3000}, "strategies": {"crop": {}}})
    assert budget_note(moved, 6) is None


@pytest.mark.parametrize(("name", "pictures"), [("pocket", 9), ("pocket-plain", 9), ("subject", 6)])
def test_shipped_recipes_are_within_their_budget(name: str, pictures: int) -> None:
    assert budget_note(recipes.read(name), pictures) is None


def test_the_note_stands_in_the_set_is_shown_and_counts_copies_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def notes(**strategies: Any) -> list[str]:
        recipe = Recipe.build(
            {
                "strategies": strategies,
                "optimizer": {"steps": 3000, "batch_size": 1},
                "held_out": {"share": 0},
            }
        )
        found = read_training_set(planted(), recipe, side=64, pocket=True, needs_masks=False)
        return [note for note in found.notes if "learnt by heart" in note]

    with caplog.at_level(logging.WARNING):
        assert notes() == []  # 375 views of each of eight
        assert not caplog.records
        assert len(notes(even_pictures={})) == 1  # 600 views of each of five
    assert any("learnt by heart" in record.getMessage() for record in caplog.records)
