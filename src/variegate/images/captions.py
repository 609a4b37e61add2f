"""Captions as people and programs leave them: text beside a picture, or inside it."""

from __future__ import annotations

import re
import unicodedata
import warnings
from pathlib import Path

from PIL import ExifTags, Image

from variegate.images.decode import DECODER_ERRORS, Fault, refuse_special
from variegate.images.workflow import parse_workflow

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 64 * 1024

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# Marks that turn the direction of the text around them, so that it reads as something else.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def clean(text: str) -> str:
    """The text on one line, without terminal codes, control characters or direction marks.

    Everything else, markup included, is kept as written: it is text, and is shown as text.

    >>> clean("a \\x1b[31mred\\x1b[0m owl\\n")
    'a red owl'
    """
    text = _ANSI.sub("", text)
    kept = [
        " " if c.isspace() else c
        for c in text
        if c.isspace() or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI)
    ]
    return " ".join("".join(kept).split())


def read_caption(file: Path) -> tuple[str | None, int | None, Fault | None]:
    """(caption, seed, fault) of a text file beside a picture.

    The caption is None when the file cannot be used, and "" when it is empty. A generation log
    as AUTOMATIC1111 writes it is read for its prompt and seed.
    """
    if refusal := refuse_special(file):
        return None, None, _caption_fault(file, refusal.fault, refusal.advice)
    size = file.stat().st_size
    if size > MAX_CAPTION_BYTES:
        return None, None, _caption_fault(
            file,
            f"caption of {size / 1024:.0f} kB; at most {MAX_CAPTION_BYTES // 1024} kB are read",
            "is this really a caption? shorten it to a sentence or two",
        )  # fmt: skip
    try:
        return (*parse_caption(file.read_bytes()), None)
    except UnicodeDecodeError as error:
        return None, None, _caption_fault(
            file, f"caption is not UTF-8 text (byte {error.start})", "save it as UTF-8"
        )  # fmt: skip
    except OSError as error:
        return None, None, _caption_fault(
            file, f"caption cannot be read: {error.strerror}", "check its permissions"
        )  # fmt: skip


def parse_caption(data: bytes) -> tuple[str, int | None]:
    """(caption, seed) of a caption file's bytes.

    Raises: UnicodeDecodeError when they are no UTF-8 text.
    """
    text = data.decode("utf-8-sig")
    logged = parse_parameters(text)
    return (clean(text), None) if logged is None else logged


def parse_parameters(text: str) -> tuple[str, int | None] | None:
    """(prompt, seed) of AUTOMATIC1111's `parameters` text, or None when the text is no such.

    The prompt is what stands before `Negative prompt:`, or before the last line of settings,
    which has at least three `Key: value` pairs and one of them `Steps`.

    >>> parse_parameters("an owl\\nNegative prompt: blur\\nSteps: 20, Sampler: Euler, Seed: 7")
    ('an owl', 7)
    """
    lines = text[:MAX_CAPTION_BYTES].strip().splitlines()
    if not lines:
        return None
    settings = {k.strip(): v for k, v in _SETTING.findall(lines[-1][:4096])}
    if len(settings) < 3 or "Steps" not in settings:
        return None
    prompt: list[str] = []
    for line in lines[:-1]:
        if line.startswith("Negative prompt:"):
            break
        prompt.append(line)
    digits = settings.get("Seed", "").strip()
    seed = int(digits) if re.fullmatch(r"\d{1,19}", digits) else None
    return clean("\n".join(prompt)), seed


def read_parameters(file: Path) -> tuple[str, int | None] | None:
    """(prompt, seed) from inside a picture, or None when there is none: of a PNG as AUTOMATIC1111
    and Forge (`parameters`) or ComfyUI (`prompt`) write them, of a WebP or JPEG as the former do
    (EXIF's UserComment)."""
    kind = _HOLDERS.get(file.suffix.lower())
    if kind is None or refuse_special(file):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=(kind,)) as opened:
                text, graph = opened.info.get("parameters"), opened.info.get("prompt")
                if kind != "PNG":
                    inner = opened.getexif().get_ifd(ExifTags.IFD.Exif)
                    text, graph = _comment(inner.get(ExifTags.Base.UserComment)), None
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None  # `examine` tells what is wrong with the file
    found = parse_parameters(text) if isinstance(text, str) else None
    if found is None and isinstance(graph, str):
        within = parse_workflow(graph)
        found = (clean(within[0]), within[1]) if within else None
    return found


_HOLDERS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def _comment(value: object) -> str | None:
    """EXIF's UserComment in UTF-16. It does not tell its byte order: that of fewer odd letters."""
    if not isinstance(value, bytes) or not value.startswith(b"UNICODE\x00"):
        return None
    body = value[8 : 8 + 2 * MAX_CAPTION_BYTES]
    read = [body.decode(order, errors="replace") for order in ("utf-16-be", "utf-16-le")]
    return min(read, key=lambda text: sum(ord(letter) > 0x2FF for letter in text))


def _caption_fault(file: Path, fault: str, advice: str) -> Fault:
    return Fault(file, "caption", fault, advice)
