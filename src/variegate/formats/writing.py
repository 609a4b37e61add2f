"""From an adapter to a file that diffusers, ComfyUI and A1111 read, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from variegate.adapter import Adapter
from variegate.errors import AdapterError, NoSpace, NotFinite
from variegate.formats import diffusers, kohya
from variegate.formats.container import finite_faults, open_container
from variegate.formats.metadata import complete
from variegate.formats.names import canonical
from variegate.formats.reading import PEFT_SETTINGS, PEFT_WEIGHTS, Form, read
from variegate.run import write_atomically

NOT_KOHYA = ("sdxl", "sd3")


def write(
    adapter: Adapter,
    file: Path | str,
    to: Form | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write an adapter and return where it is; an older file stands until the new one is whole.

    to: None is the form that most tools read: kohya for SD 1 and 2, diffusers for SDXL and SD 3,
    whose kohya names are not written. "peft" makes a folder per model, as PEFT's own
    `save_pretrained` does, unless `file` ends in .safetensors: then it is one file in the
    diffusers form, which has PEFT's names too.
    dtype: float32 gives back exactly what was learnt; float16 halves the file, as the field does.

    Raises: NotFinite when a factor is NaN or infinite (also after narrowing to dtype),
    AdapterError when there is nothing to write, NoSpace when the place cannot be written.
    """
    file = Path(file)
    if not adapter.layers:
        raise AdapterError(f"nothing to write to {file}: the adapter has no layers")
    weakened = [n for n, u in adapter.layers.items() if getattr(u, "strength", 1.0) != 1.0]
    if weakened:
        raise AdapterError(
            f"{weakened[0]} acts at a strength that no file can hold for its kind; write the "
            "adapter as it was learnt and ask for the strength where it is used"
        )
    known = tuple(f"{part}." for part in diffusers.PARTS)
    unnamed = [name for name in adapter.layers if not name.startswith(known)]
    if unnamed:
        raise AdapterError(
            f"layer {unnamed[0]!r} is of none of the parts {', '.join(diffusers.PARTS)}"
        )
    if to is None:
        to = "diffusers" if adapter.family in NOT_KOHYA else "kohya"
    elif to == "kohya" and adapter.family in NOT_KOHYA:
        raise AdapterError(
            f"{file}: kohya's names are not written for {adapter.family}; found an adapter of that "
            "family, expected sd1, sd2 or pocket; write the form diffusers or peft, which "
            "diffusers and ComfyUI read"
        )
    layers = {canonical(name): update for name, update in adapter.layers.items()}
    adapter = replace(adapter, layers=layers)
    try:
        if to == "peft" and file.suffix != ".safetensors":
            _write_folder(adapter, file, dtype)
        elif to == "kohya":
            _write_file(adapter, file, kohya.tensors(adapter, dtype), {})
        else:
            header = {diffusers.HEADER: diffusers.header(adapter)}
            _write_file(adapter, file, diffusers.tensors(adapter, dtype), header)
    except OSError as error:
        raise NoSpace(
            f"the adapter cannot be written to {file}: {error.strerror or error}; free some "
            "space, change its permissions, or name another place"
        ) from error
    return file


def convert(source: Path | str, target: Path | str, to: Form) -> Path:
    """Rewrite an adapter file with other key names; the numbers keep their precision."""
    source = Path(source)
    adapter = read(source)
    dtype = torch.float32
    if source.is_file():
        stored = open_container(source).tensors
        kinds = {
            t.dtype
            for key, t in stored.items()
            if t.is_floating_point() and not key.endswith("alpha")
        }
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    return write(adapter, target, to, dtype=dtype)


def _write_file(
    adapter: Adapter, file: Path, stored: dict[str, Tensor], header: dict[str, str]
) -> None:
    numbers = {key: t for key, t in stored.items() if t.is_floating_point()}
    if faults := finite_faults(numbers):
        raise NotFinite(
            f"the adapter is not written to {file}: {faults[0]}; {len(faults)} of {len(stored)} "
            "tensors are so; take an earlier checkpoint, or a wider dtype"
        )
    # Tensors may share memory (one factor in several layers), which the format does not allow.
    stored = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in stored.items()}
    metadata = complete(adapter, stored, stem=file.stem) | header
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, safetensors.torch.save(stored, metadata=metadata))


def _write_folder(adapter: Adapter, folder: Path, dtype: torch.dtype) -> None:
    if folder.exists() and not folder.is_dir():
        raise AdapterError(f"{folder} is a file; PEFT's form is a folder; name another place")
    for part in diffusers.PARTS:
        stored = diffusers.part_tensors(adapter, part, dtype)
        if not stored:
            continue
        _write_file(adapter, folder / part / PEFT_WEIGHTS, stored, {})
        settings = {"peft_type": "LORA", **diffusers.part_settings(adapter, part)}
        text = json.dumps(settings, indent=2, sort_keys=True)
        write_atomically(folder / part / PEFT_SETTINGS, text.encode())
