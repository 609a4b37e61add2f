"""The documentation as a site: it builds, stands on its own, and says what the menu says."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import variegate
from variegate.catalogue import strategies

ROOT = Path(__file__).parents[2]
# Attributes that make a browser fetch something as it shows a page; links wait for a click.
LOADS = {"src", "srcset", "poster", "data"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}
ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.I)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `scripts/docs` builds it: not quietly, which would keep warnings from strict."""
    pytest.importorskip("mkdocs", reason="pip install 'variegate[docs]'")
    out = tmp_path_factory.mktemp("site")
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


class Loads(HTMLParser):
    """Every address that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [given[name] for name in LOADS & given.keys()]
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))
        if "style" in given:
            self.found += addresses_in_style(given["style"])


def addresses_in_style(text: str) -> list[str]:
    return re.findall(r"(?:url\(|@import\s+)\s*['\"]?([^'\")\s;]+)", text)


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages, sheets = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 50
    assert sheets
    for page in pages:
        reader = Loads()
        reader.feed(page.read_text(encoding="utf8"))
        assert reader.found, f"{page.name} loads nothing, not even its own style"
        away = [address for address in reader.found if ELSEWHERE.match(address)]
        assert not away, f"{page.relative_to(site)} loads {away}"
    for sheet in sheets:
        away = [a for a in addresses_in_style(sheet.read_text("utf8")) if ELSEWHERE.match(a)]
        assert not away, f"{sheet.relative_to(site)} loads {away}"


def test_what_a_theme_would_fetch_while_it_runs_is_not_asked_for(site: Path) -> None:
    """The theme's script fetches drawing code where a page has a diagram, and counts of stars
    where a repository is named."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf8")
        assert 'class="mermaid"' not in text, page.name
        assert 'data-md-component="source"' not in text, page.name


def test_a_foreign_address_would_be_seen() -> None:
    reader = Loads()
    reader.feed('<script src="https://cdn.test/x.js"></script><img src="a.png">')
    reader.feed('<link rel="stylesheet" href="//fonts.test/y.css"><a href="https://z.test">z</a>')
    reader.feed('<p style="background: url(http://i.test/z.png)">')
    away = [address for address in reader.found if ELSEWHERE.match(address)]
    assert away == ["https://cdn.test/x.js", "//fonts.test/y.css", "http://i.test/z.png"]


def test_search_needs_no_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf8")
    assert "What collapse is" in index
    home = (site / "index.html").read_text(encoding="utf8")
    assert "assets/iframe-worker.js" in home


def short_of(one: dict[str, str]) -> str:
    """What the page of a strategy, a kind or a method is called."""
    return one["name"].removeprefix("adapter.kind=").removeprefix("sampling.methods.")


def test_every_strategy_has_a_page_and_every_page_a_strategy() -> None:
    folder = ROOT / "docs" / "strategies"
    names = {short_of(one) for one in strategies()}
    assert {page.stem for page in folder.glob("*.md")} - {"README"} == names


@pytest.mark.parametrize("one", strategies(), ids=lambda one: one["name"])
def test_a_strategys_page_has_all_its_parts(one: dict[str, str]) -> None:
    short = short_of(one)
    text = (ROOT / "docs" / "strategies" / f"{short}.md").read_text(encoding="utf8")
    assert text.startswith(f"# `{short}`")
    for part in ("```text\n", "\n*Source: ", "\n**When it hurts.** "):
        assert text.count(part) == 1, f"{short}: {part!r}"
    assert f"<!-- facts: {one['name']} -->" in text


def test_the_pages_show_cost_and_effect_as_the_menu_has_them(site: Path) -> None:
    for one in strategies():
        short = short_of(one)
        shown = _words((site / "strategies" / f"{short}.html").read_text(encoding="utf8"))
        assert _plain(one["cost"]) in shown, short
        assert _plain(f"measured effect {one['effect']}") in shown, short
        for setting in one["settings"]:
            assert setting["name"] in shown, (short, setting["name"])
            assert _plain(setting["description"]) in shown, (short, setting["description"])


def test_the_api_page_has_every_public_name(site: Path) -> None:
    """Those of the package itself, and of each room that the page shows, from its `__all__`."""
    told = set(re.findall(r'id="(variegate[\w.]*)"', (site / "api.html").read_text("utf8")))
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf8")
    shown = re.findall(r"^::: (variegate[\w.]*)$", page, re.M)
    names = {name.rsplit(".", 1)[-1] for name in told}
    assert not set(variegate.__all__) - names
    rooms = [m for m in map(_module, shown) if m is not None and hasattr(m, "__all__")]
    assert len(rooms) >= 8
    for room in rooms:
        lacking = {n for n in room.__all__ if _is_told(getattr(room, n)) and n not in names}
        assert not lacking, f"{room.__name__}: {lacking}"


def _is_told(thing: Any) -> bool:
    """Whether it is a class or a function with a docstring of its own."""
    kinds = (type, types.FunctionType)
    return isinstance(thing, kinds) and bool((thing.__doc__ or "").strip())


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def test_no_marker_is_left_on_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        left = re.search(r"<!-- (facts|effect|menu|recipe)\b", page.read_text(encoding="utf8"))
        assert left is None, f"{page.name}: {left}"


def _words(html: str) -> str:
    return _plain(unescape(re.sub(r"<[^>]+>", " ", html)))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[`*]", "", text).split())
