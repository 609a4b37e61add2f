"""The verb on the pocket: of a run of ours and of kohya's files a point is chosen and exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.blend.random_adapters import random_adapter
from typer.testing import CliRunner

from variegate import formats, recipes
from variegate.bench import ailments
from variegate.cli import app, choosing
from variegate.errors import Interrupted, RequestError
from variegate.measurement import Measurement
from variegate.pick import choosing as room
from variegate.pick import handing, pick, stand
from variegate.pick.points import Point
from variegate.recipe import SamplingPlan
from variegate.run import Run
from variegate.share import share
from variegate.train import train


def ask(*words: Any) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["pick", "--json", "--quiet", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run with two checkpoints, drawn with few denoising steps."""
    home = tmp_path_factory.mktemp("picked")
    pictures = ailments.draw_pictures(ailments.AILMENTS["one-sided"].pictures, "cupcake", 2)
    shutil.copytree(pictures, home / "pictures")
    recipe = recipes.read(
        "pocket-plain",
        settings=(
            *("optimizer.steps=30", "optimizer.lr=3e-3", "adapter.rank=4", "adapter.alpha=4"),
            *("checkpoints.every=15", "checkpoints.keep=9", "sampling.steps=4"),
        ),
        images=str(home / "pictures"),
        trigger="zqx",
        class_noun="food",
    )
    return train(recipe, out=home / "run")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer denoising steps than a user would want, where no run says how many."""
    own = stand.sampling_of("pocket").model_copy(update={"steps": 4})
    monkeypatch.setattr(stand, "sampling_of", lambda base: own)


SMALL = ("--strengths", "0.5,1", "--guidance", "1.4", "--samples", 130)
FOUND: dict[Path, dict[str, Any]] = {}


def picked(run: Run) -> dict[str, Any]:
    """What the first asking said."""
    if run.folder not in FOUND:
        code, FOUND[run.folder] = ask(run.folder, *SMALL)
        assert code == 0
    return FOUND[run.folder]


def test_a_run_of_ours_gives_one_point_with_its_reason_and_every_file(run: Run) -> None:
    found = picked(run)
    assert found["run"] == str(run.folder)
    assert found["samples_used"] <= 130
    assert found["samples_of_grid"] == 2 * 2 * 2 * 16 * 4
    assert found["step"] in (15, 30)
    assert found["strength"] in (0.5, 1.0)
    assert found["guidance_scale"] == 1.4
    assert found["reason"].startswith("We would use step-0000")
    assert len(found["points"]) == 4
    names = [p["name"] for p in found["points"]]
    assert found["point"] in names
    front = {p["name"] for p in found["front"]}
    assert {found["point"], found["reference"]} <= front
    for point in found["front"]:
        low, value, high = (point["variety"][name] for name in ("low", "value", "high"))
        if point["prompts"] == 1:  # nobody knows how sure that is
            assert low is high is None
        else:
            assert low <= value <= high
    # The reference is plain: as it was trained, drawn as the base is.
    assert found["reference"].endswith("@1@1.4")

    out = run.folder / "picked"
    assert json.loads((out / "pick.json").read_text()) == found
    source = formats.read(found["checkpoint"])
    for key in ("a1111", "diffusers", "peft"):
        assert formats.read(found["files"][key]).digest() == source.digest()
    exported = formats.read(found["files"]["a1111"])
    hint = f"strength {found['strength']:g}, guidance scale 1.4"
    assert exported.metadata["modelspec.usage_hint"] == hint
    notes = formats.own_notes(exported.metadata)
    assert notes["recommended"] == {
        "strength": found["strength"],
        "guidance_scale": found["guidance_scale"],
    }
    assert notes["verdict"]["labels"] == found["verdict"]["labels"]
    beside = json.loads(Path(found["files"]["sidecar"]).read_text())
    assert beside["preferred weight"] == found["strength"]
    assert beside["activation text"] == "zqx"
    assert Path(found["files"]["preview"]).is_file()

    page = Path(found["page"]).read_text(encoding="utf8")
    for said in ("Variety against likeness", "Base", "seed 0", "picked", "nearest to", "<details>"):
        assert said in page
    assert "<script" not in page
    assert str(run.folder) not in page


def test_what_was_picked_is_what_is_shared(run: Run, tmp_path: Path) -> None:
    found = picked(run)
    for source in (run.folder, run.folder / "picked"):
        shared = share(source, out=tmp_path / source.name)
        card = (shared.folder / "README.md").read_text(encoding="utf8")
        assert f"Recommended: strength {found['strength']:g}, guidance scale 1.4" in card
        assert f"| {found['verdict']['measurements'][0]['value']:.2f} |" in card
        assert "images/sample_5.png" in shared.files
        assert "recipe.toml" in shared.files
        with Image.open(shared.folder / "images" / "sample_0.png") as picture:
            text = picture.info["parameters"]
        assert text.split("\n")[0].endswith(f" <lora:{shared.name}:{found['strength']:g}>")
        assert "CFG scale: 1.4" in text
        beside = json.loads((shared.folder / f"{shared.name}.json").read_text())
        assert beside["preferred weight"] == found["strength"]
        assert str(run.folder.parent) not in card


def test_the_same_call_draws_nothing_anew_and_says_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = picked(run)

    def refuse(*words: Any, **named: Any) -> None:
        raise AssertionError("a picture was drawn again")

    monkeypatch.setattr("variegate.sample.draw.denoise", refuse)
    _, again = ask(run.folder, *SMALL)
    assert again == first


def test_ctrl_c_keeps_what_was_drawn_and_says_how_to_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from variegate.sample import draw

    whole, asked = draw.denoise, []

    def stopping(*words: Any, **named: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(*words, **named)

    monkeypatch.setattr(draw, "denoise", stopping)
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        pick(run.folder, strengths=(0.7,), guidance=(1.2,), samples=100, out=tmp_path)
    assert not (tmp_path / "pick.json").exists()


def test_a_folder_of_kohyas_files_is_picked_from_and_votes_break_ties(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "kohya"
    for name, stem in (("000015", "owl-000001"), ("000030", "owl")):
        adapter = formats.read(run.checkpoints / f"step-{name}" / "adapter.safetensors")
        bare = {
            k: v for k, v in adapter.metadata.items() if k.startswith("ss_") and k != "ss_steps"
        }
        bare["variegate"] = '{"family": "pocket"}'
        formats.write(replace(adapter, metadata=bare), folder / f"{stem}.safetensors")
    words = (folder, "--trigger", "zqx", "--class", "food", *SMALL)
    code, found = ask(*words)
    assert code == 0
    assert found["run"] is None
    assert [p["checkpoint"] for p in found["points"]] == ["owl-000001"] * 2 + ["owl"] * 2
    assert found["step"] is None
    assert any("likeness is measured to what the last checkpoint" in w for w in found["warnings"])
    assert Path(found["adapter"]).parent == folder / "picked"
    tied = [p["name"] for p in found["points"] if p["tied"]]
    file = tmp_path / "votes.jsonl"
    rival = (tied or [p["name"] for p in found["points"] if p["name"] != found["searched"]])[0]
    ballot = {"a": rival, "b": found["searched"], "winner": rival}
    file.write_text(f"{json.dumps(ballot)}\n" * 12)
    code, voted = ask(*words, "--votes", file)
    assert code == 0
    by_name = {p["name"]: p for p in voted["points"]}
    assert by_name[rival]["votes"]["value"] > 0 > by_name[found["searched"]]["votes"]["value"]
    if tied:
        assert voted["searched"] == rival
    else:
        assert voted["searched"] == found["searched"]
    assert "Votes" in Path(voted["page"]).read_text(encoding="utf8")


def test_what_cannot_be_picked_is_told_with_advice(run: Run, tmp_path: Path) -> None:
    formats.write(random_adapter(0), tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"which word calls.*give --trigger"):
        pick(tmp_path, base="pocket")
    for asked, words in (
        ({"share": 0.0}, "share 0; expected"),
        ({"samples": 0}, "0 samples; expected"),
        ({"margin": 1.0}, "margin 1; expected"),
        ({"strengths": (3.0,)}, "strength 3; expected"),
        ({"out": run.folder}, "holds the checkpoints, which an export might overwrite"),
        ({"samples": 40}, "points want .* pictures at least.*raise --samples"),
    ):
        with pytest.raises(RequestError, match=words):
            pick(run.folder, **asked)  # type: ignore[arg-type]
    code, found = ask(run.folder, "--strengths", "much")
    assert code == 2
    assert "expected numbers with commas" in found["error"]["message"]
    code, found = ask(run.folder, "--samples", 9, "--share", 0.5)
    assert code == 2


def test_prompts_and_seeds_of_the_check_are_none_of_the_search() -> None:
    from variegate.measure import prompt_plan

    plan = prompt_plan("food", "zqx", preset="thorough", pocket=True)
    searched, checked = stand.split(plan, 16)
    for group in stand.GROUPS:
        first = {p.adapter_prompt for p in searched if p.group == group}
        fresh = {p.adapter_prompt for p in checked if p.group == group}
        assert len(first) == len(fresh) == 16
        assert not first & fresh
    seeds = [{s for p in side for s in p.seeds} for side in (searched, checked)]
    assert not seeds[0] & seeds[1]
    assert all(len(p.seeds) == stand.EACH for p in (*searched, *checked))


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = [Point(str(i), i, 1.0, 1.0) for i in range(4)]
    values = dict(zip(points, [(1.0, 0.1), (0.5, 0.9), (0.4, 0.8), (0.9, 0.1)], strict=True))
    assert room.front_of(values) == {points[0], points[1]}


def test_plain_is_what_is_nearest_to_strength_1_at_the_bases_own_scale() -> None:
    own = SamplingPlan(guidance_scale=7.5)
    points = [Point("a", 1, s, g) for s in (0.5, 0.9) for g in (5.0, 7.0)]
    assert [p for p in points if room.plain_of(points, own)(p)] == [Point("a", 1, 0.9, 7.0)]


def test_a_difference_is_told_on_its_own_side() -> None:
    assert handing.spelled(Measurement("x", 0.04, -0.02, 0.1)) == "4 points (-2 to 10)"
    assert handing.spelled(Measurement("x", -0.04, -0.1, 0.02)) == "4 points (-2 to 10)"


def test_the_command_asks_by_default_what_the_function_does() -> None:
    ours, theirs = signature(pick).parameters, signature(choosing.pick).parameters
    for name in ("checkpoints", "samples", "share", "margin", "style"):
        assert ours[name].default == theirs[name].default
    assert choosing._numbers("", theirs["strengths"].default) == ours["strengths"].default
