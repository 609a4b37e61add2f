"""Diffusers folders on disk or on a hub: found, checked and read, with nothing in them executed.

Everything is checked before a weight is loaded, and all faults of one folder are told at once.
Only safetensors are read as weights. A hub is asked only for a name of the form owner/name that
is no path here, and not at all when HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError, safe_open

from variegate.errors import BaseError

POCKET = Path(__file__).resolve().parent / "pocket"

# part -> its weights (without the file ending) and the classes that may stand there
WEIGHTS = {
    "unet": ("diffusion_pytorch_model", ("UNet2DConditionModel",)),
    "vae": ("diffusion_pytorch_model", ("AutoencoderKL", "AutoencoderTiny")),
    "text_encoder": ("model", ("CLIPTextModel",)),
}
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
LATER = {
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
VARIANTS = (None, "fp16")
SAMPLED_BYTES = 1 << 16


@dataclass(frozen=True)
class ModelFolder:
    """A Stable Diffusion 1 or 2 folder that has passed every check that needs no weights.

    `variants` holds the middle of each part's weights file name ("fp16") or None; `fingerprint`
    tells two models apart by their settings and by bytes sampled all over their weights.
    """

    path: Path
    autoencoder: str
    scheduler_config: dict[str, Any]
    variants: dict[str, str | None]
    fingerprint: str


def open_folder(name_or_path: str) -> ModelFolder:
    """The checked folder behind "pocket", a path, or a hub name; BaseError says what is wrong."""
    path = _locate(name_or_path)
    index = _read_json(path / "model_index.json")
    _check_pipeline(path, index)
    faults = [*_part_faults(path, index), *_tokenizer_faults(path)]
    faults += [f for part in WEIGHTS for f in _weight_faults(path, part)]
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        faults.append("scheduler/scheduler_config.json is missing")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise BaseError(f"base model {path} cannot be used:\n{listed}")
    return ModelFolder(
        path=path,
        autoencoder=index["vae"][1],
        scheduler_config=_read_json(path / "scheduler" / "scheduler_config.json"),
        variants={part: _variant(path, part) for part in WEIGHTS},
        fingerprint=_fingerprint(path),
    )


def _locate(name_or_path: str) -> Path:
    if name_or_path == "pocket":
        if not (POCKET / "model_index.json").is_file():
            raise BaseError(
                f"the pocket model is not in this installation; expected it in {POCKET}; "
                "install variegate again, or name another base"
            )
        return POCKET
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise BaseError(_no_index(path))
        return path.resolve()
    if path.is_file():
        raise BaseError(_single_file(path))
    if HUB_NAME.fullmatch(name_or_path):
        return _fetch(name_or_path)
    raise BaseError(_no_path(path))


def _no_path(path: Path) -> str:
    parent = path.parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    if near:
        hint = f"near it are: {', '.join(near)}"
    elif parent.is_dir():
        hint = f"{parent} holds nothing of a like name"
    else:
        hint = f"its parent {parent} does not exist either"
    return (
        f"no base model at {path}; {hint}; expected 'pocket', a diffusers folder "
        "(with model_index.json), or a hub name of the form owner/name"
    )


def _no_index(path: Path) -> str:
    inner = sorted(p.parent.name for p in path.glob("*/model_index.json"))
    found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
    advice = (
        f"a model folder lies inside it: {path / inner[0]}"
        if inner
        else "name the folder that a diffusers pipeline was saved to"
    )
    return f"{path} is no diffusers folder: model_index.json is missing; it holds {found}; {advice}"


def _single_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"base model {path} is a pickle, which can run code when opened, and is refused; "
            "expected a diffusers folder with safetensors weights; `variegate convert` is for "
            "adapters only: save the model anew in a place you trust with diffusers' "
            "`save_pretrained(folder, safe_serialization=True)`"
        )
    return (
        f"base model {path} is a single file; expected a diffusers folder; in Python, "
        "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder) makes one"
    )


def _fetch(name: str) -> Path:
    """Bring the needed files of a hub model into the hub's cache; its own code is left there."""
    needed = ["model_index.json", "scheduler/*.json", "tokenizer/*.json", "tokenizer/*.txt"]
    needed += [f"{part}/{file}" for part in WEIGHTS for file in ("config.json", "*.index*.json")]
    try:
        index_file = huggingface_hub.hf_hub_download(name, "model_index.json")
        _check_pipeline(Path(name), _read_json(Path(index_file)))
        for variant in VARIANTS:
            needed += [f"{part}/{pattern}" for part in WEIGHTS for pattern in _names(part, variant)]
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=needed))
            if all(_weights(path, part) for part in WEIGHTS):
                break
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        offline = (
            "HF_HUB_OFFLINE is set and the model is not in the cache; unset it or name a folder"
            if constants.HF_HUB_OFFLINE
            else "check the name, the network, and whether the model asks you to log in"
        )
        raise BaseError(f"hub model {name} could not be had: {error}; {offline}") from error
    return path


def _check_pipeline(path: Path, index: dict[str, Any]) -> None:
    found = index.get("_class_name")
    if found in PIPELINES:
        return
    if found in LATER:
        raise BaseError(
            f"{path} holds a {found}: {LATER[found]}; this family comes later; "
            "expected Stable Diffusion 1.x or 2.x"
        )
    raise BaseError(
        f"{path} holds a {found or 'pipeline of no stated class'}; expected "
        f"{PIPELINES[0]} (Stable Diffusion 1.x or 2.x); other families may come later"
    )


def _part_faults(path: Path, index: dict[str, Any]) -> list[str]:
    faults = []
    for part, (_, classes) in WEIGHTS.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in classes:
            expected = " or ".join(classes)
            faults.append(f"{part}: model_index.json names {found}; expected {expected}")
        if not (path / part / "config.json").is_file():
            faults.append(f"{part}/config.json is missing")
    return faults


def _tokenizer_faults(path: Path) -> list[str]:
    home = path / "tokenizer"
    pair = (home / "vocab.json").is_file() and (home / "merges.txt").is_file()
    if pair or (home / "tokenizer.json").is_file():
        return []
    return ["tokenizer: expected vocab.json and merges.txt, or tokenizer.json; found neither"]


def _names(part: str, variant: str | None) -> tuple[str, str]:
    """What a part's weights are called, whole and in shards."""
    stem = WEIGHTS[part][0] + (f".{variant}" if variant else "")
    return f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"


def _variant(path: Path, part: str) -> str | None:
    """The first variant that is there: full precision where there is a choice."""
    for variant in VARIANTS:
        if any(list((path / part).glob(name)) for name in _names(part, variant)):
            return variant
    return None


def _weights(path: Path, part: str) -> list[Path]:
    whole, shards = _names(part, _variant(path, part))
    if (path / part / whole).is_file():
        return [path / part / whole]
    return sorted((path / part).glob(shards))


def _weight_faults(path: Path, part: str) -> list[str]:
    files = _weights(path, part)
    if not files:
        pickles = sorted(p.name for p in (path / part).glob("*") if p.suffix in PICKLES)
        if pickles:
            return [
                f"{part}: weights only as a pickle ({pickles[0]}), which can run code when "
                "opened; expected safetensors; `variegate convert` is for adapters only: save "
                "the model anew with save_pretrained(folder, safe_serialization=True), or take "
                "a revision that has safetensors"
            ]
        return [f"{part}/{WEIGHTS[part][0]}.safetensors is missing"]
    faults = []
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            faults.append(
                f"{part}/{file.name} ({size} bytes) is no whole safetensors file: {error}; "
                "copy or download it again"
            )
    return faults


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise BaseError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise BaseError(f"{file} holds a {type(data).__name__}; expected a JSON object")
    return data


def _fingerprint(path: Path) -> str:
    """A hash of all settings and of 16 stretches of each weights file: whole files take minutes."""
    digest = hashlib.sha256()
    settings = [path / part / "config.json" for part in WEIGHTS]
    for file in [*settings, path / "scheduler" / "scheduler_config.json"]:
        digest.update(file.read_bytes())
    for part in WEIGHTS:
        for file in _weights(path, part):
            size = file.stat().st_size
            digest.update(f"{part}/{file.name} {size}".encode())
            with file.open("rb") as stream:
                for i in range(16):
                    stream.seek(max(0, (size - SAMPLED_BYTES) * i // 15))
                    digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()[:16]
