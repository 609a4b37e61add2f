"""Menu and kitchen agree."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import pytest

from variegate import catalogue, recipes
from variegate.errors import RecipeError
from variegate.recipe import ADAPTER_KINDS, Recipe, Strategies


def test_a_shipped_recipe_goes_by_the_path_it_has_in_the_repository_too() -> None:
    assert recipes.read("recipes/subject.toml") == recipes.read("subject")
    with pytest.raises(RecipeError, match=r"no recipe 'recipes/subjekt\.toml'"):
        recipes.read("recipes/subjekt.toml")


def test_every_strategy_of_the_recipe_has_its_facts_and_no_other() -> None:
    assert list(catalogue.FACTS) == list(Strategies.model_fields)


def test_every_kind_of_adapter_has_its_facts_and_is_on_the_menu() -> None:
    assert list(catalogue.KINDS) == list(ADAPTER_KINDS)
    menu = {entry["name"]: entry for entry in catalogue.strategies()}
    for kind, plan in ADAPTER_KINDS.items():
        entry = menu[f"adapter.kind={kind}"]
        assert entry["stage"] == "adapter"
        assert {s["name"] for s in entry["settings"]} == set(plan.model_fields) - {"kind"}
        assert all(s["description"] for s in entry["settings"])


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"rank": 0}, "adapter.rank: found 0 of kind 'lora'; input should be"),
        (
            {"kind": "lokr", "rnak": 3},
            "adapter.rnak: no such key of kind 'lokr'; did you mean 'rank'?",
        ),
        (
            {"kind": "lokr", "factor": 0},
            "adapter.factor: found 0 of kind 'lokr'; a matrix has at least one row",
        ),
        (
            {"kind": "oft", "alpha": 3.0},
            "adapter.alpha: no such key of kind 'oft'; known here: kind, block_size",
        ),
        ({"kind": "pissa"}, "adapter.kind: found 'pissa'; known: 'lora', 'dora'"),
        ({"kind": "lora", "ranks": {"attn2": 0}}, "adapter.ranks.attn2: found 0"),
        ({"kind": "tlora", "text_encoder": True}, "adapter.text_encoder: no such key"),
        ("lora", "adapter: found 'lora'; expected a table"),
    ],
)
def test_a_wrong_entry_of_an_adapter_is_told_by_its_path(table: Any, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.build({"adapter": table})
    assert told in str(refused.value)


@pytest.mark.parametrize("kind", ["oft", "boft", "sparse"])
def test_kinds_for_matrices_say_why_they_leave_convolutions_alone(kind: str) -> None:
    layers = "attention+feedforward+convolution"
    with pytest.raises(RecipeError, match="PEFT's OFT is wrong from the start"):
        Recipe.build({"adapter": {"kind": kind, "layers": layers}})


def test_a_table_without_a_kind_is_a_lora_and_another_kind_keeps_what_it_knows() -> None:
    recipe = recipes.read("pocket", settings=("adapter.kind=oft", "adapter.block_size=8"))
    assert recipes.read("pocket").adapter.kind == "lora"
    assert recipe.adapter.model_dump() == {
        "kind": "oft",
        "block_size": 8,
        "layers": "attention+feedforward",
        "text_encoder": True,
    }
    assert Recipe.build(tomllib.loads(recipe.to_toml())).id == recipe.id


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


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"strategies": {"max_norm": {}}}, "strategies.max_norm wants an adapter whose update is"),
        ({"optimizer": {"weight_decay_on": "product"}}, "optimizer.weight_decay_on = 'product' is"),
    ],
)
def test_what_a_kind_cannot_do_is_refused_at_once(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Recipe.build({**tables, "adapter": {"kind": "oft"}})
    assert told in str(refused.value)
    assert "found 'oft'" in str(refused.value)
    Recipe.build(tables)
