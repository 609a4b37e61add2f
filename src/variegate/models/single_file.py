"""Single-file checkpoints (`.safetensors`, the original key names): told apart, checked, read.

The family is told by the keys; nothing is fetched. The weights are renamed by diffusers' own
converters, the settings are in `blueprints.py`, and CLIP's vocabulary lies beside this file. What a
file of SD 3 lacks of its text encoders is looked for beside it, under the names they are published
by: clip_l.safetensors, clip_g.safetensors, t5xxl*.safetensors, there or in text_encoders/; T5's
tokenizer as a folder tokenizer_3, unless its place is told.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from variegate.errors import BaseError
from variegate.models.blueprints import BLUEPRINTS, Blueprint
from variegate.models.folder import EXPECTED, digest_samples

CLIP_MERGES = Path(__file__).resolve().parent / "clip" / "merges.txt.gz"
NETWORK = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
SD3_ENCODERS = {
    "text_encoder": ("text_encoders.clip_l.transformer.", "clip_l*.safetensors"),
    "text_encoder_2": ("text_encoders.clip_g.transformer.", "clip_g*.safetensors"),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.", "t5xxl*.safetensors"),
}
# What the keys of a family have that no other has, in the order of asking.
MARKS = (
    ("joint_blocks.0.", "sd3"),
    ("conditioner.embedders.1.", "sdxl"),
    ("cond_stage_model.model.", "sd2"),
    ("cond_stage_model.transformer.", "sd1"),
)
FOREIGN = (
    ("double_blocks.", "Flux"),
    ("double_layers.", "AuraFlow"),
    ("control_model.", "a ControlNet"),
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL, which has one encoder"),
    ("transformer_blocks.", "one part of a diffusers model; name the folder that it lies in"),
)
V_MARK = f"{NETWORK}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09
ROWS = 1 << 24  # more than any weight has


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint that has passed every check that needs no weights.

    beside: the files of text encoders that lie beside it, by part.
    """

    path: Path
    family: str
    keys: frozenset[str]
    metadata: dict[str, str]
    beside: dict[str, Path]
    fingerprint: str

    @property
    def blueprint(self) -> Blueprint:
        return BLUEPRINTS[self.family]


def open_single(path: Path, t5_tokenizer: Path | None = None) -> SingleFile:
    """The checked file; BaseError says what is wrong with it, or whose it is.

    t5_tokenizer: where T5's is; None: in the folder tokenizer_3 beside the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = frozenset(file.keys())
            metadata = dict(file.metadata() or {})
            entry = f"{NETWORK}input_blocks.0.0.weight"
            channels = file.get_slice(entry).get_shape()[1] if entry in keys else None
    except (SafetensorError, OSError) as error:
        raise BaseError(
            f"base model {path} ({path.stat().st_size} bytes) is no whole safetensors file: "
            f"{error}; copy or download it again"
        ) from error
    family = _family(path, keys)
    faults = []
    if channels is not None and channels != BLUEPRINTS[family].network["in_channels"]:
        kind = {9: "an inpainting model", 8: "an editing model"}.get(channels, "another model")
        faults.append(f"its UNet takes {channels} channels ({kind}); expected 4")
    if not any(key.startswith(VAES) for key in keys):
        faults.append("it holds no autoencoder; expected keys such as first_stage_model.encoder...")
    beside = _beside(path, keys) if family == "sd3" else {}
    encoders = {part for part, (prefix, _) in SD3_ENCODERS.items() if _has(keys, prefix)}
    if family == "sd3" and not encoders | set(beside):
        faults.append(
            "it holds no text encoder, and none of clip_l.safetensors, clip_g.safetensors and "
            "t5xxl*.safetensors lies beside it or in text_encoders/"
        )
    home = t5_tokenizer or path.parent / "tokenizer_3"
    if "text_encoder_3" in encoders | set(beside) and not home.exists():
        faults.append(
            f"T5 is there, its tokenizer is not; expected it in {home} (tokenizer_3 of the "
            "diffusers form of Stable Diffusion 3); say where it is (--t5-tokenizer PATH, "
            "t5_tokenizer in a recipe), or take a file without T5"
        )
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise BaseError(f"base model {path} ({family}) cannot be used:\n{listed}")
    digest = hashlib.sha256()
    for file_ in (path, *beside.values()):
        digest.update(str(file_.stat().st_size).encode())
        digest_samples(file_, digest)
    return SingleFile(path, family, keys, metadata, beside, digest.hexdigest()[:16])


def read_single(file: SingleFile, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the parts by diffusers' names, the settings of the scheduler).

    Raises: BaseError when weights are missing, left over, or of another shape.
    """
    return _complete(file, dtype, _tensors)


def _complete(
    file: SingleFile,
    dtype: torch.dtype,
    tensors: Callable[[SingleFile], dict[str, Tensor]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return _read(file, dtype, tensors(file))
    except KeyError as error:
        raise BaseError(
            f"base model {file.path} ({file.family}): {error} is missing; the file is incomplete: "
            "copy or download it again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise BaseError(f"base model {file.path} cannot be read: {error}") from error


def clip_tokenizer(*, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer: its ids follow from its merges.

    pad: what fills the window; the end for CLIP-L, "!" (id 0) for OpenCLIP's models.

    >>> clip_tokenizer()("a photo of a cat").input_ids
    [49406, 320, 1125, 539, 320, 2368, 49407]
    """
    text = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf8")
    # Bytes stand for themselves where they can be seen, the others for 256 and on.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [*map(chr, seen), *(chr(256 + i) for i in range(256 - len(seen)))]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [line.replace(" ", "") for line in text.splitlines()[1:]]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as place:
        vocabulary, merges = Path(place) / "vocab.json", Path(place) / "merges.txt"
        ids = {word: i for i, word in enumerate(words)}
        vocabulary.write_text(json.dumps(ids), encoding="utf8")
        merges.write_text(text, encoding="utf8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77, pad_token=pad)


def trace_single(file: SingleFile, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """(the parts with addresses in the place of weights, the keys that those count from).

    tensors: what the file holds. A row that lies in row j of key i has `i * ROWS + j` all over: the
    converters move rows and never mix them, so this tells where each of a layer's rows came from.

    Raises: BaseError as `read_single`.
    """
    keys = sorted(tensors)
    marked = dict[str, Tensor]()
    for i, key in enumerate(keys):
        rows = torch.arange(len(tensors[key]) if tensors[key].ndim else 1, dtype=torch.float64)
        shape = tensors[key].shape
        rows = (rows + i * ROWS).view(-1, *[1] * (len(shape) - 1)) if shape else rows[0]
        marked[key] = rows.expand(shape)
    parts, _ = _complete(file, torch.float64, lambda _: marked)
    return parts, keys


def _tensors(file: SingleFile) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(file.path)
    if file.family == "sd3":
        for part, other in file.beside.items():
            prefix = SD3_ENCODERS[part][0]
            tensors |= {prefix + k: v for k, v in safetensors.torch.load_file(other).items()}
    return tensors


def _read(
    file: SingleFile, dtype: torch.dtype, tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    scheduler = _scheduler(file, tensors)
    plan, parts = file.blueprint, dict[str, Any]()
    if file.family == "sd3":
        parts["transformer"] = _transformer(file, tensors, dtype)
    else:
        settings = dict(plan.network)
        if file.family == "sd2" and scheduler["prediction_type"] == "v_prediction":
            settings["sample_size"] = settings["sample_size"] * 3 // 2
        with init_empty_weights(include_buffers=False):
            unet = UNet2DConditionModel(**settings)
        weights = converters.convert_ldm_unet_checkpoint(tensors, dict(unet.config))
        taken = {id(tensor) for tensor in weights.values()}
        own = [k for k, v in tensors.items() if k.startswith(NETWORK) and id(v) not in taken]
        _check_none_left(file, "UNet", own)
        parts["unet"] = _filled(file, "UNet", unet, weights, dtype)
    with init_empty_weights(include_buffers=False):
        vae = AutoencoderKL(**plan.vae)
    weights = converters.convert_ldm_vae_checkpoint(tensors, dict(vae.config))
    parts["vae"] = _filled(file, "autoencoder", vae, weights, torch.float32)
    for part in plan.encoders:
        encoder = _encoder(file, part, tensors, dtype)
        if encoder is not None:
            parts[part] = encoder
    padding = {"tokenizer": "!" if file.family == "sd2" else "<|endoftext|>", "tokenizer_2": "!"}
    for name, pad in padding.items():
        if name.replace("tokenizer", "text_encoder") in parts:
            parts[name] = clip_tokenizer(pad=pad)
    return parts, scheduler


def _family(path: Path, keys: Iterable[str]) -> str:
    keys = sorted(keys)
    bare = [key.removeprefix(NETWORK) for key in keys]
    if any(key.startswith("lora_") or ".lora_" in key for key in keys):
        raise BaseError(
            f"base model {path} is a LoRA adapter; give it as the adapter, and its base as the base"
        )
    if "edm_mean" in keys:
        raise BaseError(f"base model {path} is Playground 2.5; expected {EXPECTED}")
    for mark, family in MARKS:
        if any(key.startswith(mark) for key in bare):
            return family
    for mark, what in FOREIGN:
        if any(key.startswith(mark) for key in bare):
            raise BaseError(f"base model {path} is {what}; expected {EXPECTED}")
    if any(key.startswith(NETWORK) for key in keys):
        raise BaseError(
            f"base model {path} holds a network but no text encoder (found {keys[0]} and "
            f"{len(keys) - 1} more keys); expected a whole checkpoint, with keys such as "
            "cond_stage_model... or conditioner.embedders..."
        )
    shown = ", ".join(keys[:3]) or "nothing"
    raise BaseError(
        f"base model {path} is of no family that is known: it holds {shown} and "
        f"{max(0, len(keys) - 3)} more; expected {EXPECTED} under the original key names"
    )


def _has(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def _beside(path: Path, keys: frozenset[str]) -> dict[str, Path]:
    """The files of the text encoders that the checkpoint itself lacks."""
    found = {}
    for part, (prefix, pattern) in SD3_ENCODERS.items():
        if _has(keys, prefix):
            continue
        homes = (path.parent, path.parent / "text_encoders")
        if files := sorted(file for home in homes for file in home.glob(pattern)):
            found[part] = files[0]
    return found


def _scheduler(file: SingleFile, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The family's noise schedule, and what the file says of it.

    v-prediction and zero terminal SNR are told by the keys v_pred and ztsnr, which finetuners put
    there or in the header, or by ModelSpec's prediction_type; SD 2 without a word, by the spread of
    one bias, which is above 0.09 in the v models (ComfyUI `comfy/supported_models.py`).
    """
    settings = dict(file.blueprint.scheduler)
    if file.family == "sd3":
        return settings
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    v = _marked(file, "v_pred") or said in ("v", "v_prediction", "v-prediction")
    if file.family == "sd2" and not v and not said and V_MARK in tensors:
        v = float(tensors[V_MARK].float().std(correction=0)) > V_SPREAD
    if v:
        settings["prediction_type"] = "v_prediction"
    if _marked(file, "ztsnr"):
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings


def _marked(file: SingleFile, mark: str) -> bool:
    """Whether an empty weight of this name, or an entry of the header, says so."""
    return mark in file.keys or file.metadata.get(mark, "no").lower() not in ("no", "false", "0")


def _transformer(file: SingleFile, tensors: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """SD 3's transformer: its sizes are in its shapes, but for the width of a head."""
    start = NETWORK if _has(tensors, NETWORK) else ""
    own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    head = file.blueprint.network["attention_head_dim"]
    width, read = own["context_embedder.weight"].shape
    patch = own["x_embedder.proj.weight"]
    out = own["final_layer.linear.weight"].shape[0]
    blocks = 1 + max(int(k.split(".")[1]) for k in own if k.startswith("joint_blocks."))
    dual = sorted({int(k.split(".")[1]) for k in own if ".x_block.attn2." in k})
    settings = {
        **file.blueprint.network,
        "patch_size": patch.shape[-1],
        "in_channels": patch.shape[1],
        "out_channels": out // patch.shape[-1] ** 2,
        "num_layers": blocks,
        "num_attention_heads": width // head,
        "joint_attention_dim": read,
        "caption_projection_dim": width,
        "pooled_projection_dim": own["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": math.isqrt(own["pos_embed"].shape[1]),
        "dual_attention_layers": tuple(dual),
        "qk_norm": "rms_norm" if any(".ln_q." in k for k in own) else None,
    }
    weights = converters.convert_sd3_transformer_checkpoint_to_diffusers(own)
    # It takes out what it takes over.
    _check_none_left(file, "transformer", [k for k in own if k.startswith("joint_blocks.")])
    with init_empty_weights(include_buffers=False):
        transformer = SD3Transformer2DModel(**settings)
    return _filled(file, "transformer", transformer, weights, dtype)


def _encoder(
    file: SingleFile, part: str, tensors: dict[str, Tensor], dtype: torch.dtype
) -> nn.Module | None:
    """One text encoder, or None where a checkpoint of SD 3 has none."""
    settings = file.blueprint.encoders[part]
    kind: Any = CLIPTextModelWithProjection
    if file.family == "sd3":
        prefix = SD3_ENCODERS[part][0]
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not weights:
            return None
        kind = T5EncoderModel if part == "text_encoder_3" else kind
    elif part == "text_encoder":
        kind = CLIPTextModel
    with init_empty_weights(include_buffers=False):
        config = T5Config(**settings) if kind is T5EncoderModel else CLIPTextConfig(**settings)
        module = kind(config)
    if file.family == "sd2" or (part == "text_encoder_2" and file.family == "sdxl"):
        home = (
            "cond_stage_model.model." if file.family == "sd2" else "conditioner.embedders.1.model."
        )
        weights = converters.convert_open_clip_checkpoint(module, tensors, prefix=home)
    elif file.family != "sd3":
        weights = converters.convert_ldm_clip_checkpoint(tensors)
    if kind is CLIPTextModelWithProjection or kind is CLIPTextModel:
        weights = _as_nested(weights, module)
    filled: Any = _filled(file, part, module, weights, dtype)
    if kind is T5EncoderModel:
        filled.set_input_embeddings(filled.shared)  # one table under two names
        if dtype == torch.float16:  # where its widest layer overflows
            for name, parameter in filled.named_parameters():
                if ".wo." in name:
                    parameter.data = parameter.data.float()
    return filled


def _as_nested(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """CLIP's keys as this version of transformers has them, without what is worked out anyway."""
    inner = "text_model." if any(k.startswith("text_model.") for k in module.state_dict()) else ""
    nested = {}
    for key, tensor in weights.items():
        bare = key.removeprefix("text_model.")
        if bare.endswith("position_ids") or bare in ("logit_scale", "text_projection"):
            continue
        outer = bare.startswith("text_projection")
        nested[bare if outer else inner + bare] = tensor
    known = module.state_dict()
    return {k: v for k, v in nested.items() if not k.startswith("text_projection") or k in known}


def _check_none_left(file: SingleFile, part: str, left: list[str]) -> None:
    """Raises: BaseError when the converter, which passes over what it does not look for, did so."""
    if left:
        raise BaseError(
            f"base model {file.path} was taken for {file.family} by its keys, but {len(left)} "
            f"weights of its {part} have no place in it, such as {min(left)}; expected {EXPECTED}"
        )


def _filled(
    file: SingleFile, part: str, module: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    """The module with its weights in place, once every one is there in its shape."""
    known = module.state_dict()
    tied = {k for k in known if k == "encoder.embed_tokens.weight" and k not in weights}
    missing = sorted(known.keys() - weights.keys() - tied)
    odd = sorted(weights.keys() - known.keys())
    misfits = [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(known[key].shape)}"
        for key in sorted(known.keys() & weights.keys())
        if weights[key].shape != known[key].shape
    ]
    faults = [
        f"{len(found)} weights {what}, such as {found[0]}"
        for what, found in (
            ("are missing", missing),
            ("are left over", odd),
            ("have another shape", misfits),
        )
        if found
    ]
    if faults:
        raise BaseError(
            f"base model {file.path} was taken for {file.family} by its keys, but its {part} is "
            f"another: {'; '.join(faults)}; expected {EXPECTED}"
        )
    cast = {key: tensor.to(dtype) for key, tensor in weights.items()}
    module.load_state_dict(cast, strict=False, assign=True)
    return module
