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

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"


@dataclass(frozen=True)
class Part:
    """One part of a pipeline: how its weights file is called (without the ending), the classes
    that may stand there, the folder of its tokenizer, and whether a base may do without it."""

    stem: str
    classes: tuple[str, ...]
    tokenizer: str = ""
    optional: bool = False


UNET = Part(DIFFUSERS_STEM, ("UNet2DConditionModel",))
VAE = Part(DIFFUSERS_STEM, ("AutoencoderKL", "AutoencoderTiny"))
CLIP, CLIP_PROJECTED = ("CLIPTextModel",), ("CLIPTextModelWithProjection",)
T5 = ("T5EncoderModel",)
LAYOUTS: dict[str, dict[str, Part]] = {
    "sd": {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": Part(TRANSFORMERS_STEM, CLIP, "tokenizer"),
    },
    "sdxl": {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": Part(TRANSFORMERS_STEM, CLIP, "tokenizer"),
        "text_encoder_2": Part(TRANSFORMERS_STEM, CLIP_PROJECTED, "tokenizer_2"),
    },
    "sd3": {
        "transformer": Part(DIFFUSERS_STEM, ("SD3Transformer2DModel",)),
        "vae": VAE,
        "text_encoder": Part(TRANSFORMERS_STEM, CLIP_PROJECTED, "tokenizer", True),
        "text_encoder_2": Part(TRANSFORMERS_STEM, CLIP_PROJECTED, "tokenizer_2", True),
        "text_encoder_3": Part(TRANSFORMERS_STEM, T5, "tokenizer_3", True),
    },
}
PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusion3Img2ImgPipeline": "sd3",
}
EXPECTED = "Stable Diffusion 1.x, 2.x, XL, 3 or 3.5"
LATER = {
    "FluxPipeline": "Flux",
    "Flux2Pipeline": "Flux 2",
    "QwenImagePipeline": "Qwen-Image",
    "ZImagePipeline": "Z-Image",
    "SanaPipeline": "Sana",
    "PixArtSigmaPipeline": "PixArt-Sigma",
    "StableCascadePriorPipeline": "Stable Cascade",
    "StableCascadeCombinedPipeline": "Stable Cascade",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
VARIANTS = (None, "fp16")
SAMPLED_BYTES = 1 << 16


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder that has passed every check that needs no weights.

    `layout` names the family's parts. `parts` are those that are there. `index` is what
    model_index.json says. `variants` holds the middle of each part's weights file name ("fp16") or
    None; `fingerprint` tells two models apart by their settings and by bytes sampled all over their
    weights.
    """

    path: Path
    layout: str
    parts: dict[str, Part]
    index: dict[str, Any]
    scheduler_config: dict[str, Any]
    variants: dict[str, str | None]
    fingerprint: str


def open_folder(path: Path, t5_tokenizer: Path | None = None) -> ModelFolder:
    """The checked folder; BaseError says all that is wrong with it.

    t5_tokenizer: where T5's is; None: in the folder itself.
    """
    index = _read_json(path / "model_index.json")
    layout = _layout_of(path, index)
    parts, faults = _parts(index, layout)
    for name, part in parts.items():
        faults += _config_faults(path, name)
        elsewhere = part.classes == T5 and t5_tokenizer is not None
        faults += _tokenizer_faults(path, part) if part.tokenizer and not elsewhere else []
        faults += _weight_faults(path, name, part)
    if not (path / "scheduler" / "scheduler_config.json").is_file():
        faults.append("scheduler/scheduler_config.json is missing")
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise BaseError(f"base model {path} cannot be used:\n{listed}")
    return ModelFolder(
        path=path,
        layout=layout,
        parts=parts,
        index=index,
        scheduler_config=_read_json(path / "scheduler" / "scheduler_config.json"),
        variants={name: _variant(path, name, part) for name, part in parts.items()},
        fingerprint=_fingerprint(path, parts),
    )


def locate(name_or_path: str) -> Path:
    """The folder, or the single file, behind "pocket", a path, or a hub name (owner/name).

    Raises: BaseError when there is none, or only a pickle.
    """
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
        if path.suffix != ".safetensors":
            raise BaseError(_single_file(path))
        return path.resolve()
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
        "(with model_index.json), a .safetensors checkpoint, or a hub name of the form owner/name"
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
            "expected a diffusers folder with safetensors weights, or a .safetensors checkpoint; "
            "`variegate convert` is for adapters only: save the model anew in a place you trust "
            "with diffusers' `save_pretrained(folder, safe_serialization=True)`"
        )
    return (
        f"base model {path} is a file of no kind that is read; expected a diffusers folder or a "
        ".safetensors checkpoint"
    )


def _fetch(name: str) -> Path:
    """Bring the needed files of a hub model into the hub's cache; its own code is left there."""
    try:
        index_file = huggingface_hub.hf_hub_download(name, "model_index.json")
        index = _read_json(Path(index_file))
        parts, _ = _parts(index, _layout_of(Path(name), index))
        needed = ["model_index.json", "scheduler/*.json"]
        needed += [f"{p}/{file}" for p in parts for file in ("config.json", "*.index*.json")]
        homes = [part.tokenizer for part in parts.values() if part.tokenizer]
        needed += [f"{home}/*.{kind}" for home in homes for kind in ("json", "txt", "model")]
        for variant in VARIANTS:
            needed += [
                f"{p}/{pattern}" for p, part in parts.items() for pattern in _names(part, variant)
            ]
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=needed))
            if all(weight_files(path, p, part) for p, part in parts.items()):
                break
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        offline = (
            "HF_HUB_OFFLINE is set and the model is not in the cache; unset it or name a folder"
            if constants.HF_HUB_OFFLINE
            else "check the name, the network, and whether the model asks you to log in"
        )
        raise BaseError(f"hub model {name} could not be had: {error}; {offline}") from error
    return path


def _layout_of(path: Path, index: dict[str, Any]) -> str:
    found = index.get("_class_name")
    if found in PIPELINES:
        return PIPELINES[found]
    if found in LATER:
        raise BaseError(
            f"{path} holds a {found}: {LATER[found]}; this family comes later; expected {EXPECTED}"
        )
    raise BaseError(
        f"{path} holds a {found or 'pipeline of no stated class'}; expected "
        f"StableDiffusionPipeline, StableDiffusionXLPipeline or StableDiffusion3Pipeline "
        f"({EXPECTED}); other families may come later"
    )


def _parts(index: dict[str, Any], layout: str) -> tuple[dict[str, Part], list[str]]:
    """The parts of the family that model_index.json names, and what is wrong with what it says."""
    parts, faults = {}, []
    for name, part in LAYOUTS[layout].items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is None and part.optional:
            continue
        parts[name] = part
        if found not in part.classes:
            expected = " or ".join(part.classes)
            faults.append(f"{name}: model_index.json names {found}; expected {expected}")
    if not any(part.tokenizer for part in parts.values()):
        faults.append("model_index.json names no text encoder; expected one at least")
    return parts, faults


def _config_faults(path: Path, name: str) -> list[str]:
    return [] if (path / name / "config.json").is_file() else [f"{name}/config.json is missing"]


def _tokenizer_faults(path: Path, part: Part) -> list[str]:
    home = path / part.tokenizer
    pair = (home / "vocab.json").is_file() and (home / "merges.txt").is_file()
    if pair or (home / "tokenizer.json").is_file():
        return []
    if part.classes == T5:
        if (home / "spiece.model").is_file():
            return []
        return [f"{part.tokenizer}: expected tokenizer.json or spiece.model; found neither"]
    return [
        f"{part.tokenizer}: expected vocab.json and merges.txt, or tokenizer.json; found neither"
    ]


def _names(part: Part, variant: str | None) -> tuple[str, str]:
    """What a part's weights are called, whole and in shards."""
    stem = part.stem + (f".{variant}" if variant else "")
    return f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"


def _variant(path: Path, name: str, part: Part) -> str | None:
    """The first variant that is there: full precision where there is a choice."""
    for variant in VARIANTS:
        if any(list((path / name).glob(pattern)) for pattern in _names(part, variant)):
            return variant
    return None


def weight_files(path: Path, name: str, part: Part) -> list[Path]:
    """The file of a part's weights that is read, or its shards."""
    whole, shards = _names(part, _variant(path, name, part))
    if (path / name / whole).is_file():
        return [path / name / whole]
    return sorted((path / name).glob(shards))


def _weight_faults(path: Path, name: str, part: Part) -> list[str]:
    files = weight_files(path, name, part)
    if not files:
        pickles = sorted(p.name for p in (path / name).glob("*") if p.suffix in PICKLES)
        if pickles:
            return [
                f"{name}: weights only as a pickle ({pickles[0]}), which can run code when "
                "opened; expected safetensors; `variegate convert` is for adapters only: save "
                "the model anew with save_pretrained(folder, safe_serialization=True), or take "
                "a revision that has safetensors"
            ]
        return [f"{name}/{part.stem}.safetensors is missing"]
    faults = []
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            faults.append(
                f"{name}/{file.name} ({size} bytes) is no whole safetensors file: {error}; "
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


def _fingerprint(path: Path, parts: dict[str, Part]) -> str:
    """A hash of all settings and of 16 stretches of each weights file: whole files take minutes."""
    digest = hashlib.sha256()
    settings = [path / name / "config.json" for name in parts]
    for file in [*settings, path / "scheduler" / "scheduler_config.json"]:
        digest.update(file.read_bytes())
    for name, part in parts.items():
        for file in weight_files(path, name, part):
            digest.update(f"{name}/{file.name} {file.stat().st_size}".encode())
            digest_samples(file, digest)
    return digest.hexdigest()[:16]


def digest_samples(file: Path, digest: Any) -> None:
    """Add 16 stretches of a file, from its start to its end, to a hash."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        for i in range(16):
            stream.seek(max(0, (size - SAMPLED_BYTES) * i // 15))
            digest.update(stream.read(SAMPLED_BYTES))
