"""How large a loss a plan can show, said before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable

from variegate.measure.prompts import PlannedPrompt
from variegate.measure.rules import RULES, Rules

# Deviation over prompts of the logarithm of the variety ratio, where nothing is wrong, by pictures
# of a prompt: the pocket's base against itself at other seeds (`tools/calibrate.py scatter`). Other
# bases and encoders differ, and a narrowed adapter scatters more.
SCATTER: dict[str, dict[int, float]] = {
    "variety_vs_base": {4: 0.24, 8: 0.15},
    "trigger_variety_vs_base": {4: 0.20, 8: 0.11},
}
EDGE = 1.96  # of the 95 % interval
NINE_OF_TEN = 1.28  # normal quantile of 0.9


def seen_loss(measurement: str, *, prompts: int, seeds: int, rules: Rules = RULES) -> float | None:
    """The share of the base's variety at or below which the measurement's gate alarms nine times
    in ten, at this many prompts and pictures of each: its interval must lie below the margin.

    None where no such gate is known, or where prompts are too few to speak of others.
    """
    gate = next((g for g in rules.gates if g.measurement == measurement), None)
    scatter = SCATTER.get(measurement)
    if gate is None or scatter is None or prompts < rules.few_prompts:
        return None
    # Between the measured numbers of pictures the deviation falls as the root of them.
    near = min(scatter, key=lambda n: abs(math.log(n / seeds)))
    deviation = scatter[near] * math.sqrt(near / seeds)
    return gate.warn * math.exp(-(EDGE + NINE_OF_TEN) * deviation / math.sqrt(prompts))


def foresee(plan: Iterable[PlannedPrompt]) -> str:
    """What the plan will and will not show, in a sentence or two."""
    lines = list(plan)
    told = []
    for name, group, where in (
        ("variety_vs_base", "class", "without the trigger word"),
        ("trigger_variety_vs_base", "trigger", "with it"),
    ):
        own = [line for line in lines if line.group == group]
        seeds = min((len(line.seeds) for line in own), default=0)
        loss = seen_loss(name, prompts=len(own), seeds=seeds) if seeds else None
        if loss is not None:
            told.append(f"{100 * loss:.0f} % of the base's variety or less {where}")
    pictures = sum(len(line.seeds) for line in lines)
    drawn = f"{pictures} pictures of each model."
    if not told:
        return f"{drawn} Too few prompts to speak of any but these."
    return (
        f"{drawn} Nine times in ten this will show a loss to {' and to '.join(told)}; smaller ones"
        " may go unseen."
    )
