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
    ranked = [line["strategy"] for line in board]
    strategies = [*ranked, *sorted({s for _, s in every} - set(ranked))]
    variety = found["figures"][0]["name"]
    context = {
        **{name: found[name] for name in ("cells", "says", "figures", "unmeasured")},
        "judged": found["read_by"] == "judge",
        "weak_encoder": found["weak_encoder"],
        "left_out": found.get("left_out", {}),
        "base": found.get("base", ""),
        "variety": variety,
        "command": command,
        "groups": GROUPS,
        "boards": [
            (title, lines)
            for title, lines in (("Core ailments", found["core"]), ("All ailments", found["all"]))
            if lines
        ][: 1 if len(found["core"]) == len(found["all"]) else 2],
        "chart": _front(board, variety),
        "gate": found["gate"],
        "won": sum(bool(line["wins"]) for line in found["gate"]),
        "detector": found["detector"],
        "plainly": found["plainly"],
        "ailments": sorted(found["by_ailment"]),
        "strategies": strategies,
        "every": every,
        "sheets": [
            {**sheet, "thumb": album.thumbnail(Path(sheet["file"]), sheet["title"])}
            for sheet in sheets
        ],
    }
    return write_page(environment().get_template("scoreboard.html.j2").render(context), Path(out))


def _front(board: Sequence[Mapping[str, Any]], variety: str) -> Any:
    """Likeness against variety, one dot per contender; those on the front are named."""
    dots = [
        Dot(
            line["likeness"],
            line[variety],
            series=min(6, 1 + list(GROUPS).index(line["group"])),
            name=line["strategy"] if line["front"] or line["group"] in NAMED else "",
        )
        for line in board
        if None not in (line["likeness"], line[variety])
    ]
    return scatter(
        dots,
        axes=("likeness", "variety kept, share of the base's"),
        label="Each strategy by likeness and by the share of the base's variety that it keeps.",
        prefix="front",
    )


NAMED = ("plain", "default", "field")
