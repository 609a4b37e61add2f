"""Cards, slider and drawer end as words of the command line, and as nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.studio.house import House

from variegate import recipes
from variegate.audit import variety
from variegate.recipe import Recipe, Strategies
from variegate.studio import planning
from variegate.studio.planning import CARDS, LEVELS, drawer, forecast, recipe_of, settings_of
from variegate.studio.texts import texts
from variegate.studio.views.tune import RANGES

BASES = ("pocket", "a/model")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_place_of_every_choice_is_a_recipe(base: str, card: str, level: int) -> None:
    recipe = recipe_of(settings_of(card, level, base), base)
    assert recipe.panels is not None
    assert recipe.guard.mode == "autopilot"
    if card == "person":
        assert recipe.strategies.flip is None
    if card == "style":
        assert recipe.strategies.masked_loss is None
    if (card, level) == ("thing", 0):
        shipped = recipes.read(recipes.default_for(base)).model_dump(exclude={"panels", "guard"})
        own = recipe.model_dump(exclude={"panels", "guard"})
        assert own | {"base": ""} == shipped | {"base": ""}


@pytest.mark.parametrize("base", BASES)
def test_the_slider_goes_one_way(base: str) -> None:
    made = [recipe_of(settings_of("thing", level, base), base) for level in LEVELS]
    for flexible, exact in pairwise(made):
        assert flexible.optimizer.steps < exact.optimizer.steps
        assert flexible.strategies.stay_near is not None
        assert exact.strategies.stay_near is not None
        assert flexible.strategies.stay_near.weight > exact.strategies.stay_near.weight


def test_the_drawer_holds_every_entry_of_the_recipe() -> None:
    recipe = recipe_of(settings_of("thing", 0, "pocket"), "pocket")
    tables, strategies = drawer(recipe, {})
    paths = {f.path for g in tables for f in g.fields}
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        if name in (*planning.HIDDEN, "strategies"):
            continue
        inside = getattr(type(value), "model_fields", None)
        wanted = {f"{name}.{key}" for key in inside} if inside else {name}
        assert wanted - {"optimizer.kind"} <= paths, name
    assert {g.name for g in strategies} == {f"strategies.{n}" for n in Strategies.model_fields}
    assert all(g.title and g.told for g in strategies)
    on = {g.name for g in strategies if g.on}
    assert on == {f"strategies.{n}" for n, v in recipe.strategies if v is not None}


def test_what_the_drawer_shows_is_what_the_recipe_says() -> None:
    """Every value as it stands, sent back as a setting, gives the same recipe."""
    recipe = recipe_of(settings_of("thing", 0, "pocket"), "pocket")
    tables, strategies = drawer(recipe, {})
    shown = [f for g in tables for f in g.fields] + [
        f for g in strategies if g.on for f in g.fields
    ]
    settings = [f"{f.path}={f.value}" for f in shown if f.value]
    again = recipe_of([*settings_of("thing", 0, "pocket"), *settings], "pocket")
    assert again.model_dump() == recipe.model_dump()


def test_the_forecast_goes_by_the_audits_own_lines() -> None:
    assert (planning.FEW, planning.THIN) == (variety.FEW, variety.THIN)

    def risk(different: float, *shared: str, usable: int = 12) -> str:
        audit = {"effective_images": different, "usable": usable, "limited_by": list(shared)}
        found = forecast(audit)
        assert found is not None
        return f"{found.risk}, {found.what}"

    assert risk(1.3, "duplicates", "background") == "high, alike"
    assert risk(4.5, "background", usable=5) == "high, sharing"
    assert risk(4.5, usable=5) == "medium, few"
    assert risk(8.0) == "medium, few"
    assert risk(11.0, "background") == "medium, sharing"
    assert risk(11.0) == "low, well"
    for nothing in ({}, {"effective_images": 0, "usable": 0}, {"effective_images": "x"}):
        assert forecast(nothing) is None


def start(house: House, **form: str) -> Any:
    given = {"trigger": "zqx", "noun": "toy", "card": "thing", "level": "0", "base": "pocket"}
    return house.visitor().post(f"/pictures/{house.ids()['set']}/plan", given | form)


def test_a_start_is_a_line_that_anybody_could_type(house: House) -> None:
    form = {"set:optimizer.steps": "40", "set:strategies.ema": "on", "set:adapter.rank": ""}
    answer = start(house, **form, **{"set:strategies.ema.decay": "0.9"})
    assert (answer.status, answer.headers["hx-redirect"]) == (204, "/runs")
    job = next(j for j in house.desk.jobs.all() if j.verb == "trial")
    assert job.state == "waiting"
    words = list(job.words)
    assert words[:2] == ["trial", str(house.set.folder)]
    assert words[words.index("--out") + 1] == str(house.desk.home / "runs" / "monsters")
    settings = [b for a, b in pairwise(words) if a == "--set"]
    assert (
        settings[-3:]
        == [
            "strategies.ema=on",
            "optimizer.steps=40",
            "strategies.ema.decay=0.9",
        ]
        or "strategies.ema=on" in settings
    )
    assert not [s for s in settings if s.startswith("adapter.rank")]
    recipe = recipe_of(settings, "pocket")
    assert recipe.optimizer.steps == 40
    assert recipe.strategies.ema is not None


def test_a_style_is_learnt_and_not_measured_as_a_subject(house: House) -> None:
    start(house, card="style")
    assert [j.verb for j in house.desk.jobs.all() if j.verb in ("train", "trial")] == ["train"]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"set:optimizer.steps": "many"}, "optimizer.steps: found 'many'"),
        ({"set:optimizer.stesp": "4"}, "did you mean 'steps'?"),
        ({"set:adapter.rank": "4\nseed=3"}, "a setting is one line"),
        ({"trigger": " "}, "which word shall call it"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_work(
    house: House, form: dict[str, str], told: str
) -> None:
    answer = start(house, **form)
    assert answer.status == 422
    assert told in answer.text
    assert [j.verb for j in house.desk.jobs.all()] == ["recipe"]


def test_the_estimate_says_what_it_goes_by_or_that_it_does_not_know(house: House) -> None:
    page = house.visitor().get(f"/pictures/{house.ids()['set']}/plan/estimate?card=thing").text
    assert "by 1 earlier run here" in page  # the house's run is on the pocket
    other = house.visitor().get(f"/pictures/{house.ids()['set']}/plan/estimate?base=elsewhere")
    assert "Not known yet" in other.text
    assert re.search(r"[\d.]+ [MG]B are free", other.text)


def test_a_search_writes_the_recipe_that_it_starts_from(house: House) -> None:
    ids, visitor = house.ids(), house.visitor()
    chosen = {f"range:{name}": "yes" for name in RANGES}
    answer = visitor.post("/tune", {"set": ids["set"], "trials": "3", **chosen})
    assert answer.status == 204, answer.text
    job = next(j for j in house.desk.jobs.all() if j.verb == "tune")
    recipe = recipes.read(job.words[1])
    assert (recipe.trigger, recipe.class_noun, recipe.images) == (
        "zqx",
        "toy",
        str(house.set.folder),
    )
    for key in (words.partition("=")[0] for words in RANGES.values()):
        table, _, entry = key.partition(".")
        assert entry in type(getattr(recipe, table)).model_fields, key


def test_every_reason_that_an_audit_gives_has_words() -> None:
    words = texts()
    for reason in ("duplicates", "background", "palette", "composition", "place", "few"):
        assert words(f"plan.because_{reason}")
    assert json.dumps(words.names())


def test_a_search_that_is_done_shows_its_front_and_what_to_take(house: House) -> None:
    page = house.desk.home / "tunes" / "monsters" / "search" / "tuning.html"
    page.parent.mkdir(parents=True)
    page.write_text("<h1>a search</h1>")
    job = house.desk.jobs.add(["tune", "x"], title="a search", lane="device", about="/x")
    number = {"value": 0.8, "low": 0.7, "high": 0.9}
    point = {"settings": ["adapter.rank=4"], "likeness": number, "variety": number}
    answer = {
        "front": [point],
        "recommended": point | {"reason": "it has most of both"},
        "page": str(page),
    }
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    house.desk.jobs._write(replace(job, state="done"))
    visitor = house.visitor()
    text = visitor.get("/tune").text
    assert "adapter.rank=4" in text
    assert "It has most of both" in text
    assert "70 % to 90 %" in text
    assert "<h1>a search</h1>" in visitor.get(f"/tune/{job.id}/page").text
    answer["page"] = "/etc/passwd"
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    assert visitor.get(f"/tune/{job.id}/page").status == 404
