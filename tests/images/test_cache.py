"""The cache says what it holds, and clearing it never reaches beyond it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import RequestError
from variegate.images.cache import cache_dir, clear, contents


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("VARIEGATE_CACHE", str(home))
    for name, size in (("features/e/ab/x", 10), ("features/e/cd/y", 20), ("base/k/p.png", 300)):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"." * size)
    return home


def held() -> dict[str, tuple[int, int]]:
    return {k.kind: (k.files, k.bytes) for k in contents() if k.files}


def test_contents_are_counted_by_kind(cache: Path) -> None:
    assert held() == {"features": (2, 30), "base": (1, 300)}


def test_one_kind_is_cleared_and_the_others_stay(cache: Path) -> None:
    (cache / "mine.txt").write_text("not ours")
    assert [(k.kind, k.files, k.bytes) for k in clear(("features",))] == [("features", 2, 30)]
    assert held() == {"base": (1, 300)}
    clear()
    assert held() == {}
    assert (cache / "mine.txt").exists()


def test_an_entry_goes_by_the_age_of_its_newest_file(cache: Path) -> None:
    old = time.time() - 10 * 86400
    for name in ("features/e/ab/x", "base/k/p.png"):
        os.utime(cache / name, (old, old))
    (cache / "base/k/new.png").write_bytes(b"...")
    clear(older_than_days=5.0)
    assert held() == {"features": (1, 20), "base": (2, 303)}


def test_links_are_taken_away_and_what_they_lead_to_stays(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "photo.png").write_bytes(b"photo")
    (cache / "base/link").symlink_to(precious)
    (cache / "base/k/inner").symlink_to(precious)
    (cache / "features/e/ab/file").symlink_to(precious / "photo.png")
    (cache / "bank").symlink_to(precious)
    clear()
    assert (precious / "photo.png").read_bytes() == b"photo"
    assert not (cache / "base/link").is_symlink()
    assert (cache / "bank").is_symlink()
    assert held() == {}


def test_a_cache_that_is_the_home_folder_is_not_cleared(cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(cache))
    with pytest.raises(RequestError, match="set VARIEGATE_CACHE to a folder of its own"):
        clear()
    assert len(held()) == 2


def test_the_verb_shows_and_clears(cache: Path) -> None:
    runner = CliRunner()
    shown = json.loads(runner.invoke(app, ["cache", "show", "--json"]).stdout)
    assert shown["folder"] == str(cache_dir())
    assert {"kind": "base", "files": 1, "bytes": 300}.items() <= shown["kinds"][1].items()
    done = runner.invoke(app, ["cache", "clear", "--kind", "base"])
    assert done.exit_code == 0
    assert held() == {"features": (2, 30)}
    for words in (["clear", "--kind", "bse"], ["show", "--kind", "base"]):
        assert runner.invoke(app, ["cache", *words]).exit_code == 2
