"""The run folder: made once, locked, journaled through crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import variegate
from variegate.errors import BaseError, NoSpace, RunError, RunLocked
from variegate.measurement import Measurement
from variegate.recipe import Recipe
from variegate.run import Run, write_atomically

PACKAGE = Path(variegate.__file__).parents[1]
CHILD = {**os.environ, "PYTHONPATH": str(PACKAGE)}
RECIPE = Recipe(trigger="zqx", class_noun="toy")


def test_a_run_opens_with_the_recipe_it_was_made_with(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a ü\nrun", RECIPE)
    assert Run.open(run.folder).recipe == RECIPE
    assert Run.create(run.folder, RECIPE).folder == run.folder


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    Run.create(tmp_path, RECIPE)
    with pytest.raises(RunError, match=r"trigger: 'zqx' there, 'other' asked"):
        Run.create(tmp_path, RECIPE.model_copy(update={"trigger": "other"}))


def test_a_request_that_is_refused_leaves_its_folder_free(tmp_path: Path) -> None:
    folder, mended = tmp_path / "run", RECIPE.model_copy(update={"trigger": "other"})
    with pytest.raises(BaseError), Run.claimed(folder, RECIPE):
        raise BaseError("no such base")
    assert not folder.exists()
    with Run.claimed(folder, mended) as run:
        run.journal("start", step=0)
    with pytest.raises(BaseError), Run.claimed(folder, mended) as run:  # it has begun
        raise BaseError("the base is gone")
    assert Run.open(folder).recipe == mended
    with pytest.raises(RunError, match="holds another run"), Run.claimed(folder, RECIPE):
        pass


def test_what_is_no_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"no recipe\.toml"):
        Run.open(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RunError, match="is a file"):
        Run.create(file, RECIPE)
    with pytest.raises(NoSpace, match="cannot be written"):
        Run.create(file / "below", RECIPE)
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(RunError, match="no recipe"):
        Run.create(tmp_path, RECIPE)


def test_a_torn_line_is_left_out_and_writing_goes_on(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RECIPE)
    run.journal("step", step=1, loss=0.5)
    run.journal("probe", step=1, measurements=[Measurement("gap", 0.1)])
    whole = run.journal_file.read_bytes()
    run.journal_file.write_bytes(whole + '{"kind": "step", "note": "ü'.encode()[:-1])
    assert [e["kind"] for e in run.read_journal()] == ["step", "probe"]
    run.journal("note", text="after")
    assert [e["kind"] for e in run.read_journal()] == ["step", "probe", "note"]
    assert run.read_journal("probe")[0]["measurements"][0]["name"] == "gap"


def test_a_later_start_takes_back_the_steps_it_does_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RECIPE)
    run.journal("start", step=0)
    for step in (1, 2, 3):
        run.journal("step", step=step, loss=1.0)
    run.journal("start", step=2)
    run.journal("step", step=3, loss=2.0)
    assert [(e["step"], e["loss"]) for e in run.read_journal("step")] == [(1, 1), (2, 1), (3, 2)]


def test_nan_never_enters_the_journal(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RECIPE)
    with pytest.raises(ValueError, match="JSON"):
        run.journal("step", loss=float("nan"))
    assert run.read_journal() == []


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path, RECIPE)
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from variegate.errors import RunLocked
        from variegate.run import Run
        try:
            with Run.open(Path(sys.argv[1])).locked():
                print("held")
        except RunLocked as error:
            print(error)
        """
    )

    def other() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env=CHILD,
        )
        assert "torch" not in done.stderr
        return done.stdout

    with run.locked():
        assert "in use by process" in other()
        with pytest.raises(RunLocked), Run.open(tmp_path).locked():
            pass
    assert other().strip() == "held"


def test_the_folder_is_read_without_torch() -> None:
    code = "import sys, variegate.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=CHILD).returncode == 0


def test_a_write_is_whole_or_absent(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]
