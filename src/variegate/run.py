"""The folder of one run, and the only file that knows its layout.

    recipe.toml  journal.jsonl  checkpoints/  adapter.safetensors  samples/base/  samples/adapter/
    samples/panels/base/  samples/panels/step-000100/  kept/step-000100.safetensors  verdict.json
    report.html  control.json  run.lock

The journal is the record of a run: one JSON line per noted thing. A line that was torn by a
crash is left out on reading, and so are steps that a later start took back. Whoever watches a run
asks things of it through control.json, which the run reads between two steps and takes away.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from variegate.errors import NoSpace, RecipeError, RequestError, RunError, RunLocked
from variegate.recipe import Recipe

# What a step leaves behind; a restart at step s takes back those beyond s.
_OF_A_STEP = ("step", "probe", "spectra", "intruders", "panel", "checkpoint")

# What can be asked of a run while it learns: to stop with all saved, to put aside the adapter as it
# is now, to draw its panel now. None of them changes what is learnt.
Ask = Literal["stop", "keep", "sample"]


class Run:
    """One run's folder. Use `Run.create` or `Run.open`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe

    @staticmethod
    def create(folder: Path, recipe: Recipe) -> Run:
        """A run folder for a recipe; one that already holds this very recipe is taken up again.

        Raises: RunError when the folder holds another run, RunError when the path is no folder,
        NoSpace when it cannot be written.
        """
        folder = Path(folder).absolute()
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; expected a folder for the run, or a new path")
        if (folder / "recipe.toml").exists():
            run = Run.open(folder)
            if run.recipe != recipe:
                tables = run.recipe.model_dump(mode="json"), recipe.model_dump(mode="json")
                listed = "\n".join(f"  {line}" for line in differences(*tables))
                raise RunError(
                    f"{folder} holds another run, with another recipe ({run.recipe.id}, asked "
                    f"for {recipe.id}):\n{listed}\nname another folder, "
                    "or continue that run with `variegate train --resume`"
                )
            return run
        leftovers = [n for n in ("adapter.safetensors", "journal.jsonl") if (folder / n).exists()]
        if leftovers:
            raise RunError(
                f"{folder} holds {leftovers[0]} but no recipe.toml, so it is not known what run "
                "it belongs to; name another folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "recipe.toml", recipe.to_toml().encode())
        except OSError as error:
            raise NoSpace(
                f"the run folder {folder} cannot be written: {error.strerror or error}; free some "
                "space, change its permissions, or name another folder"
            ) from error
        return Run(folder, recipe)

    @staticmethod
    @contextmanager
    def claimed(folder: Path, recipe: Recipe) -> Iterator[Run]:
        """As `create`; a request that is refused before the run began leaves the folder free for
        the same with its fault mended."""
        new = not (Path(folder) / "recipe.toml").exists()
        run = Run.create(folder, recipe)
        try:
            yield run
        except RequestError:
            if new and not run.read_journal():
                (run.folder / "recipe.toml").unlink(missing_ok=True)
                with suppress(OSError):  # something else is in it
                    run.folder.rmdir()
            raise

    @staticmethod
    def open(folder: Path) -> Run:
        """The run in a folder.

        Raises: RunError when there is none or its recipe cannot be read.
        """
        folder = Path(folder).absolute()
        file = folder / "recipe.toml"
        if not file.is_file():
            found = "no such folder" if not folder.is_dir() else "it holds no recipe.toml"
            raise RunError(f"{folder} is not a run: {found}; expected a folder made by train")
        try:
            return Run(folder, Recipe.read(file))
        except RecipeError as error:
            raise RunError(f"{folder} holds a recipe that cannot be read: {error}") from error

    def extended(self, steps: int) -> Run:
        """The same run with more steps to do, journaled; to be asked again after a crash within.

        Raises: RunError for fewer steps than it has, RunLocked while another process is at work.
        """
        had = self.recipe.optimizer.steps
        if steps < had:
            raise RunError(
                f"{self.folder} was asked for {had} steps; found --steps {steps}: a run can be "
                "made longer only, and its checkpoints are what it was when shorter"
            )
        if steps == had:
            return self
        plan = self.recipe.optimizer.model_copy(update={"steps": steps})
        longer = Run(self.folder, self.recipe.model_copy(update={"optimizer": plan}))
        with self.locked():
            text = f"made longer: {steps} steps in place of {had}"
            if plan.schedule.kind != "constant":
                text += (
                    f"; from here on the rate is that of a {plan.schedule.kind} over all {steps}"
                )
            self.journal("extend", steps=steps, text=text)
            write_atomically(self.folder / "recipe.toml", longer.recipe.to_toml().encode())
        return longer

    @property
    def adapter_file(self) -> Path:
        return self.folder / "adapter.safetensors"

    @property
    def verdict_file(self) -> Path:
        return self.folder / "verdict.json"

    @property
    def report_file(self) -> Path:
        return self.folder / "report.html"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    def panel(self, step: int | None) -> Path:
        """Where the pictures are that were drawn while training; None: those of the base."""
        return self.samples / "panels" / ("base" if step is None else f"step-{step:06d}")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def kept(self, step: int) -> Path:
        """Where the adapter of a step is that somebody asked to keep; pruning leaves it alone."""
        return self.folder / "kept" / f"step-{step:06d}.safetensors"

    @staticmethod
    def ask(folder: Path, what: Ask) -> None:
        """Ask something of the process that learns in a folder; it answers between two steps.

        Raises: NoSpace when the folder cannot be written.
        """
        file = folder / "control.json"
        asked = [*_asks(file), what]
        try:
            document = {"asked": list(dict.fromkeys(asked))}
            write_atomically(file, json.dumps(document).encode())
        except OSError as error:
            raise NoSpace(f"{file} cannot be written: {error.strerror or error}") from error

    def asked(self) -> list[Ask]:
        """What has been asked since the last call, each thing once; a file that cannot be read
        asks nothing."""
        file = self.folder / "control.json"
        if not file.exists():
            return []
        taken = file.with_name(".control.json.taken")
        try:
            os.replace(file, taken)  # what is asked from now on is another file
            return _asks(taken)
        except OSError:
            return []
        finally:
            taken.unlink(missing_ok=True)

    @property
    def journal_file(self) -> Path:
        return Run.journal_in(self.folder)

    @staticmethod
    def journal_in(folder: Path) -> Path:
        """Where the journal of a run in a folder is, or will be."""
        return folder / "journal.jsonl"

    def journal(self, kind: str, **facts: Any) -> None:
        """Append one line; NaN is refused, since JSON has no word for it."""
        entry = {"kind": kind, "time": round(time.time(), 3), **facts}
        line = json.dumps(entry, allow_nan=False, default=_plain).encode() + b"\n"
        try:
            with self.journal_file.open("ab+") as file:
                if file.tell() and not _ends_line(file):
                    line = b"\n" + line  # a crash tore the last line
                file.write(line)
        except OSError as error:
            raise NoSpace(
                f"the journal {self.journal_file} cannot be written: {error.strerror or error}"
            ) from error

    def read_journal(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every line (or those of one kind) in order.

        Torn lines are left out. A "start" line with a `step`, and an order to go back `to` one,
        take back what earlier lines say of later steps, since the run did those again.
        """
        entries: list[dict[str, Any]] = []
        if not self.journal_file.exists():
            return entries
        for line in self.journal_file.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn, in JSON or within a letter's bytes
                continue
            if not isinstance(entry, dict) or "kind" not in entry:
                continue
            if entry["kind"] == "start":
                step, way = int(entry.get("step", 0)), int(entry.get("way", 0))
                entries = [
                    e for e in entries if not _taken_back(e, step) and not _unsaid(e, step, way)
                ]
            elif entry["kind"] == "order" and entry.get("do") == "rewind":
                entries = [e for e in entries if not _taken_back(e, int(entry.get("to", 0)))]
            entries.append(entry)
        return [e for e in entries if kind in (None, e["kind"])]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the operating system lets go of it should this process die.

        Raises: RunLocked, naming the process that holds it.
        """
        lock = FileLock(self.folder / "run.lock")
        holder = self.folder / "run.lock.holder"
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunLocked(
                f"{self.folder} is in use by {_holder(holder)}; wait for it to end or stop it, "
                "or name another folder"
            ) from error
        except OSError as error:
            raise NoSpace(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            me = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
            write_atomically(holder, json.dumps(me).encode())
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees all of the old one or all of the new."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _asks(file: Path) -> list[Ask]:
    try:
        listed = json.loads(file.read_bytes())["asked"]
        return [known for known in get_args(Ask) if known in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a journal line cannot hold {type(value).__name__}")


def _taken_back(entry: dict[str, Any], step: int) -> bool:
    if entry["kind"] == "finish":
        return True  # what goes on has not finished
    return entry["kind"] in _OF_A_STEP and int(entry.get("step", 0)) > step


def _unsaid(entry: dict[str, Any], step: int, way: int) -> bool:
    """Whether an order of the guard was given after the checkpoint that a run goes on from; it
    will be given again. way: how often the guard had gone back."""
    given = (int(entry.get("way", 0)), int(entry.get("step", 0)))
    return entry["kind"] == "order" and given > (way, step)


def _holder(file: Path) -> str:
    try:
        held = json.loads(file.read_text(encoding="utf8"))
        minutes = (time.time() - held["since"]) / 60
        return f"process {held['pid']} on {held['host']}, for {minutes:.0f} minutes"
    except (OSError, ValueError, KeyError):
        return "another process"


def differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What two recipes, as plain tables, say differently, one line per entry."""
    before, after = _flat(there), _flat(asked)
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} asked"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
