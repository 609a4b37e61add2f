"""Checkpoints: whole or absent, checked on reading, bit-exact.

A checkpoint is a folder `step-000100` with adapter.safetensors (the adapter as others read it),
optimizer.safetensors, state.json, factors.safetensors where the adapter's file would not give back
what is trained to the bit, and last of all manifest.json with every file's sha256. It is made under
another name beside its place and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from variegate import formats
from variegate.adapter import Adapter
from variegate.errors import AdapterError, NoSpace

SCHEMA = 2
ADAPTER, OPTIMIZER, STATE, MANIFEST = (
    "adapter.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
FACTORS = "factors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a step left behind: what was learnt and how the optimizer stood.

    adapter is what would be handed over; where an optimizer averages, the point that it goes on
    from is among its tensors.
    """

    step: int
    path: Path
    adapter: Adapter
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    adapter: Adapter,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    spare: Collection[int] = (),
) -> Path:
    """Write a checkpoint, then let go of all but the latest `keep` and the steps to `spare`.

    Raises: NoSpace when the disk cannot take it; the ones before stand.
    """
    place = folder / f"step-{step:06d}"
    temporary = folder / f".{place.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        formats.write(adapter, temporary / ADAPTER)
        (temporary / OPTIMIZER).write_bytes(safetensors.torch.save(optimizer))
        (temporary / STATE).write_text(json.dumps({"step": step, **state}))
        names = [ADAPTER, OPTIMIZER, STATE]
        if adapter.factors:
            (temporary / FACTORS).write_bytes(safetensors.torch.save(adapter.factors))
            names.append(FACTORS)
        for name in names:
            _sync(temporary / name)
        manifest = {"schema": SCHEMA, "files": {n: _sha256(temporary / n) for n in names}}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync(temporary / MANIFEST)
        _sync(temporary)
        if place.exists():  # a damaged one of the same step
            shutil.rmtree(place)
        os.replace(temporary, place)
        _sync(folder)
    except (OSError, NoSpace) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.nbytes for t in optimizer.values()) * 3 // 2
        raise NoSpace(
            f"checkpoint {place} cannot be written: {error}; it takes about "
            f"{needed} bytes; earlier checkpoints stand: free some space and resume"
        ) from error
    for old in checkpoint_folders(folder)[keep:]:
        if step_of(old) not in spare:
            shutil.rmtree(old, ignore_errors=True)
    return place


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, latest first, unchecked."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name[5:])


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The latest whole checkpoint, or None, and what is wrong with each later one."""
    faults: list[str] = []
    for path in checkpoint_folders(folder):
        try:
            return read_checkpoint(path), faults
        except AdapterError as error:
            faults.append(str(error))
    return None, faults


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint, every file of it checked against its manifest.

    Raises: AdapterError when anything is missing or changed.
    """
    for fault in _faults(path):
        raise AdapterError(f"checkpoint {path.name} cannot be used: {fault}")
    try:
        state = json.loads((path / STATE).read_text(encoding="utf8"))
        optimizer = safetensors.torch.load_file(path / OPTIMIZER)
        kept = path / FACTORS
        factors = safetensors.torch.load_file(kept) if kept.is_file() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"checkpoint {path.name} cannot be used: {error}") from error
    return Checkpoint(
        step=int(state["step"]),
        path=path,
        adapter=replace(formats.read(path / ADAPTER), factors=factors),
        optimizer=optimizer,
        state=state,
    )


def _faults(path: Path) -> Iterator[str]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"its manifest cannot be read ({type(error).__name__})"
        return
    if manifest.get("schema") != SCHEMA:
        yield f"it has schema {manifest.get('schema')}; this version reads {SCHEMA}"
    for name in dict.fromkeys((ADAPTER, OPTIMIZER, STATE, *files)):
        if not (path / name).is_file():
            yield f"{name} is missing"
        elif _sha256(path / name) != files.get(name):
            yield f"{name} has changed since it was written (sha256)"


def _sweep(folder: Path) -> None:
    """Clear what a killed process left half made."""
    for leftover in folder.glob(".step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Ask the disk to have a file, or a folder's entries; folders only where that is possible."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
