"""The page of a pick: what it shows, and that what comes from outside stays text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from variegate.measurement import Measurement, Verdict
from variegate.report import write_picked

HOSTILE = '"><script>alert(1)</script>{{7*7}}\u202e'


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def point(number: int, *, name: str = "", on_front: bool = True, **more: Any) -> dict[str, Any]:
    variety = Measurement("variety_kept", 0.9 - 0.1 * number, 0.8 - 0.1 * number, 0.95, 32)
    likeness = Measurement("likeness", 0.5 + 0.1 * number, 0.4, 0.99, 16)
    told = {
        "name": name or f"step-{number}@1@1.4",
        "checkpoint": name or f"step-{number}",
        "step": None if name else number,
        "strength": 1.0,
        "guidance_scale": 1.4,
        "prompts": 16,
        "variety": variety.to_json(),
        "likeness": likeness.to_json(),
        "on_front": on_front,
        "ruled_out": "",
        "tied": False,
        "votes": None,
    }
    return told | more


def page(tmp_path: Path, points: list[dict[str, Any]], **more: Any) -> str:
    picture = tmp_path / "p.png"
    Image.new("RGB", (64, 64), (90, 60, 30)).save(picture)
    verdict = Verdict(("healthy",), "Nothing was lost.", (), (), (), "5")
    found = {
        "point": points[0]["name"],
        "reference": points[-1]["name"],
        "points": points,
        "strength": 1.0,
        "guidance_scale": 1.4,
        "reason": "We would use it.",
        "cannot_tell": "",
        "samples_used": 100,
        "samples_of_grid": 400,
        "stopped_because": "every prompt of the plan was drawn",
        "adapter": str(tmp_path / "owl.safetensors"),
        "verdict": verdict.to_json(),
        "warnings": [],
    } | more
    columns = [{"prompt": p, "asked": p, "seed": s} for p in ("a zqx", HOSTILE) for s in range(4)]
    near = [{"sample": str(picture), "train": str(picture), "similarity": 0.9, "copy": True}]
    grid = {
        "columns": columns,
        "base": [picture] * 8,
        "rows": [
            {"point": p["name"], "files": [picture] * 7 + [None], "nearest": near} for p in points
        ],
        "trigger": HOSTILE,
        "base_name": HOSTILE,
    }
    return write_picked(found, grid=grid, out=tmp_path / "pick.html").read_text(encoding="utf8")


def test_the_page_shows_the_choice_the_front_and_what_was_left(tmp_path: Path) -> None:
    points = [point(n) for n in range(3)]
    points += [point(7, on_front=False, ruled_out="surely less varied")]
    points[1]["tied"] = True
    html = page(tmp_path, [points[0], points[1], points[3], points[2]])
    for words in (
        *("recommended", "the plain one", "cannot be told from the recommended one"),
        *("surely less varied", "25\u00a0%", "1 copy", "picked", "&lt;lora:owl:1&gt;"),
    ):
        assert words in html, words
    assert "90\u00a0% (80\u00a0% to 95\u00a0%)" in html
    assert "Votes" not in html
    assert html.count("<details") == 5  # each shown point's nearest, and what else was drawn


def test_votes_are_shown_where_there_are_any(tmp_path: Path) -> None:
    voted = point(0, votes={"value": 0.7, "low": -0.2, "high": 1.6, "votes": 9})
    assert "+0.7 (-0.2 to +1.6)" in page(tmp_path, [voted, point(1)])


@pytest.mark.parametrize("many", [1, 40])
def test_names_and_words_from_outside_stay_text(tmp_path: Path, many: int) -> None:
    points = [point(n, name=f"{HOSTILE}{n}", ruled_out=HOSTILE) for n in range(many)]
    html = page(tmp_path, points, reason=HOSTILE, cannot_tell=HOSTILE, warnings=[HOSTILE])
    tags = Tags(html)
    assert "script" not in tags.tags
    assert "\u202e" not in html
    assert "{{7*7}}" in html
    for name, value in tags.attributes:
        assert not name.startswith("on")
        if name.startswith("xmlns"):
            continue
        assert not value.startswith(("http:", "https:", "//", "javascript:"))
    # At most ten points are shown with pictures, however long the front is.
    assert html.count('class="tag good">picked') == 1
    assert html.count("<summary>") <= 12


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    points = [point(n) for n in range(3)]
    assert page(tmp_path, points) == page(tmp_path, points)
