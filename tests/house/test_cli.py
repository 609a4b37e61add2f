"""What the command line promises before any work is done."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from variegate import doctor
from variegate.cli import app


def _ask(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["audit"], "Missing argument 'IMAGES'"),
        (["sample", "--prompt", "a"], "Missing option '--out'"),
        (["nonsense"], "No such command"),
        (["convert", "a", "b", "--to", "pickle"], "'pickle' is not one of"),
        (["sample", "--prompt", "a", "--out", "x", "--seeds", "0"], "greater than or equal to 1"),
        (
            ["sample", "--prompt", "a", "--out", "x", "--steps", "1001"],
            "less than or equal to 1000",
        ),
    ],
)
def test_wrong_words_exit_2_and_name_the_word(words: list[str], told: str) -> None:
    code, out, err = _ask(*words)
    assert code == 2
    assert told in " ".join(err.replace("│", " ").split())
    assert out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["measure"], "--images DIR --reference DIR"),
        (["measure", "a.safetensors", "--images", "x"], "not both"),
        (["measure", "a.safetensors", "--fail-on", "narow"], "did you mean 'narrowed'?"),
        (["train"], "no pictures to learn from"),
        (["train", "x", "--resume", "y"], "leave IMAGES"),
        (["train", "--resume", "y", "--trigger", "zqx"], "leave IMAGES"),
        (["train", "--resume", "y", "--seed", "0"], "leave IMAGES"),
        (["bench", "--out", f"{os.devnull}/x"], "Not a directory; name a folder"),
        (["demo", "--out", os.devnull], "File exists; name a folder"),
        (["train", "x", "--steps", "9"], "--set optimizer.steps=N"),
        (["train", "x", "--recipe", "nowhere"], "shipped recipes"),
        (["train", "x", "--set", "optimizer.stpes=3"], "did you mean 'steps'?"),
        (["train", "x", "--set", "rank"], "not of the form key.sub=value"),
        (["trial", "x", "--trigger", "zqx"], "--class NOUN"),
        (["recipe", "--set", "adapter.rank=0"], "adapter.rank"),
    ],
)
def test_impossible_requests_exit_2_and_say_what_to_do(words: list[str], told: str) -> None:
    code, out, err = _ask(*words, "--json")
    assert code == 2
    assert told in err
    assert told in json.loads(out)["error"]["message"]
    assert "Traceback" not in err


def test_a_setting_of_a_schedule_takes_its_short_name_for_a_table() -> None:
    code, text, _ = _ask("recipe", "pocket", "--set", "optimizer.schedule.floor=0.1")
    assert code == 0
    schedule = tomllib.loads(text)["optimizer"]["schedule"]
    assert (schedule["kind"], schedule["floor"]) == ("cosine", 0.1)


def test_all_faults_of_a_recipe_are_told_at_once() -> None:
    _, _, err = _ask("recipe", "--set", "adapter.rank=0", "--set", "optimizer.lr=7", "--set", "x=1")
    assert all(path in err for path in ("adapter.rank", "optimizer.lr", "x: no such key"))


def test_a_printed_recipe_is_a_recipe(tmp_path: Path) -> None:
    code, text, _ = _ask("recipe", "subject", "--set", "optimizer.steps=7", "--seed", "3")
    assert code == 0
    assert tomllib.loads(text)["optimizer"]["steps"] == 7
    file = tmp_path / "mine.toml"
    file.write_text(text)
    first = json.loads(
        _ask("recipe", "subject", "--set", "optimizer.steps=7", "--seed", "3", "--json")[1]
    )
    again = json.loads(_ask("recipe", str(file), "--json")[1])
    assert again["id"] == first["id"]


def test_strategies_are_a_list_of_whole_entries() -> None:
    menu = json.loads(_ask("strategies", "--json")[1])
    assert {"stay_near", "zoom_shift", "masked_loss"} <= {entry["name"] for entry in menu}
    text = _ask("strategies")[1]
    for entry in menu:
        assert {"name", "stage", "summary", "settings", "cost", "effect"} <= entry.keys()
        assert entry["summary"].endswith(".")
        assert entry["name"] in text


def test_the_version_is_one() -> None:
    from variegate import __version__

    assert _ask("--version")[1].split() == ["variegate", __version__]


@pytest.mark.parametrize(
    "verb", sorted(c.callback.__name__ for c in app.registered_commands if c.callback)
)
def test_every_verb_takes_the_common_words_and_has_help(verb: str) -> None:
    code, out, _ = _ask(verb, "--help")
    assert code == 0
    assert all(word in out for word in ("--json", "--quiet", "--seed", "--debug"))


def test_doctor_tells_the_device_and_each_check() -> None:
    code, out, _ = _ask("doctor", "--json")
    findings = json.loads(out)
    assert findings["device"] in ("cpu", "cuda", "mps")
    assert {"torch", "matrix products", "pocket base"} <= {c["check"] for c in findings["checks"]}
    assert all(c["mend"] for c in findings["checks"] if c["state"] != "ok")
    assert code == (0 if findings["fit"] else 1)


def test_doctor_advises_against_a_precision_that_is_imitated() -> None:
    (slow,) = doctor._precision({"float32": 70.0, "bf16": 1.0})
    assert "leave precision at float32, bf16 takes 70 times as long" in slow["found"]
    (quick,) = doctor._precision({"float32": 70.0, "bf16": 200.0})
    assert "leave" not in quick["found"]
    assert doctor._precision({}) == []
