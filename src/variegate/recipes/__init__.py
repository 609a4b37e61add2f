"""The recipes that ship: each lists only what differs from the defaults, and says why."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from variegate.errors import RecipeError
from variegate.recipe import Recipe


def names() -> list[str]:
    """The names that `--recipe` knows without a path."""
    folder = resources.files(__name__)
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def default_for(base: str | None) -> str:
    """The shipped recipe for a base when the user names none (None: the pocket)."""
    return "pocket" if base in (None, "pocket") else "subject"


def read(name_or_file: str, *, settings: tuple[str, ...] = (), **given: Any) -> Recipe:
    """A recipe by shipped name or by path, with settings and given entries on top.

    A name that ships wins over a file of the same name; `./subject` is always a file. Where there
    is no file `recipes/subject.toml`, it is the name that ships.

    Raises: RecipeError when there is neither, or when the recipe has faults.
    """
    path = Path(name_or_file)
    where_they_lie = path.parent == Path("recipes") and path.suffix == ".toml"
    shipped = path.stem if where_they_lie and not path.exists() else name_or_file
    if shipped in names():
        file = resources.files(__name__) / f"{shipped}.toml"
        with resources.as_file(file) as found:
            return Recipe.read(found, settings=settings, **given)
    if not path.is_file():
        raise RecipeError(
            f"no recipe {name_or_file!r}: it is neither a file nor one of the shipped recipes "
            f"({', '.join(names())}); `variegate recipe` prints one to start from"
        )
    return Recipe.read(path, settings=settings, **given)
