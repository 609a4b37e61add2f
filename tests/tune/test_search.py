"""The search on a known surface: nothing is lost, doubled or made up, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.train.scenes import write_pictures
from tests.tune.pieces import figures, run, search_of, surface
from typer.testing import CliRunner

import variegate
from variegate.cli import app
from variegate.errors import RequestError, RunError
from variegate.tune import search as room
from variegate.tune.front import hypervolume
from variegate.tune.result import trial_of
from variegate.tune.search import default_limits


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> Path:
    return write_pictures(tmp_path_factory.mktemp("tune") / "images", count=3)


class _Here(Executor):
    """Does what it is given at once, in this process."""

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given, **named))
        except Exception as error:
            done.set_exception(error)
        return done


def found(images: Path, out: Path, *, apart: bool = False, **more: Any) -> dict[str, Any]:
    """What a search comes to; apart: its trials are done in a process of their own."""
    how = {k: more.pop(k) for k in ("minutes", "patience", "storage", "jobs") if k in more}
    with pytest.MonkeyPatch.context() as patch:
        if not apart:
            patch.setattr(room, "workers", lambda on, jobs: nullcontext(_Here()))
        return room.search(search_of(images, **more), out=out, work=run, **how)


def asked(document: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(point["settings"]) for point in document["points"]]


def begun(out: Path) -> Counter[str]:
    file = out / "begun"
    return Counter(file.read_text().splitlines() if file.exists() else [])


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: Any) -> dict[str, Any]:
    """A search that nobody disturbed."""
    return found(images, tmp_path_factory.mktemp("whole"), trials=12)


def test_a_search_finds_the_front_and_says_what_to_take(whole: dict[str, Any]) -> None:
    ended = whole["trials"]["measured"] + len(whole["trials"]["failed"])
    assert (ended, whole["left"]) == (12, 0)
    assert whole["measured_anew"]
    taken = whole["recommended"]
    points = [(p["likeness"]["value"], p["variety"]["value"]) for p in whole["front"]]
    assert max(points, key=lambda p: p[0] * p[1]) == (
        taken["likeness"]["value"],
        taken["variety"]["value"],
    )
    assert "largest product of likeness" in taken["reason"]
    assert whole["hypervolume_anew"] == pytest.approx(hypervolume(points))
    page = Path(whole["page"]).read_text(encoding="utf8")
    assert "What to take" in page
    assert taken["settings"][0] in page
    assert "<script" not in page


def test_the_recipe_as_it_is_comes_first(whole: dict[str, Any]) -> None:
    first = whole["points"][0]
    assert {"adapter.rank=16", "optimizer.lr=0.0006", "strategies.stay_near=off"} <= {
        *first["settings"]
    }


def test_by_how_much_the_search_flattered_its_front_is_told(whole: dict[str, Any]) -> None:
    assert whole["flattered"]["likeness"] == pytest.approx(0.05)
    assert whole["flattered"]["variety"] == pytest.approx(0.05)


def test_a_search_that_is_cut_short_goes_on_as_it_would_have(
    images: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    part = found(images, tmp_path / "s", trials=5)
    rest = found(images, tmp_path / "s", trials=12)
    assert asked(part) == asked(rest)[: len(asked(part))]
    assert asked(rest) == asked(whole)
    assert all(n == 1 for name, n in begun(tmp_path / "s").items() if name.startswith("trial"))


def test_after_its_minutes_nothing_is_begun(images: Path, tmp_path: Path) -> None:
    document = found(images, tmp_path / "s", minutes=0.0)
    assert (document["left"], document["recommended"]) == (12, None)
    assert document["why_none"] == "no trial has ended yet"
    assert not begun(tmp_path / "s")


@pytest.mark.slow
def test_a_killed_worker_s_trial_is_tried_once_more(
    images: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / "kill-trial 2").touch()
    document = found(images, out, trials=12, apart=True)
    assert asked(document) == asked(whole)
    assert begun(out)["trial 2"] == 2


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tests.tune.pieces import run, search_of
    from variegate.tune.search import search
    if __name__ == "__main__":
        images, out, storage, trials, seed = sys.argv[1:6]
        found = search(
            search_of(Path(images), trials=int(trials), seed=int(seed)),
            out=Path(out), work=run, patience=2.0, storage=storage or None,
        )
        print(len(found["points"]) + len(found["trials"]["failed"]), flush=True)
    """
)


def child(
    images: Path, out: Path, *, storage: str = "", trials: int = 12, seed: int = 0
) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    home = Path(variegate.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(images), str(out), storage, str(trials), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, home, root / "tests")))},
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return out


def wait_for(out: Path, lines: int) -> None:
    until = time.monotonic() + 90
    while sum(begun(out).values()) < lines:
        assert time.monotonic() < until, "nothing was begun"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_search_that_is_killed_loses_one_trial_s_time_and_no_result(
    images: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / "slow").write_text("0.5")
    first = child(images, out)
    wait_for(out, 3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = begun(out)
    (out / "slow").unlink()
    document = found(images, out, trials=12, patience=2.0)
    # Others are tried until the killed one's trial is given up, so their order is another.
    assert len(document["points"]) + len(document["trials"]["failed"]) == 12
    told = [*asked(document), *(tuple(f["settings"]) for f in document["trials"]["failed"])]
    assert len(set(told)) == 12
    assert asked(document)[:2] == asked(whole)[:2]
    assert asked(whole)[2] in told
    again = {n: c for n, c in begun(out).items() if n.startswith("trial")}
    assert sum(again.values()) == 13
    assert all(begun(out)[name] == count for name, count in before.items())


def share_one(images: Path, out: Path, storage: str = "") -> None:
    """Two processes at one search, which no other test has begun in that storage: as many trials as
    asked, none by both."""
    out.mkdir()
    (out / "slow").write_text("0.2")
    both = [child(images, out, storage=storage, trials=8, seed=7) for _ in range(2)]
    assert [int(ended(process)) for process in both] == [8, 8]
    tried = {n: c for n, c in begun(out).items() if n.startswith("trial")}
    assert sum(tried.values()) == 8
    assert set(tried.values()) == {1}


@pytest.mark.slow
def test_processes_share_one_search(images: Path, tmp_path: Path) -> None:
    share_one(images, tmp_path / "s")


def test_scouts_that_fall_behind_are_given_up_and_the_others_are_measured(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    document = found(images, out, trials=14, scouts=8)
    counts = document["trials"]
    assert sum(n.startswith("scout") for n in begun(out)) == 8
    assert 0 < counts["given_up"] < 8
    assert counts["measured"] + counts["given_up"] + len(counts["failed"]) == 14
    assert document["left"] == 0


def test_settings_that_do_not_work_are_told_and_not_asked_again(
    images: Path, tmp_path: Path
) -> None:
    document = found(images, tmp_path / "s", trials=8, ranges=["optimizer.lr=1e-3,5e-3,1e-2"])
    failed = document["trials"]["failed"]
    assert [f["settings"] for f in failed] == [["optimizer.lr=0.01"]]
    assert "not a number" in failed[0]["why"]
    # Three settings are all that there are: the search ends though more were asked.
    assert document["trials"]["measured"] == 2
    assert document["left"] == 0
    assert any("no more settings" in note for note in document["notes"])
    assert begun(tmp_path / "s")["trial 0"] == 1


def test_where_scouts_run_out_of_settings_these_are_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REPEATS", 4)
    out = tmp_path / "s"
    document = found(images, out, trials=24, scouts=8, ranges=["adapter.rank=4,8,16"])
    assert document["trials"]["measured"] == 3
    assert document["recommended"] is not None
    assert document["left"] == 0
    assert room.EXHAUSTED in document["notes"]
    assert sum(n.startswith("scout") for n in begun(out)) == 3


def test_all_of_a_grid_is_tried_before_it_counts_as_exhausted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REPEATS", 1)
    ranges = ["adapter.rank=2,4,8,16,32", "strategies.stay_near=on,off"]
    document = found(images, tmp_path / "s", trials=10, ranges=ranges)
    assert len(set(asked(document))) == document["trials"]["measured"] == 10
    assert room.EXHAUSTED not in document["notes"]


def test_what_is_being_tried_is_not_tried_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REPEATS", 4)
    ranges = ["adapter.rank=4,16", "strategies.stay_near=on,off"]
    document = found(images, tmp_path / "s", trials=6, jobs=4, ranges=ranges)
    assert len(set(asked(document))) == document["trials"]["measured"] == 4
    assert (document["left"], room.EXHAUSTED in document["notes"]) == (0, True)
    assert sum(n.startswith("trial") for n in begun(tmp_path / "s")) == 4


def test_a_range_that_gives_nothing_new_is_told_as_what_it_is(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_REPEATS", 3)
    ranges = ["optimizer.lr=1e-3..1.0001e-3"]  # to four digits: one value
    document = found(images, tmp_path / "s", trials=4, ranges=ranges)
    assert document["trials"]["measured"] == 1
    assert room.CIRCLING in document["notes"]
    assert room.EXHAUSTED not in document["notes"]


def test_where_no_trial_keeps_to_the_limits_nothing_is_recommended(
    images: Path, tmp_path: Path
) -> None:
    document = found(images, tmp_path / "s", trials=4, limits={"likeness": 0.99})
    assert document["recommended"] is None
    assert "none of" in document["why_none"]
    assert "likeness at least 0.99" in document["why_none"]
    assert all("likeness" in point["broken"] for point in document["points"])


def test_a_folder_holds_one_search(images: Path, tmp_path: Path) -> None:
    found(images, tmp_path / "s", trials=1)
    with pytest.raises(RunError, match=r"(?s)holds another search.*ranges\.adapter\.rank"):
        found(images, tmp_path / "s", trials=1, ranges=["adapter.rank=2,4"])


def test_what_cannot_be_compared_is_said() -> None:
    told = figures(0.5, 0.5)
    told["likeness"] = {"why": "needs two training pictures or more"}
    with pytest.raises(RequestError, match="likeness could not be measured, needs two"):
        trial_of(0, {}, [told])
    del told["trigger_variety_vs_base"]
    half = figures(0.5, 0.5)
    half["trigger_variety_vs_base"] = {"why": "no trigger"}
    assert trial_of(0, {}, [half]).variety.value == 0.5


def test_more_variety_than_the_base_s_is_no_gain() -> None:
    trial = trial_of(0, {}, [figures(0.5, 1.4), figures(0.7, 0.8)])
    assert trial.variety.value == pytest.approx(0.9)
    assert trial.likeness.value == pytest.approx(0.6)
    assert trial.variety.seeds == pytest.approx((1.0, 0.8))


def test_limits_are_the_verdict_s_lines_unless_others_are_asked() -> None:
    lines = {limit.measurement: limit for limit in default_limits({"class_retention": 0.9})}
    assert lines["copy_rate"].above
    assert lines["class_retention"].at == 0.9
    assert lines["class_retention"].broken(0.8) == pytest.approx(0.1)
    assert lines.keys() == {"likeness", "copy_rate", "adherence_vs_base", "class_retention"}
    with pytest.raises(RequestError, match="there are likeness, copy_rate"):
        default_limits({"copyrate": 0.1})


def test_the_surface_has_a_front_to_be_found() -> None:
    one, other = (
        surface(search_of(Path("x"), trials=1).recipe.model_copy(update={"optimizer": plan}))
        for plan in (
            search_of(Path("x")).recipe.optimizer.model_copy(update={"lr": lr})
            for lr in (2e-4, 5e-3)
        )
    )
    assert one[0] < other[0]
    assert one[1] > other[1]


def test_the_verb_explains_without_trying_anything(images: Path) -> None:
    words = ["tune", str(images), "--preset", "pocket", "--recipe", "pocket-plain", "--explain"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {line["knob"] for line in told["knobs"]} >= {"adapter.rank", "optimizer.lr"}
    plain = CliRunner().invoke(app, ["tune", "subject", "--preset", "subject", "--explain"])
    assert plain.exit_code == 0, plain.output
    assert "not measured here yet" in plain.stdout


KNOWN = ("--trigger", "zqx", "--class", "face", "--range", "adapter.rank=2,4")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--range", "adapter.rank=2,4"], "--trigger WORD"),
        (["--trigger", "zqx", "--class", "face"], "nothing is varied"),
        (
            [*KNOWN, "--limit", "copies"],
            "not of the form NAME=VALUE",
        ),
        (
            [*KNOWN, "--storage", "postgres://me:secret@nowhere/db"],
            "--storage postgres://me:***@nowhere/db cannot be used",
        ),
        (
            [*KNOWN, "--storage", "postgresql://me:secret@127.0.0.1:1/db"],
            "--storage postgresql://me:***@127.0.0.1:1/db cannot be used",
        ),
    ],
)
def test_what_is_asked_wrongly_is_told_with_what_to_ask(
    images: Path, tmp_path: Path, words: list[str], fault: str
) -> None:
    done = CliRunner().invoke(app, ["tune", str(images), "--out", str(tmp_path / "s"), *words])
    assert done.exit_code == 2, done.output
    assert fault in done.output
    assert "secret" not in done.output


def test_a_recipe_that_names_no_pictures_is_told() -> None:
    done = CliRunner().invoke(app, ["tune", "subject", "--range", "adapter.rank=2,4"])
    assert done.exit_code == 2
    assert "no pictures to learn from" in done.output
