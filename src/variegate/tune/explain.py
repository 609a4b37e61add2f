"""What each knob does to collapse, in plain English, and what was measured of it, if anything.

Words on mechanisms name their source; figures are those of the published benchmark alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from variegate.catalogue import effect_of, measured, strategies
from variegate.recipe import Recipe
from variegate.recipe.whole import describe_field
from variegate.tune.ranges import SCALE, Knob, Space

NOTHING = "not measured here yet"


@dataclass(frozen=True)
class Words:
    """What a knob does. rows: settings of the benchmark that show it, by their names there."""

    does: str
    rows: tuple[str, ...] = ()


WORDS: dict[str, Words] = {
    "adapter.rank": Words(
        "How many directions each layer's update has. More learn finer likeness, and also the "
        "ground, the place and the pose that the pictures share. On SDXL, from rank 4 to 64 "
        "likeness rose from .890 to .901 while prompts were followed less, .250 to .232 (T-LoRA, "
        "arXiv 2507.05964). With alpha as it is, a larger rank also learns more slowly, "
        "alpha/rank being the update's scale",
        ("rank 4", "rank 16", "rank 64"),
    ),
    SCALE: Words(
        "The update's scale, whatever the rank: twice of it acts much as twice the learning rate "
        "does. Kept the same, a rate carries over from one rank to another (Kalajdzievski 2023, "
        "arXiv 2312.03732, for why sqrt(rank) may be better at large ranks: adapter.scale=rslora)",
        ("rsLoRA",),
    ),
    "adapter.alpha": Words(
        "The update is scaled by alpha/rank; larger learns faster, and collapses sooner. Vary "
        f"`{SCALE}` when the rank is varied too",
    ),
    "adapter.dropout": Words(
        "Leaves out inputs of each update by chance while training, so that no single one carries "
        "what the pictures share",
        ("LoRA dropout .1",),
    ),
    "adapter.layers": Words(
        "Which layers learn. More of them learn likeness sooner, and more of what should stay",
    ),
    "adapter.text_encoder": Words(
        "Lets the words themselves change: the trigger is learnt faster, and neighbouring words "
        "drift with it",
        ("text encoder too",),
    ),
    "adapter.kind": Words(
        "What may be learnt at all; each kind has a page of its own (docs/adapters.md)",
    ),
    "optimizer.lr": Words(
        "How far each step goes. Too low: the subject is not learnt. Too high: everything drawn "
        "becomes it. Likeness rises first and levels off, variety falls all along: the best is "
        "below where likeness levels off",
        ("half the rate",),
    ),
    "optimizer.text_encoder_lr": Words(
        "The rate of the text encoder; half of the other's is common, a tenth is careful",
    ),
    "optimizer.steps": Words(
        "How long it learns. What a picture teaches is learnt after about the same number of steps "
        "whatever their count, while learning them by heart takes steps in proportion to it "
        "(Bonnaire et al. 2025, arXiv 2505.17638): with few pictures the window between the two "
        "is narrow",
        ("half the steps",),
    ),
    "optimizer.batch_size": Words(
        "Pictures per step: larger batches give steadier steps and see more pictures in as many "
        "steps, so fewer steps do",
    ),
    "optimizer.weight_decay": Words(
        "Pulls the update back towards nothing, a little each step. On the factors at usual rates "
        "that is next to nothing; `optimizer.weight_decay_on=product` acts on the update itself",
        ("weight decay .1", "weight decay .1 on the product"),
    ),
    "optimizer.schedule": Words(
        "How the rate falls. A rate that ends near nothing settles what was learnt, and forgives a "
        "peak that is somewhat too high",
    ),
    "guard.mode": Words(
        "Who acts on what is watched while training; `autopilot` eases and goes back when variety "
        "falls, so that rates and lengths matter less",
        ("early stopping", "autopilot"),
    ),
}


def explain(space: Space, recipe: Recipe) -> list[dict[str, Any]]:
    """For every knob: {"knob", "values", "now", "does", "measured"}; measured: what the published
    benchmark says, or that it says nothing yet."""
    known = {entry["name"]: entry for entry in strategies()}
    now = space.own(recipe)
    found = []
    for knob in space.knobs:
        found.append(
            {
                "knob": knob.key,
                "values": knob.told().partition("=")[2],
                "now": now.get(knob.key),
                "does": _does(knob, known, recipe),
                "measured": _measured(knob),
            }
        )
    return found


def _does(knob: Knob, known: Mapping[str, Any], recipe: Recipe) -> str:
    if knob.key in WORDS:
        return WORDS[knob.key].does
    parts = knob.key.split(".")
    if parts[0] == "strategies" and parts[1] in known:
        entry = known[parts[1]]
        summary = str(entry["summary"]).rstrip(".")
        if len(parts) == 2:
            return f"{summary} (cost: {entry['cost']})"
        told = next((s["description"] for s in entry["settings"] if s["name"] == parts[2]), "")
        return f"{told or parts[2].replace('_', ' ')}, of {parts[1]}: {summary}"
    return describe_field(knob.key, recipe) or "an entry of the recipe; see docs/recipe.md"


def _measured(knob: Knob) -> list[str]:
    """The benchmark's sentences on a knob."""
    found = list[str]()
    parts = knob.key.split(".")
    if parts[0] == "strategies":
        told = effect_of(parts[1])
        found += [f"{parts[1]}: {told}"] if told != "untested" else []
    if knob.key == "adapter.kind":
        for kind in knob.choices:
            name = f"adapter.kind={kind}"
            found += [f"{kind}: {measured()[name]}"] if name in measured() else []
    for row in WORDS[knob.key].rows if knob.key in WORDS else ():
        found += [f"{row}: {measured()[row]}"] if row in measured() else []
    return found or [NOTHING]


def explain_text(lines: list[dict[str, Any]]) -> str:
    """The same for a terminal."""
    blocks = []
    for line in lines:
        now = "" if line["now"] is None else f", now {line['now']}"
        told = "\n".join(f"  measured: {m}" for m in line["measured"])
        blocks.append(f"{line['knob']} ({line['values']}{now})\n  {line['does']}.\n{told}")
    return "\n\n".join(blocks)
