"""The documents tell the truth: commands parse and run, links lead somewhere, examples run.

Every `python` block runs, in a folder of its own. Every `variegate` command of a `sh` block is
parsed by the real command line, and runs on a desk (`things` below: pictures, adapters, a run,
presets) if it draws nothing, trains nothing, and finds there whatever it reads. What draws or
trains is told by the command itself (`draws_or_trains`), what it reads by the paths it takes
(`missing`), so that no page and no command is named here. The commands of a page run one after
another on one desk, as a reader would type them.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

import variegate
import variegate.cli.choosing
import variegate.cli.making
import variegate.cli.proving
import variegate.errors
from variegate import formats
from variegate.adapter import Adapter, LayerUpdate, Update
from variegate.adapter.updates import LokrUpdate
from variegate.bench import world
from variegate.cli import app
from variegate.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("gallery/*.md")])
# Parameters of commands that say where something is written.
WRITES = {"out", "target", "keep_features"}


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf8"), re.S | re.M)


def _named(language: str) -> list[Any]:
    """Every block of a language, under its page and its place there."""
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}:{i}")
        for page in PAGES
        for i, block in enumerate(_blocks(page, language))
    ]


def _lines(page: Path) -> list[str]:
    """The `variegate` commands of a page, without comments."""
    lines = [
        line.split(" #")[0].strip() for block in _blocks(page, "sh") for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("variegate ")]


@dataclass(frozen=True)
class Command:
    """A command line: its words, the file it is sent to, its verb, and what that is given."""

    words: tuple[str, ...]
    into: str
    verb: Any
    given: dict[str, Any]


def _parsed(line: str) -> Command:
    words = shlex.split(line)[1:]
    into = words[words.index(">") + 1] if ">" in words else ""
    words = words[: words.index(">")] if ">" in words else words
    root: Any = typer.main.get_command(app)
    command = root.commands[words[0]]
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    verb = next(c.callback for c in app.registered_commands if c.callback.__name__ == words[0])
    return Command(tuple(words), into, verb, context.params)


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in _lines(page)}))
def test_every_command_in_the_documents_parses(line: str) -> None:
    assert _parsed(line).given


def draws_or_trains(command: Command) -> bool:
    """Whether a command needs a model: its verb makes adapters and pictures or compares such, it
    is given an adapter to be drawn with, or it names a base, a judge or a captioning model."""
    if command.words[0] == "studio":  # it stays until it is stopped
        return True
    cli = variegate.cli
    making = [module.__name__ for module in (cli.making, cli.proving, cli.choosing)]
    given = command.given
    asks = ("base", "model", "judge", "greedy", "tuned")
    return (
        command.verb.__module__ in making
        or ("reference" in given and given["reference"] is None)
        or any(given.get(name) for name in asks)
    )


def missing(command: Command) -> list[str]:
    """What a command would read that is not there: every path it is given but those it writes."""
    found = []
    for name, value in command.given.items():
        if name not in WRITES:
            many = value if isinstance(value, list | tuple) else [value]
            reads = [p for p in many if isinstance(p, Path) or (p and name == "images")]
            found += [str(p) for p in reads if not Path(p).exists()]
    return found


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader would have on the desk, made small: see the names."""
    desk = tmp_path_factory.mktemp("things")
    shutil.copytree(Path(variegate.__file__).parent / "demo" / "pictures", desk / "my_photos")
    shutil.copy(desk / "my_photos" / "00.png", desk / "best.png")
    (desk / "shards").mkdir()
    for i in range(2):
        with tarfile.open(desk / "shards" / f"set-{i:03d}.tar", "w") as tar:
            for file in sorted((desk / "my_photos").glob(f"{i}*.png")):
                tar.add(file, file.name)
    rules = Path(variegate.__file__).parent / "measure" / "rules.toml"
    shutil.copy(rules, desk / "strict.toml")
    for seed, name in enumerate(("lora", "a", "b", "big")):
        formats.write(_adapter(LayerUpdate, seed), desk / f"{name}.safetensors")
    formats.write(_adapter(LokrUpdate, 9), desk / "lokr.safetensors")
    for folder, first in (("mine", 100), ("base", 200)):
        for i, prompt in enumerate(("a cat in the snow", "a cat on a sofa")):
            (desk / folder / prompt).mkdir(parents=True)
            for j in range(4):
                scene = world.draw_scene(np.random.default_rng((first, i, j)), ("owl",))
                picture = Image.fromarray(world.render(scene))
                picture.save(desk / folder / prompt / f"{j}.png")
    for run in ("my_run", "toy"):
        (desk / "runs" / run).mkdir(parents=True)
        shutil.copy(desk / "lora.safetensors", desk / "runs" / run / "adapter.safetensors")
        asked = Recipe.build(trigger="zqx", class_noun="toy")
        (desk / "runs" / run / "recipe.toml").write_text(asked.to_toml(), encoding="utf8")
        rows = np.random.default_rng(0).normal(size=(2, 48, 16))
        prompts = [f"prompt {i // 4}" for i in range(48)]
        judged = variegate.measure(rows[0], rows[1], prompts=prompts).to_json()
        (desk / "runs" / run / "verdict.json").write_text(json.dumps(judged), encoding="utf8")
    (desk / "kohya_gui.json").write_text(
        json.dumps({"LoRA_type": "Standard", "network_dim": 8, "max_train_steps": 900, "xyz": 1})
    )
    (desk / "kohya_dataset.toml").write_text(
        '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "my_photos"\n'
        'class_tokens = "zqx toy"\nnum_repeats = 1\n'
    )
    (desk / "onetrainer.json").write_text(json.dumps({"training_method": "LORA", "lora_rank": 8}))
    return desk


def _adapter(kind: type[Update], seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if kind is LokrUpdate:
        update: Update = LokrUpdate(4.0, w1=some(4, 4), w2_a=some(8, 16), w2_b=some(16, 8))
    else:
        update = LayerUpdate(down=some(16, 32), up=some(32, 16), alpha=8.0)
    return Adapter("sd1", {layer: update}, formats.describe(name="owl", trigger="zqx"))


PAGES_THAT_COMMAND = [page for page in PAGES if _lines(page)]


def _run_page(page: Path, things: Path, desk: Path) -> list[str]:
    """Run what can be run of a page's commands on a desk of its own; which they were."""
    shutil.copytree(things, desk)
    done: list[str] = []
    with contextlib.chdir(desk):
        for line in _lines(page):
            command = _parsed(line)
            if draws_or_trains(command) or missing(command):
                continue
            result = CliRunner().invoke(app, [*command.words])
            assert result.exit_code == 0, f"{page.name}: {line}\n{result.output}"
            assert result.stdout.strip(), f"{page.name}: {line} says nothing"
            if command.into:
                (desk / command.into).write_text(result.stdout, encoding="utf8")
            for name in WRITES & command.given.keys():
                made = command.given[name]
                assert made is None or made.exists(), f"{page.name}: {line} made no {made}"
            done.append(line)
    return done


@pytest.mark.parametrize("page", PAGES_THAT_COMMAND, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_that_need_no_model_run(page: Path, things: Path, tmp_path: Path) -> None:
    _run_page(page, things, tmp_path / "desk")


def test_the_desk_is_not_so_bare_that_nothing_runs(things: Path) -> None:
    with contextlib.chdir(things):
        commands = [_parsed(line) for page in PAGES for line in _lines(page)]
        ready = [c for c in commands if not draws_or_trains(c) and not missing(c)]
    verbs = {command.words[0] for command in ready}
    assert verbs >= {"audit", "blend", "convert", "doctor", "inspect", "measure", "recipe"}
    assert verbs >= {"resize", "scale", "strategies", "verdict"}
    assert not verbs & {"train", "sample", "trial", "demo", "bench", "caption", "extract", "merge"}
    without = [c.words for c in commands if not draws_or_trains(c) and c not in ready]
    assert len(without) <= 3, f"the desk lacks what these read: {without}"


def test_the_verb_table_of_the_readme_is_the_command_line() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    told = set(re.findall(r"`([a-z]+)[ `]", " ".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    verbs = {c.callback.__name__ for c in app.registered_commands if c.callback}
    assert verbs <= told


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("code", _named("python"))
def test_python_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "a document", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", _named("toml"))
def test_recipes_in_the_documents_can_be_used(code: str) -> None:
    assert Recipe.build(tomllib.loads(code)).id


RECIPES = sorted(ROOT.glob("gallery/*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_a_recipe_of_the_gallery_can_be_used_and_has_its_row(file: Path) -> None:
    assert Recipe.read(file).id
    rows = [r for r in _text(ROOT / "gallery" / "README.md").splitlines() if f"({file.name})" in r]
    assert len(rows) == 1
    assert f"--recipe gallery/{file.name}" in _text(ROOT / "gallery" / "README.md")


def test_the_gallery_shows_no_recipe_that_is_not_there() -> None:
    named = re.findall(r"\]\(([\w-]+\.toml)\)", _text(ROOT / "gallery" / "README.md"))
    assert named
    assert set(named) == {file.name for file in RECIPES}


def _entries(schema: dict[str, Any], at: dict[str, Any], prefix: str = "") -> set[str]:
    """Every dotted path of a recipe."""
    found = set()
    for name, entry in at.get("properties", {}).items():
        found.add(prefix + name)
        options = [entry, *entry.get("anyOf", ()), *entry.get("oneOf", ())]
        for ref in (o["$ref"] for o in options if "$ref" in o):
            table = schema["$defs"][ref.rsplit("/", 1)[-1]]
            found |= _entries(schema, table, f"{prefix}{name}.")
    return found


def test_settings_that_the_documents_name_are_entries_of_a_recipe() -> None:
    schema = Recipe.model_json_schema()
    known, tables = _entries(schema, schema), "|".join(schema["properties"])
    named = {
        (page.name, path)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for path in re.findall(rf"`((?:{tables})\.[a-z_][a-z_.]*[a-z_])(?:=[^`]*)?`", _text(page))
        if not path.endswith((".py", ".toml", ".md", ".safetensors"))
    }
    assert len(named) > 40
    assert not {(page, path) for page, path in named if path not in known}


def test_the_package_of_the_research_guide_joins_menu_and_kitchen(tmp_path: Path) -> None:
    code = next(b for b in _blocks(ROOT / "docs" / "research.md", "python") if "# bell/" in b)
    parts = re.split(r"^# ((?:bell|tests)/\w+\.py): .*\n", code, flags=re.M)[1:]
    files = dict(zip(parts[::2], parts[1::2], strict=True))
    (tmp_path / "bell").mkdir()
    for name in ("bell/plan.py", "bell/act.py"):
        (tmp_path / name).write_text(files[name], encoding="utf8")
    facts = tmp_path / "bell-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bell\nVersion: 1.0\n")
    points = _blocks(ROOT / "docs" / "research.md", "ini")[0]
    points = points.replace('project.entry-points."variegate.strategies"', "variegate.strategies")
    (facts / "entry_points.txt").write_text(points.replace('"', ""))
    asked = (
        "from variegate.catalogue import strategies; from variegate.recipe import Recipe;"
        "from variegate.train.strategies import cook;"
        "assert 'bell' in [s['name'] for s in strategies()];"
        "recipe = Recipe.build(settings=('strategies.bell.width=1',));"
        "print(type(cook(recipe)['bell']).__name__)"
    )
    paths = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "CountTheMiddle"


def _text(page: Path) -> str:
    return page.read_text(encoding="utf8")


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
