"""Where the work is done."""

from __future__ import annotations

import torch


def pick_device() -> str:
    """An NVIDIA or AMD GPU when PyTorch sees one, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
