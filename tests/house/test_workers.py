"""Work in pieces: the death of a worker costs time, never a result, and none comes twice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

import variegate
from variegate import workers as room
from variegate.errors import Interrupted, RequestError, WorkerLost
from variegate.workers import is_loss, spread, threads_of, workers


def square(n: int, folder: Path | None = None, deaths: int = 0) -> int:
    """n squared; the piece 2 first dies as often as is asked."""
    if folder and n == 2:
        before = len(list(folder.iterdir()))
        if before < deaths:
            (folder / str(before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if n < 0:
        raise RequestError(f"{n} is below nought")
    return n * n


def done(pieces: list[int], work: object = square, jobs: int = 2) -> dict[int, int]:
    """What came of every piece; none may come twice."""
    waiting, found = list(pieces), dict[int, int]()

    def note(piece: int, result: int) -> None:
        assert piece not in found
        found[piece] = result

    with workers("", jobs) as pool:
        spread(
            pool,
            work,  # type: ignore[arg-type]
            more=lambda: waiting.pop(0) if waiting else None,
            note=note,
            jobs=jobs,
        )
    return found


def test_a_killed_worker_costs_no_result(tmp_path: Path) -> None:
    found = done([1, 2, 3, 4], partial(square, folder=tmp_path, deaths=1))
    assert found == {n: n * n for n in (1, 2, 3, 4)}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_piece_that_kills_each_worker_is_given_up_with_advice(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"at work on 2 died 2 times.*fewer --workers"):
        done([2], partial(square, folder=tmp_path, deaths=9), jobs=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_work_s_own_fault_is_no_loss_and_is_not_tried_again() -> None:
    with pytest.raises(RequestError, match="-1 is below nought"):
        done([-1], jobs=1)
    assert not is_loss(RequestError("no"))


def test_pieces_may_depend_on_what_came_before() -> None:
    found = list[int]()
    with workers("", 1) as pool:
        spread(
            pool,
            square,
            more=lambda: 2 if not found else found[-1] if found[-1] < 200 else None,
            note=lambda _, result: found.append(result),
        )
    assert found == [4, 16, 256]


def test_workers_end_with_whoever_asked_for_them() -> None:
    code = textwrap.dedent(
        """
        import time
        from variegate.workers import workers
        if __name__ == "__main__":
            with workers("", 1) as pool:
                pool.submit(pow, 2, 2).result()
                future = pool.submit(time.sleep, 60)
                print("ready", flush=True)
                future.result()
        """
    )
    home = str(Path(variegate.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": home},
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    below = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    child.stdout.close()
    until = time.monotonic() + 5
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below):
        assert time.monotonic() < until, "a worker outlived who asked for it"
        time.sleep(0.05)


def test_a_stop_comes_home_from_other_processes() -> None:
    stop = pickle.loads(pickle.dumps(Interrupted("stopped", 2)))
    assert (str(stop), stop.exit_code) == ("stopped", 130)


def test_a_worker_takes_no_more_threads_than_the_environment_grants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(jobs) for jobs in (1, 2, 16)] == [8, 4, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [threads_of(jobs) for jobs in (1, 2, 16)] == [2, 1, 1]


def test_a_pool_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match="pip install ray"), workers("ray", 1):
        pass
    with pytest.raises(RequestError, match="there is 'ray'"), workers("moon", 1):
        pass
    assert room.TRIES == 2
