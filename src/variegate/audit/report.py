"""What an audit hands back, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from variegate.audit.captions import CaptionFacts
from variegate.audit.finding import Finding
from variegate.images import Fault
from variegate.images.decode import whereabouts


@dataclass(frozen=True)
class DuplicatePair:
    """Two pictures of the set that are one picture; similarity 1.0 means the same bytes."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class AuditReport:
    """Can this set end well? Faults per file, duplicates, and findings about the whole.

    images: pictures found, refused ones included. usable: those that can be trained on.
    effective_images: how many different pictures they amount to, from 1 to `usable` (0 without
    any). limited_by: what keeps it low, among duplicates, background, palette, composition
    and place (of the subject). compared_by: how duplicates were looked for. chart: the pictures as
    points on a plane (`chart.Chart`); fixes: what could be mirrored or cropped (`fixes.Fix`).
    """

    folder: str
    images: int
    usable: int
    effective_images: float
    faults: tuple[Fault, ...]
    duplicates: tuple[DuplicatePair, ...]
    captions: CaptionFacts
    findings: tuple[Finding, ...]
    limited_by: tuple[str, ...] = ()
    compared_by: tuple[str, ...] = ()
    chart: dict[str, Any] = field(default_factory=dict)
    fixes: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The stable JSON of `audit --json`; paths are absolute."""
        return {
            "folder": self.folder,
            "images": self.images,
            "usable": self.usable,
            "effective_images": self.effective_images,
            "limited_by": list(self.limited_by),
            "faults": [f.to_json() for f in self.faults],
            "duplicates": [[d.first, d.second, d.similarity] for d in self.duplicates],
            "compared_by": list(self.compared_by),
            "captions": self.captions.to_json(),
            "findings": [f.to_json() for f in self.findings],
            "map": self.chart,
            "fixes": list(self.fixes),
        }


def name_of(key: str, file: Path | None) -> str:
    """How a picture is named in a report: its absolute path, or its key when it has no file."""
    return key if file is None else whereabouts(file)
