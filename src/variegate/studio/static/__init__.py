"""What the browser is given beside pages: read once, known by its content, nothing else served."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    data: bytes
    packed: bytes
    kind: str


class Assets:
    """Every style sheet, script and drawing in this folder, under a name with its hash in it."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._assets: dict[str, Asset] = {}
        for file in _files(resources.files(__name__)):
            suffix = file.name.rpartition(".")[2]
            if suffix not in TYPES:
                continue
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()[:10]
            stem = file.name.removesuffix(f".{suffix}")
            name = f"{stem}.{digest}.{suffix}"
            self._paths[file.name] = f"/static/{name}"
            self._assets[name] = Asset(data, gzip.compress(data, mtime=0), TYPES[suffix])

    def path(self, name: str) -> str:
        """Where a file is asked for.

        Raises: KeyError when there is none of that name.
        """
        return self._paths[name]

    def get(self, name: str) -> Asset | None:
        return self._assets.get(name)


def _files(folder: Traversable) -> list[Traversable]:
    found: list[Traversable] = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        found += _files(entry) if entry.is_dir() else [entry]
    return found
