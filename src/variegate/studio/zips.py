"""Pictures and captions out of a ZIP archive from anywhere: by our own names, within limits.

Nothing is unpacked by the names inside: they only pair captions with pictures. Entries are counted,
sized while they are unpacked (the sizes that an archive claims are not believed), and left out when
they are links, folders, or of another kind.
"""

from __future__ import annotations

import stat
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from variegate.errors import ImagesError
from variegate.images.captions import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, clean
from variegate.images.decode import MAX_BYTES, SUFFIXES

MOST_ENTRIES = 20_000
MOST_PICTURES = 5_000
MOST_TOTAL = 4 * 2**30  # bytes, unpacked
MOST_RATIO = 200  # unpacked over packed, of any entry; pictures hardly shrink
CHUNK = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """A picture out of an archive, in a file of ours, and its caption if one lay beside it."""

    file: Path
    told: str
    caption: str | None


def pictures_in(archive: Path, into: Path) -> Iterator[Unpacked]:
    """The pictures of an archive, one after another, each unpacked into `into`.

    Raises: ImagesError for what is no archive, or one beyond the limits.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            yield from _pictures(opened, into)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImagesError(
            f"the archive cannot be unpacked: {error}; pack the pictures again as plain ZIP"
        ) from error


def _pictures(opened: zipfile.ZipFile, into: Path) -> Iterator[Unpacked]:
    entries = opened.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ImagesError(
            f"the archive has {len(entries):,} entries; at most {MOST_ENTRIES:,} are read"
        )
    plain = [e for e in entries if _is_plain(e)]
    captions = {
        _stem(e): e for e in plain if PurePosixPath(e.filename).suffix.lower() in CAPTION_SUFFIXES
    }
    wanted = [e for e in plain if PurePosixPath(e.filename).suffix.lower() in SUFFIXES]
    if len(wanted) > MOST_PICTURES:
        raise ImagesError(
            f"the archive has {len(wanted):,} pictures; at most {MOST_PICTURES:,} are read"
        )
    total = 0
    for entry in wanted:
        file = into / uuid.uuid4().hex
        total += _unpack(opened, entry, file)
        if total > MOST_TOTAL:
            file.unlink(missing_ok=True)
            raise ImagesError(
                f"the archive unpacks to more than {MOST_TOTAL >> 30} GB; bring it in parts"
            )
        beside = captions.get(_stem(entry))
        yield Unpacked(file, _base(entry), _caption(opened, beside) if beside else None)


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """A file, not a folder, link or device, and not what programs leave behind."""
    mode = entry.external_attr >> 16
    kind = stat.S_IFMT(mode)
    named = PurePosixPath(entry.filename.replace("\\", "/"))
    hidden = any(part.startswith((".", "__MACOSX")) for part in named.parts if part != "..")
    return not entry.is_dir() and kind in (0, stat.S_IFREG) and not hidden


def _stem(entry: zipfile.ZipInfo) -> str:
    named = entry.filename.replace("\\", "/")
    return named.rpartition(".")[0]


def _base(entry: zipfile.ZipInfo) -> str:
    return clean(PurePosixPath(entry.filename.replace("\\", "/")).name)[:200]


def _unpack(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> int:
    size, most = 0, min(MAX_BYTES, max(1, entry.compress_size) * MOST_RATIO)
    try:
        with opened.open(entry) as source, file.open("wb") as target:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > most:
                    raise ImagesError(
                        f"{_base(entry)!r} in the archive unpacks to far more than it is packed; "
                        "this is no picture"
                    )
                target.write(chunk)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return size


def _caption(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    with opened.open(entry) as source:
        data = source.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        return None
    try:
        return clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None
