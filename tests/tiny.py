"""A tiny random Stable Diffusion folder, written in a moment, for tests that need a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 16
PIXELS = 64


def write_tiny_sd(
    folder: Path,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    *,
    autoencoder: Literal["kl", "tiny"] = "kl",
    width: int = 16,
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """Write a complete diffusers folder of random weights: 64 pixels, 8x8 latents of 4 channels.

    `width` is the text encoder's (768 and 1024 are what tells SD 1 and SD 2 apart); entries in
    `scheduler` go on top of Stable Diffusion's own noise schedule.
    """
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            unet=_unet(width),
            vae=_kl() if autoencoder == "kl" else _tiny(),
            text_encoder=_text_encoder(width),
            tokenizer=_tokenizer(folder),
            scheduler=_scheduler(prediction, scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def _unet(width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PIXELS // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
    )


def _tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
        latent_channels=4,
    )


def _text_encoder(width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            vocab_size=514,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """One token per byte: CLIP's byte alphabet, bare and at a word's end, and no merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [chr(256 + i) for i in range(256 - len(printable))]
    alphabet = [*map(chr, printable), *rest]
    words = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    home = folder / "tokenizer"
    home.mkdir(parents=True, exist_ok=True)
    (home / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(home / "vocab.json"), str(home / "merges.txt"), model_max_length=TOKENS
    )


def _scheduler(prediction: str, given: dict[str, Any]) -> DDIMScheduler:
    settings: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    return DDIMScheduler(**{**settings, **given})
