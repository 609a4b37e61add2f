"""A picture file in, an 8-bit RGB picture and what was odd about it out.

Files come from strangers: only whitelisted formats are decoded, sizes are capped before a pixel is
read, and nothing but a regular file is ever opened.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

# Pixels; past it a picture is refused before decoding. 80 million is 240 MB as RGB.
MAX_PIXELS = 80_000_000
MAX_BYTES = 512 * 2**20
LEAST_SIDE = 16  # pixels; below it nothing can be learnt from a picture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif"}) | (
    frozenset({".avif"}) if features.check("avif") else frozenset()
)
# Pictures to a person, but not to us: told, not silently passed over.
FOREIGN_SUFFIXES = (
    frozenset({".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".xcf", ".svg"})
    | {".eps", ".pdf", ".fits", ".ico", ".tga", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef"}
    | {".arw", ".raf", ".orf", ".rw2"}
) - SUFFIXES
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF") + (("AVIF",) if features.check("avif") else ())
# What Pillow's decoders raise on crafted files; all mean that the file cannot be decoded.
DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError),
    *(IndexError, TypeError, ArithmeticError, AttributeError, RuntimeError, MemoryError),
)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "EPS or PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS", "Photoshop"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"SIMPLE  =", "FITS"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
    (b"<svg", "SVG"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<html", "a web page"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Fault:
    """Something odd about one file, in plain words, and what to do about it.

    kind: a stable word for programs ("truncated", "bomb", "animated", "16-bit", "cmyk", "palette",
    "alpha", "rotated", "tiny", "unreadable", "unsupported", "special", "outside", "caption",
    "mask", "metadata", "ignored"). usable: False when the file is a picture that cannot be used.
    """

    file: Path
    kind: str
    fault: str
    advice: str
    usable: bool = True

    def to_json(self) -> dict[str, object]:
        return {
            "file": whereabouts(self.file),
            "fault": self.fault,
            "advice": self.advice,
            "kind": self.kind,
            "usable": self.usable,
        }


def whereabouts(file: Path) -> str:
    """The absolute path of a file; an address, of which a path keeps one slash, as it was."""
    scheme, _, rest = str(file).partition(":/")
    remote = len(scheme) > 1 and scheme.isalnum() and rest
    return f"{scheme}://{rest.lstrip('/')}" if remote else str(file.absolute())


@dataclass(frozen=True)
class Examined:
    """The decoded picture (RGB, 8-bit), or None when it cannot be used, and its faults."""

    image: Image.Image | None
    faults: tuple[Fault, ...]


def examine(file: Path) -> Examined:
    """Decode a picture file to 8-bit RGB and tell everything odd about it.

    EXIF rotation is applied, transparent parts are laid over white, 16-bit values are scaled,
    CMYK and palettes are converted, and of an animation the first frame is taken. Never raises for
    what a file holds: a file that cannot be used gives no picture and one fault that says why.
    """
    refusal = refuse_special(file) or _refuse_size(file, file.stat().st_size)
    if refusal:
        return Examined(None, (refusal,))
    try:
        with file.open("rb") as stream:
            return _examine(file, stream)
    except OSError as error:
        return Examined(None, (_broken(file, error),))


def examine_bytes(data: bytes, name: Path) -> Examined:
    """The same of a picture that lies inside another file; name: what faults call it."""
    refusal = _refuse_size(name, len(data))
    return Examined(None, (refusal,)) if refusal else _examine(name, io.BytesIO(data))


def _examine(file: Path, stream: Any) -> Examined:
    head = stream.read(512)
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=_FORMATS) as opened:
                return _convert(file, opened, head)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Examined(None, (_bomb(file, f"more than {MAX_PIXELS / 1e6:.0f} million pixels"),))
    except UnidentifiedImageError:
        return Examined(None, (_unidentified(file, head),))
    except DECODER_ERRORS as error:
        return Examined(None, (_broken(file, error),))


def refuse_special(file: Path) -> Fault | None:
    """A fault for whatever is not a regular file (pipes, devices, sockets, broken links)."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return Fault(
            file, "unreadable", f"cannot be reached: {why}", "restore or remove it", usable=False
        )
    if stat.S_ISREG(mode):
        return None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    return Fault(
        file, "special", f"not a regular file but {kind}; it was not opened", "remove it",
        usable=False,
    )  # fmt: skip


def _refuse_size(file: Path, n_bytes: int) -> Fault | None:
    if n_bytes == 0:
        return Fault(
            file, "unreadable", "the file is empty (0 bytes)", "copy it again or remove it",
            usable=False,
        )  # fmt: skip
    if n_bytes > MAX_BYTES:
        return _bomb(file, f"a file of {n_bytes / 2**20:.0f} MB")
    return None


def _convert(file: Path, opened: Image.Image, head: bytes) -> Examined:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        return Examined(None, (_bomb(file, f"{width} x {height} pixels"),))
    if min(width, height) < LEAST_SIDE:
        return Examined(None, (_tiny(file, width, height),))
    faults: list[Fault] = []

    def tell(kind: str, fault: str, advice: str) -> None:
        faults.append(Fault(file, kind, fault, advice))

    frames = 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))
    if frames > 1:
        tell(
            "animated",
            f"animated, {frames} frames; only the first is used",
            "save the frame you want as a PNG of its own",
        )
    if _png_bits(head) == 16 or opened.mode.startswith(("I", "F")):
        tell("16-bit", "16-bit colour, scaled to 8-bit", "nothing to do, or save it as 8-bit")
    if opened.mode == "CMYK":
        tell(
            "cmyk",
            "CMYK, made for print; converted to RGB, so colours may be off",
            "export it as sRGB from the program that made it",
        )
    if opened.mode in ("P", "PA"):
        tell(
            "palette",
            "palette colours (256 at most), converted to RGB",
            "use the full-colour original if you have it",
        )
    opened.load()
    turn = _TURNS.get(_orientation(opened))
    image = opened.transpose(turn) if turn is not None else opened.copy()
    if turn is not None:
        tell(
            "rotated",
            "EXIF rotation: the camera was turned; the picture was turned upright",
            "nothing to do; check that it stands upright in other programs too",
        )
    if image.has_transparency_data:
        image = _over_white(image, tell)
    return Examined(_rgb(image), tuple(faults))


def _over_white(image: Image.Image, tell: Callable[[str, str, str], None]) -> Image.Image:
    rgba = image.convert("RGBA")
    least = int(rgba.getchannel("A").getextrema()[0])  # type: ignore[arg-type]
    if least == 255:
        tell("alpha", "has an alpha channel that is opaque throughout", "nothing to do")
    else:
        tell(
            "alpha",
            "has transparent parts; they were laid over white",
            "lay it over backgrounds of your own, different ones, so that white is not learnt",
        )
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        eight = np.clip(np.round(values / 257), 0, 255).astype(np.uint8)
        return Image.fromarray(eight).convert("RGB")
    rgb = image.convert("RGB")
    rgb.info.clear()  # what the file said of itself is not carried along
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(0x0112, 1)
    except DECODER_ERRORS:
        return 1  # EXIF that cannot be read turns nothing
    return found if isinstance(found, int) else 1


def _png_bits(head: bytes) -> int | None:
    return head[24] if len(head) > 25 and head.startswith(b"\x89PNG\r\n\x1a\n") else None


def _bomb(file: Path, found: str) -> Fault:
    return Fault(
        file,
        "bomb",
        f"too large to open safely: {found} (a possible decompression bomb)",
        f"scale it down below {MAX_PIXELS / 1e6:.0f} million pixels, or remove it",
        usable=False,
    )


def _tiny(file: Path, width: int, height: int) -> Fault:
    return Fault(
        file,
        "tiny",
        f"too small to learn from: {width} x {height} pixels",
        "use a larger original or remove it",
        usable=False,
    )


def _unidentified(file: Path, head: bytes) -> Fault:
    kind = next((name for magic, name in _MAGIC if head.lstrip().startswith(magic)), "")
    if not kind and head[4:8] == b"ftyp":
        kind = "HEIC or another phone format"
    found = f"its contents are {kind}" if kind else "its contents are no known picture"
    return Fault(
        file,
        "unsupported",
        f"unsupported format: {found}",
        "save it as PNG or JPEG with a picture program, or remove it",
        usable=False,
    )


def _broken(file: Path, error: BaseException) -> Fault:
    text = " ".join(str(error).split())[:160]
    cut = any(word in text.lower() for word in ("truncated", "broken data", "unexpected end"))
    return Fault(
        file,
        "truncated" if cut else "unreadable",
        f"truncated: the file ends too early ({text})" if cut else f"cannot be decoded: {text}",
        "copy or download it again from the original, or remove it",
        usable=False,
    )
