"""A strategy of another package joins recipe, menu and kitchen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import variegate

PLAN = '''
from pydantic import Field
from variegate.plugins import Entry, Plugin


class Whisper(Entry):
    """Say less."""

    p: float = Field(0.5, ge=0, le=1)


PLUGIN = Plugin(Whisper, "data", "none", "whispers.act:Whisperer")
'''
ACT = """
from variegate.train.strategies.base import Strategy


class Whisperer(Strategy):
    def __init__(self, plan, recipe):
        self.p = plan.p

    def caption(self, caption, step, row, seen):
        return caption[: int(self.p * len(caption))]
"""


def install(folder: Path, value: str = "whispers.plan:PLUGIN") -> dict[str, str]:
    package, facts = folder / "whispers", folder / "whispers-1.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").touch()
    (package / "plan.py").write_text(PLAN)
    (package / "act.py").write_text(ACT)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: whispers\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[variegate.strategies]\nwhisper = {value}\n")
    ours = str(Path(variegate.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": f"{ours}{os.pathsep}{folder}"}


def asked(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def test_it_is_asked_for_told_and_done_like_one_of_ours(tmp_path: Path) -> None:
    found = asked(
        """
        import json, sys
        from variegate.catalogue import strategies
        from variegate.recipe import Recipe
        recipe = Recipe.build({}, settings=("strategies.whisper.p=0.25",))
        told = next(s for s in strategies() if s["name"] == "whisper")
        light = "torch" not in sys.modules
        from variegate.train.strategies import cook
        said = cook(recipe)["whisper"].caption("abcdefgh", 1, 0, None)
        print(json.dumps([told, light, said]))
        """,
        install(tmp_path),
    )
    assert found.returncode == 0, found.stderr
    told, light, said = json.loads(found.stdout)
    assert (told["stage"], told["summary"], told["effect"]) == ("data", "Say less.", "untested")
    assert [s["name"] for s in told["settings"]] == ["p"]
    assert light
    assert said == "ab"


def test_a_misspelt_name_of_it_is_refused_with_the_nearest(tmp_path: Path) -> None:
    found = asked(
        """
        from variegate.errors import RecipeError
        from variegate.recipe import Recipe
        try:
            Recipe.build({"strategies": {"whispr": {}}})
        except RecipeError as error:
            print(error)
        """,
        install(tmp_path),
    )
    assert "did you mean 'whisper'?" in found.stdout


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("nowhere.plan:PLUGIN", "cannot be loaded: No module named 'nowhere'"),
        ("whispers.plan:Whisper", "expected a variegate.plugins.Plugin"),
    ],
)
def test_one_that_cannot_be_used_is_named(tmp_path: Path, value: str, told: str) -> None:
    found = asked("import variegate.recipe", install(tmp_path, value))
    assert found.returncode != 0
    assert "the strategy 'whisper' of" in found.stderr
    assert told in found.stderr
