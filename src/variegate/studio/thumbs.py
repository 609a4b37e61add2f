"""Pictures as the pages show them: decoded, shrunk, encoded anew; never the file itself.

Small ones go pixel for pixel, without loss. They are kept on disk by what the file was.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from pathlib import Path

from PIL import Image

from variegate.images import examine
from variegate.run import write_atomically

SIDES = (160, 320, 640, 1280)  # pixels of the longer side
SMALL = 96  # up to here a picture keeps its pixels
MOST_KEPT = 20_000  # files
_working = threading.BoundedSemaphore(max(1, (os.cpu_count() or 2) - 1))


def thumbnail(file: Path, side: int, kept: Path) -> bytes | None:
    """The picture as WebP, its longer side at most so long; None when it cannot be shown."""
    try:
        facts = file.stat()
    except OSError:
        return None
    key = f"{file}\0{facts.st_mtime_ns}\0{facts.st_size}\0{side}"
    place = kept / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.webp"
    try:
        return place.read_bytes()
    except OSError:
        pass
    with _working:
        image = examine(file).image
    if image is None:
        return None
    data = _webp(image, side)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        write_atomically(place, data)
    except OSError:
        pass  # shown all the same; it is made again next time
    return data


def _webp(image: Image.Image, side: int) -> bytes:
    small = max(image.size) <= SMALL
    if not small:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80, method=4, lossless=small)
    return out.getvalue()


def sweep(kept: Path) -> None:
    """Let go of the oldest when there are too many."""
    try:
        files = sorted(kept.glob("*.webp"), key=lambda f: f.stat().st_mtime)
    except OSError:
        return
    for file in files[: max(0, len(files) - MOST_KEPT)]:
        file.unlink(missing_ok=True)
