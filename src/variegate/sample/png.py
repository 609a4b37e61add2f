"""A picture as PNG with what made it: A1111's `parameters` text, and our own key to know it by."""

from __future__ import annotations

import io
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from variegate.models import DiffusionModel
from variegate.recipe import SamplingPlan

KEY = "variegate"
SAMPLER_NAMES = {"ddim": "DDIM", "euler": "Euler", "euler_a": "Euler a", "dpmpp_2m": "DPM++ 2M"}


def as_png(picture: UInt8[Tensor, "3 h w"], *, key: str, parameters: str) -> bytes:
    """The bytes of a PNG file with both texts in it."""
    notes = PngInfo()
    notes.add_text("parameters", parameters)
    notes.add_text(KEY, key)
    stream = io.BytesIO()
    array = picture.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(stream, "PNG", pnginfo=notes)
    return stream.getvalue()


def key_of(file: Path) -> str | None:
    """The key in a PNG of ours, or None when it is somebody else's, cut or damaged."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.verify()  # every chunk's checksum, to the end of the file
        with Image.open(file, formats=("PNG",)) as image:
            image.load()
            key = image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return key if isinstance(key, str) else None


def parameters(
    prompt: str, seed: int, model: DiffusionModel, plan: SamplingPlan, negative: str = ""
) -> str:
    """What A1111 writes into its pictures, so that its screens and others can read ours.

    A prompt stands there on one line, and cannot pass for the lines that follow it.
    """
    lines = [_one_line(prompt)]
    if negative:
        lines.append(f"Negative prompt: {_one_line(negative)}")
    side = model.resolution
    facts = {
        "Steps": plan.steps,
        "Sampler": SAMPLER_NAMES[plan.sampler],
        "CFG scale": f"{plan.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{side}x{side}",
        "Model": re.split(r"[/\\]", model.name.rstrip("/\\"))[-1],
        "Version": f"variegate {_version()}",
    }
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items()))
    return "\n".join(lines)


def _one_line(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"^(negative prompt|steps)\s*:", r"\1 -", plain, flags=re.IGNORECASE)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _version() -> str:
    try:
        return version("variegate")
    except PackageNotFoundError:
        return "unknown"
