"""The networks of each family in their true structure, narrow, and what the field calls their
layers: worked out from the networks' own modules, never from our tables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from tests.models.ldm import original_unet
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


@cache
def unet(family: str) -> UNet2DConditionModel:
    """Two ResNet blocks to a level, as all of Stable Diffusion's UNets have."""
    common: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 2,
        "cross_attention_dim": 16 if family != "sdxl" else 16 + 24,
        "norm_num_groups": 4,
    }
    if family == "sdxl":
        return UNet2DConditionModel(
            **common,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            attention_head_dim=(1, 2, 2),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
        )
    return UNet2DConditionModel(
        **common,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        attention_head_dim=2,
        use_linear_projection=family == "sd2",
    )


@cache
def text_encoder(layers: int = 2, width: int = 16, projection: int = 0) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        vocab_size=514,
        **({"projection_dim": projection} if projection else {}),
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


@cache
def transformer() -> SD3Transformer2DModel:
    """3.5 medium's: a second attention in the first blocks, normed queries and keys."""
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def parts(family: str) -> dict[str, nn.Module]:
    """Every network that an adapter of the family may change."""
    if family == "sd3":
        return {
            "transformer": transformer(),
            "text_encoder": text_encoder(2, 16, 12),
            "text_encoder_2": text_encoder(2, 24, 12),
        }
    found: dict[str, nn.Module] = {"unet": unet(family), "text_encoder": text_encoder(2)}
    if family == "sdxl":
        found["text_encoder_2"] = text_encoder(2, 24, 12)
    return found


def layers(family: str) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, module path as transformers 4 had it, module) of every matrix and kernel."""
    for part, network in parts(family).items():
        for path, module in network.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d) or path == "text_projection":
                continue
            is_text = part.startswith("text_encoder")
            yield (
                part,
                f"text_model.{path.removeprefix('text_model.')}" if is_text else path,
                module,
            )


@cache
def originals(family: str) -> dict[str, str]:
    """The original name of each of diffusers' UNet's layers."""
    network = unet(family)
    paths = [p for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    marks = {f"{path}.weight": torch.tensor(i) for i, path in enumerate(paths)}
    renamed = original_unet(marks, dict(network.config))
    return {paths[int(mark)]: name.removesuffix(".weight") for name, mark in renamed.items()}


def of_kohya(family: str, part: str, path: str) -> str:
    """What kohya's trainers call a layer: SD 1 and 2 are trained on diffusers' UNet, XL on the
    original one.

    Source: kohya-ss/sd-scripts, `networks/lora.py` and `library/sdxl_model_util.py`.
    """
    prefix = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if family == "sdxl" else "lora_te",
        "text_encoder_2": "lora_te2",
    }[part]
    named = originals(family)[path] if (family, part) == ("sdxl", "unet") else path
    return f"{prefix}_{named}".replace(".", "_")


def of_comfyui(family: str, part: str, path: str) -> set[str]:
    """All names by which ComfyUI finds a layer. Source: Comfy-Org/ComfyUI, `comfy/lora.py`,
    `model_lora_keys_unet` and `model_lora_keys_clip`."""
    joined = path.replace(".", "_")
    if part == "transformer":
        return {
            *(f"transformer.{path}", f"base_model.model.{path}"),
            *(f"lora_transformer_{joined}", f"lycoris_{joined}"),
        }
    if part == "unet":
        original = originals(family)[path]
        old = path.replace(".to_", ".processor.to_")
        old = old.removesuffix(".0") if old.endswith(".to_out.0") else old
        return {
            *(f"lora_unet_{joined}", f"lycoris_{joined}", old, f"unet.{old}"),
            *(f"diffusion_model.{original}", f"lora_unet_{original.replace('.', '_')}"),
        }
    clip = {"text_encoder": "clip_h" if family == "sd2" else "clip_l", "text_encoder_2": "clip_g"}
    prefixes = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
    return {
        *(f"{prefix}{joined}" for prefix in prefixes[part]),
        *(f"{part}.{path}", f"text_encoders.{clip[part]}.transformer.{path}"),
    }


def xl_pipeline() -> Any:
    """A pipeline of the two networks and encoders of XL, in the true structure."""
    return StableDiffusionXLPipeline(
        unet=unet("sdxl"),
        vae=None,
        text_encoder=text_encoder(2),
        text_encoder_2=text_encoder(2, 24, 12),
        tokenizer=None,
        tokenizer_2=None,
        scheduler=None,
    )
