"""What came of a preset, and the rules by which a key becomes an entry of the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tomlkit

from variegate.errors import RecipeError
from variegate.recipe import Recipe

LONGEST = 80  # characters of a foreign value that are shown


@dataclass
class Imported:
    """What came of a preset: recipe tables, and a line about every key."""

    kind: str
    tables: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def recipe(self) -> Recipe:
        """Raises: RecipeError when what was taken over cannot stand together."""
        return Recipe.build(self.tables, where=f"what was taken over from the {self.kind} preset")

    def to_toml(self) -> str:
        """The recipe's tables, with what was changed and left out as comments above."""
        self.recipe()
        heads = (("taken over", self.taken), ("changed", self.changed), ("left out", self.left_out))
        notes = [f"# {head}: {_flat(line)}" for head, lines in heads for line in lines]
        return "\n".join([f"# From a {self.kind} preset.", *notes, "", tomlkit.dumps(self.tables)])

    def put(self, path: str, value: Any) -> None:
        """An entry of the recipe, by its dotted path."""
        *tables, last = path.split(".")
        table = self.tables
        for key in tables:
            table = table.setdefault(key, {})
        table[last] = value


Rule = Callable[[Imported, str, Any], None]


class Unfit(Exception):
    """A foreign value that cannot be taken over; the text says why."""


def number(value: Any) -> float:
    """A number, also as text, as GUIs write it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unfit("not a number")
    try:
        found = float(value)
    except (ValueError, OverflowError) as error:
        raise Unfit("not a number") from error
    if not math.isfinite(found):
        raise Unfit("not a finite number")
    return found


def whole(value: Any) -> int:
    found = number(value)
    if found != int(found):
        raise Unfit("not a whole number")
    return int(found)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 4096 or "\0" in value:
        raise Unfit("not a text, or empty")
    return value.strip()


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit("neither true nor false")
    return value


def take(path: str, read: Callable[[Any], Any] = number, *, off: Any = None) -> Rule:
    """Taken over as it is to a recipe entry; a value that switches it off there is left out."""

    def rule(imported: Imported, key: str, value: Any) -> None:
        found = read(value)
        if off is not None and found == off:
            imported.taken.append(f"{key} = {show(value)}: off, as here without the entry")
            return
        trial = Imported(imported.kind)
        trial.put(path, found)
        try:
            trial.recipe()
        except RecipeError as error:
            raise Unfit(str(error).splitlines()[-1].strip()) from error
        imported.put(path, found)
        imported.taken.append(f"{key} = {show(value)}: {path}")

    return rule


def leave(why: str) -> Rule:
    def rule(imported: Imported, key: str, value: Any) -> None:
        raise Unfit(why)

    return rule


def named(path: str, names: Mapping[str, Any], otherwise: str) -> Rule:
    """A choice by name, whatever its case; `otherwise` says why others are left out."""

    def rule(imported: Imported, key: str, value: Any) -> None:
        name = value.lower() if isinstance(value, str) else ""
        if name not in names:
            raise Unfit(otherwise)
        imported.put(path, names[name])
        note = imported.taken if str(names[name]).lower() == name else imported.changed
        note.append(f"{key} = {show(value)}: {path} = {show(names[name])}")

    return rule


def on_if_true(path: str, entry: Mapping[str, Any]) -> Rule:
    def rule(imported: Imported, key: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise Unfit("neither true nor false")
        if value:
            imported.put(path, dict(entry))
        imported.taken.append(f"{key} = {value}: {path} {'on' if value else 'off'}")

    return rule


def table_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def tables_of(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def show(value: Any) -> str:
    """A foreign value, short and on one line."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _flat(line: str) -> str:
    return " ".join(line.split())
