"""Where the pictures of one tar lie, so that any of them is read without the others.

As WebDataset has it, what is alike up to the first dot of a file's name belongs together:

    000123.jpg              a picture, of any format that folders may hold
    000123.txt, .caption    its caption, or
    000123.json             {"text": ...}, or "prompt" or "caption" in that place
    000123.masklabel.png    its mask, as also 000123-masklabel.png

Only headers and captions are read here. Nothing is ever unpacked by its name, links lead nowhere,
and a header that claims what cannot be ends the reading with a fault.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from variegate.errors import ImagesError
from variegate.images.cache import put
from variegate.images.captions import MAX_CAPTION_BYTES, clean, parse_caption
from variegate.images.conventions import MASK_ENDING, PROMPT_KEYS
from variegate.images.decode import FOREIGN_SUFFIXES, SUFFIXES, Fault

VERSION = "1"  # raise it when the same tar would have another index
BLOCK_BYTES = 4 * 2**20  # that are read at once
MOST_PICTURE = 64 * 2**20  # bytes; many are held at once, where of a folder one is
MOST_FAULTS = 200  # that are told one by one of a tar
MOST_HEADER = 4 * 2**20  # bytes: what a tar may say of one file beside its contents
CAPTIONS = (".txt", ".caption", ".json")  # the first that is there counts
_END = bytes(512)
# What tarfile raises on headers that are none; reading itself raises OSError.
_BROKEN = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, struct.error)

_log = logging.getLogger(__name__)

Whole = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Index:
    """Of each picture of a tar, in their order there: where its bytes are, its name and caption.

    sums: the checksums of the headers, which cover name, size and date. masks: offset and size of
    each one's mask, 0 where it has none. names and captions lie end to end, and end where
    `name_ends` and `caption_ends` say; captioned: 0 where there is no caption at all. blocks: how
    many pictures are before the end of each block of about `BLOCK_BYTES`.
    """

    offsets: Whole
    sizes: Whole
    sums: Whole
    masks: NDArray[np.int64]  # [n, 2]
    names: Bytes
    name_ends: Whole
    captions: Bytes
    caption_ends: Whole
    captioned: Bytes
    blocks: Whole
    faults: tuple[Fault, ...] = field(default=(), compare=False)
    more_faults: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def digest(self) -> str:
        """What names the pictures, captions and masks, as far as it is told without reading them:
        by names, sizes, places and dates."""
        digest = hashlib.sha256(VERSION.encode())
        for part in _arrays(self).values():
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """One picture of a tar: its name there, caption, and where its bytes and those of its mask
    lie (offset and size; a size of 0: no mask)."""

    name: str
    caption: str | None
    place: tuple[int, int]
    mask: tuple[int, int]


def read_index(stream: Any, size: int, tar: str) -> Index:
    """The index of a tar that is `size` bytes long. tar: what it is called in faults.

    Raises: ImagesError for what is no tar, is compressed, or ends too early.
    """
    found = _Reading(stream, size, tar)
    found.walk()
    return found.index()


def save_index(index: Index, file: Path) -> None:
    """Keep an index, whole or not at all."""
    facts = {
        "digest": index.digest,
        "more_faults": index.more_faults,
        "faults": [[str(f.file), f.kind, f.fault, f.advice] for f in index.faults],
    }
    data = save(_arrays(index), metadata={"facts": json.dumps(facts)})
    try:
        put(file, data)
    except OSError as error:
        raise ImagesError(
            f"the index of a tar cannot be kept at {file}: {error.strerror}; free some space, or "
            "set VARIEGATE_CACHE to a folder that can be written"
        ) from error


def load_index(file: Path) -> Index | None:
    """An index that was kept, or None where there is none or it is not what was written."""
    try:
        with safe_open(str(file), "np") as kept:
            facts = json.loads((kept.metadata() or {})["facts"])
            parts = {name: kept.get_tensor(name) for name in _ARRAYS}
        told = (
            Fault(Path(at), kind, fault, advice, usable=False)
            for at, kind, fault, advice in facts["faults"]
        )
        index = Index(**parts, faults=tuple(told), more_faults=int(facts["more_faults"]))
        if index.digest == facts["digest"]:
            return index
        reason = "its checksum does not fit"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = str(error)
    _log.info("the index at %s cannot be used (%s); making it anew", file, reason)
    return None


def entries(file: Path, first: int, last: int) -> list[Entry]:
    """Pictures `first` to before `last` of an index that was kept, and nothing else of it."""
    with safe_open(str(file), "np") as kept:

        def part(name: str, begin: int, end: int) -> Any:
            return kept.get_slice(name)[begin:end]

        def texts(name: str, ends: str) -> Iterator[str]:
            until = part(ends, max(0, first - 1), last).tolist()
            begin = 0 if first == 0 else until.pop(0)
            data = part(name, begin, until[-1]).tobytes() if until[-1] > begin else b""
            at = begin
            for end in until:
                yield data[at - begin : end - begin].decode("utf8", "replace")
                at = end

        captioned = part("captioned", first, last).tolist()
        columns = zip(
            texts("names", "name_ends"),
            texts("captions", "caption_ends"),
            captioned,
            part("offsets", first, last).tolist(),
            part("sizes", first, last).tolist(),
            part("masks", first, last).tolist(),
            strict=True,
        )
        return [
            Entry(name, caption if has else None, (offset, size), (mask[0], mask[1]))
            for name, caption, has, offset, size, mask in columns
        ]


def _arrays(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in _ARRAYS}


_ARRAYS = tuple(f.name for f in fields(Index) if f.compare)


@dataclass
class _Sample:
    """What lies under one key."""

    picture: tuple[str, int, int, int] | None = None  # name, offset, size, checksum
    mask: tuple[int, int] = (0, 0)
    captions: dict[str, str] = field(default_factory=dict)  # by suffix


class _Sips:
    """A stream of which only little is read at once, so that no header makes us read gigabytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)

    def seek(self, place: int) -> int:
        return self._stream.seek(place)

    def tell(self) -> int:
        return self._stream.tell()


class _Reading:
    """What has been read so far of one tar."""

    def __init__(self, stream: Any, size: int, tar: str) -> None:
        self._stream, self._size, self._tar = stream, size, tar
        self._samples = dict[str, _Sample]()
        self._endings = Counter[str]()  # of pictures that are not the sample's
        self._faults = list[Fault]()
        self._more = 0

    def walk(self) -> None:
        """Read every header, and captions.

        Raises: ImagesError where it is no tar, or ends too early.
        """
        after = 0  # the end of the last file that is whole
        self._stream.seek(0)
        try:
            with tarfile.open(fileobj=_Sips(self._stream), mode="r:") as tar:  # type: ignore[call-overload]
                while (file := tar.next()) is not None:
                    tar.members = []  # memory does not grow with what was read
                    if file.size < 0 or file.offset_data < after:
                        raise tarfile.ReadError("a header that points backwards")
                    solid = file.isreg() and not file.issparse()
                    end = file.offset_data + (file.size if solid else 0)
                    if end > self._size:
                        raise ImagesError(self._cut(file.name, end))
                    self._take(file)
                    after = end
                self._stream.seek(tar.offset)
                if self._stream.read(len(_END)) != _END:
                    raise tarfile.ReadError("no end mark where the last file ends")
        except _BROKEN as error:
            raise ImagesError(self._broken(after, error)) from error

    def index(self) -> Index:
        """Raises: ImagesError when there is no picture in it."""
        for ending, count in self._endings.items():
            self._tell(
                f"*{ending}",
                "ignored",
                f"{count} pictures end in {ending!r}, with two dots; they were not read",
                "end names in one dot and .jpg, or the like",
            )
        whole = sorted(
            (s for s in self._samples.values() if s.picture),
            key=lambda s: (s.picture or ("", 0))[1],
        )
        for key, sample in self._samples.items():
            if sample.picture is None and (sample.captions or sample.mask[1]):
                what = "a caption" if sample.captions else "a mask"
                self._tell(
                    key,
                    "caption" if sample.captions else "mask",
                    f"{what} without its picture",
                    "name both alike up to the first dot",
                )
        if not whole:
            told = "; ".join(f"{f.file.name!r}: {f.fault}" for f in self._faults[:3])
            raise ImagesError(
                f"{self._tar}: no picture in it; expected PNG, JPEG, WEBP, BMP or GIF files"
                + (f". Passed over: {told}" if told else "")
            )
        names, captions = [], []
        places, masks, captioned = [], [], []
        for sample in whole:
            assert sample.picture is not None
            name, *place = sample.picture
            names.append(name.encode("utf8", "replace"))
            caption = next((sample.captions[s] for s in CAPTIONS if s in sample.captions), None)
            captions.append((caption or "").encode("utf8", "replace"))
            captioned.append(caption is not None)
            places.append(place)
            masks.append(sample.mask)
        table = np.asarray(places, np.int64)
        return Index(
            offsets=np.ascontiguousarray(table[:, 0]),
            sizes=np.ascontiguousarray(table[:, 1]),
            sums=np.ascontiguousarray(table[:, 2]),
            masks=np.asarray(masks, np.int64),
            names=np.frombuffer(b"".join(names), np.uint8),
            name_ends=np.cumsum([len(n) for n in names], dtype=np.int64),
            captions=np.frombuffer(b"".join(captions), np.uint8),
            caption_ends=np.cumsum([len(c) for c in captions], dtype=np.int64),
            captioned=np.asarray(captioned, np.uint8),
            blocks=blocks_of(table[:, 0], table[:, 1], BLOCK_BYTES),
            faults=tuple(self._faults),
            more_faults=self._more,
        )

    def _take(self, file: tarfile.TarInfo) -> None:
        """Note one file of the tar."""
        if file.isdir():
            return
        path = PurePosixPath(file.name)
        if path.name.startswith(".") or "__MACOSX" in path.parts:
            return
        if _hostile(file.name):
            self._tell(
                file.name,
                "outside",
                "a name that leads out of the tar; it was not read",
                "give it a plain name: letters and digits, folders with /",
            )
            return
        if not file.isreg() or file.issparse():
            what = "a link" if file.issym() or file.islnk() else "no regular file"
            self._tell(
                file.name,
                "special",
                f"{what}; it was not followed",
                "put the picture itself into the tar (tar --dereference)",
            )
            return
        stem, _, rest = path.name.partition(".")
        suffix = f".{rest.lower()}"
        masks = stem.endswith(MASK_ENDING) or suffix.startswith(f".{MASK_ENDING[1:]}.")
        key = str(path.with_name(stem.removesuffix(MASK_ENDING)))
        if suffix in CAPTIONS:
            caption = self._caption(file, suffix)
            if caption is not None:
                self._samples.setdefault(key, _Sample()).captions[suffix] = caption
        elif masks and f".{rest.lower().rpartition('.')[2]}" in SUFFIXES:
            if self._fits(file):
                self._samples.setdefault(key, _Sample()).mask = (file.offset_data, file.size)
        elif suffix in SUFFIXES:
            if not self._fits(file):
                return
            sample = self._samples.setdefault(key, _Sample())
            if sample.picture is not None:
                self._tell(
                    sample.picture[0],
                    "ignored",
                    "a second picture of that name comes later in the tar, which was used",
                    "name pictures differently",
                )
            sample.picture = (file.name, file.offset_data, file.size, file.chksum)
        elif f".{rest.lower().rpartition('.')[2]}" in SUFFIXES:
            self._endings[suffix] += 1
        elif suffix in FOREIGN_SUFFIXES:
            self._tell(
                file.name,
                "unsupported",
                f"unsupported format: {suffix}",
                "save it as PNG or JPEG with a picture program, or remove it",
            )

    def _fits(self, file: tarfile.TarInfo) -> bool:
        if 0 < file.size <= MOST_PICTURE:
            return True
        found = "is empty (0 bytes)" if file.size == 0 else f"has {file.size / 2**20:.0f} MB"
        self._tell(
            file.name,
            "bomb",
            f"{found}; it was not read",
            f"pictures in tars have up to {MOST_PICTURE // 2**20} MB; remove it",
        )
        return False

    def _caption(self, file: tarfile.TarInfo, suffix: str) -> str | None:
        if file.size > MAX_CAPTION_BYTES:
            fault = f"caption of {file.size / 1024:.0f} kB; at most {MAX_CAPTION_BYTES // 1024} kB"
            self._tell(file.name, "caption", f"{fault} are read", "shorten it to a sentence or two")
            return None
        self._stream.seek(file.offset_data)
        data = self._stream.read(file.size)
        try:
            return _json_caption(data) if suffix == ".json" else parse_caption(data)[0]
        except (ValueError, RecursionError):
            form = "JSON with a text, prompt or caption" if suffix == ".json" else "UTF-8 text"
            self._tell(file.name, "caption", f"caption is not {form}", "save it as such")
            return None

    def _tell(self, name: str, kind: str, fault: str, advice: str) -> None:
        if len(self._faults) >= MOST_FAULTS:
            self._more += 1
            return
        told = Path(f"{self._tar}/{clean(name)[:200]}")
        self._faults.append(Fault(told, kind, fault, advice, usable=False))

    def _cut(self, name: str, end: int) -> str:
        return (
            f"{self._tar}: truncated: {clean(name)[:120]!r} would end at byte {end}, and there are "
            f"{self._size}; copy or download it again, or leave it out"
        )

    def _broken(self, after: int, error: BaseException) -> str:
        self._stream.seek(0)
        head = self._stream.read(6)
        kinds = {
            b"\x1f\x8b": "gzip",
            b"BZh": "bzip2",
            b"\xfd7zXZ": "xz",
            b"\x28\xb5\x2f\xfd": "zstd",
        }
        for magic, kind in kinds.items():
            if head.startswith(magic):
                return (
                    f"{self._tar}: compressed ({kind}), so its pictures cannot be reached one by "
                    "one; unpack it to a plain .tar (pictures are compressed already)"
                )
        if not after:
            return (
                f"{self._tar}: not a tar ({error}); give tars of pictures, as WebDataset has them"
            )
        return (
            f"{self._tar}: truncated or damaged after byte {after} of {self._size} ({error}); copy "
            "or download it again, or leave it out"
        )


def blocks_of(offsets: Whole, sizes: Whole, most: int) -> Whole:
    """How many pictures are before the end of each block: neighbours that span no more than `most`
    bytes, or one alone."""
    ends, begin = list[int](), 0
    stops = offsets + sizes
    while begin < len(offsets):
        last = int(np.searchsorted(stops, offsets[begin] + most, side="right"))
        begin = max(begin + 1, last)
        ends.append(begin)
    return np.asarray(ends, np.int64)


def _hostile(name: str) -> bool:
    """Whether a name is such as no picture needs: absolute, upwards, or with control characters."""
    path = PurePosixPath(name)
    return (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or len(name) > 1024
        or any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
    )


def _json_caption(data: bytes) -> str | None:
    """Raises: ValueError when it is no object with text in it."""
    found = json.loads(data.decode("utf-8-sig"))
    if not isinstance(found, dict):
        raise ValueError("no object")
    text = next((found[key] for key in PROMPT_KEYS if found.get(key) is not None), None)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("no text")
    return clean(text)
