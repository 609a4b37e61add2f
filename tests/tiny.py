"""Tiny random base models, each of its family's own classes, written in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

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
            tokenizer=write_byte_tokenizer(folder),
            scheduler=_scheduler(prediction, scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def _unet(width: int, **given: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": PIXELS // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": width,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**settings, **given})


def _kl(**given: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
        **given,
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
    return CLIPTextModel(_text_config(width))


def _text_config(width: int, **given: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **given,
    )


def write_byte_tokenizer(
    folder: Path, name: str = "tokenizer", pad: str = "<|endoftext|>"
) -> CLIPTokenizer:
    """One token per byte: CLIP's byte alphabet, bare and at a word's end, and no merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [chr(256 + i) for i in range(256 - len(printable))]
    alphabet = [*map(chr, printable), *rest]
    words = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(home / "vocab.json"),
        str(home / "merges.txt"),
        model_max_length=TOKENS,
        pad_token=pad,
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


def write_tiny_sdxl(
    folder: Path,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    *,
    force_zeros: bool = True,
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """A complete Stable Diffusion XL folder of random weights: 64 pixels, two text encoders."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            unet=_unet(
                16 + 24,
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                transformer_layers_per_block=(1, 2),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=12 + 6 * 8,
            ),
            vae=_kl(),
            text_encoder=_text_encoder(16),
            text_encoder_2=_projected(24, 12),
            tokenizer=write_byte_tokenizer(folder),
            tokenizer_2=write_byte_tokenizer(folder, "tokenizer_2", pad="!"),
            scheduler=_scheduler(prediction, scheduler),
            force_zeros_for_empty_prompt=force_zeros,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_sd3(
    folder: Path, *, t5: bool = True, dual: bool = False, shift: float = 3.0, seed: int = 0
) -> Path:
    """A complete Stable Diffusion 3 folder of random weights: 64 pixels, with or without T5.

    dual: with the second attention and the normed queries and keys of 3.5 medium.
    """
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=PIXELS // 8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=16,
                pooled_projection_dim=12 + 8,
                pos_embed_max_size=16,
                dual_attention_layers=(0,) if dual else (),
                qk_norm="rms_norm" if dual else None,
            ),
            vae=_kl(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=_projected(12, 12),
            text_encoder_2=_projected(8, 8),
            text_encoder_3=_t5() if t5 else None,
            tokenizer=write_byte_tokenizer(folder),
            tokenizer_2=write_byte_tokenizer(folder, "tokenizer_2", pad="!"),
            tokenizer_3=t5_tokenizer() if t5 else None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        )
    pipeline.save_pretrained(folder)
    return folder


def _projected(width: int, projection: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_text_config(width, projection_dim=projection))


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=200,
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            tie_word_embeddings=False,
        )
    )


T5_PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
T5_PIECES += [(c, -2.0) for c in "▁abcdefghijklmnopqrstuvwxyz"]


def t5_tokenizer() -> T5TokenizerFast:
    """One token per letter."""
    return T5TokenizerFast(vocab=T5_PIECES, extra_ids=0)
