"""Two runs on one page: the same prompts and seeds for the base, the one run and the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from variegate.measurement import Measurement, Missing, Verdict
from variegate.report.numbers import (
    axis,
    has_interval,
    interval,
    marks,
    say,
    say_difference,
    technical,
)
from variegate.report.page import (
    chips,
    environment,
    group_view,
    sampling_note,
    strategies_on,
    write_page,
)
from variegate.report.pictures import Album, pair
from variegate.report.record import RunRecord, read_record
from variegate.report.words import NUMBERS, NumberWords

MOST_CHANGES = 30


def write_comparison(
    left_run: Path,
    right_run: Path,
    *,
    titles: tuple[str, str],
    intro: str,
    out: Path,
    differences: Sequence[Measurement | Missing] = (),
    why: Mapping[str, str] | None = None,
    next_steps: Sequence[tuple[str, str]] = (),
    tables: Sequence[tuple[str, str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> Path:
    """Write one page at `out` that shows two runs side by side, and return its path.

    titles: what the runs are called, left and right (such as "plain" and "guarded").
    differences: right minus left of headline numbers, under the headline's own name.
    why: by strategy name, why the right run had it on; its usual purpose when not given.
    next_steps: (what to do, command line or "") in order.
    tables: (title, what it says, head, rows), below the numbers. Where neither folder is of a
    training run, nothing is said of recipes.

    Raises: RunError when a folder is no run, NoSpace when the page cannot be written.
    """
    left, right = read_record(Path(left_run)), read_record(Path(right_run))
    base = right.base if right.base else left.base
    rows = pair([base, left.adapter, right.adapter])
    album = Album(sum(len(r.sides) * len(r.seeds) for g in rows for r in g.rows))
    names = ("Base", *titles)
    context = {
        "titles": titles,
        "intro": intro,
        "runs": [
            _run_view(run, title, Path(out))
            for run, title in zip((left, right), titles, strict=True)
        ],
        "groups": [group_view(g, album, names) for g in rows],
        "shown": sampling_note(rows),
        "comparisons": _compare(left.verdict, right.verdict, differences),
        "switched_on": _switched_on(left, right, why or {}),
        "changes": _changes(left.recipe, right.recipe),
        "tables": tables,
        "trained": left.trained or right.trained,
        "has_recipes": left.recipe is not None and right.recipe is not None,
        "next_steps": next_steps,
    }
    html = environment().get_template("comparison.html.j2").render(context)
    return write_page(html, Path(out))


def _run_view(run: RunRecord, title: str, out: Path) -> dict[str, Any]:
    report = run.folder / "report.html"
    link = ""
    if report.is_file():
        link = quote(Path(os.path.relpath(report.resolve(), out.resolve().parent)).as_posix())
    return {
        "title": title,
        "verdict": run.verdict,
        "chips": chips(run.verdict),
        "gap": run.gaps.get("verdict", ""),
        "weak": bool(run.verdict and run.verdict.weak_encoder),
        "link": f"./{link}" if link else "",
    }


def _compare(
    left: Verdict | None, right: Verdict | None, differences: Sequence[Measurement | Missing]
) -> list[dict[str, Any]]:
    """One row per headline number that either run has."""
    given = {d.name.removesuffix("_difference"): d for d in differences}
    rows = []
    for name, words in NUMBERS.items():
        pair = [verdict.find(name) if verdict else None for verdict in (left, right)]
        known = [m for m in pair if m is not None]
        if not known:
            continue
        difference = given.get(name)
        rows.append(
            {
                "name": name,
                "title": words.title,
                "values": [_say_all(m, words) for m in pair],
                "technical": [technical(m) if m else "" for m in pair],
                "axis": axis(known, words),
                "marks": marks(pair, words),
                "difference": say_difference(difference, words)
                if isinstance(difference, Measurement)
                else "",
                "judged": _judge(difference),
            }
        )
    return rows


def _say_all(m: Measurement | None, words: NumberWords) -> str:
    if m is None:
        return "not measured"
    if not has_interval(m):
        return say(m.value, words)
    low, high = interval(m)
    return f"{say(m.value, words)} ({say(low, words)} to {say(high, words)})"


def _judge(difference: Measurement | Missing | None) -> str:
    """Whether the difference is one: a range that holds zero is called no difference."""
    if difference is None:
        return ""
    if isinstance(difference, Missing):
        return difference.why
    if not has_interval(difference):
        return "no range, so unproven"
    low, high = interval(difference)
    return (
        "no difference that these pictures can show"
        if low <= 0 <= high
        else "more than chance explains"
    )


def _switched_on(left: RunRecord, right: RunRecord, why: Mapping[str, str]) -> list[dict[str, Any]]:
    """Strategies of the right run that the left one lacks or sets otherwise."""
    before = {s["name"]: s for s in strategies_on(left.recipe)}
    return [
        {**s, "purpose": why.get(s["name"], s["purpose"]), "changed": s["name"] in before}
        for s in strategies_on(right.recipe)
        if before.get(s["name"]) != s
    ]


def _changes(
    left: Mapping[str, Any] | None, right: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    """Everything else that the two recipes ask differently: (entry, left, right)."""
    if left is None or right is None:
        return []
    before, after = _flat(left), _flat(right)
    gone = set(left.get("strategies") or {}) - set(right.get("strategies") or {})
    return [
        (key, before.get(key, "not set"), after.get(key, "not set"))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and (not key.startswith("strategies.") or key.split(".")[1] in gone)
    ][:MOST_CHANGES]


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
            if not value:
                flat[f"{prefix}{key}"] = "on"
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
