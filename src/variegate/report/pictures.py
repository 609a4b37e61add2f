"""Pictures as data inside the page: chosen evenly, shrunk to a budget, never the file itself."""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup
from PIL import Image, ImageOps

from variegate.report.record import Sample

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_PIXELS = 80_000_000  # of one file, before it is decoded
SIDE = 320  # pixels of the longer side on the page
SMALL = 96  # up to here a picture is kept pixel for pixel and enlarged by the browser
LADDER = ((SIDE, 82), (SIDE, 70), (256, 66), (192, 60), (128, 50), (96, 40))

T = TypeVar("T")


@dataclass(frozen=True)
class Thumbnail:
    """A picture on the page, or why it is not there (`source` is then empty)."""

    source: Markup
    width: int
    height: int
    alt: str
    why: str = ""

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= SMALL


class Album:
    """Shrinks pictures so that `count` of them stay within `budget` bytes together."""

    def __init__(self, count: int, *, budget: int = 4_000_000) -> None:
        self._bytes_each = budget * 3 // 4 // max(count, 1)  # base64 adds a third
        self._rung = 0
        self._known: dict[Path, tuple[Markup, int, int] | str] = {}

    def thumbnail(self, file: Path | None, alt: str) -> Thumbnail:
        """The picture in `file`; a picture that cannot be shown says why in its place."""
        if file is None:
            return Thumbnail(Markup(), 1, 1, alt, "outside the run")
        if file not in self._known:
            self._known[file] = self._encode(file)
        known = self._known[file]
        if isinstance(known, str):
            return Thumbnail(Markup(), 1, 1, alt, known)
        return Thumbnail(*known, alt)

    def _encode(self, file: Path) -> tuple[Markup, int, int] | str:
        opened = _open(file)
        if isinstance(opened, str):
            return opened
        self._rung = max(0, self._rung - 1)  # near where the last picture fitted
        while True:
            side, quality = LADDER[self._rung]
            shrunk = _shrink(opened, side)
            data = _webp(shrunk, quality)
            if len(data) <= self._bytes_each or self._rung == len(LADDER) - 1:
                break
            self._rung += 1
        text = base64.b64encode(data).decode("ascii")
        return Markup("data:image/webp;base64,") + Markup(text), *shrunk.size


def _open(file: Path) -> Image.Image | str:
    """The picture as 8-bit RGB with its rotation applied and alpha laid over white."""
    if not file.is_file():  # a pipe or device would block
        return "file is missing"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    return "too many pixels"
                picture.draft("RGB", (SIDE * 2, SIDE * 2))
                turned = ImageOps.exif_transpose(picture)
                if turned.mode.startswith("I"):
                    turned = turned.point(lambda v: v / 256).convert("L")
                rgba = turned.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "cannot be read"
    ground = Image.new("RGB", rgba.size, "white")
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    if max(picture.size) <= side:
        return picture
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)  # type: ignore[arg-type]


def _webp(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=3, exif=b"", xmp=b"", icc_profile=b"")
    return file.getvalue()


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spread, first and last among them when more than one is kept.

    >>> spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class PromptRow:
    """One prompt with its samples of several sides; the same place means the same seed.

    sides holds one list per side (base, adapter, ...), each as long as `seeds`; None where that
    side has no such sample. prompts has each side's own words.
    """

    group: str
    prompts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    sides: tuple[tuple[Sample | None, ...], ...]


@dataclass(frozen=True)
class Rows:
    """The rows of one group that are shown, and how many there are in all."""

    group: str
    rows: tuple[PromptRow, ...]
    prompts: int
    seeds: int

    @property
    def sampled(self) -> bool:
        shown_seeds = max((len(r.seeds) for r in self.rows), default=0)
        return len(self.rows) < self.prompts or shown_seeds < self.seeds


Cell = tuple[int, int]  # ordinal of the prompt in its group; seed, negative when unknown


def pair(
    sides: Sequence[Sequence[Sample]], *, prompts: int = 4, seeds: int = 6
) -> tuple[Rows, ...]:
    """The samples of several sides by prompt and seed, trigger prompts first, then class prompts.

    The base is asked with the class noun where the adapter hears the trigger, so prompts of one
    group are matched by their order, not by their words. Prompts and seeds beyond the numbers
    given are left out evenly. Other groups are shown only when neither of those two is there.
    """
    found = dict.fromkeys(s.group for side in sides for s in side)
    groups = [g for g in ("trigger", "class") if g in found] or list(found)[:2]
    tables = [_tabulate(side) for side in sides]
    return tuple(
        _rows(group, [t.get(group, {}) for t in tables], prompts, seeds) for group in groups
    )


def _tabulate(samples: Sequence[Sample]) -> dict[str, dict[Cell, Sample]]:
    tables: dict[str, dict[Cell, Sample]] = {}
    ordinals: dict[tuple[str, str], int] = {}
    prompts: Counter[str] = Counter()
    unseeded: Counter[tuple[str, str]] = Counter()
    seen: set[Sample] = set()
    for sample in samples:
        if sample in seen:  # a resumed run may name a picture again
            continue
        seen.add(sample)
        key = (sample.group, sample.prompt)
        table = tables.setdefault(sample.group, {})
        seed = sample.seed
        if seed is None:  # without seeds, samples are matched by their order
            unseeded[key] += 1
            seed = -unseeded[key]
        # Two trigger prompts may share one wording on the base's side: a seed that comes again
        # under the same words opens a new prompt.
        if key not in ordinals or (ordinals[key], seed) in table:
            ordinals[key] = prompts[sample.group]
            prompts[sample.group] += 1
        table[(ordinals[key], seed)] = sample
    return tables


def _rows(
    group: str, tables: Sequence[dict[Cell, Sample]], most_prompts: int, most_seeds: int
) -> Rows:
    cells = dict.fromkeys(cell for table in tables for cell in table)
    ordinals = sorted({ordinal for ordinal, _ in cells})
    by_prompt = {o: [seed for ordinal, seed in cells if ordinal == o] for o in ordinals}
    rows = []
    for ordinal in spread(ordinals, most_prompts):
        seeds = spread(by_prompt[ordinal], most_seeds)
        sides = tuple(tuple(table.get((ordinal, s)) for s in seeds) for table in tables)
        words = tuple(next((s.prompt for s in side if s is not None), "") for side in sides)
        shown = tuple(s if s >= 0 else None for s in seeds)
        rows.append(PromptRow(group, words, shown, sides))
    most = max((len(s) for s in by_prompt.values()), default=0)
    return Rows(group, tuple(rows), len(ordinals), most)
