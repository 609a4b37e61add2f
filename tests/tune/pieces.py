"""Trials that cost nothing: a known surface in place of a training run, and searches over it."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from variegate import recipes
from variegate.errors import NotFinite
from variegate.recipe import Recipe
from variegate.tune.point import RUNGS, Outcome, Piece
from variegate.tune.ranges import read_space
from variegate.tune.search import Search, default_limits

RANGES = ("adapter.rank=2,4,8,16,32", "optimizer.lr=1e-4..1e-2:log", "strategies.stay_near=on,off")


def figures(likeness: float, variety: float, **more: float) -> dict[str, Any]:
    found = {
        "variety_vs_base": variety,
        "trigger_variety_vs_base": variety,
        "likeness": likeness,
        "copy_rate": 0.0,
        "adherence_vs_base": 0.0,
        "class_retention": 1.0,
    } | more
    told = {n: {"value": v, "low": v - 0.02, "high": v + 0.02} for n, v in found.items()}
    return {"labels": ["healthy"], **told}


def surface(recipe: Recipe) -> tuple[float, float]:
    """Likeness and variety: the rate trades one for the other, holding on costs little."""
    rate = (math.log10(recipe.optimizer.lr) + 4) / 2  # 0 to 1 over the range
    held = recipe.strategies.stay_near is not None
    likeness = 0.95 * math.sin(0.5 * math.pi * rate) - 0.05 * held
    variety = 1 - rate ** (3 if held else 1.2) - 0.002 * float(getattr(recipe.adapter, "rank", 0))
    return likeness, variety


def run(piece: Piece) -> Outcome:
    """A trial of the surface; every one that is begun leaves a line in `begun`, and those whose
    file `kill-NAME` is there kill their process once."""
    home = Path(piece.home).parent
    with (home / "begun").open("a", encoding="utf8") as file:
        file.write(f"{piece.name}\n")
    if (kill := home / f"kill-{piece.name}").exists():
        kill.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (slow := home / "slow").exists():
        time.sleep(float(slow.read_text()))
    likeness, variety = surface(piece.recipes[0])
    if likeness > 0.93:
        raise_not = NotFinite("the loss at step 3 is not a number")
        return Outcome(failed=str(raise_not))
    if piece.scout:
        score = likeness * variety
        rungs = [score * (i + 1) / RUNGS for i in range(RUNGS)]
        for i, (own, bar) in enumerate(zip(rungs, piece.bars, strict=True)):
            if 0 < i < RUNGS - 1 and bar is not None and own < bar:
                return Outcome((), tuple(rungs[: i + 1]), i + 1)
        return Outcome((), tuple(rungs))
    worse = 0.05 if piece.fresh else 0.0
    told = tuple(figures(likeness - worse, variety - worse) for _ in piece.recipes)
    return Outcome(told, seconds=1.0)


def search_of(images: Path, *, trials: int = 12, scouts: int = 0, **more: Any) -> Search:
    recipe = recipes.read(
        "pocket-plain",
        images=str(images),
        trigger="zqx",
        class_noun="face",
        seed=more.pop("seed", 0),
    )
    return Search(
        recipe,
        read_space(more.pop("ranges", RANGES), recipe),
        trials=trials,
        scouts=scouts,
        limits=default_limits(more.pop("limits", {})),
        **more,
    )
