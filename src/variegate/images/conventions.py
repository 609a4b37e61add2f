"""Folders of pictures as the field lays them out, read into one list.

    flat          a.jpg, a.txt or a.caption beside it, a-masklabel.png for its mask
    metadata      metadata.jsonl with file_name and text, prompt or caption; maybe seed, group
    kohya         10_cat/ and its like: ten repeats; "cat" where a picture has no caption
    by prompt     an owl/, a fox/: the folder's name is the prompt

A picture without any caption may carry one inside (AUTOMATIC1111's `parameters` in a PNG). Whatever
is passed over is told as a fault. Links and paths that lead out of the folder are refused.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from variegate.errors import ImagesError
from variegate.images.captions import CAPTION_SUFFIXES, clean, read_caption, read_parameters
from variegate.images.decode import FOREIGN_SUFFIXES, SUFFIXES, Fault, refuse_special
from variegate.images.picture import Picture

METADATA = "metadata.jsonl"
MASK_ENDING = "-masklabel"
PROMPT_KEYS = ("text", "prompt", "caption")
MAX_METADATA_BYTES = 64 * 2**20
MAX_REPEATS = 10_000

_KOHYA = re.compile(r"(\d{1,9})_(.+)", re.DOTALL)
_NOT_CAPTIONS = frozenset({"readme", "license", "licence", "attribution", "notes"})


@dataclass
class Reading:
    """What has been read so far of one folder tree."""

    root: Path
    pictures: list[Picture] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def tell(self, file: Path, kind: str, fault: str, advice: str, *, usable: bool = True) -> None:
        self.faults.append(Fault(file, kind, fault, advice, usable))

    def key(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def read_folder(folder: Path) -> Reading:
    """The pictures of a folder in the order of their names, and what was wrong on the way.

    Raises: ImagesError when there is no such folder or it cannot be listed.
    """
    try:
        root = folder.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImagesError(
            f"no folder at {str(folder)!r}; give a folder that holds pictures"
        ) from error
    if not root.is_dir():
        raise ImagesError(f"{str(folder)!r} is a file; give the folder that holds the pictures")
    reading = Reading(root)
    files, folders = _listing(reading, root)
    if METADATA in {f.name for f in files}:
        _read_metadata(reading, root)
        return reading
    kohya = [f for f in folders if _KOHYA.fullmatch(f.name)]
    has_pictures = any(f.suffix.lower() in SUFFIXES for f in files)
    _read_files(reading, files)
    for inner in folders:
        match = _KOHYA.fullmatch(inner.name)
        if match:
            _read_inner(reading, inner, clean(match[2]), repeats=_repeats(reading, inner, match))
        elif kohya or has_pictures:
            _tell_passed_over(reading, inner, kohya=bool(kohya))
        else:
            _read_inner(reading, inner, clean(inner.name))
    return reading


def _listing(reading: Reading, folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, folders) by name; hidden ones and what programs leave behind are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        if folder == reading.root:
            raise ImagesError(f"{str(folder)!r} cannot be listed: {error.strerror}") from error
        reading.tell(folder, "ignored", f"cannot be listed: {error.strerror}", "check its rights")
        return [], []
    files: list[Path] = []
    folders: list[Path] = []
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        path = Path(entry.path)
        if entry.is_symlink() and not _contained(reading, path):
            if path.suffix.lower() in SUFFIXES | FOREIGN_SUFFIXES or path.is_dir():
                _tell_outside(reading, path)
        elif entry.is_dir():
            folders.append(path)
        else:
            files.append(path)
    return files, folders


def _contained(reading: Reading, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(reading.root)
    except (OSError, RuntimeError):
        return False


def _tell_outside(reading: Reading, path: Path) -> None:
    reading.tell(
        path,
        "outside",
        "a link that leads out of the folder, or nowhere; it was not followed",
        "copy the picture itself into the folder",
        usable=False,
    )


def _tell_passed_over(reading: Reading, inner: Path, *, kohya: bool) -> None:
    reason = (
        "a sub-folder without repeats in its name beside ones that have them"
        if kohya
        else "a sub-folder beside pictures"
    )
    reading.tell(
        inner,
        "ignored",
        f"{reason}; its pictures were not read",
        "put all pictures in one folder, or all into sub-folders",
    )


def _repeats(reading: Reading, inner: Path, match: re.Match[str]) -> int:
    repeats = int(match[1])
    if 1 <= repeats <= MAX_REPEATS:
        return repeats
    reading.tell(
        inner,
        "ignored",
        f"{repeats} repeats in the folder's name; read as 1",
        f"name it with 1 to {MAX_REPEATS} repeats, as in 10_cat",
    )
    return 1


def _read_inner(reading: Reading, inner: Path, prompt: str, *, repeats: int = 1) -> None:
    files, folders = _listing(reading, inner)
    if METADATA in {f.name for f in files}:
        _read_metadata(reading, inner, prompt=prompt, repeats=repeats)
        return
    _read_files(reading, files, prompt=prompt, repeats=repeats)
    for deeper in folders:
        reading.tell(
            deeper, "ignored", "a folder inside a sub-folder; its pictures were not read",
            "move its pictures one folder up",
        )  # fmt: skip


def _read_files(
    reading: Reading, files: list[Path], *, prompt: str | None = None, repeats: int = 1
) -> None:
    """Add the pictures among `files`, with their captions and masks; tell what is left over."""
    masks = {f.stem.removesuffix(MASK_ENDING): f for f in files if f.stem.endswith(MASK_ENDING)}
    texts = {f.name: f for f in files if f.suffix.lower() in CAPTION_SUFFIXES}
    found = [f for f in files if not f.stem.endswith(MASK_ENDING)]
    matched: set[Path] = set()
    for file in found:
        suffix = file.suffix.lower()
        if suffix in FOREIGN_SUFFIXES:
            _tell_foreign(reading, file)
        if suffix not in SUFFIXES:
            continue
        beside = [texts[n] for n in _caption_names(file) if n in texts]
        matched.update(beside)
        caption, seed = _caption(reading, beside)
        if refusal := refuse_special(file):
            reading.faults.append(refusal)
            continue
        mask = masks.get(file.stem)
        if mask is not None:
            matched.add(mask)
            if refusal := refuse_special(mask):
                reading.tell(mask, "mask", refusal.fault, refusal.advice)
                mask = None
        caption = prompt if caption is None else caption
        if caption is None or seed is None:
            inside = read_parameters(file)
            if inside is not None:
                caption = inside[0] if caption is None else caption
                seed = inside[1] if seed is None else seed
        reading.pictures.append(
            Picture(reading.key(file), file, caption, seed, mask_file=mask, repeats=repeats)
        )
    _tell_unmatched(reading, [*texts.values(), *masks.values()], matched)


def _caption_names(file: Path) -> list[str]:
    stems = (file.stem, file.name)
    return [stem + suffix for stem in stems for suffix in CAPTION_SUFFIXES]


def _caption(reading: Reading, beside: list[Path]) -> tuple[str | None, int | None]:
    if not beside:
        return None, None
    caption, seed, fault = read_caption(beside[0])
    if fault is not None:
        reading.faults.append(fault)
    for other in beside[1:]:
        reading.tell(
            other, "caption", f"a second caption; {beside[0].name!r} was used", "keep one of them"
        )
    return caption, seed


def _tell_foreign(reading: Reading, file: Path) -> None:
    reading.tell(
        file,
        "unsupported",
        f"unsupported format: {file.suffix.lower()}",
        "save it as PNG or JPEG with a picture program, or remove it",
        usable=False,
    )


def _tell_unmatched(reading: Reading, files: list[Path], matched: set[Path]) -> None:
    for file in files:
        if file in matched or file.stem.lower() in _NOT_CAPTIONS:
            continue
        if file.stem.endswith(MASK_ENDING):
            reading.tell(file, "mask", "a mask without its picture", "rename it after its picture")
        else:
            reading.tell(
                file, "caption", "a caption without its picture", "rename it after its picture"
            )


def _read_metadata(
    reading: Reading, folder: Path, *, prompt: str | None = None, repeats: int = 1
) -> None:
    """Add the pictures that metadata.jsonl lists; pictures beside it that it leaves out are told.

    A list may name a picture once; later lines about it are passed over.
    """
    table = folder / METADATA
    seen: set[Path] = set()
    for number, line in enumerate(_lines(reading, table), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            reading.tell(
                table,
                "metadata",
                f"line {number} is not a JSON object with a file_name",
                'write it as {"file_name": "01.png", "text": "..."}',
            )
            continue
        file = _listed_file(reading, table, number, entry["file_name"])
        if file is None or file in seen:
            continue
        seen.add(file)
        _add_entry(reading, table, number, file, entry, prompt, repeats)
    for file in _listing(reading, folder)[0]:
        if file.suffix.lower() in SUFFIXES and file not in seen and MASK_ENDING not in file.stem:
            reading.tell(
                file, "ignored", f"not listed in {METADATA}; it was not read", "add a line for it"
            )


def _lines(reading: Reading, table: Path) -> list[str]:
    refusal = refuse_special(table)
    if refusal is None and table.stat().st_size > MAX_METADATA_BYTES:
        raise ImagesError(
            f"{str(table)!r} is larger than {MAX_METADATA_BYTES // 2**20} MB; "
            "split the set into smaller folders"
        )
    if refusal is not None:
        raise ImagesError(f"{str(table)!r}: {refusal.fault}; {refusal.advice}")
    try:
        return table.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ImagesError(f"{str(table)!r} cannot be read as UTF-8 text: {error}") from error


def _listed_file(reading: Reading, table: Path, number: int, name: str) -> Path | None:
    """The file that a line names, or None with a fault told."""
    try:
        file = table.parent / name
        inside = file.resolve().is_relative_to(reading.root)
        there = inside and file.exists()
    except (OSError, ValueError, RuntimeError):
        inside = there = False
    if not inside:
        fault = f"line {number} names {clean(name)[:120]!r}, which is outside of the folder"
        reading.tell(table, "outside", fault, "list only pictures inside the folder")
        return None
    file = Path(os.path.normpath(file))
    if not there:
        fault = f"line {number} names {clean(name)[:120]!r}, which is not there"
        reading.tell(table, "metadata", fault, "restore the picture or remove the line")
        return None
    if refusal := refuse_special(file):
        reading.faults.append(refusal)
        return None
    if file.suffix.lower() in SUFFIXES:
        return file
    _tell_foreign(reading, file)
    return None


def _add_entry(
    reading: Reading,
    table: Path,
    number: int,
    file: Path,
    entry: dict[str, Any],
    prompt: str | None,
    repeats: int,
) -> None:
    text = next((entry[k] for k in PROMPT_KEYS if entry.get(k) is not None), None)
    if text is not None and not isinstance(text, str):
        reading.tell(table, "metadata", f"line {number}: its prompt is not text", "quote it")
        text = None
    seed = entry.get("seed")
    if seed is not None and (
        isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63
    ):
        reading.tell(
            table, "metadata", f"line {number}: its seed is not a whole number", "leave it out"
        )
        seed = None
    group, strength = entry.get("group"), entry.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        reading.tell(
            table, "metadata", f"line {number}: its strength is not a number", "leave it out"
        )
        strength = 1.0
    mask = file.with_name(file.stem + MASK_ENDING + ".png")
    caption = clean(text) if text is not None else prompt
    if text is None or seed is None:
        inside = read_parameters(file)
        if inside is not None:
            caption = inside[0] if caption is None else caption
            seed = inside[1] if seed is None else seed
    reading.pictures.append(
        Picture(
            reading.key(file),
            file,
            caption,
            seed,
            mask_file=mask if _contained(reading, mask) and mask.is_file() else None,
            repeats=repeats,
            group=clean(group) if isinstance(group, str) else None,
            strength=float(strength),
        )
    )
