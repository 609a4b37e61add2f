"""Features of pictures, computed once and kept on disk by content.

A cached entry belongs to (bytes of the picture, encoder, version of the decoder). An entry that
cannot be read is computed again; a cache that cannot be written costs time, never the work.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from variegate.errors import EmptyImageSet, EncoderError
from variegate.images.cache import cache_dir, put
from variegate.images.picture import Picture

DECODER = "1"  # raise it when `examine` gives other pixels for the same file

_log = logging.getLogger(__name__)


@runtime_checkable
class ImageEncoder(Protocol):
    """What features need of an encoder: a name that pins its weights, and pictures -> rows."""

    id: str

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]: ...


def cached_features(
    pictures: Sequence[Picture], encoder: ImageEncoder, *, batch: int = 64
) -> Float[Tensor, "n d"]:
    """One row per picture, in order; only pictures never seen by this encoder are encoded.

    batch: pictures per call of the encoder.
    Raises: EmptyImageSet, ImagesError for a picture that cannot be opened, EncoderError when the
    encoder gives rows that are not finite or not one per picture.
    """
    if not pictures:
        raise EmptyImageSet("features were asked of no pictures; give at least one")
    folder = _folder_of(encoder)
    hashes = [p.content_hash() for p in pictures]
    rows: dict[str, Tensor] = {}
    for name in dict.fromkeys(hashes):
        row = _load(folder / name[:2] / f"{name}.safetensors")
        if row is not None:
            rows[name] = row
    todo = {h: p for h, p in zip(hashes, pictures, strict=True) if h not in rows}
    fresh = _encode(todo, encoder, batch)
    widths = {len(r) for r in (*rows.values(), *fresh.values())}
    if len(widths) > 1:  # stale rows of another width: trust none of them
        rows = {}
        todo = dict(zip(hashes, pictures, strict=True))
        fresh = _encode(todo, encoder, batch)
    for name, row in fresh.items():
        _store(folder / name[:2] / f"{name}.safetensors", row)
    rows |= fresh
    return torch.stack([rows[h] for h in hashes])


def _folder_of(encoder: ImageEncoder) -> Path:
    name = hashlib.sha256(f"{DECODER}\x1f{encoder.id}".encode()).hexdigest()[:16]
    return cache_dir() / "features" / name


def _encode(todo: dict[str, Picture], encoder: ImageEncoder, batch: int) -> dict[str, Tensor]:
    names = list(todo)
    rows: dict[str, Tensor] = {}
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        with torch.no_grad():
            out = encoder.images([todo[n].open() for n in part]).detach().float().cpu()
        if out.ndim != 2 or len(out) != len(part):
            raise EncoderError(
                f"encoder {encoder.id!r} gave shape {tuple(out.shape)} for {len(part)} pictures; "
                "expected one row per picture"
            )
        for name, row in zip(part, out, strict=True):
            if not bool(row.isfinite().all()):
                raise EncoderError(
                    f"encoder {encoder.id!r} gave NaN or infinity for picture "
                    f"{todo[name].key!r}; try float32 or another encoder"
                )
            rows[name] = row
    return rows


def _load(file: Path) -> Tensor | None:
    try:
        row = load(file.read_bytes())["features"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            _log.info("features at %s cannot be read (%s); computing them again", file, error)
        return None
    if row.ndim != 1 or row.dtype != torch.float32 or not bool(row.isfinite().all()):
        return None
    return row


def _store(file: Path, row: Tensor) -> None:
    data = save({"features": row.contiguous()})
    try:
        put(file, data)
    except OSError as error:
        _log.info("features are not kept: %s", error)
