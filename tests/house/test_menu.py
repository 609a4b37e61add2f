"""Menu and kitchen agree."""

from __future__ import annotations

from importlib import resources

import pytest

from variegate import catalogue, recipes
from variegate.recipe import Recipe, Strategies


def test_every_strategy_of_the_recipe_has_its_facts_and_no_other() -> None:
    assert list(catalogue.FACTS) == list(Strategies.model_fields)


def test_every_strategy_stands_in_the_kitchen() -> None:
    folder = resources.files("variegate") / "train" / "strategies"
    files = {f.name for f in folder.iterdir()}
    missing = [name for name in Strategies.model_fields if f"{name}.py" not in files]
    assert missing == []


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_can_be_used_and_told(name: str) -> None:
    recipe = recipes.read(name)
    assert recipes.default_for(recipe.base) == name or name not in ("pocket", "subject")
    assert Recipe.build(recipe.model_dump(mode="json", exclude_none=True)).id == recipe.id


def test_settings_and_given_entries_lie_over_the_file() -> None:
    recipe = recipes.read("subject", settings=("strategies.flip=off",), base="pocket", seed=None)
    assert recipe.strategies.flip is None
    assert recipe.base == "pocket"
    assert recipe.seed == 0
