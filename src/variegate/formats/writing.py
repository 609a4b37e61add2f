"""From an adapter to a file that diffusers, ComfyUI and A1111 read, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from variegate.adapter import Adapter
from variegate.errors import AdapterError, NoSpace, NotFinite, RequestError
from variegate.formats import diffusers, kohya
from variegate.formats.container import finite_faults, open_container, with_metadata
from variegate.formats.metadata import OURS, complete, own_notes
from variegate.formats.names import canonical
from variegate.formats.reading import PEFT_SETTINGS, PEFT_WEIGHTS, containers, joined
from variegate.formats.recast import Kept, as_differences, as_lora
from variegate.measurement import Verdict
from variegate.run import write_atomically

Form = Literal["kohya", "diffusers", "peft"]
NOT_KOHYA = ("sd3",)
TOLD = (  # of a verdict, in a file's header
    *("variety_vs_base", "trigger_variety_vs_base", "copy_rate", "adherence_vs_base"),
    *("class_retention", "likeness"),
)
HALVES = (torch.float16, torch.bfloat16)


def write(
    adapter: Adapter,
    file: Path | str,
    to: Form | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write an adapter and return where it is; an older file stands until the new one is whole.

    to: None is the form that most tools read: kohya for SD 1, 2 and XL, diffusers for SD 3,
    whose kohya names are not written. "peft" makes a folder per model, as PEFT's own
    `save_pretrained` does, unless `file` ends in .safetensors: then it is one file in the
    diffusers form, which has PEFT's names too.
    dtype: float32 gives back exactly what was learnt; float16 halves the file, as the field does.

    Raises: NotFinite when a factor is NaN or infinite (also after narrowing to dtype),
    AdapterError when there is nothing to write or the form cannot hold it, NoSpace when the place
    cannot be written.
    """
    return _write(adapter, Path(file), to, dtype=dtype)


def convert(
    source: Path | str,
    target: Path | str,
    to: Form,
    *,
    dense: bool = False,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Path, Kept | None]:
    """Rewrite an adapter file with other key names: where it is, and what a change of kind kept.

    Without `dtype` every number stays what it was: a tensor is stored as narrow as the source had
    them where that loses nothing, else in float32.
    dense: write kinds that are no LoRA as whole differences (exact; kohya's form only).
    rank: write them as LoRA of at most this rank, the nearest there is.
    """
    if dense and rank is not None:
        raise RequestError("--dense keeps updates whole and --rank cuts them; ask for one of them")
    parts = containers(Path(source))
    adapter, kept = joined(parts), None
    if dense:
        adapter = as_differences(adapter)
    elif rank is not None:
        adapter, kept = as_lora(adapter, rank)
    stored = [t.dtype for part in parts for k, t in part.tensors.items() if not k.endswith("alpha")]
    narrow = [half for half in HALVES if half in stored]
    if dtype is None:
        return _write(adapter, Path(target), to, narrow=narrow), kept
    return _write(adapter, Path(target), to, dtype=dtype), kept


def stamp(file: Path | str, verdict: Verdict) -> None:
    """Note a verdict in the header of an adapter file, under our own entry; tensors and the hashes
    by which others know the file stay as they are."""
    file = Path(file)
    numbers = [m for name in TOLD if (m := verdict.find(name))]
    told = {
        "labels": list(verdict.labels),
        "sentence": verdict.sentence,
        "rules": verdict.rules,
        "measured": {m.name: [m.value, m.low, m.high] for m in numbers},
    }
    notes = own_notes(open_container(file).metadata) | {"verdict": told}
    changes = {OURS: json.dumps(notes, sort_keys=True)}
    write_atomically(file, with_metadata(file.read_bytes(), changes))


def _write(
    adapter: Adapter,
    file: Path,
    to: Form | None,
    *,
    dtype: torch.dtype = torch.float32,
    narrow: Collection[torch.dtype] = (),
) -> Path:
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
            "family, expected sd1, sd2, sdxl or pocket; write the form diffusers or peft, which "
            "diffusers and ComfyUI read"
        )
    layers = {canonical(name): update for name, update in adapter.layers.items()}
    adapter = replace(adapter, layers=layers)
    try:
        if to == "peft" and file.suffix != ".safetensors":
            _write_folder(adapter, file, dtype, narrow)
        elif to == "kohya":
            stored = _narrowed(kohya.tensors(adapter), dtype, narrow)
            _write_file(adapter, file, stored, {})
        else:
            header = {diffusers.HEADER: diffusers.header(adapter)}
            stored = _narrowed(diffusers.tensors(adapter), dtype, narrow)
            _write_file(adapter, file, stored, header)
    except OSError as error:
        raise NoSpace(
            f"the adapter cannot be written to {file}: {error.strerror or error}; free some "
            "space, change its permissions, or name another place"
        ) from error
    return file


def _narrowed(
    stored: dict[str, Tensor], dtype: torch.dtype, narrow: Collection[torch.dtype]
) -> dict[str, Tensor]:
    """Tensors in `dtype`, or in one of `narrow` where that loses nothing; alpha as it is."""
    result = {}
    for key, tensor in stored.items():
        if tensor.is_floating_point() and not key.endswith(".alpha"):
            tensor = tensor.to(dtype)
            for half in narrow:
                smaller = tensor.to(half)
                if torch.equal(smaller.to(dtype), tensor):
                    tensor = smaller
                    break
        result[key] = tensor
    return result


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


def _write_folder(
    adapter: Adapter, folder: Path, dtype: torch.dtype, narrow: Collection[torch.dtype]
) -> None:
    if folder.exists() and not folder.is_dir():
        raise AdapterError(f"{folder} is a file; PEFT's form is a folder; name another place")
    for part in diffusers.PARTS:
        stored = _narrowed(diffusers.part_tensors(adapter, part), dtype, narrow)
        if not stored:
            continue
        _write_file(adapter, folder / part / PEFT_WEIGHTS, stored, {})
        settings = {"peft_type": "LORA", **diffusers.part_settings(adapter, part)}
        text = json.dumps(settings, indent=2, sort_keys=True)
        write_atomically(folder / part / PEFT_SETTINGS, text.encode())
