"""The documents tell the truth: commands parse, links lead somewhere, examples run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

import variegate
import variegate.errors
from variegate.cli import app
from variegate.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf8"), re.S | re.M)


def _commands() -> list[str]:
    lines = [
        line.split("#")[0].strip()
        for page in PAGES
        for block in _blocks(page, "sh")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("variegate ")]


@pytest.mark.parametrize("line", _commands())
def test_every_command_in_the_documents_parses(line: str) -> None:
    root: Any = typer.main.get_command(app)
    verb, *words = shlex.split(line)[1:]
    command = root.commands[verb]
    context = command.make_context(verb, words, resilient_parsing=False)
    assert context.params


def test_the_verb_table_of_the_readme_is_the_command_line() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    told = set(re.findall(r"`([a-z]+)[ `]", " ".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    verbs = {c.callback.__name__ for c in app.registered_commands if c.callback}
    assert verbs <= told


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("code", [b for p in PAGES for b in _blocks(p, "python")])
def test_python_examples_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("code", [b for p in PAGES for b in _blocks(p, "toml")])
def test_recipes_in_the_documents_can_be_used(code: str) -> None:
    assert Recipe.build(tomllib.loads(code)).id


def test_examples_in_docstrings_run() -> None:
    tried = 0
    for module in pkgutil.walk_packages(variegate.__path__, "variegate."):
        if module.name == "variegate.__main__":
            continue
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0, module.name
        tried += result.attempted
    assert tried > 0


def test_architecture_shows_the_layers_of_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    package = ROOT / "src" / "variegate"
    there = {p.stem for p in package.iterdir() if p.suffix == ".py" or p.is_dir()}
    wanted = []
    for layer in layers:
        rooms = [r for r in (part.strip(" ()") for part in layer.split("|")) if r in there]
        if rooms:
            wanted.append(" | ".join(rooms))
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf8")
    shown = text.split("## Layers")[1].split("```")[1].strip().splitlines()
    assert shown == wanted


def test_the_tree_of_errors_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"[├└]── (\w+)", variegate.errors.__doc__ or "")
    classes = [
        name
        for name, kind in vars(variegate.errors).items()
        if isinstance(kind, type) and name != "VariegateError"
    ]
    assert sorted(drawn) == sorted(classes)
