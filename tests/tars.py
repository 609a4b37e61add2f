"""Tars of pictures as WebDataset has them, and one that is made up as it is read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.spec import AbstractFileSystem
from PIL import Image

from variegate.bench import world

Files = Iterable[tuple[str, bytes]]


def tar_of(files: Files, *, links: Mapping[str, str] | None = None) -> bytes:
    """A tar with these files, in order; links: name -> where it points."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files:
            told = tarfile.TarInfo(name)
            told.size = len(data)
            tar.addfile(told, io.BytesIO(data))
        for name, target in (links or {}).items():
            told = tarfile.TarInfo(name)
            told.type, told.linkname = tarfile.SYMTYPE, target
            tar.addfile(told)
    return stream.getvalue()


def without_end(data: bytes) -> bytes:
    """A tar as far as its last file goes, without the mark of its end."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    return data[: last.offset_data + -(-last.size // 512) * 512]


def png(seed: int, *, side: int = 64) -> bytes:
    """A scene of the pocket's world."""
    picture = Image.fromarray(world.render(world.draw_scene(np.random.default_rng(seed))))
    stream = io.BytesIO()
    picture.resize((side, side)).save(stream, "PNG")
    return stream.getvalue()


def write_tars(folder: Path, counts: Iterable[int] = (5, 4, 3), *, seed: int = 0) -> str:
    """Tars of different pictures, each with a caption; what names them all."""
    folder.mkdir(parents=True, exist_ok=True)
    number = seed
    many = list(counts)
    for i, count in enumerate(many):
        files = []
        for _ in range(count):
            files.append((f"{number:06d}.png", png(number)))
            files.append((f"{number:06d}.txt", f"a zqx number {number}".encode()))
            number += 1
        (folder / f"set-{i:03d}.tar").write_bytes(tar_of(files))
    return f"{folder}/set-{{000..{len(many) - 1:03d}}}.tar"


class MadeUp(AbstractFileSystem):  # type: ignore[misc]
    """Tars that nobody stored: `made://TARS-PICTURES/00012.tar` is made up where it is read.

    Each picture takes the same room, so that any part of any tar can be told by arithmetic.
    """

    protocol = "made"
    cachable = False
    picture_bytes = 3072
    reads: list[tuple[str, int, int]]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.reads = []
        noise = np.random.default_rng(0).integers(0, 255, (8, 24, 24, 3), np.uint8)
        self._pictures = []
        for pixels in noise:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            data = stream.getvalue()
            assert len(data) <= self.picture_bytes
            self._pictures.append(data.ljust(self.picture_bytes, b"\0"))

    @property
    def each(self) -> int:
        """Bytes of a tar that belong to one picture."""
        return 512 + self.picture_bytes

    def count(self, path: str) -> int:
        return int(self._strip_protocol(path).split("/")[0].split("-")[1])

    def info(self, path: str, **given: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        size = self.count(path) * self.each + 1024
        return {"name": path, "size": size, "type": "file"}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **given: Any
    ) -> bytes:
        count, size = self.count(path), self.info(path)["size"]
        begin, stop = start or 0, size if end is None else min(end, size)
        self.reads.append((path, begin, stop))
        first, last = begin // self.each, -(-stop // self.each)
        parts = [self._one(path, i) for i in range(first, min(last, count))]
        parts.append(bytes(max(0, last - count) * self.each))
        return b"".join(parts)[begin - first * self.each : stop - first * self.each]

    def _one(self, path: str, i: int) -> bytes:
        told = tarfile.TarInfo(f"{i:06d}.png")
        told.size = self.picture_bytes
        return told.tobuf(tarfile.USTAR_FORMAT) + self._pictures[i % len(self._pictures)]

    def _open(self, path: str, mode: str = "rb", **given: Any) -> Any:
        return io.BytesIO(self.cat_file(path))
