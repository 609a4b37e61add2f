"""An adapter into its base for good: W + strength * delta, in the form and precision it came in.

A folder is copied with its weights changed, a single file written with every other tensor and its
key names as they were. What is written stands at its place when it is whole, or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from variegate.adapter import Adapter, Update
from variegate.adapter.places import entry_of, find
from variegate.errors import AdapterError, NoSpace, NotFinite, RequestError
from variegate.models.folder import PICKLES, ModelFolder, locate, open_folder, weight_files
from variegate.models.single_file import ROWS, open_single, trace_single

SHOWN = 3
SLACK = 16 << 20  # what a file system wants beside the bytes of files
WEIGHTS = (".safetensors", ".msgpack", ".h5", ".onnx", *PICKLES)
STALE = ("sshs_", "modelspec.hash")


def merge(base: str, adapter: Adapter, out: Path, *, strength: float = 1.0) -> Path:
    """Write the base with the adapter in its weights to `out`, a new folder or file.

    base: "pocket", a diffusers folder, a .safetensors checkpoint or a hub name. Sums are made in
    float32 and stored as the base was. A part's weights in other precisions are not copied.

    Raises: RequestError when `out` is taken or of the other form, AdapterError when the adapter
    does not fit or holds what no weight can, NotFinite when a sum overflows, NoSpace when there is
    no room; then nothing is left behind.
    """
    if adapter.masking:
        raise AdapterError(
            "the adapter is a T-LoRA, whose rank falls with the noise; no weights are the same; "
            "use it as it is"
        )
    place = locate(base)
    out = Path(out).absolute()
    if out.exists():
        raise RequestError(f"{out} is there already; name a place that is not")
    adapter = adapter.scaled(strength)
    if place.is_file():
        if out.suffix != ".safetensors":
            raise RequestError(f"{out}: {base} is a single file; name a .safetensors file")
        with _whole(out, place.stat().st_size) as part:
            _merge_file(place, adapter, part)
    else:
        if out.suffix == ".safetensors":
            raise RequestError(f"{out}: {base} is a folder; name a folder")
        folder = open_folder(place)
        names = list(_to_copy(folder))
        size = sum((place / name).stat().st_size for name in names)
        with _whole(out, size) as part:
            _merge_folder(folder, adapter, part, names)
    return out


@contextmanager
def _whole(out: Path, size: int) -> Iterator[Path]:
    """A place beside `out` that becomes `out` when the block ends well, and else is removed."""
    home: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out.parent).free) < size + SLACK:
            raise NoSpace(
                f"{out.parent} has {free >> 20} MiB free and {(size + SLACK) >> 20} MiB are needed "
                f"for {out.name}; free some space or name another place"
            )
        home = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
        yield home / out.name
        _to_disk(home / out.name)
        os.rename(home / out.name, out)
    except (OSError, SafetensorError) as error:
        told = getattr(error, "strerror", None) or error
        raise NoSpace(
            f"{out} cannot be written: {told}; free some space, change its permissions, or name "
            "another place; nothing is left there"
        ) from error
    finally:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)


def _to_disk(place: Path) -> None:
    for file in (p for p in (place, *place.rglob("*")) if p.is_file()):
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())


def _to_copy(folder: ModelFolder) -> Iterator[Path]:
    """All files of a folder but weights that are not read."""
    read = {file for name, p in folder.parts.items() for file in weight_files(folder.path, name, p)}
    for file in sorted(folder.path.rglob("*")):
        inside = file.relative_to(folder.path)
        if not file.is_file() or any(name.startswith(".") for name in inside.parts):
            continue
        owned = inside.parts[0] in folder.parts or len(inside.parts) == 1
        if file in read or not (owned and file.suffix.lower() in WEIGHTS):
            yield inside


def _merge_folder(folder: ModelFolder, adapter: Adapter, out: Path, names: list[Path]) -> None:
    changes: dict[Path, dict[str, Update]] = {}
    missing, files = [], dict[str, dict[str, Path]]()
    for name, update in adapter.layers.items():
        part, _, path = name.removesuffix(".bias").partition(".")
        if part not in files:
            files[part] = _keys(folder, part)
        short = path.removeprefix("text_model.")
        spelt = (f"{p}.{entry_of(name)}" for p in (path, short, f"text_model.{short}"))
        key = next((key for key in spelt if key in files[part]), None)
        if key is None:
            missing.append(name)
        else:
            changes.setdefault(files[part][key], {})[key] = update
    _refuse_missing(missing, adapter, str(folder.path))
    for inside in names:
        source, target = folder.path / inside, out / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if source not in changes:
            shutil.copyfile(source, target)
            continue
        tensors, metadata = _load(source)
        for key, update in changes[source].items():
            _refuse_misfit(f"{inside.parts[0]}.{key}", update, tensors[key])
            tensors[key] = _added(key, tensors[key], update.delta(tensors[key]))
        safetensors.torch.save_file(tensors, target, metadata=metadata)


def _keys(folder: ModelFolder, part: str) -> dict[str, Path]:
    if part not in folder.parts:
        return {}
    found: dict[str, Path] = {}
    for file in weight_files(folder.path, part, folder.parts[part]):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _merge_file(file: Path, adapter: Adapter, out: Path) -> None:
    """Where each row of a layer lies in the file is told by the loader itself; each number of a
    vector is a row."""
    tensors, metadata = _load(file)
    parts, keys = trace_single(open_single(file), tensors)
    for name, module in find(SimpleNamespace(name=str(file), **parts), adapter).items():
        traced: Tensor = getattr(module, entry_of(name)).long()
        places = traced.reshape(len(traced), -1)
        # OpenCLIP stores its projection the other way round.
        turned = bool((places != places[:, :1]).any())
        addresses = (places.mT if turned else places)[:, 0]
        rows = [(key, addresses // ROWS == key) for key in (addresses // ROWS).unique().tolist()]
        held = torch.cat([tensors[keys[key]][addresses[own] % ROWS] for key, own in rows])
        order = torch.cat([own.nonzero()[:, 0] for _, own in rows])
        weight = held[order.argsort()]
        weight = (weight.mT if turned else weight).reshape(traced.shape)
        merged = _added(name, weight, adapter.layers[name].delta(weight))
        merged = merged.mT if turned else merged
        for key, own in rows:
            whole = tensors[keys[key]]
            whole[addresses[own] % ROWS] = merged[own].reshape(-1, *whole.shape[1:])
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, out, metadata=metadata)


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header, the header without hashes of what the file no longer is."""
    with safe_open(file, framework="pt") as opened:
        told = dict(opened.metadata() or {})
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return tensors, {k: v for k, v in told.items() if not k.startswith(STALE)} | {"format": "pt"}


def _added(name: str, weight: Tensor, delta: Tensor) -> Tensor:
    merged = (weight.float() + delta.view(weight.shape)).to(weight.dtype)
    if not bool(torch.isfinite(merged.float()).all()):
        raise NotFinite(
            f"{name} becomes NaN or infinite in {weight.dtype}; expected finite numbers; merge at "
            "a lower strength, or into a base of wider numbers"
        )
    return merged


def _refuse_misfit(name: str, update: Update, weight: Tensor) -> None:
    if not update.fits(tuple(weight.shape)):
        raise AdapterError(
            f"the adapter does not fit: {name} is {tuple(weight.shape)}, its update "
            f"{update.size}; merge into the base that it was trained on"
        )


def _refuse_missing(missing: list[str], adapter: Adapter, base: str) -> None:
    if missing:
        raise AdapterError(
            f"{len(missing)} of {len(adapter.layers)} layers of the adapter (family "
            f"{adapter.family}) are not in {base}, such as {', '.join(missing[:SHOWN])}; merge "
            "into the base that it was trained on"
        )
