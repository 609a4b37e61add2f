"""A set of pictures that was brought to the studio: put in, captioned, sorted out, taken back.

    0001.png  0001.txt  .set.json  .aside/  .before/  .undo.jsonl

Files get names of ours. Nothing is deleted: what is set aside lies in `.aside`, what a picture was
before it was cropped or mirrored in `.before`, which no reader of picture folders looks into, and
every change can be taken back, the last one first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from PIL import ImageOps

from variegate.errors import ImagesError, NoSpace
from variegate.images import ImageSet, examine
from variegate.images.captions import MAX_CAPTION_BYTES, clean
from variegate.images.conventions import MASK_ENDING
from variegate.images.decode import LEAST_SIDE, SUFFIXES
from variegate.run import write_atomically

MOST_PICTURES = 5000
MOST_UNDO = 500
CHANGES = ("mirror", "crop", "trim")  # of the pictures themselves
# Files arrive side by side: names are given out, and changes noted, one at a time.
_changing = threading.RLock()
T = TypeVar("T")
Box = tuple[float, float, float, float]
_WORD = re.compile(r"[^\W_]+(?:['\-][^\W_]+)*")
_NAME = re.compile(r"(\d{4,})\.[a-z]+")


def _one_at_a_time(method: Callable[..., T]) -> Callable[..., T]:
    @wraps(method)
    def alone(*words: Any, **named: Any) -> T:
        with _changing:
            return method(*words, **named)

    return alone


@dataclass(frozen=True)
class Shot:
    """A picture of the set: its file's name, and its caption (None: nobody gave one)."""

    name: str
    file: Path
    caption: str | None


class PictureSet:
    """The set in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is known of it: name, trigger, noun."""
        try:
            found = json.loads((self.folder / ".set.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.name)

    @property
    def trigger(self) -> str:
        return str(self.facts.get("trigger") or "")

    @property
    def noun(self) -> str:
        return str(self.facts.get("noun") or "")

    @property
    def changed(self) -> float:
        try:
            return self.folder.stat().st_mtime
        except OSError:
            return 0.0

    def tell(self, **facts: str) -> None:
        kept = self.facts | {k: clean(v)[:200] for k, v in facts.items()}
        _write(self.folder / ".set.json", json.dumps(kept).encode())
        self.__dict__.pop("facts", None)

    def shots(self) -> list[Shot]:
        """Its pictures in the order of their names."""
        try:
            return list(_shots(self.folder, self.stamp))
        except (ImagesError, OSError):
            return []

    def shot(self, name: str) -> Shot | None:
        return next((s for s in self.shots() if s.name == name), None)

    def count(self) -> int:
        try:
            return sum(
                1
                for n in os.listdir(self.folder)
                if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")
            )
        except OSError:
            return 0

    @property
    def stamp(self) -> str:
        """What the pictures and captions are now; another word when any of them changes."""
        digest = hashlib.sha256()
        for entry in sorted(os.scandir(self.folder), key=lambda e: e.name):
            if not entry.name.startswith("."):
                facts = entry.stat()
                digest.update(f"{entry.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
        digest.update(self.trigger.encode())
        return digest.hexdigest()[:16]

    # --- changing -------------------------------------------------------------------------------
    def take_in(self, file: Path, *, caption: str | None = None, drop: str = "") -> Shot:
        """A picture that has arrived, under a name of ours. `file` is used up.

        drop: what it came with; pictures of one drop are taken back together, "" alone.
        Raises: ImagesError when it is no picture that can be used, with what to do.
        """
        try:
            if self.count() >= MOST_PICTURES:
                raise ImagesError(f"a set holds at most {MOST_PICTURES} pictures")
            suffix = _suffix(file)
            seen = examine(file)
            if seen.image is None:
                last = seen.faults[-1]
                raise ImagesError(f"{last.fault}; {last.advice}")
            with _changing:
                name = f"{self._next():04d}{suffix}"
                os.replace(file, self.folder / name)
                if caption is not None:
                    self._write_caption(name, caption)
                self._note({"do": "take in", "names": [name], "drop": drop})
        finally:
            file.unlink(missing_ok=True)
        return Shot(name, self.folder / name, caption)

    @_one_at_a_time
    def say(self, captions: dict[str, str]) -> None:
        """Write captions by picture name, as .txt beside each."""
        known = {s.name: s.caption for s in self.shots()}
        before = {name: known[name] for name in captions if name in known}
        changed = {n: clean(captions[n])[: MAX_CAPTION_BYTES // 4] for n in before}
        changed = {n: text for n, text in changed.items() if text != before[n]}
        for name, text in changed.items():
            self._write_caption(name, text)
        if changed:
            self._note({"do": "say", "before": {n: before[n] for n in changed}})

    @_one_at_a_time
    def set_aside(self, names: Iterable[str]) -> None:
        """Put pictures where nobody looks, captions and masks with them."""
        present = set(os.listdir(self.folder))
        moved = [n for n in names if n in present and not n.startswith(".")]
        if moved:
            for name in moved:
                self._carry(name, self.folder, self.folder / ".aside")
            self._note({"do": "aside", "names": moved})

    @_one_at_a_time
    def change(self, do: str, boxes: Mapping[str, Box], *, mirrored: bool = False) -> int:
        """Crop pictures to a part of each (left, top, right, bottom as shares of its sides), and
        mirror them if asked, their masks with them; how many were.

        What they were lies in `.before` until it is put back. The new ones are PNG, whose pixels
        are those that were there. do: what undo will call it.

        Raises: NoSpace, with the pictures as they were.
        """
        known = {s.name: s.file for s in self.shots()}
        before = self.folder / ".before" / f"{len(self._kept_before()) + 1:04d}"
        names: list[list[str]] = []
        try:
            for name in sorted(set(boxes) & set(known)):
                file, stem = known[name], Path(name).stem
                made = _changed(file, boxes[name], mirrored)
                if made is None:
                    continue
                mask = self.folder / f"{stem}{MASK_ENDING}.png"
                masked = _changed(mask, boxes[name], mirrored) if mask.is_file() else None
                before.mkdir(parents=True, exist_ok=True)
                names.append([name, f"{stem}.png"])
                os.replace(file, before / name)
                if masked is not None:
                    os.replace(mask, before / mask.name)
                    _write(mask, masked)
                _write(self.folder / f"{stem}.png", made)
        except (OSError, NoSpace) as error:
            self._put_back(before, names)
            why = getattr(error, "strerror", None) or error
            raise NoSpace(f"the pictures cannot be changed: {why}") from error
        if names:
            self._note({"do": do, "before": before.name, "names": names})
        return len(names)

    def _kept_before(self) -> list[str]:
        kept = self.folder / ".before"
        return os.listdir(kept) if kept.is_dir() else []

    def _put_back(self, before: Path, names: Iterable[Sequence[str]]) -> None:
        """Pictures and masks as they were before a change, in place of what it made."""
        for old, new in names:
            if not (before / old).is_file():
                continue
            (self.folder / new).unlink(missing_ok=True)
            os.replace(before / old, self.folder / old)
            mask = f"{Path(old).stem}{MASK_ENDING}.png"
            if (before / mask).is_file():
                os.replace(before / mask, self.folder / mask)

    @_one_at_a_time
    def undo(self) -> str:
        """Take the last change back; what it was, or "" when there is none."""
        steps = self._steps()
        if not steps:
            return ""
        last = steps.pop()
        if last["do"] == "aside":
            for name in last["names"]:
                self._carry(name, self.folder / ".aside", self.folder)
        elif last["do"] == "take in":
            for name in last["names"]:
                self._carry(name, self.folder, self.folder / ".aside")
        elif last["do"] in CHANGES:
            self._put_back(self.folder / ".before" / last["before"], last["names"])
        else:
            for name, text in last["before"].items():
                self._write_caption(name, text)
        self._keep(steps)
        return str(last["do"])

    @property
    def last_change(self) -> str:
        steps = self._steps()
        return str(steps[-1]["do"]) if steps else ""

    def _carry(self, name: str, start: Path, end: Path) -> None:
        try:
            end.mkdir(exist_ok=True)
            stem = Path(name).stem
            for beside in (name, f"{stem}.txt", f"{stem}{MASK_ENDING}.png"):
                if (start / beside).is_file():
                    os.replace(start / beside, end / beside)
        except OSError as error:
            raise NoSpace(f"{name} cannot be moved: {error.strerror or error}") from error

    def _write_caption(self, name: str, text: str | None) -> None:
        file = self.folder / f"{Path(name).stem}.txt"
        if text is None:
            file.unlink(missing_ok=True)
        else:
            _write(file, text.encode())

    def _next(self) -> int:
        names = [*os.listdir(self.folder)]
        aside = self.folder / ".aside"
        names += os.listdir(aside) if aside.is_dir() else []
        taken = [int(m[1]) for n in names if (m := _NAME.fullmatch(n))]
        return max(taken, default=0) + 1

    def _steps(self) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / ".undo.jsonl").read_text(encoding="utf8").splitlines()
            return [json.loads(line) for line in lines if line]
        except (OSError, ValueError):
            return []

    def _note(self, step: dict[str, Any]) -> None:
        steps = self._steps()
        drop = step.get("drop")
        if drop and steps and steps[-1].get("drop") == drop:
            steps[-1]["names"] += step["names"]
        else:
            steps.append(step)
        self._keep(steps[-MOST_UNDO:])

    def _keep(self, steps: Sequence[dict[str, Any]]) -> None:
        _shots.cache_clear()  # two changes within a tick of the clock may have one stamp
        text = "".join(json.dumps(s) + "\n" for s in steps)
        _write(self.folder / ".undo.jsonl", text.encode())


def _changed(file: Path, box: Box, mirrored: bool) -> bytes | None:
    """A part of a picture, mirrored or not, as PNG; None when there is no picture, or too little
    would be left."""
    image = examine(file).image
    if image is None:
        return None
    left, top, right, bottom = box
    width, height = image.size
    cut = (round(left * width), round(top * height), round(right * width), round(bottom * height))
    if min(cut[2] - cut[0], cut[3] - cut[1]) < LEAST_SIDE:
        return None
    image = image.crop(cut)
    image = ImageOps.mirror(image) if mirrored else image
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def holds(caption: str, trigger: str) -> bool:
    """Whether the words of a trigger stand in a caption one after the other, as the audit sees it
    (`audit.captions`, whose room loads PyTorch).

    >>> holds("a photo of Zqx, outdoors", "zqx"), holds("two zqxes", "zqx")
    (True, False)
    """
    words, wanted = (_WORD.findall(text.lower()) for text in (caption, trigger))
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) + 1))


def families(pairs: Iterable[Sequence[Any]]) -> list[list[str]]:
    """Groups of names of which each is like some other of its group, largest first.

    >>> families([("a", "b", 1.0), ("c", "b", 0.9), ("d", "e", 0.8)])
    [['a', 'b', 'c'], ['d', 'e']]
    """
    of: dict[str, set[str]] = {}
    for first, second, *_ in pairs:
        joined = of.get(first, {first}) | of.get(second, {second})
        for name in joined:
            of[name] = joined
    distinct = {id(group): group for group in of.values()}
    return sorted((sorted(g) for g in distinct.values()), key=lambda g: (-len(g), g))


def _suffix(file: Path) -> str:
    """The ending that the content deserves; names are other people's words.

    Raises: ImagesError for what is no picture.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise ImagesError(f"it cannot be read: {error.strerror or error}") from error
    for magic, suffix in (
        (b"\x89PNG", ".png"),
        (b"\xff\xd8\xff", ".jpg"),
        (b"BM", ".bmp"),
        (b"GIF8", ".gif"),
    ):
        if head.startswith(magic):
            return suffix
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[4:12] in (b"ftypavif", b"ftypavis") and ".avif" in SUFFIXES:
        return ".avif"
    raise ImagesError("it is no picture that can be read here; save it as PNG, JPEG or WebP")


@lru_cache(maxsize=64)
def _shots(folder: Path, stamp: str) -> tuple[Shot, ...]:
    """The pictures in a folder, opened for what is written in them: a second for some thousands, so
    not at every page. stamp: what the folder holds. Raises: ImagesError."""
    home = folder.resolve()
    return tuple(
        Shot(p.file.name, p.file, p.prompt)
        for p in ImageSet.read(folder)
        if p.file is not None and p.file.parent == home
    )


def _write(file: Path, data: bytes) -> None:
    try:
        write_atomically(file, data)
    except OSError as error:
        raise NoSpace(f"{file.name} cannot be written: {error.strerror or error}") from error


def remove(folder: Path) -> None:
    """Take a whole folder of ours away."""
    shutil.rmtree(folder, ignore_errors=True)
