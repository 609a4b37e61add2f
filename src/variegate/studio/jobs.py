"""Work that was asked for: each a process of its own, all of them files in a folder.

    jobs/<id>/job.json  answer.json  log.txt

A job is `python -m variegate VERB ... --json`, started in a session of its own: it goes on when the
studio ends, and a studio that starts finds it again by its process number and birth. How it ended
is read from its answer, which is exactly one JSON document, so nobody has to be there to see it.
One job at a time works on each device, which the first that waits gets as soon as one is free; two
about the same folder never go side by side. Small ones that only read go beside them, one at a
time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import psutil
from filelock import FileLock, Timeout

from variegate.run import Run, write_atomically
from variegate.studio.devices import MACHINE, Device

State = Literal["waiting", "running", "done", "failed", "stopped"]
Lane = Literal["device", "desk"]
MARK = "VARIEGATE_STUDIO_JOB"  # in the environment of what we start
MOST_LOG = 64 * 1024  # bytes read of the end of a log
MOST_ANSWER = 32 * 2**20
STOPS = ("Interrupted", "KeyboardInterrupt", "Terminated")
ENDED_FROM_OUTSIDE = (
    "it gave no answer: it was ended from outside, often by the system for lack of memory; close "
    "what else is open, or ask for less at a time, and go on with it"
)
BORN_WITHIN = 1.0  # seconds between two readings of one process's birth


@dataclass(frozen=True)
class Job:
    """One thing that was asked for.

    words: the verb and its words. about: the folder that it fills or reads; tag: what the studio
    wants to know again, such as the state of the pictures that were looked at. place: the order of
    those that wait. stops: how often a stop was asked for. peak: the most bytes of memory seen. on:
    the device that it got, by its value in the environment; "" where there is but the machine.
    """

    id: str
    words: tuple[str, ...]
    title: str
    lane: Lane
    about: str = ""
    tag: str = ""
    state: State = "waiting"
    place: float = 0.0
    made: float = 0.0
    began: float | None = None
    ended: float | None = None
    pid: int | None = None
    born: float | None = None
    stops: int = 0
    peak: int = 0
    fault: str = ""
    on: str = ""

    @property
    def verb(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "stopped")


class Jobs:
    """The queue in a folder. Every change is written before it is answered for."""

    def __init__(
        self,
        folder: Path,
        *,
        on: Callable[[], Sequence[Device]] = lambda: (MACHINE,),
        busy: Callable[[], Iterable[Device]] = tuple,
    ) -> None:
        """on: the devices that work is done on. busy: those of them that somebody else, such as a
        run from the command line, is on."""
        self.folder = folder
        self._on, self._busy = on, busy
        self._lock = threading.RLock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._keeper: FileLock | None = None
        folder.mkdir(parents=True, exist_ok=True)

    # --- reading ---------------------------------------------------------------------------
    def all(self) -> list[Job]:
        """Every job: those that run, those that wait in their order, those that are over, latest
        first."""
        places = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        found = [job for place in places if (job := _read(place / "job.json"))]
        ranks = {"running": 0, "waiting": 1}
        return sorted(
            found,
            key=lambda j: (
                ranks.get(j.state, 2),
                j.place if j.state == "waiting" else -(j.ended or j.began or j.made),
            ),
        )

    def get(self, name: str) -> Job | None:
        return _read(self.folder / name / "job.json") if name.isalnum() else None

    def of(self, about: Path | str, *verbs: str) -> list[Job]:
        """The jobs about a folder, latest first."""
        found = [j for j in self.all() if j.about == str(about) and (not verbs or j.verb in verbs)]
        return sorted(found, key=lambda j: -j.made)

    def answer(self, job: Job) -> dict[str, Any] | None:
        """The document that it printed, or None while there is none."""
        return _answer(self.folder / job.id / "answer.json")

    def log(self, job: Job) -> list[str]:
        """The last lines that it told."""
        file = self.folder / job.id / "log.txt"
        try:
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - MOST_LOG))
                text = stream.read().decode("utf8", "replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()]

    # --- asking ----------------------------------------------------------------------------
    def add(
        self, words: Sequence[str], *, title: str, lane: Lane, about: str = "", tag: str = ""
    ) -> Job:
        with self._lock:
            job = Job(
                id=secrets.token_hex(8),
                words=tuple(words),
                title=title,
                lane=lane,
                about=about,
                tag=tag,
                place=max((j.place for j in self.all()), default=0.0) + 1,
                made=time.time(),
            )
            (self.folder / job.id).mkdir(parents=True)
            self._write(job)
            self._forget_before(job)
        self.tick()
        return self.get(job.id) or job

    def move(self, job: Job, by: int) -> None:
        """Put a waiting job before (-1) or behind (+1) its neighbour."""
        with self._lock:
            waiting = [j for j in self.all() if j.state == "waiting" and j.lane == job.lane]
            here = next((i for i, j in enumerate(waiting) if j.id == job.id), None)
            if here is None or not 0 <= here + by < len(waiting):
                return
            other = waiting[here + by]
            self._write(replace(waiting[here], place=other.place))
            self._write(replace(other, place=waiting[here].place))

    def stop(self, job: Job) -> None:
        """A waiting job is struck out. A running one is asked, then told, then ended."""
        with self._lock:
            job = self.get(job.id) or job
            if job.state == "waiting":
                self._write(replace(job, state="stopped", ended=time.time()))
                return
            process = _process(job)
            if job.state != "running" or process is None:
                return
            self._write(replace(job, stops=job.stops + 1))
        learning = job.about and (Path(job.about) / "recipe.toml").exists() and job.stops == 0
        if learning and is_learning(Path(job.about)):
            Run.ask(Path(job.about), "stop")
            return
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM) if job.stops < 2 else process.kill()

    def again(self, job: Job) -> Job | None:
        """Ask for the same once more: verbs that were stopped go on from where they were. None
        where the same is at work or waits already."""
        with self._lock:
            if any(_alike(j, job) for j in self.all() if not j.over):
                return None
            return self.add(job.words, title=job.title, lane=job.lane, about=job.about, tag=job.tag)

    # --- keeping ---------------------------------------------------------------------------
    def keep(self) -> bool:
        """Become the one who starts jobs here; False while another studio is that."""
        if self._keeper is None:
            lock = FileLock(self.folder / ".keeper.lock")
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                return False
            self._keeper = lock
        return True

    def leave(self) -> None:
        """Let another be the keeper; what runs goes on."""
        for child in self._children.values():
            child.returncode = 0  # nobody waits for it here any more, and it is not to be warned of
        self._children.clear()
        if self._keeper is not None:
            self._keeper.release()
            self._keeper = None

    def tick(self) -> None:
        """See what has ended and start what is next, if this is the keeper."""
        if self._keeper is None:
            return
        with self._lock:
            found = [self._seen(j) if j.state == "running" else j for j in self.all()]
            running = [j for j in found if j.state == "running"]
            waiting = [j for j in found if j.state == "waiting"]
            if not any(j.lane == "desk" for j in running):
                for job in [j for j in waiting if j.lane == "desk"][:1]:
                    self._start(job, MACHINE)
            waiting = [j for j in waiting if j.lane == "device"]
            there = self._on() if waiting else ()
            # What was begun before there were cards works on the first.
            taken = {j.on or there[0].value for j in running if j.lane == "device" and there}
            free = [d for d in there if d.value not in taken]
            others = {d.value for d in self._busy()} if free else set()
            for device in (d for d in free if d.value not in others):
                able = [j for j in waiting if not any(_meet(j, r) for r in running)]
                if not able:
                    break
                waiting.remove(able[0])
                running.append(able[0])
                self._start(able[0], device)

    def _start(self, job: Job, device: Device) -> None:
        job = replace(job, on=device.value)
        place = self.folder / job.id
        command = [sys.executable, "-m", "variegate", *job.words, "--json"]
        flags: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            flags = {"creationflags": 0x00000008 | 0x00000200}  # detached, a group of its own
        with (place / "answer.json").open("wb") as out, (place / "log.txt").open("ab") as log:
            # Noted before it runs: should this process die in between, the child is known by MARK.
            self._write(replace(job, state="running", began=time.time()))
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    env={
                        **os.environ,
                        **device.environment,
                        MARK: job.id,
                        "PYTHONUNBUFFERED": "1",
                    },
                    **flags,
                )
            except OSError as error:
                told = f"it could not be started: {error.strerror or error}"
                self._write(replace(job, state="failed", ended=time.time(), fault=told))
                return
        self._children[job.id] = child
        with contextlib.suppress(psutil.Error):
            born = psutil.Process(child.pid).create_time()
            job = replace(job, pid=child.pid, born=born)
        self._write(replace(job, state="running", began=time.time()))

    def _seen(self, job: Job) -> Job:
        """A running job as it is now."""
        child = self._children.get(job.id)
        if child is not None:
            child.poll()  # else it would stay as a zombie
        process = _process(job)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                peak = max(job.peak, process.memory_info().rss)
                if peak > job.peak * 1.02 or job.pid is None:
                    job = replace(job, peak=peak, pid=process.pid, born=process.create_time())
                    self._write(job)
            return job
        if child is not None:  # it may have ended since it was asked
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)
            del self._children[job.id]
        job = _ended(job, _answer(self.folder / job.id / "answer.json"), self.log(job))
        self._write(job)
        return job

    def _forget_before(self, job: Job) -> None:
        """Let go of what nobody reads any more: of earlier jobs of the same verb about the same,
        all but the last that was done and the last of all."""
        earlier = [j for j in self.of(job.about, job.verb) if j.over and j.id != job.id]
        done = [j for j in earlier if j.state == "done"]
        kept = {j.id for j in (*earlier[:1], *done[:1])}
        for old in earlier if job.about else ():
            if old.id not in kept:
                shutil.rmtree(self.folder / old.id, ignore_errors=True)

    def _write(self, job: Job) -> None:
        document = {**asdict(job), "words": list(job.words)}
        write_atomically(self.folder / job.id / "job.json", json.dumps(document).encode())


def _alike(one: Job, other: Job) -> bool:
    """Whether two jobs do the same: of one verb about one folder, or by the very same words."""
    same_place = bool(one.about) and (one.about, one.verb) == (other.about, other.verb)
    return same_place or one.words == other.words


def _meet(one: Job, other: Job) -> bool:
    """Whether two jobs are about one folder, or one about a folder in the other's."""
    if other.lane != "device" or not one.about or not other.about:
        return False
    a, b = Path(one.about), Path(other.about)
    return a.is_relative_to(b) or b.is_relative_to(a)


def holder_of(folder: Path) -> psutil.Process | None:
    """The process on this machine that holds a run's folder, if it is alive."""
    try:
        held = json.loads((folder / "run.lock.holder").read_bytes())
        if held["host"] != platform.node():
            return None
        process = psutil.Process(int(held["pid"]))
        born_before = process.create_time() <= float(held["since"]) + BORN_WITHIN
        return process if born_before and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def is_learning(folder: Path) -> bool:
    """Whether a process is between the first and the last step of a run: it heeds control.json."""
    if not at_work(folder):
        return False
    kinds = [kind for kind in _kinds(Run.journal_in(folder)) if kind in ("start", "finish")]
    return bool(kinds) and kinds[-1] == "start"


def at_work(folder: Path) -> bool:
    """Whether the process that holds a run's folder is alive on this machine."""
    return holder_of(folder) is not None


def _kinds(journal: Path) -> list[str]:
    """The kinds of a journal's lines, without reading the whole of each."""
    found = []
    with contextlib.suppress(OSError), journal.open("rb") as stream:
        for line in stream:
            head = line[:40]
            if head.startswith(b'{"kind": "'):
                found.append(head[10:].split(b'"', 1)[0].decode("ascii", "replace"))
    return found


def _process(job: Job) -> psutil.Process | None:
    """The living process of a job, if there is one."""
    if job.pid is None:
        return _marked(job.id)
    try:
        process = psutil.Process(job.pid)
        same = job.born is None or abs(process.create_time() - job.born) <= BORN_WITHIN
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _marked(name: str) -> psutil.Process | None:
    """A process that carries a job's mark: its studio died before it could note the number."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                return process
    return None


def _ended(job: Job, answer: dict[str, Any] | None, log: Sequence[str]) -> Job:
    job = replace(job, ended=time.time())
    if answer is None:
        if job.stops:
            return replace(job, state="stopped", fault="")
        last = f". The last that it told:\n{log[-1][-1000:]}" if log else ". It told nothing."
        return replace(job, state="failed", fault=ENDED_FROM_OUTSIDE + last)
    error = answer.get("error")
    if not isinstance(error, dict):
        return replace(job, state="done", fault="")
    state: State = "stopped" if error.get("kind") in STOPS else "failed"
    return replace(job, state=state, fault=str(error.get("message", ""))[:4000])


def _answer(file: Path) -> dict[str, Any] | None:
    try:
        if file.stat().st_size > MOST_ANSWER:
            return None
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read(file: Path) -> Job | None:
    try:
        data = json.loads(file.read_bytes())
        known = {k: data[k] for k in Job.__dataclass_fields__ if k in data}
        return Job(**{**known, "words": tuple(map(str, cast(list[str], data["words"])))})
    except (OSError, ValueError, KeyError, TypeError):
        return None
