"""Where features and other things that can be computed again are kept, and clearing it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from variegate.errors import NoSpace, RequestError

# What lies in the cache, by folder; anything else there is not ours and is left alone.
KINDS = {
    "features": "what encoders saw in pictures",
    "base": "pictures drawn from base models",
    "measured": "pictures drawn to measure adapters",
    "repaired": "pictures of repairs beside what they repair",
    "picked": "pictures of checkpoints at several strengths and guidance scales",
    "latents": "pictures as autoencoders gave them",
    "shards": "where pictures lie in tars, and samples taken of them",
    "bank": "runs that verdicts are calibrated on, with their pictures",
    "bench": "runs of the benchmark, and what was read of them",
}


@dataclass(frozen=True)
class Kept:
    """What the cache holds of a kind: files and bytes, none of them reached through a link."""

    kind: str
    what: str
    files: int
    bytes: int


def cache_dir() -> Path:
    """$VARIEGATE_CACHE, else $XDG_CACHE_HOME/variegate, else ~/.cache/variegate."""
    if own := os.environ.get("VARIEGATE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "variegate"
    return Path.home() / ".cache" / "variegate"


def put(file: Path, data: bytes) -> None:
    """Write a file of the cache, whole or not at all. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.replace(temporary, file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def contents() -> list[Kept]:
    """What lies in the cache, kind by kind, empty ones too."""
    found = []
    for kind, what in KINDS.items():
        sizes = [size for entry in _entries(kind) for size, _ in _files(entry)]
        found.append(Kept(kind, what, len(sizes), sum(sizes)))
    return found


def clear(kinds: tuple[str, ...] = (), *, older_than_days: float = 0.0) -> list[Kept]:
    """Remove what can be computed again, and say what went. kinds: none named, all.

    An entry goes or stays as a whole, by the age of its newest file. Links are removed, never
    followed; a kind's folder that is a link itself is left alone.

    Raises: RequestError for a kind that is none, and where the cache is the home folder or a
    root, whose folders may be somebody's own; NoSpace when something cannot be removed.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise RequestError(f"--kind {unknown[0]!r} is none of {', '.join(KINDS)}")
    home = cache_dir().resolve()
    if home in (Path.home().resolve(), Path(home.anchor)):
        raise RequestError(
            f"the cache folder is {home}, where other things lie too: set VARIEGATE_CACHE to a "
            "folder of its own, or remove what you want by hand"
        )
    before, gone = time.time() - older_than_days * 86400, []
    for kind in kinds or KINDS:
        files = size = 0
        for entry in list(_entries(kind)):
            inside = list(_files(entry))
            if older_than_days and max((t for _, t in inside), default=0.0) > before:
                continue
            try:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)  # takes links away without following them
                else:
                    entry.unlink(missing_ok=True)
            except OSError as error:
                raise NoSpace(f"{entry} cannot be removed: {error.strerror}") from error
            files, size = files + len(inside), size + sum(s for s, _ in inside)
        gone.append(Kept(kind, KINDS[kind], files, size))
    return gone


def _entries(kind: str) -> Iterator[Path]:
    """What goes together: a file of features; elsewhere a folder."""
    home = cache_dir() / kind
    if home.is_symlink() or not home.is_dir():
        return
    for entry in sorted(home.iterdir()):
        if kind == "features" and entry.is_dir() and not entry.is_symlink():
            yield from (Path(at) / name for at, _, names in os.walk(entry) for name in names)
        else:
            yield entry


def _files(entry: Path) -> Iterator[tuple[int, float]]:
    """(bytes, time of change) of an entry's files; a link counts as itself."""
    found = [entry]
    if entry.is_dir() and not entry.is_symlink():
        found = [Path(at) / name for at, _, names in os.walk(entry) for name in names]
    for file in found:
        try:
            facts = file.lstat()
        except FileNotFoundError:  # another process was quicker
            continue
        yield facts.st_size, facts.st_mtime
