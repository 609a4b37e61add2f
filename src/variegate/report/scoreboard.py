"""The page of a benchmark: who keeps how much variety at what likeness, and where they fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from variegate.report.charts import Dot, scatter
from variegate.report.page import environment, write_page
from variegate.report.pictures import Album

GROUPS = {  # how the groups of contenders are called, in the order of their colours
    "default": "variegate's default",
    "combination": "combinations",
    "strategy": "one strategy alone",
    "knob": "one setting alone",
    "kind": "kinds of adapter",
    "field": "defaults of the field",
    "plain": "plain",
}
FIGURES = (
    ("entropy", "variety kept", "mean of the two columns after it"),
    ("class", "of the class", "entropy of what class prompts leave open, as a share of the base's"),
    ("trigger", "of the trigger", "the same of trigger prompts, the subject itself left out"),
    ("likeness", "likeness", "share of trigger pictures that show what was learnt"),
    ("class_kept", "class kept", "share of class pictures that are not the subject"),
    ("others_kept", "others kept", "how often other named subjects are drawn, by the base's share"),
    ("named", "prompt followed", "share of named factors that are drawn, under the trigger"),
    ("copies", "copies", "trigger pictures set as one learnt from, less the base's share"),
)


def write_scoreboard(
    found: Mapping[str, Any], *, command: str, sheets: Sequence[Mapping[str, Any]], out: Path
) -> Path:
    """Write one page at `out`, and return its path.

    found: what `bench --json` prints. command: the one that made it. sheets: pictures to show,
    each {"title", "text", "file"}.
    Raises: NoSpace when the page cannot be written.
    """
    album = Album(max(1, len(sheets)))
    board = found["core"] or found["all"]
    every = {(a, s): f for a, names in found["by_ailment"].items() for s, f in names.items()}
    strategies = [line["strategy"] for line in board] or sorted({s for _, s in every})
    context = {
        "cells": found["cells"],
        "command": command,
        "figures": FIGURES,
        "groups": GROUPS,
        "boards": [
            (title, lines)
            for title, lines in (("Core ailments", found["core"]), ("All ailments", found["all"]))
            if lines
        ][: 1 if len(found["core"]) == len(found["all"]) else 2],
        "chart": _front(board),
        "gate": found["gate"],
        "won": sum(bool(line["wins"]) for line in found["gate"]),
        "detector": found["detector"],
        "ailments": sorted(found["by_ailment"]),
        "strategies": strategies,
        "every": every,
        "sheets": [
            {**sheet, "thumb": album.thumbnail(Path(sheet["file"]), sheet["title"])}
            for sheet in sheets
        ],
    }
    return write_page(environment().get_template("scoreboard.html.j2").render(context), Path(out))


def _front(board: Sequence[Mapping[str, Any]]) -> Any:
    """Likeness against variety, one dot per contender; those on the front are named."""
    dots = [
        Dot(
            line["likeness"],
            line["entropy"],
            series=min(6, 1 + list(GROUPS).index(line["group"])),
            name=line["strategy"] if line["front"] or line["group"] in NAMED else "",
        )
        for line in board
    ]
    return scatter(
        dots,
        axes=("likeness", "variety kept, share of the base's"),
        label="Each strategy by likeness and by the share of the base's variety that it keeps.",
        prefix="front",
    )


NAMED = ("plain", "default", "field")
