"""Work in pieces, side by side: on processes of this machine, or on a Ray cluster.

A worker that dies takes one piece with it, which is done once more elsewhere; so work that is
handed over here must go on where it was left, or end the same if it is done twice.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from variegate.errors import RequestError, WorkerLost

Piece = TypeVar("Piece")
Result = TypeVar("Result")

TRIES = 2  # of each piece, when its worker dies


@contextmanager
def workers(on: str, jobs: int) -> Iterator[Executor]:
    """Processes of this machine, each on its share of the cores, or those of a Ray cluster.

    on: "" for this machine, "ray" for the cluster that RAY_ADDRESS names, else one of this machine;
    or the address of a cluster, ray://HOST:PORT.
    Raises: RequestError when Ray is asked for and is not there.
    """
    pool: _Processes | _RayPool
    if on == "ray" or on.startswith("ray://"):
        pool = _RayPool("" if on == "ray" else on, jobs)
    elif on:
        raise RequestError(
            f"--on {on!r}: there is 'ray', or the address of a Ray cluster, ray://HOST:PORT; leave "
            "it out for this machine"
        )
    else:
        pool = _Processes(jobs)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.shutdown()


def spread(
    pool: Executor,
    work: Callable[[Piece], Result],
    *,
    more: Callable[[], Piece | None],
    note: Callable[[Piece, Result], None],
    lost: Callable[[Piece, WorkerLost], None] | None = None,
    jobs: int = 1,
    beat: Callable[[], None] | None = None,
    seconds: float | None = None,
) -> None:
    """Have the pool do every piece that `more` gives, no more than `jobs` at a time.

    more: the next piece, or None while there is none; asked again whenever one was done, so that
    it may depend on what came of the others. note: hears what came of each. lost: hears of a piece
    whose worker died `TRIES` times; None: that is raised. beat: called at least every so many
    `seconds` while pieces are being done.
    Raises: what the work raises; pieces not yet begun are then let go.
    """
    running = dict[Future[Result], tuple[Piece, int]]()

    def begin(piece: Piece, tries: int) -> None:
        running[pool.submit(work, piece)] = piece, tries

    try:
        while True:
            while len(running) < jobs and (piece := more()) is not None:
                begin(piece, 1)
            if not running:
                return
            done = wait(running, timeout=seconds, return_when=FIRST_COMPLETED).done
            if beat:
                beat()
            faults = list[BaseException]()
            for future in done:
                piece, tries = running.pop(future)
                error = future.exception()
                if error is None:
                    note(piece, future.result())
                elif not is_loss(error):
                    faults.append(error)
                elif tries < TRIES:
                    begin(piece, tries + 1)
                else:
                    what = getattr(piece, "name", piece)
                    told = WorkerLost(
                        f"the process at work on {what} died {TRIES} times (killed, or out of "
                        "memory); the same command tries again: use fewer --workers, or a smaller "
                        "batch"
                    )
                    if lost is None:
                        faults.append(told)
                    else:
                        lost(piece, told)
            if faults:  # once what did end well is noted
                raise faults[0]
    except BaseException:
        for future in running:
            future.cancel()
        raise


def is_loss(error: BaseException) -> bool:
    """Whether a worker died at its piece, and not the piece itself failed."""
    if isinstance(error, BrokenProcessPool):
        return True
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("ray.")}
    return "RayError" in names and "RayTaskError" not in names


def threads_of(jobs: int) -> int:
    """Of each of so many processes: its share of what OMP_NUM_THREADS grants, else of the cores."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(granted) if granted.isdigit() else os.cpu_count() or 1) // jobs)


class _Processes(Executor):
    """As many pools of one process each: the death of one leaves the others at work."""

    def __init__(self, jobs: int) -> None:
        self._threads = threads_of(jobs)
        self._pools: list[ProcessPoolExecutor | None] = [None] * jobs
        self._at = dict[Future[Any], int]()

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        self._at = {future: place for future, place in self._at.items() if not future.done()}
        busy = list(self._at.values())
        place = min(range(len(self._pools)), key=busy.count)
        try:
            future: Future[Any] = self._pool(place).submit(work, *given, **named)
        except BrokenProcessPool:  # died at its last piece, or since
            self._pools[place] = None
            future = self._pool(place).submit(work, *given, **named)
        self._at[future] = place
        return future

    def _pool(self, place: int) -> ProcessPoolExecutor:
        pool = self._pools[place]
        if pool is None:
            pool = self._pools[place] = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=settle_in, initargs=(self._threads,)
            )
        return pool

    def stop(self) -> None:
        """Ask whoever is at work to save and end, as SIGTERM does."""
        for pool in self._pools:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait, cancel_futures=cancel_futures)


def settle_in(threads: int) -> None:
    """Begin as a worker: on a share of the cores, and no longer than who asked for it lives."""
    parent = parent_process()
    if parent is not None:  # a killed parent cannot say goodbye

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by PyTorch when it is first imported
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


class _RayPool(Executor):
    """A Ray cluster as an executor; each piece takes one core of it."""

    def __init__(self, address: str, jobs: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise RequestError(
                "--on ray needs Ray: pip install ray; or leave it out for this machine"
            ) from error
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=address or None, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RequestError(
                    f"--on {address or 'ray'}: no Ray cluster answers ({error}); start one with "
                    "`ray start --head`, or leave it out for this machine"
                ) from error

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        # A piece whose worker dies is begun anew by `spread`, wherever it is done.
        task = self._ray.remote(max_retries=0)(_done)
        found: Future[Any] = task.remote(work, *given, **named).future()
        return found

    def stop(self) -> None:
        """Tasks end with the connection."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._ours:
            self._ray.shutdown()


def _done(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """As Ray wants a task to be: a plain function."""
    return work(*given, **named)
