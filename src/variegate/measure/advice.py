"""Advice that fits the run it is given to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from variegate.measure.wording import FEWER_STEPS, MORE_STEPS
from variegate.measurement import Advice
from variegate.recipe import Recipe

# What to turn further where a strategy is already on: its entry, and the next value (None: it is as
# far as it goes).
_FURTHER: dict[str, tuple[str, Callable[[float], float | None]]] = {
    "stay_near": ("weight", lambda v: 2 * v if v < 4 else None),
    "zoom_shift": ("zoom_min", lambda v: round(0.8 * v, 2) if v > 0.4 else None),
    "new_background": ("p", lambda v: round(min(1.0, v + 0.2), 2) if v < 0.9 else None),
    "masked_loss": ("outside", lambda v: round(v / 2, 3) if v > 0.02 else None),
    "caption_scene": ("p", lambda v: round(min(1.0, v + 0.2), 2) if v < 0.9 else None),
    "caption_dropout": ("p", lambda v: round(2 * v, 2) if v < 0.2 else None),
    "flip": ("p", lambda v: None),
}


def fit_advice(advice: Iterable[Advice], recipe: Recipe) -> tuple[Advice, ...]:
    """The same advice in terms of a run's own recipe: half or twice its own steps, a strategy that
    is on already turned further, and none that it has followed as far as it goes."""
    fitted = (_fit(one, recipe) for one in advice)
    return tuple(one for one in fitted if one is not None)


def _fit(advice: Advice, recipe: Recipe) -> Advice | None:
    steps = recipe.optimizer.steps
    if advice == FEWER_STEPS:
        return replace(advice, setting=f"optimizer.steps={max(1, steps // 2)}")
    if advice == MORE_STEPS:
        return replace(advice, setting=f"optimizer.steps={2 * steps}")
    if advice.strategy == "sampling":
        return None if recipe.sampling.preset == "thorough" else advice
    plan = getattr(recipe.strategies, advice.strategy, None)
    if plan is None or advice.strategy not in _FURTHER:
        return advice
    entry, further = _FURTHER[advice.strategy]
    value = further(getattr(plan, entry))
    if value is None:
        return None
    setting = f"strategies.{advice.strategy}.{entry}={value:g}"
    return replace(advice, setting=setting)
