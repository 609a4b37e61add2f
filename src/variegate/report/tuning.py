"""The page of a search: the front, the point to take and why, what mattered, pictures of each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from variegate.errors import RunError
from variegate.report.charts import Dot, scatter
from variegate.report.page import environment, write_page
from variegate.report.pictures import Album, spread
from variegate.report.record import Sample, read_samples

MOST_SHOWN = 6  # points of the front whose pictures are shown
MOST_PROMPTS = 3
MOST_SEEDS = 4
MOST_SLICES = 12
MOST_LISTED = 60
# Points of the chart by series.
FRONT, INSIDE, BROKEN = 1, 2, 3


def write_tuning(folder: Path) -> Path:
    """Write `report.html` into the folder of a search from its `tuning.json`, and return its path.

    Raises: RunError when the folder holds no search, NoSpace when the page cannot be written.
    """
    file = folder / "tuning.json"
    try:
        found = json.loads(file.read_text(encoding="utf8"))
        context = _context(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} holds no search that can be shown: {file.name}: {error}; give the folder "
            "that `variegate tune --out` named"
        ) from error
    html = environment().get_template("tuning.html.j2").render(context)
    return write_page(html, folder / "report.html")


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    points, best = list(found["points"]), list(found["front"])
    shown = spread(best, MOST_SHOWN)
    album = Album(max(1, len(shown) * MOST_PROMPTS * MOST_SEEDS))
    taken = found["recommended"]
    recipe = found["asked"]["recipe"]
    named = {p["number"] for p in best}
    return {
        "name": Path(found["out"]).name,
        "found": found,
        "trigger": recipe.get("trigger", ""),
        "taken": taken,
        "settings": _settings(taken) if taken else [],
        "train": _train_line(recipe, taken) if taken else "",
        "chart": _chart(points, best, taken),
        "slices": _slices(found["asked"]["ranges"], points),
        "front": [
            {
                **point,
                "words": ", ".join(_settings(point)),
                "taken": bool(taken) and point["number"] == taken["number"],
                "rows": _pictures(point, album) if point in shown else [],
            }
            for point in best
        ],
        "others": [
            {**point, "words": ", ".join(_settings(point))}
            for point in points
            if point["number"] not in named
        ][:MOST_LISTED],
        "effects": found["effects"],
    }


def _settings(point: Mapping[str, Any]) -> list[str]:
    return [str(setting) for setting in point["settings"]]


def _train_line(recipe: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    words = ["variegate", "trial", str(recipe["images"]), "--base", str(recipe["base"])]
    words += ["--trigger", str(recipe["trigger"]), "--class", str(recipe["class_noun"])]
    words += ["--recipe", str(Path(taken["runs"][0]) / "recipe.toml")]
    return shlex.join(words)


def _chart(
    points: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any]],
    taken: Mapping[str, Any] | None,
) -> Markup:
    """All trials by the pictures of the search; the front by those of its own measuring."""
    named = {point["number"] for point in best}
    dots = [
        Dot(p["likeness"]["value"], p["variety"]["value"], BROKEN if p["broken"] else INSIDE)
        for p in points
        if p["number"] not in named
    ]
    for point in best:
        mark = ", take this" if taken and point["number"] == taken["number"] else ""
        name = f"{point['number']}{mark}"
        dots.append(Dot(point["likeness"]["value"], point["variety"]["value"], FRONT, name))
    return scatter(
        dots,
        axes=("likeness", "variety kept, share of the base's"),
        label="Each trial by likeness and by the share of the base's variety that it keeps.",
        prefix="front",
    )


def _slices(ranges: Mapping[str, str], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each knob alone against both objectives."""
    found = list[dict[str, Any]]()
    for i, (key, values) in enumerate(list(ranges.items())[:MOST_SLICES]):
        with_it = [p for p in points if key in p["values"]]
        if not with_it:
            continue
        numbers = all(isinstance(p["values"][key], int | float) for p in with_it)
        many = numbers and ".." in values
        listed = values.split(",")
        drawn = {}
        for of in ("likeness", "variety"):
            dots = [
                Dot(
                    float(p["values"][key]) if many else float(_place(p["values"][key], listed)),
                    float(p[of]["value"]),
                    BROKEN if p["broken"] else INSIDE,
                )
                for p in with_it
            ]
            drawn[of] = scatter(
                dots,
                axes=(key, of),
                label=f"{of} of each trial by {key}",
                prefix=f"slice{i}{of[0]}",
                small=True,
                log=many and values.endswith(":log"),
                ticks=() if many else listed,
            )
        found.append({"key": key, "values": values, **drawn})
    return found


def _place(value: Any, listed: Sequence[str]) -> int:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return listed.index(text) if text in listed else 0


def _pictures(point: Mapping[str, Any], album: Album) -> list[dict[str, Any]]:
    """Trigger prompts, then class prompts, of a point's first training seed: the same prompts and
    seeds for every point."""
    samples = read_samples(Path(point["samples"][0]) / "adapter")
    rows = []
    for group, most in (("trigger", MOST_PROMPTS - 1), ("class", 1)):
        prompts: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.group == group:
                prompts.setdefault(sample.prompt, []).append(sample)
        for prompt in list(prompts)[:most]:
            thumbs = [
                album.thumbnail(s.file, f"Trial {point['number']}: {prompt}, seed {s.seed}")
                for s in prompts[prompt][:MOST_SEEDS]
            ]
            rows.append({"prompt": prompt, "thumbs": thumbs})
    return rows
