"""A folder that was judged: the samples of adapter and base side by side, the verdict on them, and
what its page shows beside the numbers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from variegate.errors import NoSpace
from variegate.images import ImageSet, Picture
from variegate.measure import (
    Evidence,
    Line,
    Verdict,
    find_copies,
    nearest_pictures,
)
from variegate.run import write_atomically

PANEL = 8  # training pictures that the report shows


def lay_out(
    pictures: ImageSet, rows: Sequence[Sequence[int]], lines: Sequence[Line], target: Path
) -> ImageSet:
    """Somebody's pictures under names of ours in another folder, and a list of them: those that
    are compared, line by line. Seeds are told where both models have them."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        moved, listed = list[Picture](), list[dict[str, Any]]()
        for line, own in zip(lines, rows, strict=True):
            for place, row in enumerate(own):
                p = pictures.pictures[row]
                assert p.file is not None
                at = link(p, target / f"{len(moved):05d}{p.file.suffix.lower()}")
                moved.append(replace(p, file=at))
                facts: dict[str, Any] = {"file_name": at.name, "prompt": p.prompt or ""}
                facts["group"] = line.group
                listed.append(facts | ({"seed": p.seed} if place < line.paired else {}))
        text = "".join(json.dumps(facts) + "\n" for facts in listed)
        write_atomically(target / "metadata.jsonl", text.encode())
    except OSError as error:
        raise NoSpace(f"{target} cannot be written: {error.strerror or error}") from error
    return ImageSet(tuple(moved), str(target))


def link(picture: Picture, at: Path) -> Path:
    """A hard link where the file system can, else a copy."""
    assert picture.file is not None
    if at.exists() and at.samefile(picture.file):
        return at
    at.unlink(missing_ok=True)
    try:
        os.link(picture.file.resolve(), at)
    except OSError:
        shutil.copyfile(picture.file, at)
    return at


def keep_verdict(
    folder: Path, verdict: Verdict, evidence: Evidence, learnt: ImageSet | None
) -> None:
    """`verdict.json`, and `evidence.json` with the pictures that the page shows.

    learnt: the training pictures, if they are known.
    """
    write_json(folder / "verdict.json", verdict.to_json())
    write_json(folder / "evidence.json", _evidence(evidence, folder, learnt))


def _evidence(evidence: Evidence, run: Path, learnt: ImageSet | None) -> dict[str, Any]:
    """What the report shows beside its numbers: samples next to the pictures they come nearest,
    and some of the pictures that were learnt."""
    near = nearest_pictures(evidence, find_copies(evidence))[:64]
    for pair in near:
        pair["sample"] = os.path.relpath(pair["sample"], run)
    found: dict[str, Any] = {"nearest": near, "encoder": evidence.views[0].encoder}
    if learnt is not None:
        shown = [
            {"file": str(p.file.resolve()), "caption": p.prompt or ""}
            for p in learnt.pictures[:PANEL]
            if p.file is not None
        ]
        text = f"The first {PANEL} of {len(learnt)}." if len(learnt) > PANEL else ""
        found["panels"] = [{"title": "What it learnt from", "text": text, "pictures": shown}]
    return found


def write_json(file: Path, document: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def short_hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]
