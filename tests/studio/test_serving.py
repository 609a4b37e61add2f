"""The verb: one line, no strangers, and an end that ends nothing else."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.studio.browsing import end_jobs, looked_at
from tests.studio.house import build
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import RequestError
from variegate.studio import check_reach


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    looked_at(tmp_path / "home")
    begun: list[subprocess.Popen[str]] = []

    def starting(*words: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "variegate", "studio", "--home", str(tmp_path / "home")]
        process = subprocess.Popen(
            [*command, "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        begun.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield starting
    for process in begun:
        process.kill()
        process.communicate()


def visit(address: str) -> tuple[int, str]:
    host, _, rest = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/{rest}")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("location") or ""


def test_it_prints_one_line_and_serves(start: Any) -> None:
    process, line = start()
    assert line.startswith("http://127.0.0.1:")
    assert visit(line) == (303, "/")
    assert visit(line.partition("?")[0])[0] == 401
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert line.partition("token=")[2] not in err


def test_at_its_first_start_it_looks_at_the_machine_and_then_no_more(tmp_path: Path) -> None:
    house = build(tmp_path / "home")

    async def begun() -> None:
        async with house.app.router.lifespan_context(house.app):
            pass

    for _ in range(2):
        anyio.run(begun)
    assert len(house.desk.jobs.of("doctor", "doctor")) == 1
    end_jobs(house.desk.home)


def test_as_json_the_line_is_the_one_document(start: Any) -> None:
    process, line = start("--json")
    assert set(json.loads(line)) == {"address", "home"}
    process.terminate()
    assert process.communicate(timeout=60)[0] == ""


@pytest.mark.parametrize(
    ("listen", "password", "told"),
    [
        ("0.0.0.0", None, "give --password"),
        ("192.168.1.5", None, "lets other machines in"),
        ("::", None, "give --password"),
        ("0.0.0.0", "short", "at least 8"),
        (None, "long enough", "goes with --listen"),
        ("evil.example", "long enough", "is no address"),
    ],
)
def test_others_are_let_in_only_with_a_password(
    listen: str | None, password: str | None, told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        check_reach(listen, password)
    words = ["studio", *(["--listen", listen] if listen else [])]
    words += ["--password", password] if password else []
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2


def test_a_port_that_is_taken_is_told(start: Any) -> None:
    _, line = start()
    port = line.partition("?")[0].rstrip("/").rpartition(":")[2]
    done = CliRunner().invoke(app, ["studio", "--port", port])
    assert done.exit_code == 2
