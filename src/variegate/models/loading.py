"""From a name or path to a frozen base: the folder is checked first, then its parts are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
)
from transformers.utils import logging as transformers_logging

from variegate.errors import BaseError
from variegate.models.face import DiffusionModel, Family
from variegate.models.folder import (
    POCKET,
    TRANSFORMERS_STEM,
    ModelFolder,
    locate,
    open_folder,
)
from variegate.models.quantised import Bits, quantise
from variegate.models.samplers import to_pure_noise
from variegate.models.sd import StableDiffusion
from variegate.models.sd3 import StableDiffusion3
from variegate.models.sdxl import StableDiffusionXL
from variegate.models.single_file import open_single, read_single
from variegate.models.t5 import digest_t5_tokenizer, find_t5_tokenizer, read_t5_tokenizer

CLASSES: dict[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "SD3Transformer2DModel": SD3Transformer2DModel,
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "T5EncoderModel": T5EncoderModel,
}
MODELS: dict[str, Any] = {
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "sd3": StableDiffusion3,
}
SD2_WIDTH = 1024
SD3_ENCODERS = {"text_encoder": "CLIP-L", "text_encoder_2": "CLIP-G", "text_encoder_3": "T5"}

NETWORKS = ("unet", "transformer")  # what predicts, by diffusers' names
_log = logging.getLogger(__name__)


def load(
    name_or_path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    clip_skip: int = 1,
    zero_terminal_snr: bool = False,
    t5_tokenizer: str | Path | None = None,
    bits: Bits | None = None,
    divide: Callable[[nn.Module], None] | None = None,
) -> DiffusionModel:
    """The base behind "pocket", a diffusers folder, a .safetensors checkpoint, or a hub name of the
    form owner/name.

    clip_skip: as A1111 counts, 1 for the text encoder's own last layer; see `DiffusionModel`.
    zero_terminal_snr: True rescales the noise levels until the last keeps nothing of the picture.
    t5_tokenizer: a folder, tokenizer.json or spiece.model for the third text encoder of SD 3; None:
    the folder tokenizer_3 in the base's folder or beside its file.
    bits: hold the linear layers of the network and its text encoders in so many; see `quantise`.
    divide: leaves a part of the network there, on its device, and the rest to other processes.

    Raises: BaseError when it is missing, incomplete, a pickle, or of another family.
    """
    path, name = locate(str(name_or_path)), str(name_or_path)
    told = find_t5_tokenizer(Path(t5_tokenizer).expanduser()) if t5_tokenizer else None
    options: dict[str, Any] = {}
    if path.is_file():
        file = open_single(path, told)
        layout, fingerprint = file.blueprint.layout, file.fingerprint
        parts, config = read_single(file, dtype)
    else:
        folder = open_folder(path, told)
        layout, fingerprint, config = folder.layout, folder.fingerprint, folder.scheduler_config
        parts, options = _read_parts(folder, dtype), _options(folder)
    if "text_encoder_3" in parts:
        home = path.parent if path.is_file() else path
        parts["tokenizer_3"] = read_t5_tokenizer(told or home / "tokenizer_3")
    elif told:
        raise BaseError(
            f"T5's tokenizer is given ({told}), but base model {name} has no T5 text encoder to "
            "read with it; leave it out, or name a base that has one"
        )
    fingerprint += f"-t5{digest_t5_tokenizer(told)}" if told else ""
    _check_fit(name, layout, parts)
    _check_skip(name, parts, clip_skip)
    fingerprint += f"-skip{clip_skip}" if clip_skip > 1 else ""
    fingerprint += f"-{bits}bit" if bits else ""
    if zero_terminal_snr:
        config = to_pure_noise(config, where=name)
        fingerprint += "-ztsnr"
    for part_name, part in parts.items():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
            # Before it is moved: the device never holds it whole.
            if bits and part_name != "vae":
                quantise(part, bits)
            if divide and part_name in NETWORKS:
                divide(part)
            else:
                part.to(device)
    model: DiffusionModel = MODELS[layout](
        name=name,
        id=fingerprint,
        family=_family(layout, parts),
        pocket=path == POCKET,
        scheduler_config=config,
        device=torch.device(device),
        dtype=dtype,
        clip_skip=clip_skip,
        zero_terminal_snr=zero_terminal_snr,
        bits=bits,
        notes=_notes(name, layout, parts),
        **parts,
        **options,
    )
    for note in model.notes:
        _log.warning("%s", note)
    return model


def fingerprint(name_or_path: str, *, t5_tokenizer: str | Path | None = None) -> str:
    """What tells a base from others by content, whatever it is called, before a weight is read: the
    `id` of the model that `load` gives for the same words.

    Raises: BaseError as `load`, but for what only reading the weights can tell.
    """
    path = locate(str(name_or_path))
    told = find_t5_tokenizer(Path(t5_tokenizer).expanduser()) if t5_tokenizer else None
    found = open_single(path, told) if path.is_file() else open_folder(path, told)
    return found.fingerprint + (f"-t5{digest_t5_tokenizer(told)}" if told else "")


def _notes(name: str, layout: str, parts: dict[str, Any]) -> tuple[str, ...]:
    missing = [told for part, told in SD3_ENCODERS.items() if part not in parts]
    if layout != "sd3" or not missing:
        return ()
    return (
        f"base model {name} is read without {' and '.join(missing)}: what it would have said is "
        "zeros, as in a part of the base's own training",
    )


def _family(layout: str, parts: dict[str, Any]) -> Family:
    if layout == "sdxl":
        return "sdxl"
    if layout == "sd3":
        return "sd3"
    return "sd2" if parts["unet"].config.cross_attention_dim == SD2_WIDTH else "sd1"


def _options(folder: ModelFolder) -> dict[str, Any]:
    if folder.layout != "sdxl":
        return {}
    return {"zeros_for_empty": bool(folder.index.get("force_zeros_for_empty_prompt", True))}


def _read_parts(folder: ModelFolder, dtype: torch.dtype) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with _QuietBars():
        for name, part in folder.parts.items():
            # Autoencoders overflow or smear in half precision, and are small.
            own = torch.float32 if name == "vae" else dtype
            parts[name] = _read_weights(folder, name, own)
            if part.tokenizer and name != "text_encoder_3":
                parts[part.tokenizer] = _read_tokenizer(folder.path / part.tokenizer)
    return parts


def _read_tokenizer(home: Path) -> Any:
    """CLIP's. Raises: BaseError when the folder holds none that can be read."""
    try:
        return CLIPTokenizer.from_pretrained(str(home), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BaseError(
            f"{home.parent}: its tokenizer cannot be read from {home.name}: {error}"
        ) from error


def _read_weights(folder: ModelFolder, name: str, dtype: torch.dtype) -> nn.Module:
    home = folder.path / name
    kind = folder.index[name][1]
    try:
        module, notes = CLASSES[kind].from_pretrained(
            str(home),
            use_safetensors=True,
            local_files_only=True,
            variant=folder.variants[name],
            output_loading_info=True,
            **{"dtype" if folder.parts[name].stem == TRANSFORMERS_STEM else "torch_dtype": dtype},
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseError(f"{home}: its weights cannot be read: {error}") from error
    if missing := sorted(notes["missing_keys"]):
        raise BaseError(
            f"{home}: {len(missing)} weights are missing, such as {missing[0]}; "
            "the file is incomplete or belongs to another model"
        )
    assert isinstance(module, nn.Module)
    return module


def _check_fit(name: str, layout: str, parts: dict[str, Any]) -> None:
    """Raises: BaseError with all places where the parts do not fit one another."""
    network = parts["transformer" if layout == "sd3" else "unet"].config
    vae = parts["vae"].config
    faults = []
    if network.in_channels != vae.latent_channels:
        kind = " (an inpainting model has 9)" if network.in_channels == 9 else ""
        what = "transformer" if layout == "sd3" else "UNet"
        faults.append(
            f"the {what} takes {network.in_channels} channels{kind}, the autoencoder gives "
            f"{vae.latent_channels}"
        )
    if getattr(vae, "latents_mean", None) is not None:
        faults.append(
            "the autoencoder has latents_mean, which none of the bases that are read has (a "
            "Playground model has it)"
        )
    faults += {"sd": _sd_faults, "sdxl": _sdxl_faults, "sd3": _sd3_faults}[layout](parts)
    if faults:
        raise BaseError(f"base model {name}: its parts do not fit: {'; '.join(faults)}")


def _sd_faults(parts: dict[str, Any]) -> list[str]:
    width = parts["unet"].config.cross_attention_dim
    text = parts["text_encoder"].config.hidden_size
    if width == text:
        return []
    return [f"the UNet reads embeddings of {width}, the text encoder gives {text}"]


def _sdxl_faults(parts: dict[str, Any]) -> list[str]:
    unet, faults = parts["unet"].config, []
    one, two = parts["text_encoder"].config, parts["text_encoder_2"].config
    if unet.cross_attention_dim != one.hidden_size + two.hidden_size:
        faults.append(
            f"the UNet reads embeddings of {unet.cross_attention_dim}, the text encoders give "
            f"{one.hidden_size} and {two.hidden_size}"
        )
    if unet.addition_embed_type != "text_time":
        return [*faults, f"the UNet is told {unet.addition_embed_type!r}; expected 'text_time'"]
    told = two.projection_dim + 6 * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != told:
        faults.append(
            f"the UNet is told {unet.projection_class_embeddings_input_dim} numbers of prompt and "
            f"sizes, this base has {told}"
        )
    return faults


def _sd3_faults(parts: dict[str, Any]) -> list[str]:
    transformer, faults = parts["transformer"].config, []
    clips = [parts[name].config for name in ("text_encoder", "text_encoder_2") if name in parts]
    pooled = sum(config.projection_dim for config in clips)
    told = transformer.pooled_projection_dim
    if pooled > told or (len(clips) == 2 and pooled != told):
        faults.append(f"the transformer is told {told} numbers of a prompt, CLIP gives {pooled}")
    width = transformer.joint_attention_dim
    if sum(config.hidden_size for config in clips) > width:
        faults.append(f"the transformer reads embeddings of {width}, CLIP gives wider ones")
    if "text_encoder_3" in parts and parts["text_encoder_3"].config.d_model != width:
        given = parts["text_encoder_3"].config.d_model
        faults.append(f"the transformer reads embeddings of {width}, T5 gives {given}")
    if "text_encoder_3" in parts:
        ids, known = len(parts["tokenizer_3"]), parts["text_encoder_3"].config.vocab_size
        if ids > known:
            faults.append(f"T5 knows {known} tokens, its tokenizer gives {ids}")
    return faults


def _check_skip(name: str, parts: dict[str, Any], clip_skip: int) -> None:
    clips = (parts.get("text_encoder"), parts.get("text_encoder_2"))
    most = min((clip.config.num_hidden_layers for clip in clips if clip is not None), default=1)
    if not 1 <= clip_skip <= most:
        raise BaseError(
            f"clip_skip {clip_skip} is not possible with {name}; expected 1 (the text encoder's "
            f"last layer) to {most} (its first)"
        )


class _QuietBars:
    """No progress bars of other libraries while weights load; as before afterwards."""

    def __enter__(self) -> None:
        self.were_on = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.were_on:
            transformers_logging.enable_progress_bar()
