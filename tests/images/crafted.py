"""Picture files as they come from cameras, programs and enemies."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from variegate.bench import world


def scenes(n: int, *, seed: int = 0, pixels: int = 64, **fixed: object) -> list[Image.Image]:
    """Different scenes, each factor drawn afresh unless it is fixed."""
    rng = np.random.default_rng(seed)
    drawn = [world.render(world.draw_scene(rng, **fixed)) for _ in range(n)]  # type: ignore[arg-type]
    pictures = [Image.fromarray(d) for d in drawn]
    return [p if pixels == 64 else p.resize((pixels, pixels)) for p in pictures]


def scene(seed: int = 0, **fixed: object) -> Image.Image:
    return scenes(1, seed=seed, **fixed)[0]


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def sixteen_bit_gray() -> Image.Image:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    return Image.fromarray(values)


def rotated_by_exif(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture, "JPEG", exif=exif)


def with_parameters(picture: Image.Image, text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    return encoded(picture, "PNG", pnginfo=info)


def write_scenes(folder: Path, n: int, **options: object) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:02d}.png" for i in range(n)]
    for file, picture in zip(files, scenes(n, **options), strict=True):  # type: ignore[arg-type]
        picture.save(file)
    return files
