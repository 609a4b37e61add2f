"""What the site has that the pages in docs/ leave out: read from the code when the site is built.

A page holds a marker, a comment that GitHub does not show; here it becomes what the menu says:

    <!-- facts: flip -->    stage, cost, measured effect and settings of one strategy or kind
    <!-- effect: flip -->   its measured effect alone, in the cell of a table
    <!-- effect: flip of copies likeness -->   the same, of other figures of the benchmark
    <!-- menu -->           all of them, by stage, each with a link to its page
    <!-- recipe -->         every entry of a recipe, with its default and limits

So no figure and no setting is written twice. The navigation's entry `strategies/` becomes a page
for each, and the documents that lie beside docs/ (ARCHITECTURE.md and others) get pages too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate.bench import scoreboard, suite  # noqa: E402
from variegate.catalogue import strategies  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402

# What lies beside docs/, and where it is on the site.
BESIDE = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "PITFALLS.md": "pitfalls.md",
    "gallery/README.md": "gallery.md",
    **{f"gallery/{f.name}": f"gallery/{f.name}" for f in ROOT.glob("gallery/*.toml")},
}
STAGES = {
    "data": "What pictures and captions become",
    "objective": "What is asked of the network",
    "adapter": "What may be learnt, and how much",
    "optimizer": "How the weights move",
    "guard": "Who watches",
    "sampling": "How samples are drawn",
    "merge": "How adapters are put together",
}
MARKER = re.compile(r"<!-- (facts|effect|menu|recipe)(?:: ([\w.=-]+)(?: of ([\w ]+))?)? -->")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
KIND, METHOD = "adapter.kind=", "sampling.methods."
Tables = Mapping[str, Any]


def page_of(name: str) -> str:
    """The file of a strategy's page, under docs/strategies."""
    return f"{title_of(name)}.md"


def title_of(name: str) -> str:
    """What the navigation calls it."""
    return name.removeprefix(KIND).removeprefix(METHOD)


# --- what MkDocs calls --------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """The navigation's entry `strategies/` opened into its pages, by stage."""
    config.nav = [_opened(entry) for entry in config.nav]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """The documents beside docs/, with their links turned to where things are on the site."""
    for source, place in BESIDE.items():
        text = (ROOT / source).read_text(encoding="utf8")
        if source.endswith(".md"):
            text = _relinked(text, source, place)
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The markers filled, and links out of docs/ turned to the pages made of what they lead to."""
    source = page.file.src_uri
    if source not in BESIDE.values():
        markdown = _relinked(markdown, f"docs/{source}", source)
    return MARKER.sub(lambda found: _filled(*found.groups(), source), markdown)


# --- the navigation -----------------------------------------------------------------------------


def _opened(entry: Any) -> Any:
    if not (isinstance(entry, dict) and "strategies/" in entry.values()):
        return entry
    found: list[Any] = ["strategies/README.md"]
    for stage, heading in STAGES.items():
        pages = [
            {title_of(one["name"]): f"strategies/{page_of(one['name'])}"}
            for one in strategies()
            if one["stage"] == stage
        ]
        found += [{heading: pages}] if pages else []
    return {next(iter(entry)): found}


# --- links --------------------------------------------------------------------------------------


def _relinked(text: str, source: str, place: str) -> str:
    """The text of a repository file with its links as they are on the site at `place`."""
    folder, depth = (ROOT / source).parent, place.count("/")

    def turned(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        target = (folder / path).resolve()
        if not target.is_relative_to(ROOT):
            raise PluginError(f"{source} links out of the repository: {path}")
        at = target.relative_to(ROOT).as_posix()
        if at in BESIDE:
            at = BESIDE[at]
        elif at.startswith("docs/"):
            at = at.removeprefix("docs/")
        elif at == "README.md":
            at = "index.md"
        else:
            return found[0]  # MkDocs tells what leads nowhere
        return f"]({'../' * depth}{at}{anchor})"

    return LINK.sub(turned, text)


# --- the markers --------------------------------------------------------------------------------


def _filled(what: str, name: str | None, figures: str | None, source: str) -> str:
    if what == "menu":
        return _menu()
    if what == "recipe":
        return _recipe()
    known = {one["name"]: one for one in strategies()}
    if name not in known:
        raise PluginError(f"{source}: a marker names {name!r}, which is not on the menu")
    if figures:
        told = _effects(tuple(figures.split()))
        return _effect({"effect": told.get(name, "untested")})
    return _effect(known[name]) if what == "effect" else _facts(known[name])


@cache
def _effects(figures: tuple[str, ...]) -> dict[str, str]:
    """Of the published benchmark, other figures than the menu tells."""
    return scoreboard.effects(suite.published(), figures=figures)


def _effect(one: Tables) -> str:
    """In its own words, and those who read it told where there is nothing to believe yet."""
    effect = str(one["effect"])
    return "*untested*" if effect == "untested" else _cell(effect)


def _facts(one: Tables) -> str:
    name = str(one["name"])
    if name.startswith(KIND):
        on, where = name, "adapter"
    elif name.startswith(METHOD):
        on, where = f"{name}=on", name
    else:
        on, where = f"strategies.{name}=on", f"strategies.{name}"
    lines = [
        f"| switched on by | `--set {on}` |",
        "|---|---|",
        f"| acts on | {one['stage']} |",
        f"| cost | {_cell(one['cost'])} |",
        f"| measured effect | {_effect(one)} |",
    ]
    if one["settings"]:
        lines += ["", "| setting | default | limits | meaning |", "|---|---|---|---|"]
        lines += [_setting_line(where, setting) for setting in one["settings"]]
    else:
        lines += ["", "It has no settings."]
    return "\n".join(lines)


def _setting_line(where: str, setting: Tables) -> str:
    default = _default(setting["default"])
    return (
        f"| `{where}.{setting['name']}` | {default} | {_limits(setting)} "
        f"| {_cell(setting['description'])} |"
    )


def _default(value: Any) -> str:
    """As TOML writes it; in words where it is nothing."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return f"`{value}`" if value not in ("", (), []) else "empty"


def _limits(setting: Tables) -> str:
    if "choices" in setting:
        return ", ".join(f"`{choice}`" for choice in setting["choices"])
    signs = (("above", "above"), ("minimum", "from"), ("below", "below"), ("maximum", "to"))
    return " ".join(f"{word} {setting[key]:g}" for key, word in signs if key in setting)


def _menu() -> str:
    lines: list[str] = []
    for stage, heading in STAGES.items():
        found = [one for one in strategies() if one["stage"] == stage]
        if not found:
            continue
        lines += [
            f"## {heading}",
            "",
            "| name | what it does | cost | measured effect |",
            "|---|---|---|---|",
        ]
        for one in found:
            link = f"[`{title_of(one['name'])}`]({page_of(one['name'])})"
            lines.append(
                f"| {link} | {_cell(one['summary'])} | {_cell(one['cost'])} | {_effect(one)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _recipe() -> str:
    """A table for each table of a recipe but the strategies, which have pages of their own."""
    schema = Recipe.model_json_schema()
    lines: list[str] = []
    for heading, shape in _tables(schema):
        lines += [
            f"## {heading}",
            "",
            "| entry | default | limits | meaning |",
            "|---|---|---|---|",
        ]
        for name, entry in shape["properties"].items():
            kinds = [_named(one, schema)["properties"].get("kind") for one in _refs(entry)]
            if name != "kind" and (not kinds or shape is not schema):
                lines.append(_entry_line(name, entry, [k["const"] for k in kinds if k]))
        lines.append("")
    return "\n".join(lines)


def _tables(schema: Tables) -> Iterator[tuple[str, Tables]]:
    yield "The recipe itself", schema
    for name, entry in schema["properties"].items():
        if name in ("strategies", "adapter"):
            continue
        kinds = [_named(one, schema) for one in _refs(entry)]
        for shape in kinds:
            kind = shape["properties"].get("kind", {}).get("const")
            yield (f'`[{name}]`, `kind = "{kind}"`' if kind else f"`[{name}]`"), shape


def _refs(entry: Tables) -> list[str]:
    found = [entry["$ref"]] if "$ref" in entry else []
    for word in ("anyOf", "oneOf", "allOf"):
        found += [one["$ref"] for one in entry.get(word, ()) if "$ref" in one]
    return found


def _named(ref: str, schema: Tables) -> Tables:
    shape: Tables = schema["$defs"][ref.rsplit("/", 1)[-1]]
    return shape


def _entry_line(name: str, entry: Tables, kinds: list[str]) -> str:
    """kinds: of a choice between tables, the names that its own `kind` may have."""
    default = entry.get("default")
    shown = _default(default.get("kind") if isinstance(default, dict) else default)
    options = [entry, *entry.get("anyOf", ())]
    limits = [
        _limits(
            {
                ours: one[theirs]
                for ours, theirs in (
                    ("above", "exclusiveMinimum"),
                    ("minimum", "minimum"),
                    ("below", "exclusiveMaximum"),
                    ("maximum", "maximum"),
                    ("choices", "enum"),
                )
                if theirs in one
            }
        )
        for one in options
    ]
    limits += [_limits({"choices": kinds})] if kinds else []
    return (
        f"| `{name}` | {shown} | {' '.join(filter(None, limits))} "
        f"| {_cell(entry.get('description', ''))} |"
    )


def _cell(text: Any) -> str:
    """Text in the cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
