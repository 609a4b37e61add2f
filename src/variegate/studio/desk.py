"""What lies on the desk: picture sets, runs, adapters to check, and the jobs about them.

    HOME/pictures/<set>/  runs/<run>/  checks/<check>/  blends/<blend>/  jobs/<job>/  settings.json

Everything is read from folders when it is asked for, so what the command line made is seen like
what was begun here. Outside, things go by ids that say nothing of where they lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from variegate.errors import NoSpace
from variegate.report.record import MOST_BYTES, RunRecord, read_record
from variegate.run import write_atomically
from variegate.studio.devices import MACHINE, Device, shown_to
from variegate.studio.jobs import Jobs, at_work, holder_of, is_learning
from variegate.studio.sets import PictureSet

OF_A_RUN = ("recipe.toml", "verdict.json")
DEPTH = 3  # folders below a watched one in which runs are looked for
MOST_RUNS = 500
FRESH = 1.0  # seconds for which a listing is taken to be true
MOST_PICTURES = 200_000  # that are known by id at a time


@dataclass(frozen=True)
class RunPlace:
    """A run as the lists show it, without its record being read."""

    id: str
    folder: Path
    name: str
    changed: float
    state: str  # "learning", "working" (about to learn), "measured", "learnt", "resting"


class Desk:
    """The home folder and the folders that are watched for runs."""

    def __init__(
        self,
        home: Path,
        *,
        watched: Iterable[Path] = (),
        on: Callable[[], tuple[Device, ...]] = lambda: (MACHINE,),
    ) -> None:
        """on: tells the devices that there are; asked once, when the first job waits for one."""
        self.devices = cache(on)
        self.home = home.resolve()
        for name in ("pictures", "runs", "checks", "blends", "jobs"):
            _make(self.home / name)
        self.watched = tuple(dict.fromkeys([self.home / "runs", *(w.resolve() for w in watched)]))
        self._key = _own_key(self.home / ".key")
        self._listed: tuple[float, list[RunPlace]] = (0.0, [])
        self._pictures: dict[str, Path] = {}
        self._records: dict[Path, tuple[Any, RunRecord]] = {}
        self._lock = threading.Lock()
        self.jobs = Jobs(self.home / "jobs", on=self.devices, busy=self._taken)

    def id_of(self, path: Path, more: str = "") -> str:
        """What a path is called outside: the same in every start of this home."""
        return hmac.new(self._key, f"{path}\0{more}".encode(), hashlib.sha256).hexdigest()[:20]

    # --- pictures by id -----------------------------------------------------------------
    def show(self, file: Path | None) -> str:
        """The id under which a picture can be asked for from now on; "" when it is not there."""
        if file is None:
            return ""
        try:
            facts = file.stat()
        except OSError:
            return ""
        name = self.id_of(file, f"{facts.st_mtime_ns}.{facts.st_size}")
        with self._lock:
            if len(self._pictures) > MOST_PICTURES:
                self._pictures.clear()
            self._pictures[name] = file
        return name

    def shown(self, name: str) -> Path | None:
        return self._pictures.get(name)

    # --- runs ---------------------------------------------------------------------------
    def runs(self) -> list[RunPlace]:
        """The runs of all watched folders, latest first."""
        at, found = self._listed
        if time.monotonic() - at < FRESH:
            return found
        found = []
        for folder in dict.fromkeys(f for root in self.watched for f in _runs_below(root)):
            if len(found) >= MOST_RUNS:
                break
            changed = _changed(folder)
            found.append(
                RunPlace(self.id_of(folder), folder, self.name_of(folder), changed, _state(folder))
            )
        found.sort(key=lambda r: (r.state not in ("learning", "working"), -r.changed))
        self._listed = (time.monotonic(), found)
        return found

    def run(self, name: str) -> RunPlace | None:
        return next((r for r in self.runs() if r.id == name), None)

    def forget_listing(self) -> None:
        self._listed = (0.0, [])

    def name_of(self, folder: Path) -> str:
        """A run's name: its folder's, with its parent's where that says more than `runs`."""
        parent = folder.parent
        return folder.name if parent in self.watched else f"{parent.name} / {folder.name}"

    def record(self, folder: Path) -> RunRecord:
        """What a run's folder holds; read again when it has changed.

        Raises: RunError when it is no run.
        """
        stamp = tuple(_stamp(folder / name) for name in _STAMPED)
        known = self._records.get(folder)
        if known is None or known[0] != stamp:
            known = (stamp, read_record(folder))
            if len(self._records) > MOST_RUNS:
                self._records.clear()
            self._records[folder] = known
        return known[1]

    def _taken(self) -> list[Device]:
        """The devices on which a run is at work that no job of ours does."""
        ours = [Path(j.about) for j in self.jobs.all() if j.state == "running" and j.about]
        found = []
        for run in self.runs():
            if run.state not in ("learning", "working"):
                continue
            if not any(run.folder.is_relative_to(folder) for folder in ours):
                found.append(self._device_of(run.folder))
        return found

    def _device_of(self, folder: Path) -> Device:
        """The device that the process at a run works on, as its environment has it; the first where
        that cannot be seen, as with another user's process."""
        process = holder_of(folder)
        environment: dict[str, str] = {}
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ() if process else {}
        return shown_to(environment, self.devices())

    def device_told(self, value: str) -> Device | None:
        """The device of that value, where there is more than one."""
        found = self.devices()
        return next((d for d in found if d.value == value), None) if len(found) > 1 else None

    # --- picture sets -------------------------------------------------------------------
    def sets(self) -> list[PictureSet]:
        found = [PictureSet(p) for p in _folders(self.home / "pictures")]
        return sorted(found, key=lambda s: -s.changed)

    def set(self, name: str) -> PictureSet | None:
        home = self.home / "pictures"
        return next((PictureSet(p) for p in _folders(home) if self.id_of(p) == name), None)

    def new_set(self) -> PictureSet:
        made = PictureSet(self.home / "pictures" / f"set-{secrets.token_hex(4)}")
        _make(made.folder)
        return made

    # --- adapters to check, blends ------------------------------------------------------
    def places(self, kind: str) -> list[Path]:
        """The folders of one kind, `checks` or `blends`, latest first."""
        return sorted(_folders(self.home / kind), key=lambda p: -_changed(p))

    def place(self, kind: str, name: str) -> Path | None:
        return next((p for p in _folders(self.home / kind) if self.id_of(p) == name), None)

    def new_place(self, kind: str) -> Path:
        made = self.home / kind / secrets.token_hex(6)
        _make(made)
        return made

    # --- settings -----------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        return read_json(self.home / "settings.json")

    def keep_settings(self, **changed: Any) -> None:
        write_json(self.home / "settings.json", self.settings() | changed)


_STAMPED = ("recipe.toml", "journal.jsonl", "verdict.json", "evidence.json", "audit.json")


def read_json(file: Path) -> dict[str, Any]:
    """The table in a file; an empty one when there is none that can be read."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Raises: NoSpace."""
    try:
        write_atomically(file, json.dumps(document, indent=1).encode())
    except OSError as error:
        raise NoSpace(f"{file} cannot be written: {error.strerror or error}") from error


def _runs_below(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    for folder in _folders(root):
        if any((folder / name).is_file() for name in OF_A_RUN):
            yield folder
        elif depth > 1:
            yield from _runs_below(folder, depth - 1)


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, links and hidden ones left out."""
    try:
        return [
            p
            for p in sorted(root.iterdir())
            if not p.name.startswith(".") and p.is_dir() and not p.is_symlink()
        ]
    except OSError:
        return []


def _state(folder: Path) -> str:
    if at_work(folder):
        return "learning" if is_learning(folder) else "working"
    if (folder / "verdict.json").is_file():
        return "measured"
    return "learnt" if (folder / "adapter.safetensors").is_file() else "resting"


def _changed(folder: Path) -> float:
    stamps = [_stamp(folder / name) for name in ("journal.jsonl", "verdict.json", "")]
    return max(stamp[0] for stamp in stamps) / 1e9


def _stamp(file: Path) -> tuple[int, int]:
    try:
        facts = file.stat()
    except OSError:
        return (0, 0)
    return (facts.st_mtime_ns, facts.st_size)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoSpace(
            f"the studio's folder {folder} cannot be made: {error.strerror or error}; "
            "name another one with --home"
        ) from error


def _own_key(file: Path) -> bytes:
    """The key that ids are made with; made once, readable by its owner alone."""
    if not file.is_file():
        file.touch(mode=0o600)
        file.write_bytes(secrets.token_bytes(32))
    return file.read_bytes()
