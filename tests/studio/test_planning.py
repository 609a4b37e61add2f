"""Cards, slider and drawer end as words of the command line, and as nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save_file
from tests.studio.house import House, build

from variegate import recipes
from variegate.audit import variety
from variegate.measure.prompts import SIZES
from variegate.recipe import Recipe, Strategies
from variegate.run import Run
from variegate.studio import costs, planning
from variegate.studio.planning import CARDS, LEVELS, drawer, forecast, recipe_of, settings_of
from variegate.studio.texts import texts
from variegate.studio.views.home import call_doctor
from variegate.studio.views.tune import RANGES
from variegate.studio.watching import step_times

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


def test_a_second_plan_gets_a_folder_of_its_own_while_the_first_one_waits(house: House) -> None:
    for steps in ("40", "50"):
        start(house, **{"set:optimizer.steps": steps})
    asked = [j for j in house.desk.jobs.all() if j.verb == "trial"]
    home = house.desk.home / "runs"
    assert [j.about for j in asked] == [str(home / "monsters"), str(home / "monsters-2")]
    assert [j.words[j.words.index("--out") + 1] for j in asked] == [j.about for j in asked]


def test_a_run_is_gone_on_with_by_its_own_settings_whatever_was_asked_of_its_folder_since(
    house: House,
) -> None:
    jobs = house.desk.jobs
    start(house, **{"set:optimizer.steps": "40"})
    (own,) = (j for j in jobs.all() if j.verb == "trial")
    settings = [b for a, b in pairwise(own.words) if a == "--set"]
    given = {"images": str(house.set.folder), "trigger": "zqx", "class_noun": "toy"}
    run = Run.create(Path(own.about), recipe_of(settings, "pocket", **given))
    other = [w.replace("optimizer.steps=40", "optimizer.steps=50") for w in own.words]
    foreign = jobs.add(other, title="of another plan", lane="device", about=own.about)
    jobs._write(replace(own, state="stopped", ended=1.0))
    jobs._write(replace(foreign, state="failed", ended=2.0))
    house.desk.forget_listing()
    at = f"/runs/{house.desk.id_of(run.folder)}/ask"

    def gone_on() -> list[str]:
        assert house.visitor().post(at, {"do": "go on"}).status == 200
        (job,) = (j for j in jobs.of(run.folder) if not j.over)
        jobs.stop(job)
        return list(job.words)

    assert gone_on() == list(own.words)
    run.extended(60)  # no words of a plan ask for this any more
    assert gone_on() == ["train", "--resume", str(run.folder)]


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


def test_the_estimate_cautions_against_what_is_known_to_go_wrong(house: House) -> None:
    def told(**edited: str) -> bool:
        asked = "&".join(f"{key}={value}" for key, value in {"card": "thing", **edited}.items())
        page = house.visitor().get(f"/pictures/{house.ids()['set']}/plan/estimate?{asked}")
        return "set optimizer.lr=2e-3" in page.text

    other = {"set:adapter.kind": "oft"}
    assert told(**other)
    assert not told()
    assert not told(**other, **{"set:optimizer.lr": "2e-3"})


SPEEDS = {"float32": 200.0, "bf16": 400.0}


@pytest.mark.parametrize("base", ["pocket", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_before_the_first_run_it_is_counted_and_called_rough(base: str, tmp_path: Path) -> None:
    house = build(tmp_path)
    shutil.rmtree(house.run)
    house.desk.forget_listing()
    call_doctor(house.app.state.studio)
    (job,) = house.desk.jobs.of("doctor", "doctor")
    answer = {"torch": {"speed": SPEEDS}}
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    house.desk.jobs._write(replace(job, state="done"))
    at = f"/pictures/{house.ids()['set']}/plan/estimate?base={quote(base)}"
    page = house.visitor().get(at).text
    assert page.count("Very rough, between") == 3
    assert "Not known yet" not in page


def test_a_run_that_was_stopped_gone_on_with_or_begun_again_does_not_spoil_the_estimate(
    house: House,
) -> None:
    jobs, recipe = house.desk.jobs, recipe_of((), "pocket")
    times = step_times(house.run)
    first, last = times[0][1], times[-1][1]

    def worked(state: str, began: float, ended: float, peak: float) -> None:
        job = jobs.add(["trial", "x"], title="", lane="device", about=str(house.run))
        facts = {"state": state, "began": began, "ended": ended, "peak": int(peak)}
        jobs._write(replace(job, **facts))

    def told() -> planning.Estimate:
        speeds = {"float32": 100.0}
        return planning.estimate(house.desk, recipe, free=0, pictures=10, speeds=speeds)

    worked("stopped", first - 30, last - 1, 3e9)
    worked("done", last + 5, last + 65, 2e9)  # went on from its checkpoint, to the verdict
    now = told()
    assert now.seconds is not None
    assert now.memory is not None
    assert (now.seconds.runs, now.memory.typical) == (0, 3e9)
    worked("done", first - 30, last + 60, 3e9)
    worked("failed", last + 100, last + 101, 1e6)
    now = told()
    assert now.seconds is not None
    assert now.memory is not None
    pace = (last - first) / (len(times) - 1)
    rest = last + 60 - (first - 30) - pace * times[-1][0]
    assert now.seconds.typical == pytest.approx(pace * recipe.optimizer.steps + rest)
    assert (now.seconds.runs, now.memory.typical) == (1, 3e9)


def test_an_estimate_grows_with_what_is_asked_and_falls_with_the_machine() -> None:
    def seconds(*settings: str, speed: float = 200.0, base: str = "pocket") -> float:
        recipe = recipe_of(settings, base)
        found = costs.guess(recipe, {"float32": speed}, pictures=10)
        assert found is not None
        assert found.seconds is not None
        assert found.seconds.least < found.seconds.typical < found.seconds.most
        return found.seconds.typical

    longer = seconds("optimizer.steps=920")
    assert seconds() < longer < 2 * seconds()
    assert seconds(speed=2000.0) < seconds()
    large = "a/stable-diffusion-xl-base-1.0"
    assert seconds(base="a/v1-5") < seconds(base=large)
    none = costs.guess(recipe_of((), large), None, pictures=10)
    assert none is not None
    assert none.seconds is None
    assert none.memory.most > 10e9
    assert costs.guess(recipe_of((), "some/thing"), SPEEDS, pictures=10) is None


def test_what_was_counted_agrees_with_what_is_published() -> None:
    """Numbers of the networks: 859.5 million of Stable Diffusion 1's UNet with 83.7 of its
    autoencoder and 123.1 of CLIP, 2567 million of XL's UNet; and LoRA's at rank 4 on the attention
    of 1.5, 797,184, as diffusers' examples write it."""
    table = costs._costs()
    assert table["sd1"]["weights"] == pytest.approx(1066e6, rel=0.005)
    assert table["sdxl"]["weights"] == pytest.approx(3469e6, rel=0.005)
    assert 4 * table["sd1"]["per_rank"]["attention"] == 797_184
    assert table["pictures"] == {
        preset: sum(prompts * seeds for prompts, seeds in groups.values())
        for preset, groups in SIZES.items()
    }


def test_a_family_is_told_by_folder_file_or_name_and_never_asked_of_another_machine(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "base" / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"cross_attention_dim": 2048}')
    assert costs.family_of(str(tmp_path / "base")) == "sdxl"
    file = tmp_path / "one.safetensors"
    save_file({"cond_stage_model.transformer.x": torch.zeros(1)}, file)
    assert costs.family_of(str(file)) == "sd1"
    (folder / "config.json").write_text("[")
    assert costs.family_of(str(tmp_path / "base")) is None
    assert costs.family_of("stabilityai/stable-diffusion-2-1") == "sd2"
    for strange in ("\\\\host\\share", "//host/share", "x", "some/thing", "\0", str(tmp_path)):
        assert costs.family_of(strange) is None, strange


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


def test_a_search_begins_from_a_run_that_was_chosen(house: House) -> None:
    ids, visitor = house.ids(), house.visitor()
    theirs = recipes.read(str(house.run / "recipe.toml"))
    form = {"set": ids["set"], "range:hold": "yes", "from": ids["run"], "replicates": "1"}
    assert visitor.post("/tune", form).status == 204
    job = next(j for j in house.desk.jobs.all() if j.verb == "tune")
    recipe = recipes.read(job.words[1])
    assert recipe.optimizer == theirs.optimizer
    assert recipe.images == str(house.set.folder)
    assert job.words[job.words.index("--replicates") + 1] == "1"
    assert visitor.post("/tune", form | {"from": "0" * 20}).status == 404


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
    made = page.with_name("adapter.safetensors")
    made.write_bytes(b"an adapter")
    answer["recommended"]["adapter"] = str(made)
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    assert visitor.get(f"/tune/{job.id}/adapter").body == b"an adapter"
    answer["page"] = answer["recommended"]["adapter"] = "/etc/passwd"
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    assert visitor.get(f"/tune/{job.id}/page").status == 404
    assert visitor.get(f"/tune/{job.id}/adapter").status == 404
