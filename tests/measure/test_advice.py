from __future__ import annotations

from variegate import recipes
from variegate.measure.advice import fit_advice
from variegate.measure.wording import ADVICE
from variegate.recipe import Recipe


def settings(label: str, recipe: Recipe) -> dict[str, str]:
    return {a.strategy: a.setting for a in fit_advice(ADVICE[label], recipe)}  # type: ignore[index]


def test_fewer_and_more_steps_are_of_the_runs_own() -> None:
    recipe = recipes.read("pocket", settings=("optimizer.steps=240",))
    assert settings("narrowed", recipe)["optimizer"] == "optimizer.steps=120"
    assert settings("undertrained", recipe)["optimizer"] == "optimizer.steps=480"


def test_a_strategy_that_is_on_is_turned_further() -> None:
    on = recipes.read("pocket", settings=("strategies.stay_near.weight=1.5",))
    off = recipes.read("pocket-plain")
    assert settings("narrowed", on)["stay_near"] == "strategies.stay_near.weight=3"
    assert settings("narrowed", off)["stay_near"] == "strategies.stay_near.weight=1.0"


def test_what_goes_no_further_is_not_advised() -> None:
    recipe = recipes.read("pocket", settings=("sampling.preset=thorough",))
    assert "flip" in settings("copying", recipes.read("pocket", settings=("strategies.flip=off",)))
    assert "flip" not in settings("copying", recipe)
    assert settings("inconclusive", recipe) == {}


def test_every_fitted_setting_is_one_that_a_recipe_takes() -> None:
    for name in recipes.names():
        recipe = recipes.read(name)
        for label in ADVICE:
            for advice in fit_advice(ADVICE[label], recipe):
                assert recipes.read(name, settings=(advice.setting,)).id != recipe.id
