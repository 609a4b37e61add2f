"""The weights that the package ships, as a stage's own state: where a fresh folder starts from."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

SOURCES = Path(__file__).resolve().parents[2] / "src/variegate"
POCKET = SOURCES / "models/pocket"


def shipped(*parts: tuple[Path, str]) -> dict[str, Tensor]:
    """The tensors of files, under a prefix each, in float32; nothing if a file is missing."""
    state: dict[str, Tensor] = {}
    for file, prefix in parts:
        if not file.exists():
            return {}
        for key, value in load_file(file).items():
            state[prefix + key] = value.float() if value.is_floating_point() else value
    return state


def codec_weights(folder: Path) -> dict[str, Tensor]:
    """The codec as last trained in the folder, else as shipped."""
    kept = folder / "codec.safetensors"
    return load_file(kept) if kept.exists() else shipped(*CODEC)


CODEC = ((POCKET / "vae/diffusion_pytorch_model.safetensors", ""),)
JUDGE = ((SOURCES / "bench/judge.safetensors", ""),)
BASE = (
    (POCKET / "unet/diffusion_pytorch_model.safetensors", "unet."),
    (POCKET / "text_encoder/model.safetensors", "text."),
)
