"""A picture as a file with what made it: A1111's `parameters` text, and our own key to know it by.

PNG carries both as text; WebP (lossless here, so that the numbers are the same) carries the
parameters in EXIF's UserComment, as A1111 does, and the key in its ImageUniqueID.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from jaxtyping import UInt8
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from variegate.models import DiffusionModel
from variegate.recipe import SamplingPlan

Format = Literal["png", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
KEY = "variegate"
UNICODE = b"UNICODE\x00"  # EXIF's mark of a comment in UTF-16
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


def as_webp(picture: UInt8[Tensor, "3 h w"], *, key: str, parameters: str) -> bytes:
    """The bytes of a WebP file, without loss, with both texts in it."""
    notes = Image.Exif()
    inner = notes.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.UserComment] = UNICODE + parameters.encode("utf-16-be")
    inner[ExifTags.Base.ImageUniqueID] = key
    stream = io.BytesIO()
    array = picture.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(stream, "WEBP", lossless=True, exif=notes.tobytes())
    return stream.getvalue()


def as_bytes(
    picture: UInt8[Tensor, "3 h w"], *, key: str, parameters: str, format: Format
) -> bytes:
    """The bytes of a file of that format."""
    write = as_webp if format == "webp" else as_png
    return write(picture, key=key, parameters=parameters)


def key_of(file: Path) -> str | None:
    """The key in a file of ours, or None when it is somebody else's, cut or damaged."""
    try:
        with Image.open(file, formats=("PNG", "WEBP")) as image:
            image.verify()  # of a PNG every chunk's checksum, to the end of the file
        with Image.open(file, formats=("PNG", "WEBP")) as image:
            image.load()
            key = image.info.get(KEY)
            if image.format == "WEBP":
                inner = image.getexif().get_ifd(ExifTags.IFD.Exif)
                key = inner.get(ExifTags.Base.ImageUniqueID)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return key.strip("\x00") if isinstance(key, str) else None


@dataclass(frozen=True)
class Named:
    """An adapter's file as A1111 calls it: its stem, and twelve digits of its hash or ""."""

    name: str
    digits: str = ""

    @staticmethod
    def of(file: Path, metadata: Mapping[str, str]) -> Named:
        """digits: of the hash that the header states, or of the tensors, as A1111 has it."""
        stated = metadata.get("sshs_model_hash", "")
        if not re.fullmatch(r"[0-9a-f]{64}", stated):
            if file.suffix != ".safetensors":
                return Named(file.stem)
            tensors = hashlib.sha256()
            with file.open("rb") as stream:
                stream.seek(8 + int.from_bytes(stream.read(8), "little"))
                while piece := stream.read(1 << 20):
                    tensors.update(piece)
            stated = tensors.hexdigest()
        return Named(file.stem, stated[:12])


def parameters(
    prompt: str,
    seed: int,
    model: DiffusionModel,
    plan: SamplingPlan,
    negative: str = "",
    *,
    strength: float | None = None,
    adapter: Named | None = None,
    methods: Sequence[str] = (),
) -> str:
    """What A1111 writes into its pictures, so that its screens and others can read ours.

    A prompt stands there on one line, and cannot pass for the lines that follow it. strength: of
    the adapter, None without one; adapter: its file, which the prompt then calls as A1111 does.
    methods: names of those that were on, which A1111 does not know.
    """
    called = _one_line(prompt)
    name = re.sub(r"[<>:,\s]", "_", adapter.name) if adapter else ""
    if adapter is not None and strength is not None:
        called = f"{called} <lora:{name}:{strength:g}>".strip()
    lines = [called]
    if negative:
        lines.append(f"Negative prompt: {_one_line(negative)}")
    side = model.resolution
    facts: dict[str, str | int] = {
        "Steps": plan.steps,
        "Sampler": SAMPLER_NAMES[plan.sampler],
        "CFG scale": f"{plan.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{side}x{side}",
        "Model": re.split(r"[/\\]", model.name.rstrip("/\\"))[-1],
    }
    if adapter is not None and adapter.digits:
        facts["Lora hashes"] = f"{name}: {adapter.digits}"
    if strength is not None:
        facts["Adapter strength"] = f"{strength:g}"
    if methods:
        facts["Methods"] = ", ".join(methods)
    facts["Version"] = f"variegate {_version()}"
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
