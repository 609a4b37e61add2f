"""Samples side by side: a row per prompt and strength, a column per seed."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from variegate.errors import EmptyImageSet, NoSpace
from variegate.images import ImageSet, Picture
from variegate.run import write_atomically

MAX_ROWS, MAX_COLUMNS = 40, 16
MAX_SIDE, MIN_SIDE = 192, 64
MAX_PIXELS = 2400  # of the sheet's longer side, as far as the least thumbnails allow
LABEL = 220
GAP = 6
FONT_SIZE = 13
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


def contact_sheet(image_set: ImageSet, file: Path) -> Path:
    """Write one PNG of all pictures, prompts at the left and seeds above, and return its path.

    Beyond 40 rows or 16 seeds the sheet shows the first ones and says how many it leaves out.

    Raises: EmptyImageSet when there is none, NoSpace when the file cannot be written.
    """
    file = Path(file).absolute()
    if not len(image_set):
        raise EmptyImageSet(f"no pictures for the contact sheet {file}")
    rows = _rows(image_set)
    seeds = list(dict.fromkeys(picture.seed for picture in image_set))
    shown, columns = list(rows.items())[:MAX_ROWS], seeds[:MAX_COLUMNS]
    side = _side(len(shown), len(columns))
    head = 2 * FONT_SIZE
    left_out = _left_out(len(rows) - len(shown), len(seeds) - len(columns))
    foot = 2 * FONT_SIZE if left_out else 0
    size = (
        LABEL + len(columns) * (side + GAP) + GAP,
        head + len(shown) * (side + GAP) + GAP + foot,
    )
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for column, seed in enumerate(columns):
        text = "" if seed is None else f"seed {seed}"
        pen.text((LABEL + column * (side + GAP), GAP), text, FAINT, font)
    for row, (prompt, pictures) in enumerate(shown):
        top = head + row * (side + GAP)
        lines = _wrapped(prompt, font, LABEL - 2 * GAP, side // (FONT_SIZE + 3))
        pen.multiline_text((GAP, top), "\n".join(lines), INK, font, spacing=3)
        by_seed = {picture.seed: picture for picture in reversed(pictures)}
        for column, seed in enumerate(columns):
            if seed in by_seed:
                left = LABEL + column * (side + GAP)
                sheet.paste(_thumbnail(by_seed[seed], side), (left, top))
    if left_out:
        pen.text((GAP, size[1] - foot), left_out, FAINT, font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, stream.getvalue())
    except OSError as error:
        raise NoSpace(f"the contact sheet {file} cannot be written: {error.strerror}") from error
    return file


def sample_json(image_set: ImageSet, contact_sheet: Path | None) -> dict[str, Any]:
    """What `sample --json` answers; paths are absolute."""
    return {
        "images": [
            {
                "file": str(picture.file.absolute()) if picture.file else None,
                "prompt": picture.prompt,
                "seed": picture.seed,
                "strength": picture.strength,
            }
            for picture in image_set
        ],
        "contact_sheet": str(Path(contact_sheet).absolute()) if contact_sheet else None,
    }


def _rows(image_set: ImageSet) -> dict[str, list[Picture]]:
    """Pictures by what stands at the left of their row."""
    strengths = {picture.strength for picture in image_set}
    rows: dict[tuple[str, float], list[Picture]] = {}
    for prompt, pictures in image_set.by_prompt().items():
        for picture in pictures:
            rows.setdefault((prompt, picture.strength), []).append(picture)
    return {
        prompt if strengths == {1.0} else f"at {strength:g}: {prompt}": pictures
        for (prompt, strength), pictures in rows.items()
    }


def _side(rows: int, columns: int) -> int:
    fitting = min((MAX_PIXELS - LABEL) // columns, MAX_PIXELS // rows) - GAP
    return max(MIN_SIDE, min(MAX_SIDE, fitting))


def _left_out(rows: int, columns: int) -> str:
    parts = [f"{rows} more prompts"] * (rows > 0) + [f"{columns} more seeds"] * (columns > 0)
    return f"not shown: {' and '.join(parts)}" if parts else ""


def _thumbnail(picture: Picture, side: int) -> Image.Image:
    image = picture.open()
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Small pictures are enlarged with their pixels kept sharp, large ones reduced smoothly.
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.resize(size, way)


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int
) -> list[str]:
    """The text broken into at most `most` lines of `width` pixels; what is cut ends in "..."."""
    shown = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text[:400])
    lines = [""]
    for word in shown.split() or ["(empty prompt)"]:
        tried = f"{lines[-1]} {word}".strip()
        if font.getlength(tried) <= width:
            lines[-1] = tried
            continue
        lines += [""] if lines[-1] else []
        for letter in word:  # a word alone may be wider than the column
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    most = max(1, most)
    if len(lines) > most or len(text) > 400:
        lines = lines[:most]
        lines[-1] = lines[-1][: max(0, len(lines[-1]) - 3)] + "..."
    return lines
