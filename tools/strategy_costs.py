"""What each strategy and kind of adapter costs in training time, beside the plain recipe.

    python tools/strategy_costs.py run --minutes 60   # goes on where it was
    python tools/strategy_costs.py table              # writes src/variegate/strategy_costs.json

The benchmark's rows come from many machines and hours, so that their seconds cannot be compared.
Here plain and others take turns on one: each is trained for `SHORT` and for `LONG` steps of eight
pictures on the pocket, in processor seconds of one thread. The difference is its steps', the rest
what it does once: masks, altered pictures, pictures of the base. Medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tools"))

import rowfile  # noqa: E402

from variegate.bench.contenders import Contender  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.train import train  # noqa: E402

ROWS = ROOT / "tools" / "rows" / "costs" / "costs.jsonl"
WRITTEN = ROOT / "src" / "variegate" / "strategy_costs.json"
SHORT, LONG = 10, 70  # steps
ROUNDS = 2
BESIDE = 6  # contenders between two measurements of plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "table":
        found = costs(rowfile.read(ROWS))
        text = json.dumps(found, indent=1, sort_keys=True)
        WRITTEN.write_text(text + "\n", encoding="utf8")
        print(text)
        return
    until = time.monotonic() + 60 * args.minutes
    torch.set_num_threads(1)
    done = {(row["round"], row["place"], row["name"]) for row in rowfile.read(ROWS)}
    for place, contender in turns():
        for number in range(ROUNDS):
            if (number, place, contender.name) in done:
                continue
            if time.monotonic() > until:
                return
            row = {"name": contender.name, "kind": contender.group, "round": number}
            row |= {"place": place, "short": seconds(contender, SHORT)}
            row |= {"long": seconds(contender, LONG)}
            rowfile.add(ROWS, row)
            print(row, flush=True)


def turns() -> Iterator[tuple[int, Contender]]:
    """Every contender at its place, and plain at each of these."""
    who = POCKET.contenders
    asked = [c for c in who.values() if c.group in ("strategy", "kind")]
    for place, start in enumerate(range(0, len(asked), BESIDE)):
        yield place, who["plain"]
        for contender in asked[start : start + BESIDE]:
            yield place, contender


def seconds(contender: Contender, steps: int) -> float:
    """Of one processor, to train so many steps; loading the base left out."""
    ailment = POCKET.ailments["healthy"]
    recipe = ailment.recipe(contender.recipe(), 0, POCKET.given(ailment, 0))
    few = {"every": 1000, "triples": 2, "noises": 2}  # so that steps are the most of it
    entries = {"optimizer": {"steps": steps}, "probes": few}
    told: dict[str, Any] = recipe.model_dump(exclude_none=True)
    for table, values in entries.items():
        told[table] |= values
    recipe = type(recipe).model_validate(told)
    model = POCKET.load(recipe)
    place = Path(tempfile.mkdtemp())
    try:
        began = time.process_time()
        train(recipe, out=place / "run", model=model)
        return round(time.process_time() - began, 2)
    finally:
        shutil.rmtree(place)


def costs(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By the name on the menu: `step`, how long a step takes beside plain's; `once`, what is done
    once beyond what plain does, in plain's steps.

    >>> rows = [{"name": "plain", "kind": "plain", "place": 0, "short": 3.0, "long": 15.0}]
    >>> costs([*rows, {"name": "x", "kind": "strategy", "place": 0, "short": 6.0, "long": 30.0}])
    {'x': {'step': 2.0, 'once': 5.0}}
    """

    def parts(row: dict[str, Any]) -> tuple[float, float]:
        step = (row["long"] - row["short"]) / (LONG - SHORT)
        return step, row["short"] - SHORT * step

    plain: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["name"] == "plain":
            plain.setdefault(row["place"], []).append(parts(row))
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["name"] != "plain":
            step, once = (statistics.median(x) for x in zip(*plain[row["place"]], strict=True))
            own, first = parts(row)
            name = ("adapter.kind=" if row["kind"] == "kind" else "") + row["name"]
            found.setdefault(name, []).append((own / step, (first - once) / step))
    return {
        name: {
            "step": round(statistics.median(step for step, _ in of), 2),
            "once": round(statistics.median(once for _, once in of), 1),
        }
        for name, of in found.items()
    }


if __name__ == "__main__":
    main()
