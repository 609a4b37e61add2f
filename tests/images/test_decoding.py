"""A file in, an upright 8-bit RGB picture out, or one clear reason why not."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import crafted
from variegate.errors import ImagesError
from variegate.images import Picture, examine


def kinds(file: Path) -> list[str]:
    return [f.kind for f in examine(file).faults]


def put(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def frames() -> dict[str, object]:
    pictures = crafted.scenes(3)
    return {"save_all": True, "append_images": pictures[1:]}


CRAFTED: dict[str, tuple[str, bytes, str, bool]] = {
    "truncated jpeg": (
        "a.jpg", crafted.encoded(crafted.scene(), "JPEG")[:-200], "truncated", False),
    "truncated png": ("a.png", crafted.encoded(crafted.scene(), "PNG")[:-60], "truncated", False),
    "bomb": ("a.png", crafted.png_header(20_000, 20_000), "bomb", False),
    "smaller bomb": ("a.png", crafted.png_header(12_000, 12_000), "bomb", False),
    "line bomb": ("a.png", crafted.png_header(2_000_000_000, 1), "bomb", False),
    "animated gif": (
        "a.gif", crafted.encoded(crafted.scene(), "GIF", **frames()), "animated", True),
    "animated webp": (
        "a.webp", crafted.encoded(crafted.scene(), "WEBP", **frames()), "animated", True),
    "16-bit": ("a.png", crafted.encoded(crafted.sixteen_bit_gray(), "PNG"), "16-bit", True),
    "cmyk": ("a.jpg", crafted.encoded(crafted.scene().convert("CMYK"), "JPEG"), "cmyk", True),
    "palette": ("a.png", crafted.encoded(crafted.scene().convert("P"), "PNG"), "palette", True),
    "alpha": ("a.png", crafted.encoded(crafted.scene().convert("RGBA"), "PNG"), "alpha", True),
    "rotated": ("a.jpg", crafted.rotated_by_exif(crafted.scene()), "rotated", True),
    "tiny": ("a.png", crafted.encoded(Image.new("RGB", (8, 200)), "PNG"), "tiny", False),
    "eps": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported", False),
    "html": ("a.jpg", b"<!DOCTYPE html><html>not found</html>", "unsupported", False),
    "text": ("a.png", b"hello", "unsupported", False),
    "empty": ("a.png", b"", "unreadable", False),
    "tiff": ("a.jpg", crafted.encoded(crafted.scene(), "TIFF"), "unsupported", False),
}  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_each_fault_is_told_and_only_what_can_be_used_is_used(case: str, tmp_path: Path) -> None:
    name, data, kind, usable = CRAFTED[case]
    file = put(tmp_path / name, data)
    examined = examine(file)
    assert kind in [f.kind for f in examined.faults]
    assert (examined.image is not None) == usable
    assert all(f.fault and f.advice for f in examined.faults)
    picture = Picture("a", file)
    if usable:
        assert picture.open().mode == "RGB"
    else:
        with pytest.raises(ImagesError, match=r"a\.\w+.*; .+"):
            picture.open()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_sound_picture_has_no_fault(kind: str, tmp_path: Path) -> None:
    file = put(tmp_path / "a.png", crafted.encoded(crafted.scene(), kind))
    assert kinds(file) == []


def test_a_jpeg_cut_by_20_bytes_is_truncated(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    file = put(tmp_path / "a.jpg", crafted.encoded(picture, "JPEG")[:-20])
    assert kinds(file) == ["truncated"]


def test_a_bomb_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    file = put(tmp_path / "a.png", crafted.png_header(20_000, 20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    examine(file)
    assert time.perf_counter() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_exif_rotation_turns_the_picture_upright(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 20), "red")
    file = put(tmp_path / "a.jpg", crafted.rotated_by_exif(wide))
    assert Picture("a", file).open().size == (20, 40)


def test_transparent_parts_lie_over_white(tmp_path: Path) -> None:
    file = put(
        tmp_path / "a.png", crafted.encoded(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), "PNG")
    )
    assert Picture("a", file).open().getpixel((5, 5)) == (255, 255, 255)


def test_a_transparent_palette_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("P", (32, 32), 0)
    file = put(tmp_path / "a.png", crafted.encoded(picture, "PNG", transparency=0))
    assert kinds(file) == ["palette", "alpha"]
    assert Picture("a", file).open().getpixel((5, 5)) == (255, 255, 255)


def test_16_bit_values_are_scaled_not_clipped(tmp_path: Path) -> None:
    file = put(tmp_path / "a.png", crafted.encoded(crafted.sixteen_bit_gray(), "PNG"))
    values = np.asarray(Picture("a", file).open())
    assert values.min() == 0
    assert values.max() == 255
    assert abs(float(values.mean()) - 127.5) < 1


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    assert kinds(pipe) == ["special"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert kinds(tmp_path / "a.png") == ["unreadable"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_broken_bytes_never_raise(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = crafted.encoded(crafted.scene(), kind)
    for trial in range(40):
        data = bytearray(sound[: rng.integers(1, len(sound) + 1)] if trial % 2 else sound)
        for place in rng.integers(0, min(len(data), 200 if trial % 3 else len(data)), 4):
            data[place] = rng.integers(256)
        examined = examine(put(tmp_path / "a.png", bytes(data)))
        assert examined.image is not None or not examined.faults[-1].usable
