"""One answer on standard output, whatever happens inside."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from variegate.console import Door, Progress
from variegate.errors import NotFinite, RecipeError


def _pass_through(door: Door, error: BaseException | None = None) -> int:
    try:
        with door:
            print("a library chatters")
            door.answer({"x": 1}, "one")
            if error is not None:
                raise error
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a door always ends the process")


def test_json_is_the_only_thing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert _pass_through(Door(as_json=True)) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"x": 1}
    assert "a library chatters" in err


def test_people_get_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert _pass_through(Door()) == 0
    assert capfd.readouterr().out == "one\n"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RecipeError("rank is 0"), 2, "rank is 0"),
        (NotFinite("a NaN at step 3"), 1, "a NaN at step 3"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (ZeroDivisionError("by\nzero"), 1, "unexpected ZeroDivisionError: by zero"),
    ],
)
def test_each_fault_has_its_code_and_no_traceback(
    error: BaseException, code: int, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _pass_through(Door(as_json=True), error) == code
    out, err = capfd.readouterr()
    assert told in err
    assert "Traceback" not in err
    assert told in json.loads(out)["error"]["message"]


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert _pass_through(Door(debug=True), ZeroDivisionError()) == 1
    assert "Traceback" in capfd.readouterr().err


def test_a_number_that_is_not_finite_never_reaches_the_json(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), Door(as_json=True) as door:
        door.answer({"x": float("nan")}, "")
    assert capfd.readouterr().out == ""


def test_sigterm_ends_with_143() -> None:
    code = """
import os, signal, time
from variegate.console import Door
with Door(as_json=True):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except Exception as error:
        raise RuntimeError("a library that answers for everything") from error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" in json.loads(done.stdout)["error"]["message"]


def _answer(text: str, where: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    code = f"from variegate.console import Door\nwith Door() as door: door.answer({{}}, {text!r})"
    with open(where or os.devnull, "wb") as out:
        return subprocess.run(
            [sys.executable, "-c", code],
            stdout=out if where else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            check=False,
        )


def test_an_answer_in_letters_that_the_terminal_lacks_is_told_all_the_same() -> None:
    done = _answer("owl\xe9 \u65e5", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stdout.strip()) == (0, b"owl\xe9 \\u65e5")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_an_answer_that_cannot_be_written_is_a_fact() -> None:
    done = _answer("one", where="/dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "the answer cannot be written: No space left on device"
    ]


def test_an_answer_cannot_drive_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), Door() as door:
        door.answer({}, "runs/e\x1b[31mred\nand more")
    assert capfd.readouterr().out == "runs/e\\x1b[31mred\nand more\n"


def test_a_place_that_cannot_be_written_is_no_fault_of_ours(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert _pass_through(Door(), NotADirectoryError(20, "Not a directory", "a.txt/base")) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("a.txt/base: Not a directory; ")


def test_a_name_that_is_no_utf_8_is_told_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnicodeEncodeError) as fault:
        os.fsdecode(b"owl\xe9").encode()
    assert _pass_through(Door(), fault.value) == 2
    assert r"'owl\udce9' holds bytes that are no UTF-8" in capfd.readouterr().err


def test_control_marks_cannot_drive_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    _pass_through(Door(), RecipeError("trigger \x1b[31m\u202e"))
    assert "\\x1b[31m\\u202e" in capfd.readouterr().err


def test_progress_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("variegate.console.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    say = Progress(stream)
    for done in range(40, 101):
        say("train", done, 100, "loss 0.5")
        now[0] += 0.5
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train  40/100  loss 0.5"
    # 2 per second since it began at 40, whatever was done before.
    assert lines[1] == "train  50/100  2.0/s  25 s left  loss 0.5"
    assert lines[-1] == "train  100/100  2.0/s  loss 0.5"
    assert len(lines) == 7


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    Progress(stream, quiet=True)("train", 1, 2)
    assert stream.getvalue() == ""


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_a_reader_that_leaves_is_no_fault() -> None:
    code = """
from variegate.console import Door
with Door() as door:
    door.answer(None, "x\\n" * 200_000)
"""
    done = subprocess.run(
        f"{sys.executable} -c '{code}' | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 141
    assert done.stderr == ""
