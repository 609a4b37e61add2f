"""Latents kept on disk, so that the next run on the same pictures need not encode them again.

An entry belongs to what was encoded and by what: the altered pixels themselves, the seed of the
draw, the base, its device and precision. A recipe that alters pictures otherwise asks for other
entries, so none is ever stale. Entries carry a checksum; one that does not fit is made anew. When
the folder grows beyond its bound, those that were used longest ago go first.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from variegate.images import cache_dir
from variegate.images.cache import put

MOST_BYTES = 2 << 30  # about 130,000 latents of Stable Diffusion at 512 pixels, each 16 kB
KEPT = 0.9  # of that is left after old ones went

_log = logging.getLogger(__name__)


class LatentCache:
    """A folder of latents. A cache that cannot be read or written costs time, never the work."""

    def __init__(self, model: Any, folder: Path | None = None, *, most_bytes: int = MOST_BYTES):
        self._maker = f"{model.id}\x1f{torch.device(model.device).type}\x1f{model.dtype}"
        self._folder = folder or cache_dir() / "latents"
        self._most = most_bytes
        self._bytes: int | None = None  # None: not counted yet

    def file_of(self, pixels: Float[Tensor, "3 h w"], seed: int) -> Path:
        """Where the latents of these pixels, drawn with this seed, are kept."""
        digest = hashlib.sha256(f"1\x1f{self._maker}\x1f{seed}\x1f{tuple(pixels.shape)}".encode())
        digest.update(pixels.contiguous().numpy().tobytes())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def read(self, file: Path) -> Float[Tensor, "c y x"] | None:
        """The latents in a file; None when there are none, or they are not what was written."""
        try:
            with safe_open(str(file), "pt") as entry:
                latent: Tensor = entry.get_tensor("latent")
                whole = (entry.metadata() or {}).get("sha256") == _checksum(latent)
            if whole:
                os.utime(file)
                return latent
            reason = "its checksum does not fit"
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            reason = str(error)
        _log.info("latents at %s cannot be used (%s); making them anew", file, reason)
        return None

    def write(self, file: Path, latent: Float[Tensor, "c y x"]) -> None:
        """Keep latents, whole or not at all."""
        latent = latent.contiguous()
        data = save({"latent": latent}, metadata={"sha256": _checksum(latent)})
        try:
            put(file, data)
            self._bound(len(data))
        except OSError as error:
            _log.info("latents are not kept: %s", error)

    def _bound(self, added: int) -> None:
        """Count what was added, and drop what was used longest ago when it is too much."""
        if self._bytes is not None:
            self._bytes += added
            if self._bytes <= self._most:
                return
        entries = []
        for file in self._folder.glob("*/*.safetensors"):
            try:
                known = file.stat()
            except FileNotFoundError:  # another run dropped it
                continue
            entries.append((known.st_mtime_ns, known.st_size, file))
        total = sum(size for _, size, _ in entries)
        if total > self._most:
            for _, size, file in sorted(entries):
                file.unlink(missing_ok=True)
                total -= size
                if total <= KEPT * self._most:
                    break
        self._bytes = total


def _checksum(latent: Tensor) -> str:
    known = f"{latent.dtype}\x1f{tuple(latent.shape)}".encode()
    return hashlib.sha256(known + latent.contiguous().numpy().tobytes()).hexdigest()
