"""Safetensors files from strangers: opened under caps, never unpickled, refused when damaged."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from variegate.errors import AdapterError

MAX_BYTES = 4 << 30
MAX_TENSORS = 20_000
MAX_HEADER = 32 << 20  # bytes; the tensors' names and the text of one file
NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
# What the reader raises on damaged files, and PyTorch on numbers of a kind it does not know.
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError)
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


@dataclass(frozen=True)
class Container:
    """What lies in one file: tensors as stored, and the header's text."""

    file: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def open_container(file: Path) -> Container:
    """All tensors of a safetensors file.

    Raises: AdapterError when it is missing, a pickle, too large, truncated, or no safetensors.
    """
    _check(file)
    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            if len(keys) > MAX_TENSORS:
                raise AdapterError(
                    f"{file} holds {len(keys)} tensors; an adapter has at most {MAX_TENSORS}; "
                    "it is refused unread"
                )
            metadata = dict(opened.metadata() or {})
            tensors = {key: opened.get_tensor(key) for key in keys}
    except UNREADABLE as error:
        raise AdapterError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}; "
            "it may have been cut while copying; copy or download it again"
        ) from error
    return Container(file=file, tensors=tensors, metadata=metadata)


def with_metadata(data: bytes, changes: Mapping[str, str]) -> bytes:
    """A safetensors file's bytes with entries of its header's text changed, all else as it was."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = {**header.get("__metadata__", {}), **changes}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _check(file: Path) -> None:
    if not file.is_file():
        if file.exists():
            raise AdapterError(f"{file} is no regular file; expected a safetensors file")
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, siblings, n=3, cutoff=0.5)
        hint = f"near it are: {', '.join(near)}" if near else "nothing of a like name is there"
        raise AdapterError(f"no adapter at {file}; {hint}; expected a safetensors file")
    with file.open("rb") as stream:
        start = stream.read(8)
    size = file.stat().st_size
    # A zip archive or a pickle's opening, whatever the file calls itself; but a header of 640 bytes
    # opens as a pickle does, and is told by a length that fits the file.
    fits = len(start) == 8 and int.from_bytes(start, "little") <= size
    if (
        file.suffix.lower() in PICKLES
        or start[:4] == b"PK\x03\x04"
        or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and not fits)
    ):
        raise AdapterError(
            f"{file} is a pickle (PyTorch's old file form), which can run code when opened, and "
            "is refused; get the safetensors version of the adapter, or convert it where "
            "you trust it: safetensors.torch.save_file(torch.load(file, weights_only=True), new)"
        )
    if size > MAX_BYTES:
        raise AdapterError(
            f"{file} has {size} bytes; an adapter has at most {MAX_BYTES}; a whole model is not "
            "an adapter"
        )
    if len(start) == 8 and MAX_HEADER < int.from_bytes(start, "little") <= size:
        raise AdapterError(
            f"{file} has a header of {int.from_bytes(start, 'little')} bytes; an adapter's has at "
            f"most {MAX_HEADER}; it is refused unread"
        )


def finite_faults(tensors: Mapping[str, Tensor]) -> list[str]:
    """One sentence per tensor that is not made of finite numbers."""
    faults = []
    for key, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            faults.append(f"{key}: numbers of kind {tensor.dtype}; expected floating point")
        elif not bool(torch.isfinite(tensor.float()).all()):
            faults.append(f"{key}: holds NaN or infinity")
    return faults
