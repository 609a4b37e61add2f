"""Write the pocket as a plain diffusers folder inside the package, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import torch
from pocket.base import Base, latents_of_scenes, new_scheduler
from pocket.codec import new_codec
from pocket.shipped import POCKET as PACKAGE
from pocket.shipped import codec_weights
from pocket.words import new_tokenizer
from safetensors.torch import load_file


def export(folder: Path) -> None:
    tokenizer = new_tokenizer(folder / "words")
    base = Base(len(tokenizer), int(tokenizer.bos_token_id), int(tokenizer.eos_token_id))
    base.load_state_dict(load_file(folder / "base.safetensors"))
    codec = new_codec()
    codec.load_state_dict(codec_weights(folder))
    codec.register_to_config(scaling_factor=latents_of_scenes(folder)[2])
    PACKAGE.mkdir(parents=True, exist_ok=True)
    parts = {
        "unet": (base.unet, "diffusers", "UNet2DConditionModel"),
        "vae": (codec, "diffusers", "AutoencoderTiny"),
        "text_encoder": (base.text, "transformers", "CLIPTextModel"),
        "tokenizer": (tokenizer, "transformers", "CLIPTokenizer"),
        "scheduler": (new_scheduler(), "diffusers", "DDIMScheduler"),
    }
    index: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    for name, (part, library, kind) in parts.items():
        at = PACKAGE / name
        shutil.rmtree(at, ignore_errors=True)
        if isinstance(part, torch.nn.Module):
            part.half().to(memory_format=torch.contiguous_format)
            part.save_pretrained(at, safe_serialization=True)  # type: ignore[operator]
        else:
            part.save_pretrained(at)  # type: ignore[union-attr]
        index[name] = [library, kind]
    # AutoencoderTiny writes a key that its own loader then warns about.
    settings = json.loads((PACKAGE / "vae/config.json").read_text(encoding="utf8"))
    if settings["_class_name"] == "AutoencoderTiny":
        settings.pop("block_out_channels", None)
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (PACKAGE / "vae/config.json").write_text(text, encoding="utf8")
    for file in ("vocab.json", "merges.txt"):  # for readers older than tokenizer.json
        shutil.copy(folder / "words" / file, PACKAGE / "tokenizer" / file)
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (PACKAGE / "model_index.json").write_text(text, encoding="utf8")
    size = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.is_file())
    print(f"pocket: {size / 2**20:.1f} MiB at {PACKAGE}")
