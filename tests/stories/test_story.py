"""The command line from pictures to verdict, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from variegate import formats, trial
from variegate.bench import judge, world
from variegate.measure import prompt_plan
from variegate.models import load
from variegate.recipe import Recipe
from variegate.sample import Request, sample

PHOTOS = Path(__file__).parent.parent / "data" / "photos"
DEMO_PICTURES = Path(trial.__file__).parent / "demo" / "pictures"


def variegate(*words: str | Path, expect: int = 0) -> Any:
    """Run the command with --json; its document."""
    done = subprocess.run(
        [sys.executable, "-m", "variegate", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == expect, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def label_of(verdict: dict[str, Any]) -> set[str]:
    return set(verdict["labels"])


def value(verdict: dict[str, Any], name: str) -> float:
    return next(m["value"] for m in verdict["measurements"] if m["name"] == name)


def likeness_by_the_judge(run: Path, out: Path) -> float:
    """The share of robots among 256 pictures of an adapter: 16 trigger prompts at 16 seeds.

    The verdict's own 64 come from four seeds, and a seed that misses misses on most prompts.
    """
    lines = prompt_plan("face", "zqx", pocket=True)
    asked = [
        Request(line.adapter_prompt, seed, line.group)
        for line in lines
        if line.group == "trigger"
        for seed in range(16)
    ]
    adapter = formats.read(run / "adapter.safetensors")
    plan = Recipe.read(run / "recipe.toml").sampling
    drawn = sample(load("pocket"), adapter, asked, plan=plan, out=out)
    return judge.read([np.asarray(p.open()) for p in drawn]).share("subject", "robot")


@pytest.mark.slow
def test_the_demo_shows_collapse_and_its_prevention(tmp_path: Path) -> None:
    document = variegate("demo", "--out", tmp_path / "demo")
    plain, guarded = document["plain"], document["guarded"]
    assert label_of(plain) & {"narrowed", "trigger-narrowed", "copying"}
    gaps = {m["name"]: m for m in document["differences"]}
    for headline in ("variety_vs_base", "trigger_variety_vs_base"):
        assert gaps[headline]["low"] > 0, headline
        assert value(guarded, headline) > value(plain, headline)
    assert Path(document["report"]).is_file()
    # The judge, which the product never asks, says whether the subject was kept.
    shares = {
        name: likeness_by_the_judge(Path(run), tmp_path / name)
        for name, run in document["runs"].items()
    }
    print(f"judged likeness: {shares}")
    assert shares["guarded"] >= shares["plain"] - 0.03


def test_sample_draws_what_the_prompt_says(tmp_path: Path) -> None:
    prompt = "a small owl on a yellow dotted background at the top left"
    document = variegate(
        *("sample", "--base", "pocket", "--prompt", prompt, "--seeds", 8, "--out", tmp_path)
    )
    files = [x["file"] for x in document["images"]]
    assert [x["seed"] for x in document["images"]] == list(range(8))
    assert Path(document["contact_sheet"]).is_file()
    reading = judge.read([np.asarray(Image.open(f).convert("RGB")) for f in files])
    named = {
        "subject": "owl",
        "colour": "yellow",
        "pattern": "dotted",
        "size": "small",
        "position": "top left",
    }
    right = [all(reading.values[k][i] == v for k, v in named.items()) for i in range(8)]
    assert sum(right) >= 6


SHORT = ("optimizer.steps=6", "sampling.preset=quick", "sampling.steps=3")


def test_an_adapter_tells_its_own_trigger_and_class(tmp_path: Path) -> None:
    run = tmp_path / "run"
    learnt = variegate(
        *("train", DEMO_PICTURES, "--base", "pocket", "--trigger", "zqx", "--class", "face"),
        *("--out", run, "--set", SHORT[0]),
    )
    assert learnt["step"] == 6
    start = json.loads((run / "journal.jsonl").read_text().splitlines()[0])
    assert len(start["held_out"]) == 2
    words = ("measure", learnt["adapter"], "--preset", "quick", "--out", tmp_path / "measured")
    verdict = variegate(*words, "--train-images", DEMO_PICTURES)
    assert (verdict["plan"]["trigger"], verdict["plan"]["class_noun"]) == ("zqx", "face")
    assert value(verdict, "likeness") < 0.9
    stored = variegate("verdict", tmp_path / "measured")
    assert stored["labels"] == verdict["labels"]
    assert stored["sentence"] == verdict["sentence"]
    fault = variegate("measure", learnt["adapter"], "--out", run, expect=2)["error"]["message"]
    assert "is a training run" in fault


def test_a_short_demo_makes_both_runs_and_the_page(tmp_path: Path) -> None:
    document = trial.demo(out=tmp_path / "demo", settings=SHORT)
    assert {"plain", "guarded", "differences", "runs", "report"} <= document.keys()
    page = Path(document["report"]).read_text(encoding="utf8")
    assert unescape(document["plain"]["sentence"]) in unescape(page)
    kept = (tmp_path / "demo/plain/journal.jsonl").stat().st_mtime_ns
    again = trial.demo(out=tmp_path / "demo", settings=SHORT)
    assert again["plain"] == document["plain"]
    # Another recipe makes the runs anew and does not mix them with the old.
    trial.demo(out=tmp_path / "demo", settings=("optimizer.steps=4", *SHORT[1:]))
    assert (tmp_path / "demo/plain/journal.jsonl").stat().st_mtime_ns != kept


def test_other_pictures_under_the_same_recipe_are_not_passed_over(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(DEMO_PICTURES, pictures)
    words = ("train", pictures, "--trigger", "zqx", "--out", tmp_path / "run", "--set", SHORT[0])
    first = variegate(*words)
    assert variegate(*words) == first
    (pictures / "00.png").unlink()
    fault = variegate(*words, expect=2)["error"]["message"]
    assert "pictures removed: 00.png" in fault


def test_photographs_run_to_a_report(tmp_path: Path) -> None:
    document = variegate(
        *("trial", PHOTOS, "--trigger", "zqx", "--class", "toy", "--base", "pocket"),
        *("--out", tmp_path / "run", "--set", "optimizer.steps=20"),
        *("--set", "sampling.preset=quick", "--set", "sampling.steps=4"),
    )
    page = Path(document["report"]).read_text(encoding="utf8")
    assert document["verdict"]["labels"]
    assert document["verdict"]["weak_encoder"]
    assert "healthy" not in label_of(document["verdict"])
    assert document["verdict"]["sentence"].split(".")[0] in unescape(page)
    again = variegate("train", "--resume", tmp_path / "run")
    assert again["step"] == 20
    assert Path(variegate("report", tmp_path / "run")["report"]).is_file()


def folder_of(at: Path, prompts: list[str], seeds: range, **fixed: Any) -> Path:
    """A folder of samples, one sub-folder per prompt, as other tools leave them."""
    for prompt in prompts:
        home = at / prompt
        home.mkdir(parents=True)
        for seed in seeds:
            rng = np.random.default_rng((seed, len(prompt), sum(map(ord, prompt))))
            colour = next((c for c in world.COLOURS if c in prompt), None)
            told = {"colour": colour} if colour else {}
            scene = world.draw_scene(rng, **{**told, **fixed})
            Image.fromarray(world.render(scene)).save(home / f"{seed:02d}.png")
    return at


PROMPTS = [f"a picture on a {c} background" for c in ("red", "green", "blue", "pink", "white")] + [
    f"a picture of {what}" for what in ("a toy", "an animal", "a food", "a plant", "a face")
]


def test_folders_are_measured_without_a_model(tmp_path: Path) -> None:
    reference = folder_of(tmp_path / "base", PROMPTS, range(6))
    same = folder_of(tmp_path / "other seeds", PROMPTS, range(100, 106))
    one_place = folder_of(
        tmp_path / "collapsed",
        PROMPTS,
        range(100, 106),
        subject="owl",
        size="large",
        position="center",
        pattern="plain",
        colour="red",
    )
    healthy = variegate("measure", "--images", same, "--reference", reference)
    assert not label_of(healthy) & {"narrowed", "copying", "prompt-ignored"}
    words = ("measure", "--images", one_place, "--reference", reference)
    kept = tmp_path / "kept"
    collapsed = variegate(*words, "--fail-on", "narrowed", "--out", kept, expect=3)
    assert "narrowed" in label_of(collapsed)
    page = Path(collapsed["report"]).read_text(encoding="utf8")
    assert unescape(collapsed["sentence"]) in unescape(page)
    assert "How training went" not in page
    assert variegate("verdict", kept)["labels"] == collapsed["labels"]
    assert variegate("report", kept)["report"] == collapsed["report"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("audit", "no/such/folder"), "no/such/folder"),
        (("measure", "--images", "no/such", "--reference", "no/such"), "no/such"),
        (("train", "no/such", "--base", "pocket", "--trigger", "z", "--class", "toy"), "no/such"),
        (("sample", "--base", "no/such/base", "--prompt", "x", "--out", "o"), "no/such/base"),
    ],
)
def test_a_wrong_path_is_a_plain_error(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "variegate", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_recipe_key_names_the_right_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "variegate", "train", str(PHOTOS), "--base", "pocket"),
            *("--trigger", "zqx", "--class", "toy", "--out", str(tmp_path / "run")),
            *("--set", "optimizer.stpes=5"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "'steps'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_folders_with_a_trigger_are_judged_with_and_without_it(tmp_path: Path) -> None:
    plain = [f"a toy on a {c} background" for c in ("red", "green", "blue", "pink")]
    called = [p.replace("toy", "zqx") for p in plain]
    reference = folder_of(tmp_path / "base", plain, range(4))
    ours = folder_of(tmp_path / "ours", plain + called, range(50, 54))
    verdict = variegate(
        *("measure", "--images", ours, "--reference", reference, "--trigger", "zqx"),
        *("--class", "toy"),
    )
    # The reference's pictures answer both: the class prompt and the trigger prompt made of it.
    assert verdict["plan"]["prompts"] == {"class": 4, "trigger": 4}


def test_the_demo_leaves_a_run_that_is_not_its_own(tmp_path: Path) -> None:
    pictures = tmp_path / "mine"
    shutil.copytree(DEMO_PICTURES, pictures)
    run = tmp_path / "demo/plain"
    variegate("train", pictures, "--trigger", "zqx", "--out", run, "--set", SHORT[0])
    fault = variegate("demo", "--out", tmp_path / "demo", expect=2)["error"]
    assert fault["kind"] == "RunError"
    assert (run / "adapter.safetensors").is_file()
