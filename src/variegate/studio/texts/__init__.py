"""Every word that the studio says, in one file per language, found by dotted name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any


class Texts:
    """The texts of one language. Called with a name and what its `{fields}` stand for."""

    def __init__(self, language: str, tables: Mapping[str, Any]) -> None:
        self.language = language
        self._texts = dict(_flat(tables))

    def __call__(self, name: str, /, **fields: object) -> str:
        """Raises: KeyError for a name that the language does not have."""
        text = self._texts[name]
        if "n" in fields and f"{name}_one" in self._texts and fields["n"] == 1:
            text = self._texts[f"{name}_one"]
        return text.format_map(fields) if fields else text

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def names(self) -> list[str]:
        return list(self._texts)


@cache
def texts(language: str = "en") -> Texts:
    """The texts of a language.

    Raises: FileNotFoundError for a language that is not there.
    """
    file = resources.files(__name__) / f"{language}.toml"
    return Texts(language, tomllib.loads(file.read_text(encoding="utf8")))


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
