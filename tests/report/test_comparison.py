"""Two runs on one page."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.drawn_runs import write_run
from tests.report.test_report import read

from variegate.errors import RunError
from variegate.measurement import Measurement, Missing
from variegate.report import write_comparison
from variegate.report.text import MINUS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    write_run(folder / "plain", narrowed=True, seeds=4)
    write_run(folder / "guarded", narrowed=False, seeds=4)
    return folder


def write(drawn: Path, out: Path, **more: object) -> str:
    file = write_comparison(
        drawn / "plain",
        drawn / "guarded",
        titles=("plain", "guarded"),
        intro="Twelve pictures, learnt twice.",
        out=out,
        **more,  # type: ignore[arg-type]
    )
    return read(file).text


def test_both_verdicts_and_their_numbers_stand_side_by_side(drawn: Path, tmp_path: Path) -> None:
    text = write(drawn, tmp_path / "demo.html")
    assert "become nearly alike" in text
    assert "kept the base model's variety" in text
    assert "15 % (9 % to 24 %) 81 % (69 % to 94 %)" in text
    alts = [a["alt"] for t, a in read(tmp_path / "demo.html").elements if t == "img"]
    for alt in ("Base: an animal, seed 2", "plain: a zqx, seed 2", "guarded: a zqx, seed 2"):
        assert alt in alts


def test_a_difference_inside_the_noise_is_called_none(drawn: Path, tmp_path: Path) -> None:
    text = write(
        drawn,
        tmp_path / "demo.html",
        differences=[
            Measurement("trigger_variety_vs_base", 0.66, 0.5, 0.8, 16),
            Measurement("likeness", -0.02, -0.05, 0.01, 16),
            Measurement("world_drift", -0.15),
            Missing("copy_rate", "too few samples"),
        ],
    )
    assert "+66 points (+50 to +80) more than chance explains" in text
    assert (
        "\N{MINUS SIGN}2 points (\N{MINUS SIGN}5 to +1) no difference that these pictures can show"
        in text
    )
    assert f"{MINUS}0.15 no range, so unproven" in text
    assert "too few samples" in text


def test_only_what_the_right_run_added_is_listed(drawn: Path, tmp_path: Path) -> None:
    text = write(drawn, tmp_path / "demo.html", why={"zoom_shift": "Because all are centred."})
    differently = text[text.index("did differently, and why") :]
    assert "Stay near the base" in differently
    assert "Because all are centred." in differently
    assert "Mirroring" not in differently  # both had it
    assert "Everything else was the same" in differently


def test_other_differences_between_the_recipes_are_not_hidden(drawn: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "longer", narrowed=False, seeds=2)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("steps = 600", "steps = 900"))
    file = write_comparison(
        drawn / "guarded", run, titles=("a", "b"), intro="", out=tmp_path / "x.html"
    )
    text = read(file).text
    assert "optimizer.steps 600 900" in text
    assert "Everything else was the same" not in text
    assert "No strategy that the other one lacked" in text


def test_next_steps_close_the_page(drawn: Path, tmp_path: Path) -> None:
    text = write(drawn, tmp_path / "demo.html", next_steps=[("Try yours", "variegate trial MINE")])
    assert "What to do next Try yours variegate trial MINE" in text


def test_missing_parts_are_tolerated(drawn: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "broken", narrowed=True, seeds=2)
    for name in ("verdict.json", "recipe.toml", "samples/adapter/metadata.jsonl"):
        (run / name).unlink()
    file = write_comparison(
        run, drawn / "guarded", titles=("a", "b"), intro="", out=tmp_path / "x.html"
    )
    text = read(file).text
    assert "No verdict: verdict.json is missing" in text
    assert "A recipe is missing" in text
    with pytest.raises(RunError):
        write_comparison(
            tmp_path / "none", run, titles=("a", "b"), intro="", out=tmp_path / "y.html"
        )
