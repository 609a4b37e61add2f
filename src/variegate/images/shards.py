"""Pictures in tars, on this machine or in object storage, as one set that is never held whole.

    shards = Shards.open("shards/set-{000..009}.tar")       # or a folder of tars, or s3://...
    len(shards), shards.member(3).caption, shards.block(0)

Each tar is read through once for an index of where its pictures lie, kept in the cache by the tar's
address and what its file system tells of it (size and date, or ETag). From then on any picture is
one read of some bytes, and neighbours are read together, so that what is remembered does not grow
with the set. Addresses are opened through fsspec; nothing is fetched unless one is given.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.errors import ImagesError, WorkError
from variegate.images.cache import cache_dir
from variegate.images.captions import clean
from variegate.images.decode import Fault
from variegate.images.tars import VERSION, Entry, Whole, entries, load_index, read_index, save_index

MOST_SHARDS = 1_000_000  # that a pattern may spell
INDEXED_AT_ONCE = 8  # tars; reading the ones far away is mostly waiting
READ_AT_ONCE = 8  # pictures of a sample, for the same reason
PAUSES = (0.5, 2.0, 8.0)  # seconds before a read that failed is tried again

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://|\w+::")


@dataclass(frozen=True)
class Member:
    """A picture out of a tar, as bytes. key: unique in its set."""

    key: str
    caption: str | None
    data: bytes
    mask: bytes | None

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.key)[1].lower()


@dataclass(frozen=True)
class Tar:
    """One tar of a set: its address, what keys of its pictures begin with, its index, and how many
    pictures of how many bytes it has."""

    path: str
    name: str
    index: Path
    count: int
    bytes: int
    digest: str


class Block:
    """Neighbours in a tar, read at once. first: the number of the first."""

    def __init__(self, first: int, found: list[Member]) -> None:
        self.first = first
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, number: int) -> Member:
        """The picture with that number in the set."""
        return self._found[number - self.first]


class Shards:
    """The pictures of many tars, numbered from 0, tar by tar in the order of their places there.

    home: the folder that holds all tars, as faults name it. ends: how many pictures are before the
    end of each block.
    """

    def __init__(
        self, origin: str, files: Any, tars: Iterable[Tar], blocks: Whole, faults: Iterable[Fault]
    ) -> None:
        self.origin = origin
        self.tars = tuple(tars)
        self.ends = blocks
        self.faults = tuple(faults)
        self._files = files
        first = self.tars[0]
        self.home = _shown(files, first.path).removesuffix(f"/{first.name}")
        self._starts = np.cumsum([0, *(tar.count for tar in self.tars)], dtype=np.int64)

    @staticmethod
    def open(
        spec: str,
        *,
        share: tuple[int, int] = (0, 1),
        say: Callable[[int, int], object] | None = None,
    ) -> Shards:
        """The set that a pattern, a folder or an address names.

        share: which of how many processes this is that open the same set at once; each begins with
        tars of its own, and finds the indices of the others'. say: is told how many of how many
        tars are known.
        Raises: ImagesError with every tar that is missing or cannot be used.
        """
        spec = absolute(spec)
        files, addresses = _locate(spec)
        known: dict[int, tuple[Tar, Whole, tuple[Fault, ...]] | str] = {}
        names = _names(addresses)
        which, of = share
        start = which * len(addresses) // of
        order = [*range(start, len(addresses)), *range(start)]

        def one(i: int) -> None:
            try:
                known[i] = _known(files, addresses[i], names[i])
            except ImagesError as error:
                known[i] = str(error)

        with ThreadPoolExecutor(min(INDEXED_AT_ONCE, len(addresses))) as pool:
            for done, _ in enumerate(pool.map(one, order), 1):
                if say:
                    say(done, len(addresses))
        found = [known[i] for i in range(len(addresses))]
        if wrong := [what for what in found if isinstance(what, str)]:
            more = f"\n... and {len(wrong) - 20} more" if len(wrong) > 20 else ""
            raise ImagesError(
                "\n".join(wrong[:20]) + f"{more}\n{len(wrong)} of {len(found)} tars cannot be used"
            )
        whole = [what for what in found if not isinstance(what, str)]
        starts = np.cumsum([0, *(tar.count for tar, _, _ in whole)])
        blocks = [ends + start for (_, ends, _), start in zip(whole, starts, strict=False)]
        faults = [fault for _, _, faults in whole for fault in faults]
        return Shards(spec, files, (tar for tar, _, _ in whole), np.concatenate(blocks), faults)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def block_bytes(self) -> int:
        """Of a block, on the average."""
        return sum(tar.bytes for tar in self.tars) // len(self.ends)

    def block(self, which: int) -> Block:
        """The pictures of one block, read at once.

        Raises: WorkError when the tar cannot be read any more, or is another.
        """
        begin = int(self.ends[which - 1]) if which else 0
        return Block(begin, self._read(begin, int(self.ends[which])))

    def member(self, number: int) -> Member:
        """One picture, read by itself. Raises: WorkError, as `block`."""
        return self._read(number, number + 1)[0]

    def members(self, numbers: Sequence[int]) -> Iterator[Member]:
        """Some pictures in that order, a few of them read side by side. Raises: as `member`."""
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            for begin in range(0, len(numbers), READ_AT_ONCE):
                yield from pool.map(self.member, numbers[begin : begin + READ_AT_ONCE])

    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must find again, by tar."""
        return {tar.name: tar.digest[:16] for tar in self.tars}

    def captions(self, numbers: Iterable[int]) -> Iterator[tuple[str, str | None]]:
        """(key, caption) of some pictures, without reading them."""
        for number in numbers:
            tar, entry = self._entries(number, number + 1)
            yield _key(tar, entry[0]), entry[0].caption

    def _entries(self, begin: int, end: int) -> tuple[Tar, list[Entry]]:
        at = int(np.searchsorted(self._starts, begin, side="right")) - 1
        first = int(self._starts[at])
        return self.tars[at], entries(self.tars[at].index, begin - first, end - first)

    def _read(self, begin: int, end: int) -> list[Member]:
        tar, told = self._entries(begin, end)
        first = told[0].place[0]
        data = self._bytes(tar, first, sum(told[-1].place))
        found = []
        for entry in told:
            (at, size), (mask_at, mask_size) = entry.place, entry.mask
            mask: bytes | None = None
            if mask_size and first <= mask_at and mask_at + mask_size - first <= len(data):
                mask = data[mask_at - first : mask_at - first + mask_size]
            elif mask_size:
                mask = self._bytes(tar, mask_at, mask_at + mask_size)
            picture = data[at - first : at - first + size]
            found.append(Member(_key(tar, entry), entry.caption, picture, mask))
        return found

    def _bytes(self, tar: Tar, begin: int, end: int) -> bytes:
        for pause in (*PAUSES, None):
            try:
                data: bytes = self._files.cat_file(tar.path, start=begin, end=end)
            except Exception as error:  # every file system has errors of its own
                lost = isinstance(error, FileNotFoundError | PermissionError)
                if pause is None or lost:
                    raise WorkError(
                        f"{tar.path} cannot be read any more: {_told(error)}; restore it: the same "
                        "command goes on from the last checkpoint"
                    ) from error
                time.sleep(pause)
                continue
            if len(data) != end - begin:
                raise WorkError(
                    f"{tar.path}: asked for bytes {begin} to {end}, it gave {len(data)}; it has "
                    "changed since it was indexed, or its server serves no parts of files"
                )
            return data
        raise AssertionError("unreachable")


def is_sharded(spec: str) -> bool:
    """Whether a name is that of tars: an address, a pattern that ends in .tar, or a folder that
    holds tars and no pictures or folders."""
    if _ADDRESS.match(spec) or spec.lower().endswith(".tar"):
        return True
    try:
        names = [e.name for e in os.scandir(spec) if not e.name.startswith(".")]
    except (OSError, ValueError):
        return False
    return (
        bool(names)
        and all(name.lower().endswith((".tar", ".idx", ".json")) for name in names)
        and (any(name.lower().endswith(".tar") for name in names))
    )


def absolute(spec: str) -> str:
    """The same set, wherever this process stands.

    Raises: ImagesError for an address that carries a password, which would lie in the run's folder.
    """
    if not _ADDRESS.match(spec):
        return str(Path(spec).expanduser().absolute())
    if re.search(r"://[^/@\s]*:[^/@\s]*@", spec):
        raise ImagesError(
            "an address with a password in it would be written into the run's folder; give the "
            "password as your storage's own variables or fsspec's configuration file have it"
        )
    return spec


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces spells, as bash does.

    >>> expand("set-{008..010}.{a,b}.tar")[:3]
    ['set-008.a.tar', 'set-008.b.tar', 'set-009.a.tar']

    Raises: ImagesError when they are more than can be meant.
    """
    found = _expand(pattern)
    if len(found) > MOST_SHARDS:
        raise ImagesError(f"{pattern!r} spells more than {MOST_SHARDS} names; name fewer tars")
    return found


def _expand(text: str) -> list[str]:
    for begin, end in _pairs(text):
        inner = text[begin + 1 : end]
        choices = _choices(inner)
        if choices is None:  # braces that bash leaves alone
            continue
        tails = _expand(text[end + 1 :])
        if len(choices) * len(tails) > MOST_SHARDS:
            raise ImagesError(f"{text!r} spells more than {MOST_SHARDS} names; name fewer tars")
        return [text[:begin] + choice + tail for choice in choices for tail in tails]
    return [text]


def _pairs(text: str) -> Iterator[tuple[int, int]]:
    """Where outer braces open and close, from the left."""
    for begin, letter in enumerate(text):
        if letter != "{":
            continue
        depth = 0
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                yield begin, end
                break


def _choices(inner: str) -> list[str] | None:
    """What stands between two braces, spelt out; None where it is neither range nor list."""
    if match := _RANGE.fullmatch(inner):
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= MOST_SHARDS:
            raise ImagesError(f"{inner!r} spells more than {MOST_SHARDS} names; name fewer tars")
        padded = any(re.match(r"-?0\d", part) for part in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{n:0{width}d}" for n in range(first, last + step, step)]
    parts, depth, at = list[str](), 0, 0
    for i, letter in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(inner[at:i])
            at = i + 1
    if not parts:
        return None
    return [name for part in (*parts, inner[at:]) for name in _expand(part)]


def _locate(spec: str) -> tuple[Any, list[str]]:
    """The file system, and the tars on it, in order.

    Raises: ImagesError where there are none, and for an address that nothing can open.
    """
    from fsspec.core import url_to_fs

    addresses = expand(spec)
    try:
        files, first = url_to_fs(addresses[0])
        paths = [first, *(url_to_fs(address)[1] for address in addresses[1:])]
        if len(paths) == 1 and not first.lower().endswith(".tar"):
            pattern = first if "*" in first else posixpath.join(first.rstrip("/"), "*.tar")
            paths = sorted(files.glob(pattern))
        elif any("*" in path for path in paths):
            paths = [name for path in paths for name in sorted(files.glob(path))]
    except ImportError as error:
        raise ImagesError(
            f"{spec!r} wants a package that is not installed: {_told(error)} (pip install it)"
        ) from error
    except Exception as error:  # every file system has errors of its own
        raise ImagesError(
            f"{spec!r} cannot be opened: {_told(error)}; check the address, and that this machine "
            "has the right to read it"
        ) from error
    if not paths:
        raise ImagesError(f"no tar at {spec!r}; name tars as in 'set-{{000..009}}.tar'")
    return files, list(dict.fromkeys(paths))


def _names(paths: list[str]) -> list[str]:
    """What tells the tars from one another: their paths below the folder that holds them all."""
    home = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return [clean(posixpath.relpath(path, home) if home else path) for path in paths]


def _known(files: Any, path: str, name: str) -> tuple[Tar, Whole, tuple[Fault, ...]]:
    """One tar by its index, which is made where there is none yet.

    Raises: ImagesError when it is missing or cannot be used.
    """
    at = _shown(files, path)
    try:
        size = files.info(path)["size"]
        mark = f"{VERSION}\x1f{at}\x1f{files.ukey(path)}"
    except Exception as error:  # every file system has errors of its own
        cause = _lies_behind(error)
        if cause is None:
            raise ImagesError(f"{at}: there is no such tar") from error
        raise ImagesError(f"{at}: cannot be reached: {_told(cause)}") from error
    if not size:
        empty = "is empty (0 bytes)" if size == 0 else "its server does not tell how long it is"
        raise ImagesError(f"{at}: {empty}; copy or download it again, or leave it out")
    key = hashlib.sha256(mark.encode()).hexdigest()
    file = cache_dir() / "shards" / key[:2] / f"{key}.safetensors"
    index = load_index(file)
    if index is None:
        try:
            with files.open(path, "rb") as stream:
                index = read_index(stream, int(size), at)
        except ImagesError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise ImagesError(f"{at}: cannot be read: {_told(error)}") from error
        save_index(index, file)
    held = int(index.sizes.sum())
    return Tar(path, name, file, len(index), held, index.digest), index.blocks, index.faults


def _shown(files: Any, path: str) -> str:
    """A path as people write it."""
    told = files.protocol
    local = "file" in ((told,) if isinstance(told, str) else told)
    address: str = path if local else files.unstrip_protocol(path)
    return address


def _key(tar: Tar, entry: Entry) -> str:
    return f"{tar.name}/{entry.name.removeprefix('./')}"


def _lies_behind(error: Exception) -> BaseException | None:
    """What kept a file from being asked for, or None where it is not there: over HTTP fsspec says
    that it is not where no server answers, too."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError):
        return error
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return cause
    return cause if getattr(cause, "status", 404) not in (404, 410) else None


def _told(error: BaseException) -> str:
    return clean(str(error))[:200] or type(error).__name__
