"""Menu and kitchen agree."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from variegate import catalogue, recipes
from variegate.errors import RecipeError
from variegate.recipe import (
    ADAPTER_KINDS,
    VARIETIES,
    Cads,
    Recipe,
    SamplingMethods,
    Strategies,
    combination,
)


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


def test_another_kind_keeps_the_strategies_that_it_can_have_and_refuses_those_asked_for() -> None:
    tables = {"strategies": {"spectral_cap": {}, "flip": {}}}
    for kind, left in (("dora", {"spectral_cap", "flip"}), ("oft", {"flip"})):
        built = Recipe.build(tables, settings=(f"adapter.kind={kind}",))
        assert set(built.strategies.model_dump(exclude_none=True)) == left
    asked = ["strategies.low_rank=on", "adapter.kind=oft"]
    for order in (asked, asked[::-1]):
        with pytest.raises(RecipeError, match=r"or set strategies\.low_rank=off"):
            Recipe.build(tables, settings=tuple(order))


def test_a_rate_that_only_the_cap_makes_safe_is_cautioned_against_without_it() -> None:
    def cautions(*settings: str) -> str:
        return " ".join(recipes.read("pocket", settings=settings).cautions)

    mended = ("optimizer.lr=2e-3",)
    for settings in ((), mended, ("adapter.kind=oft", *mended), ("base=/models/sd15",)):
        assert cautions(*settings) == ""
    assert "set optimizer.lr=2e-3" in cautions("adapter.kind=oft")
    off, capped = "strategies.spectral_cap=off", "strategies.spectral_cap.each=true"
    assert capped in cautions(off)
    assert cautions(off, capped) == ""


def test_every_strategy_stands_in_the_kitchen() -> None:
    folder = resources.files("variegate") / "train" / "strategies"
    files = {f.name for f in folder.iterdir()}
    missing = [name for name in Strategies.model_fields if f"{name}.py" not in files]
    assert missing == []


def test_every_method_of_sampling_has_its_facts_a_file_and_a_page() -> None:
    names = list(SamplingMethods.model_fields)
    assert list(catalogue.METHODS) == names
    menu = {entry["name"]: entry for entry in catalogue.strategies()}
    root = Path(__file__).parents[2]
    for name in names:
        entry = menu[f"sampling.methods.{name}"]
        assert entry["stage"] == "sampling"
        assert all(setting["description"] for setting in entry["settings"])
        file = root / "src" / "variegate" / "sample" / "methods" / f"{name}.py"
        assert file.read_text(encoding="utf8").startswith(f'"""`{name}`: ')
        page = root / "docs" / "strategies" / f"{name}.md"
        assert f"<!-- facts: sampling.methods.{name} -->" in page.read_text(encoding="utf8")


def test_a_method_is_switched_on_off_and_set_by_its_path() -> None:
    plain = recipes.read("pocket")
    assert plain.sampling.in_force is None
    on = recipes.read("pocket", settings=("sampling.methods.cads=on",))
    assert on.sampling.in_force == SamplingMethods(cads=Cads())
    off = recipes.read("pocket", settings=("sampling.methods.cads=on", "sampling.methods.cads=off"))
    assert off.id == plain.id
    assert Recipe.build(tomllib.loads(on.to_toml())).id == on.id != plain.id
    with pytest.raises(RecipeError, match="full must lie below none"):
        recipes.read("pocket", settings=("sampling.methods.cads.full=0.95",))


def test_degrees_of_variety_name_methods_and_others_lie_over_them() -> None:
    costs = []
    for variety in VARIETIES:
        found = combination(variety)
        assert (found is None) == (variety == "off")
        costs.append(len(found.on) if found else 0)
    assert costs == sorted(costs)
    recipe = recipes.read(
        "pocket", settings=("sampling.variety=high", "sampling.methods.cads.strength=0.25")
    )
    methods = recipe.sampling.in_force
    high = combination("high")
    assert methods is not None
    assert high is not None
    assert methods.cads == Cads(strength=0.25)
    assert methods.late_adapter == high.late_adapter
    assert recipes.read("pocket", settings=("sampling.variety=off",)).sampling.in_force is None


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


def test_a_cost_that_was_measured_is_told_behind_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"ema": {"step": 1.04, "once": 3.0}, "stay_near": {"step": 1.9, "once": 35.0}}
    monkeypatch.setattr(catalogue, "_costs", lambda: found)
    told = {entry["name"]: entry["cost"] for entry in catalogue.strategies()}
    assert told["ema"] == f"{catalogue.FACTS['ema'].cost}; on the pocket 1.0 times a plain step"
    assert told["stay_near"].endswith("1.9 times a plain step, and once 35 plain steps")
    assert told["swa"] == catalogue.FACTS["swa"].cost
