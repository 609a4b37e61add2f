"""The page of a pick: the front of variety and likeness, its points drawn with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from variegate.measurement import Measurement, Verdict, measurement_from_json
from variegate.report.charts import Dot, scatter
from variegate.report.page import chips, environment, tables, write_page
from variegate.report.pictures import Album, Thumbnail, spread
from variegate.report.text import percent, plain

MOST_ROWS = 10  # points whose pictures are shown
TIMES = "\N{MULTIPLICATION SIGN}"
BESIDE = 2  # prompts in a table
MOST_LISTED = 200


def write_picked(found: Mapping[str, Any], *, grid: Mapping[str, Any], out: Path) -> Path:
    """Write one page at `out`, and return its path.

    found: what `pick --json` prints. grid: the pictures: `columns`, each {"prompt", "seed"};
    `base`, a file for each; `rows`, each {"point", "files", "nearest"}, `nearest` as a run's
    `evidence.json` has it; `trigger`, `base_name`.
    Raises: NoSpace when the page cannot be written.
    """
    points = tables(found["points"], MOST_LISTED)
    by_name = {p["name"]: p for p in points}
    rows = [row for row in grid["rows"] if row["point"] in by_name]
    rows = sorted(rows, key=lambda row: _likeness(by_name[row["point"]]))
    rows = _some(rows, found)
    columns = list(grid["columns"])
    pictures = (len(rows) + 1) * len(columns) + sum(2 * len(row["nearest"]) for row in rows)
    album = Album(pictures)
    verdict = Verdict.from_json(found["verdict"])
    context = {
        "found": found,
        "chosen": by_name[found["point"]],
        "reference": by_name[found["reference"]],
        "adapter_name": Path(found["adapter"]).stem,
        "trigger": grid["trigger"],
        "base_name": grid["base_name"],
        "share": percent(found["samples_used"] / max(1, found["samples_of_grid"])),
        "chart": _chart(points, found),
        "front": [_line(p, found) for p in points if p["on_front"]],
        "others": [_line(p, found) for p in points if not p["on_front"]],
        "blocks": _blocks(columns, grid["base"], rows, by_name, found["point"], album),
        "near": [_near(row, by_name, album) for row in rows if row["nearest"]],
        "verdict": verdict,
        "chips": chips(verdict),
        "voted": any(p["votes"] for p in points),
    }
    return write_page(environment().get_template("pick.html.j2").render(context), Path(out))


def _some(rows: Sequence[Any], found: Mapping[str, Any]) -> list[Any]:
    """At most so many rows, evenly, the chosen point's and the reference's among them."""
    needed = [row for row in rows if row["point"] in (found["point"], found["reference"])]
    others = [row for row in rows if row not in needed]
    taken = [*needed, *spread(others, max(0, MOST_ROWS - len(needed)) or 1)]
    return [row for row in rows if row in taken]


def _value(data: Mapping[str, Any]) -> Measurement | None:
    m = measurement_from_json(dict(data))
    return m if isinstance(m, Measurement) else None


def _likeness(point: Mapping[str, Any]) -> float:
    m = _value(point["likeness"])
    return -1.0 if m is None else m.value


def short(point: Mapping[str, Any]) -> str:
    """A point in a few words."""
    step = f"step {point['step']}" if point["step"] is not None else str(point["checkpoint"])
    return f"{step}, {TIMES}{point['strength']:g}, guidance {point['guidance_scale']:g}"


def _chart(points: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Any:
    dots = []
    for p in points:
        variety, likeness = _value(p["variety"]), _value(p["likeness"])
        if variety is None or likeness is None:
            continue
        chosen, plain_one = p["name"] == found["point"], p["name"] == found["reference"]
        dots.append(
            Dot(
                likeness.value,
                variety.value,
                series=2 if chosen else 3 if plain_one else 1,
                name=short(p) if chosen or plain_one else "",
                across=_range(likeness) if p["on_front"] else None,
                upward=_range(variety) if p["on_front"] else None,
            )
        )
    return scatter(
        dots,
        axes=("shows the subject, share of the best plain point's", "variety, share of the base's"),
        label="Every point that was drawn, by how often it shows the subject and by variety.",
        prefix="front",
    )


def _range(m: Measurement) -> tuple[float, float] | None:
    return None if m.low is None or m.high is None else (m.low, m.high)


def _line(point: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    said = (
        "recommended"
        if point["name"] == found["point"]
        else "the plain one"
        if point["name"] == found["reference"]
        else point["ruled_out"]
        or (
            "cannot be told from the recommended one" if point["tied"] else "rested: less promising"
        )
    )
    votes = point["votes"]
    liked = f"{votes['value']:+.1f} ({votes['low']:+.1f} to {votes['high']:+.1f})" if votes else ""
    return {
        "name": short(point),
        "variety": _spelled(_value(point["variety"])),
        "likeness": _spelled(_value(point["likeness"])),
        "prompts": point["prompts"],
        "said": said,
        "votes": liked,
        "chosen": point["name"] == found["point"],
    }


def _spelled(m: Measurement | None) -> str:
    if m is None:
        return "not measured"
    if m.low is None or m.high is None:
        return percent(m.value)
    return f"{percent(m.value)} ({percent(m.low)} to {percent(m.high)})"


def _blocks(
    columns: Sequence[Mapping[str, Any]],
    base: Sequence[Path | None],
    rows: Sequence[Mapping[str, Any]],
    by_name: Mapping[str, Mapping[str, Any]],
    chosen: str,
    album: Album,
) -> list[dict[str, Any]]:
    """Tables of a few prompts each: the base on top, then a row for each point, a column for each
    prompt and seed."""
    places: dict[tuple[str, str], list[int]] = {}
    for i, column in enumerate(columns):
        asked = str(column.get("asked", column["prompt"]))
        places.setdefault((str(column["prompt"]), asked), []).append(i)
    blocks, heads = [], list(places.items())
    for start in range(0, len(heads), BESIDE):
        some = heads[start : start + BESIDE]
        own = [i for _, at in some for i in at]

        def thumbs(files: Sequence[Path | None], name: str, at: Sequence[int] = own) -> list[Any]:
            return [_thumb(files[i], name, columns[i], album) for i in at]

        lines = [{"name": "Base", "chosen": False, "thumbs": thumbs(base, "Base")}]
        for row in rows:
            name = short(by_name[row["point"]])
            lines.append(
                {
                    "name": name,
                    "chosen": row["point"] == chosen,
                    "thumbs": thumbs(row["files"], name),
                }
            )
        blocks.append(
            {
                "heads": [
                    {"prompt": prompt, "asked": asked, "seeds": len(at)}
                    for (prompt, asked), at in some
                ],
                "seeds": [columns[i]["seed"] for i in own],
                "lines": lines,
            }
        )
    return blocks


def _thumb(file: Path | None, name: str, column: Mapping[str, Any], album: Album) -> Thumbnail:
    alt = f"{name}: {plain(column['prompt'], 120)}, seed {column['seed']}"
    return album.thumbnail(file, alt)


def _near(
    row: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]], album: Album
) -> dict[str, Any]:
    """A point's pictures beside the training pictures that they come nearest to."""
    name = short(by_name[row["point"]])
    pairs = [
        {
            "sample": album.thumbnail(Path(pair["sample"]), f"{name}: a picture of it"),
            "train": album.thumbnail(Path(pair["train"]), "the training picture nearest to it"),
            "similarity": pair["similarity"],
            "is_copy": bool(pair["copy"]),
        }
        for pair in row["nearest"]
    ]
    return {"name": name, "pairs": pairs, "copies": sum(pair["is_copy"] for pair in pairs)}
