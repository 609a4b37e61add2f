"""Journals followed elsewhere: TensorBoard, Weights & Biases, trackio, each only when asked for.

The journal stays the record; a sink hears of its new lines after they are written, so a run is
the same with and without one. What stood in the journal before is not told again.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from variegate.errors import RequestError

Numbers = dict[str, float]


@runtime_checkable
class Sink(Protocol):
    """Whoever takes numbers of a step, and text."""

    def numbers(self, found: Numbers, step: int) -> None: ...

    def text(self, words: str, step: int) -> None: ...

    def close(self) -> None: ...


class Follower:
    """Tells a sink what a run's journal gains while this follower lives."""

    def __init__(self, journal: Path, sink: Sink) -> None:
        self._journal = journal
        self._sink = sink
        self._read = journal.stat().st_size if journal.exists() else 0
        self._step = 0

    def catch_up(self) -> None:
        """Tell of every whole line that is new; a line half written waits for the next time."""
        if not self._journal.exists():
            return
        with self._journal.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn by a crash
                continue
            if isinstance(entry, dict):
                self._tell(entry)

    def close(self) -> None:
        self.catch_up()
        self._sink.close()

    def _tell(self, entry: dict[str, Any]) -> None:
        self._step = int(entry.get("step", self._step))
        if found := numbers_of(entry):
            self._sink.numbers(found, self._step)
        if isinstance(words := entry.get("text"), str):
            self._sink.text(words, self._step)


def numbers_of(entry: dict[str, Any]) -> Numbers:
    """The numbers of a journal line, by the names that charts use.

    >>> numbers_of({"kind": "step", "step": 3, "loss": 0.5, "lr": 1e-4, "terms": {"pictures": 0.5}})
    {'train/loss': 0.5, 'train/lr': 0.0001, 'terms/pictures': 0.5}
    """
    found: dict[str, Any] = {}
    if entry.get("kind") == "step":
        found = {f"train/{key}": entry.get(key) for key in ("loss", "lr")}
        found |= {f"terms/{name}": value for name, value in dict(entry.get("terms", {})).items()}
    elif entry.get("kind") in ("probe", "intruders"):
        for measured in entry.get("measurements", ()):
            found[f"probe/{measured.get('name')}"] = measured.get("value")  # None where missing
    return {name: float(v) for name, v in found.items() if isinstance(v, int | float)}


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        library = _library("torch.utils.tensorboard", "tensorboard")
        self._writer = library.SummaryWriter(log_dir=str(folder / "tensorboard"))

    def numbers(self, found: Numbers, step: int) -> None:
        for name, value in found.items():
            self._writer.add_scalar(name, value, global_step=step)

    def text(self, words: str, step: int) -> None:
        self._writer.add_text("note", words, global_step=step)

    def close(self) -> None:
        self._writer.close()


class _Tracked:
    """W&B and trackio, which speak alike. Steps go along as a number: a resumed run's go back."""

    def __init__(self, folder: Path, package: str) -> None:
        self._library = _library(package, package)
        self._library.init(project="variegate", name=folder.name)

    def numbers(self, found: Numbers, step: int) -> None:
        self._library.log({**found, "step": step})

    def text(self, words: str, step: int) -> None:
        self._library.log({"note": words, "step": step})

    def close(self) -> None:
        self._library.finish()


SINKS: dict[str, Callable[[Path], Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": lambda folder: _Tracked(folder, "wandb"),
    "trackio": lambda folder: _Tracked(folder, "trackio"),
}


def open_sink(name: str, folder: Path) -> Sink:
    """The sink of a name, for the run in a folder.

    Raises: RequestError for a name that is none, or whose package is missing.
    """
    if name not in SINKS:
        raise RequestError(f"--sink {name!r} is none of {', '.join(SINKS)}")
    return SINKS[name](folder)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"--sink {package} needs the package {package!r}, which cannot be imported ({error}); "
            f"pip install 'variegate[track]'"
        ) from error
