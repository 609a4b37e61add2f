"""How long work tells where it stands: a function that is handed down, and says nothing itself."""

from __future__ import annotations

from collections.abc import Callable

# (phase, done, total, note): total 0 when it is not known.
Say = Callable[[str, int, int, str], object]


def silent(phase: str, done: int, total: int, note: str) -> None:
    """Tell nobody."""
