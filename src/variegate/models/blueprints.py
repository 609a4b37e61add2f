"""What a single-file checkpoint does not say of itself: the published settings of each family.

Figures of the published models (CompVis, Runway, Stability AI, OpenAI, LAION, Google), as their
papers and configuration files state them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CROSS, DOWN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D"
CROSS_UP = "CrossAttnUpBlock2D"

_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS, CROSS, CROSS, DOWN),
    "up_block_types": (UP, CROSS_UP, CROSS_UP, CROSS_UP),
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
CLIP_L = _CLIP | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
# SD 2 reads the layer before OpenCLIP's last of 24.
CLIP_H = _CLIP | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_G = _CLIP | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
}
_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Blueprint:
    """A family's parts by diffusers' names, and its noise schedule.

    network: for SD 3 only what its checkpoint's shapes do not tell.
    """

    layout: str
    network: dict[str, Any]
    vae: dict[str, Any]
    encoders: dict[str, dict[str, Any]]
    scheduler: dict[str, Any] = field(default_factory=lambda: dict(_NOISE))


BLUEPRINTS: dict[str, Blueprint] = {
    "sd1": Blueprint(
        "sd",
        _UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        _VAE,
        {"text_encoder": CLIP_L},
    ),
    "sd2": Blueprint(
        "sd",
        _UNET
        | {
            "sample_size": 64,  # 96 where it predicts v
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        _VAE,
        {"text_encoder": CLIP_H},
    ),
    "sdxl": Blueprint(
        "sdxl",
        _UNET
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (DOWN, CROSS, CROSS),
            "up_block_types": (CROSS_UP, CROSS_UP, UP),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    ),
    "sd3": Blueprint(
        "sd3",
        {"sample_size": 128, "attention_head_dim": 64},
        _VAE
        | {
            "sample_size": 1024,
            "latent_channels": 16,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "force_upcast": True,
        },
        {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL},
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 3.0,
        },
    ),
}
