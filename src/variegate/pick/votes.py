"""People's votes between two pictures or grids at a time, made into strengths.

Bradley and Terry: the chance that i is liked better than j is p_i / (p_i + p_j). Each point is also
given half a vote for and half against an average one, so that what never lost stays finite and few
votes say little.

Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952; the iteration is that of
Hunter, MM algorithms for generalized Bradley-Terry models, 2004, section 3.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.errors import RequestError

MOST = 1_000_000  # votes of a file
ROUNDS = 10_000
NORMAL = 1.959964  # standard errors on either side of a 95 % interval


@dataclass(frozen=True)
class Vote:
    """Of two points, which one was liked better; None for neither."""

    a: str
    b: str
    winner: str | None


@dataclass(frozen=True)
class Strength:
    """The logarithm of p, the average point's being 0, its 95 % interval, and the votes it took
    part in."""

    value: float
    low: float
    high: float
    votes: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def read_votes(file: Path, known: Collection[str]) -> list[Vote]:
    """The votes of a file of JSON lines, each {"a", "b", "winner"}: names of points, and of the
    winner its name, "a", "b", or "tie".

    Raises: RequestError with every fault of the file at once.
    """
    try:
        lines = file.read_text(encoding="utf8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the votes in {file} cannot be read: {error}") from error
    votes, faults = list[Vote](), list[str]()
    for number, line in enumerate(lines[:MOST], 1):
        if not line.strip():
            continue
        found = _vote(line, known)
        if isinstance(found, Vote):
            votes.append(found)
        else:
            faults.append(f"line {number}: {found}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise RequestError(f"the votes in {file} cannot be used:{listed}{more}")
    return votes


def _vote(line: str, known: Collection[str]) -> Vote | str:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return f"no JSON: {line[:60]!r}"
    if not isinstance(told, dict) or not {"a", "b", "winner"} <= told.keys():
        return 'expected {"a": ..., "b": ..., "winner": ...}'
    a, b, winner = told["a"], told["b"], told["winner"]
    for name in (a, b):
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "pick.json lists them"
            return f"{str(name)[:80]!r} is no point of this grid; {hint}"
    if a == b:
        return f"{a!r} stands against itself"
    named = {"a": a, "b": b, a: a, b: b, "tie": None, None: None}
    if not isinstance(winner, str | None) or winner not in named:
        return f"winner {str(winner)[:80]!r}; expected 'a', 'b', the name of one, or 'tie'"
    return Vote(a, b, named[winner])


def strengths(votes: Sequence[Vote]) -> dict[str, Strength]:
    """Each point that was voted on, the best liked first.

    The interval is that of the curvature at the solution (Fisher's information, the half votes
    counted in); a tie counts half for either side.
    """
    names = sorted({name for vote in votes for name in (vote.a, vote.b)})
    if not names:
        return {}
    at = {name: i for i, name in enumerate(names)}
    met = np.zeros((len(names), len(names)))
    won = np.full(len(names), 0.5)
    for vote in votes:
        a, b = at[vote.a], at[vote.b]
        met[a, b] += 1
        met[b, a] += 1
        for side in (a, b):
            won[side] += 0.5 if vote.winner is None else float(vote.winner == names[side])
    p = np.ones(len(names))
    for _ in range(ROUNDS):
        pairs = (met / (p[:, None] + p[None, :])).sum(1)
        fresh = won / (pairs + 1 / (p + 1))
        moved = float(np.abs(np.log(fresh / p)).max())
        p = fresh
        if moved < 1e-10:
            break
    q = p[:, None] / (p[:, None] + p[None, :])
    curved = met * q * (1 - q)
    beside = p / (1 + p) ** 2
    errors = np.sqrt(np.diag(np.linalg.inv(np.diag(curved.sum(1) + beside) - curved)))
    found = dict[str, Strength]()
    for name, i in at.items():
        value, half = float(np.log(p[i])), NORMAL * float(errors[i])
        found[name] = Strength(value, value - half, value + half, int(met[i].sum()))
    return dict(sorted(found.items(), key=lambda each: (-each[1].value, each[0])))
