"""From a file, or PEFT's folder, to an adapter; all faults of one file are told at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from variegate.adapter import Adapter
from variegate.adapter.updates import numbers_of
from variegate.errors import AdapterError
from variegate.formats import diffusers
from variegate.formats.container import Container, finite_faults, open_container
from variegate.formats.factors import WHOLE_NUMBERS, Factors
from variegate.formats.metadata import family_of, masking_of
from variegate.formats.names import OTHER_FAMILIES, OTHER_KINDS, Source, spelled

PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
SHOWN = 5
MAX_SETTINGS = 4 << 20  # bytes of PEFT's settings


def read(file: Path | str) -> Adapter:
    """The adapter in a safetensors file or in PEFT's folder, its factors in float32.

    The header's text comes along as `metadata`. A missing alpha means a scale of 1.

    Raises: AdapterError when it is missing, damaged, a pickle, of another family or kind, or
    holds anything that is not understood: dropping that would change what was learnt.
    """
    return joined(containers(Path(file)))


def containers(file: Path) -> list[Container]:
    """The file, or the files of a folder, as they are stored."""
    return _of_folder(file) if file.is_dir() else [open_container(file)]


def joined(parts: list[Container]) -> Adapter:
    """The adapter whose parts these are."""
    adapters = [_adapter(part, _part_of(part)) for part in parts]
    layers = {name: update for adapter in adapters for name, update in adapter.layers.items()}
    metadata = {k: v for adapter in adapters for k, v in adapter.metadata.items()}
    family = next((a.family for a in adapters if a.family != "unknown"), "unknown")
    return Adapter(family, layers, metadata, adapters[0].masking)


def identify(keys: Iterable[str]) -> Source:
    """Whose key names these are: those of most of them.

    Raises: AdapterError when they are nobody's.
    """
    keys = list(keys)
    sources = Counter(said.source for key in keys if (said := spelled(key)))
    if sources:
        return sources.most_common(1)[0][0]
    raise AdapterError(
        f"no LoRA layers among {len(keys)} tensors{_first(keys)}; expected names such as "
        "lora_unet_....lora_down.weight or unet.....lora_A.weight"
    )


def _adapter(container: Container, part: str = "") -> Adapter:
    file, tensors, metadata = container.file, container.tensors, container.metadata
    _refuse_foreign(file, list(tensors))
    found = Factors()
    for key, tensor in tensors.items():
        if said := spelled(key, part):
            found.put(said, tensor, key)
        else:
            found.unknown.append(key)
    if found.is_empty:
        try:
            identify(tensors)
        except AdapterError as error:
            raise AdapterError(f"{file}: {error}") from error
    # LyCORIS stores a constraint of none as the whole number 0, in alpha's place.
    whole = {k for k, t in tensors.items() if k.endswith(".alpha") and t.dtype == torch.int64}
    numbers = {k: t for k, t in tensors.items() if not k.endswith(WHOLE_NUMBERS)}
    found.faults += finite_faults({k: t for k, t in numbers.items() if k not in whole})
    if found.unknown:
        found.faults.append(f"{len(found.unknown)} keys spell no layer{_first(found.unknown)}")
    _refuse(file, found.faults)
    found.part()
    layers = found.joined(_alphas(container, found))
    found.faults += [
        f"{name}: its factors multiply to more than float32 holds"
        for name, update in layers.items()
        if not all(bool(torch.isfinite(t).all()) for t in numbers_of(update))
    ]
    _refuse(file, found.faults)
    widths = {name: update.size[1] for name, update in layers.items()}
    notes = {k: v for k, v in metadata.items() if k != diffusers.HEADER}
    return Adapter(family_of(widths, metadata), layers, notes, masking_of(layers, metadata))


def _refuse(file: Path, faults: list[str]) -> None:
    """Raises: AdapterError with the first faults, when there are any."""
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        listed = "\n".join(f"  {fault}" for fault in faults[:SHOWN])
        raise AdapterError(f"{file} cannot be used as an adapter:\n{listed}{more}")


def _alphas(container: Container, found: Factors) -> dict[str, float]:
    """Each layer's alpha where the header, or PEFT's settings beside the file, say it."""
    if diffusers.HEADER in container.metadata:
        return diffusers.alphas_of_header(container.metadata[diffusers.HEADER], found)
    beside = container.file.with_name(PEFT_SETTINGS)
    if container.file.name == PEFT_WEIGHTS and beside.is_file():
        return _peft_alphas(beside, found)
    return {}


def _refuse_foreign(file: Path, keys: list[str]) -> None:
    if family := foreign_family(keys):
        raise AdapterError(
            f"{file} was made for {family}; found keys such as {_first(keys)[2:-1]:.200}; expected "
            "an adapter of Stable Diffusion 1.x, 2.x, XL or 3, of which T5 has no part"
        )
    if kind := foreign_kind(keys):
        raise AdapterError(
            f"{file} is a {kind}; LoRA, LoCon, DoRA, LoHa, LoKr, OFT and BOFT of LyCORIS and whole "
            "differences are read; ask its author for a LoRA, the one kind that loads everywhere, "
            "or extract one with the tool that made it"
        )


def foreign_family(keys: list[str]) -> str | None:
    """The family that is not read here whose names these are, or None."""
    bare = [key.removeprefix("base_model.model.") for key in keys]
    for starts, family in OTHER_FAMILIES:
        if any(key.startswith(starts) for key in bare):
            return family
    return None


def foreign_kind(keys: list[str]) -> str | None:
    """The kind that is not read here whose factors these are, or None."""
    for mark, kind in OTHER_KINDS:
        if any(mark.search(key[:1000]) for key in keys):
            return kind
    return None


def _of_folder(folder: Path) -> list[Container]:
    files = [folder / part / PEFT_WEIGHTS for part in diffusers.PARTS]
    found = [file for file in (folder / PEFT_WEIGHTS, *files) if file.is_file()]
    if not found and (folder / DIFFUSERS_WEIGHTS).is_file():
        found = [folder / DIFFUSERS_WEIGHTS]
    if not found:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "nothing"
        raise AdapterError(
            f"{folder} is a folder without an adapter: expected {PEFT_WEIGHTS} in it or in its "
            f"unet/, or {DIFFUSERS_WEIGHTS}; it holds {inside}; name the adapter's file (a .bin "
            "is a pickle and is not read)"
        )
    return [open_container(file) for file in found]


def _part_of(container: Container) -> str:
    """The model whose folder the file lies in, or ""."""
    home = container.file.parent.name
    is_pefts = container.file.name == PEFT_WEIGHTS
    return home if is_pefts and home in diffusers.PARTS else ""


def _peft_alphas(settings_file: Path, found: Factors) -> dict[str, float]:
    try:
        with settings_file.open("rb") as stream:
            data = stream.read(MAX_SETTINGS + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{settings_file} cannot be read: {error}") from error
    if len(data) > MAX_SETTINGS:
        raise AdapterError(f"{settings_file} has more than {MAX_SETTINGS} bytes; it is refused")
    settings: dict[str, Any] = diffusers.settings_of_text(text, str(settings_file))
    alphas: dict[str, float] = {}
    for part in diffusers.PARTS:
        alphas |= diffusers.alphas_of_settings(settings, found, part)
    return alphas


def _first(keys: list[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(key[:120] for key in keys[:3])
    return f" ({json.dumps(shown, ensure_ascii=False)}{', ...' if len(keys) > 3 else ''})"
