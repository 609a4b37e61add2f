"""What a long measurement found so far, a JSON line a row, and the page that it ends in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """All whole lines; a last one that a stop cut off is left out."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf8").splitlines(keepends=True)
    return [json.loads(line) for line in text if line.endswith("\n")]


def add(file: Path, row: dict[str, Any]) -> None:
    """One line more, in a file whose folder may not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf8") as out:
        out.write(json.dumps(row) + "\n")


def write_below(page: Path, mark: str, part: str) -> None:
    """Put a part below the line of a page that says what makes it. Raises: SystemExit without."""
    whole, found = (page.read_text(encoding="utf8").partition(mark)[i] for i in (0, 1))
    if not found:
        raise SystemExit(f"{page} has no line {mark.strip()!r}")
    page.write_text(f"{whole}{mark}\n{part}", encoding="utf8")
