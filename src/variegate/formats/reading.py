"""From a file, or PEFT's folder, to an adapter; all faults of one file are told at once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from variegate.adapter import Adapter
from variegate.adapter.updates import numbers_of
from variegate.errors import AdapterError
from variegate.formats import diffusers, kohya
from variegate.formats.container import Container, finite_faults, open_container
from variegate.formats.factors import WHOLE_NUMBERS, Factors
from variegate.formats.metadata import family_of, masking_of, own_notes, trigger_of
from variegate.formats.names import OTHER_FAMILIES, OTHER_KINDS

Form = Literal["kohya", "diffusers", "peft"]
PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
SHOWN = 5
MAX_TEXT = 2000


def read(file: Path | str) -> Adapter:
    """The adapter in a safetensors file or in PEFT's folder, its factors in float32.

    The header's text comes along as `metadata`. A missing alpha means a scale of 1.

    Raises: AdapterError when it is missing, damaged, a pickle, of another family or kind, or
    holds anything that is not understood: dropping that would change what was learnt.
    """
    file = Path(file)
    if file.is_dir():
        return _read_folder(file)
    container = open_container(file)
    return _adapter(container)


def identify(keys: Iterable[str]) -> Form:
    """Whose key names these are.

    Raises: AdapterError when they are nobody's.
    """
    keys = list(keys)
    if any(key.startswith(("lora_unet_", "lora_te")) for key in keys):
        return "kohya"
    if any(key.startswith("base_model.model.") for key in keys):
        return "peft"
    if any(".lora" in key or "_lora." in key for key in keys):
        return "diffusers"
    raise AdapterError(
        f"no LoRA layers among {len(keys)} tensors{_first(keys)}; expected names such as "
        "lora_unet_....lora_down.weight or unet.....lora_A.weight"
    )


def inspect(file: Path | str) -> dict[str, Any]:
    """What is in an adapter file, for people and for JSON; never fails on a foreign kind.

    `problem` says why it cannot be used here, or is None. Long texts of the header are cut.

    Raises: AdapterError when the file is missing, damaged, or a pickle.
    """
    file = Path(file)
    containers = _folder_containers(file) if file.is_dir() else [open_container(file)]
    keys = [key for container in containers for key in container.tensors]
    metadata = {k: v for container in containers for k, v in container.metadata.items()}
    facts: dict[str, Any] = {
        "family": _foreign_family(keys) or "unknown",
        "format": None,
        "kind": _foreign_kind(keys) or kohya.kind_of(keys),
        "layers": None,
        "rank": None,
        "alpha": None,
    }
    problem = None
    try:
        facts["format"] = "peft" if file.is_dir() else identify(keys)
        facts |= _facts(read(file))
    except AdapterError as error:
        problem = str(error)
    return {
        **facts,
        "file": str(file.resolve()),
        "bytes": sum(container.file.stat().st_size for container in containers),
        "tensors": len(keys),
        "dtypes": sorted(
            {
                str(t.dtype).removeprefix("torch.")
                for container in containers
                for key, t in container.tensors.items()
                if not key.endswith("alpha")
            }
        ),
        "trigger": trigger_of(metadata)[:MAX_TEXT],
        "notes": own_notes(metadata),
        "metadata": {k[:MAX_TEXT]: _cut(v) for k, v in sorted(metadata.items())},
        "problem": problem,
    }


def _facts(adapter: Adapter) -> dict[str, Any]:
    updates = adapter.layers.values()
    largest = max(updates, key=lambda update: update.rank)
    facts: dict[str, Any] = {
        "family": adapter.family,
        "kind": adapter.kind,
        "layers": len(adapter.layers),
        "rank": largest.rank or None,
        "alpha": getattr(largest, "alpha", None),
        "ranks": sorted({update.rank for update in updates if update.rank}),
        "alphas": sorted({u.alpha for u in updates if hasattr(u, "alpha")}),
        "text_encoder": any(name.startswith("text_encoder") for name in adapter.layers),
        "parameters": sum(t.numel() for update in updates for t in numbers_of(update)),
    }
    if adapter.masking:
        facts |= {"min_rank": adapter.masking.min_rank, "timesteps": adapter.masking.timesteps}
    return facts


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"


def _adapter(container: Container, part: str = "") -> Adapter:
    file, tensors, metadata = container.file, container.tensors, container.metadata
    _refuse_foreign(file, list(tensors))
    alphas: dict[str, float] = {}
    try:
        form = identify(tensors)
    except AdapterError as error:
        raise AdapterError(f"{file}: {error}") from error
    if form == "kohya":
        found = kohya.factors(tensors)
    else:
        found = diffusers.factors(tensors, part)
        beside = file.with_name(PEFT_SETTINGS)
        if diffusers.HEADER in metadata:
            alphas = diffusers.alphas_of_header(metadata[diffusers.HEADER], found)
        elif form == "peft" and beside.is_file():
            alphas = _peft_alphas(beside, found)
    return _joined(file, tensors, found, alphas, metadata, form)


def _joined(
    file: Path,
    tensors: dict[str, Any],
    found: Factors,
    alphas: dict[str, float],
    metadata: dict[str, str],
    form: Form,
) -> Adapter:
    layers = found.joined(alphas)
    numbers = {key: t for key, t in tensors.items() if not key.endswith(WHOLE_NUMBERS)}
    faults = [*found.faults, *finite_faults(numbers)]
    if found.unknown:
        faults.append(f"{len(found.unknown)} keys spell no layer{_first(found.unknown)}")
    if not layers and not faults:
        faults.append("it holds no layers")
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listed = "\n".join(f"  {fault}" for fault in faults[:SHOWN])
        raise AdapterError(f"{file} cannot be used as an adapter:\n{listed}{more}")
    widths = {name: update.size[1] for name, update in layers.items()}
    family = family_of(widths, metadata)
    if family == "sdxl" and form == "kohya":
        raise AdapterError(
            f"{file} was made for Stable Diffusion XL in kohya's form, which is not read for that "
            "family yet; expected diffusers' form (lora_A and lora_B): load it with diffusers and "
            "save it with save_lora_weights"
        )
    notes = {k: v for k, v in metadata.items() if k != diffusers.HEADER}
    return Adapter(family, layers, notes, masking_of(layers, metadata))


def _refuse_foreign(file: Path, keys: list[str]) -> None:
    if family := _foreign_family(keys):
        raise AdapterError(_another_family(file, family))
    if kind := _foreign_kind(keys):
        raise AdapterError(
            f"{file} is a {kind}; LoRA, DoRA, LoHa and LoKr are read in kohya's form, and plain "
            "LoRA in all; ask its author for a LoRA, the one kind that loads everywhere, or "
            "extract one with the tool that made it"
        )


def _another_family(file: Path, family: str) -> str:
    return (
        f"{file} was made for {family}; this family comes later; expected an adapter of "
        "Stable Diffusion 1.x, 2.x, XL or 3"
    )


def _foreign_family(keys: list[str]) -> str | None:
    for start, family in OTHER_FAMILIES:
        if any(key.removeprefix("base_model.model.").startswith(start) for key in keys):
            return family
    return None


def _foreign_kind(keys: list[str]) -> str | None:
    for mark, kind in OTHER_KINDS:
        if any(mark.search(key) for key in keys):
            return kind
    return None


def _folder_containers(folder: Path) -> list[Container]:
    files = [folder / part / PEFT_WEIGHTS for part in diffusers.PARTS]
    found = [file for file in (folder / PEFT_WEIGHTS, *files) if file.is_file()]
    if not found and (folder / DIFFUSERS_WEIGHTS).is_file():
        found = [folder / DIFFUSERS_WEIGHTS]
    if not found:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "nothing"
        raise AdapterError(
            f"{folder} is a folder without an adapter: expected {PEFT_WEIGHTS} in it or in its "
            f"unet/, or {DIFFUSERS_WEIGHTS}; it holds {inside}; name the adapter's file"
        )
    return [open_container(file) for file in found]


def _read_folder(folder: Path) -> Adapter:
    adapters = [
        _adapter(container, _part_of(container)) for container in _folder_containers(folder)
    ]
    layers = {name: update for adapter in adapters for name, update in adapter.layers.items()}
    metadata = {k: v for adapter in adapters for k, v in adapter.metadata.items()}
    return Adapter(adapters[0].family, layers, metadata, adapters[0].masking)


def _part_of(container: Container) -> str:
    """The model whose folder the file lies in, or ""."""
    home = container.file.parent.name
    return home if home in diffusers.PARTS else ""


def _peft_alphas(settings_file: Path, found: Factors) -> dict[str, float]:
    try:
        text = settings_file.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{settings_file} cannot be read: {error}") from error
    settings = diffusers.settings_of_text(text, str(settings_file))
    alphas: dict[str, float] = {}
    for part in diffusers.PARTS:
        alphas |= diffusers.alphas_of_settings(settings, found, part)
    return alphas


def _first(keys: list[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(key[:120] for key in keys[:3])
    return f" ({json.dumps(shown, ensure_ascii=False)}{', ...' if len(keys) > 3 else ''})"
