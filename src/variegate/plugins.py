"""Strategies of other packages, found by their entry points.

A package names an object in the group `variegate.strategies`, under the strategy's name:

    [project.entry-points."variegate.strategies"]
    my_strategy = "my_package.plan:PLUGIN"

The object is a `Plugin`. What it imports is loaded whenever a recipe is read, so its module should
not import PyTorch: the strategy itself is named by its path and loaded only to train.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict

from variegate.errors import RecipeError

GROUP = "variegate.strategies"


class Entry(BaseModel):
    """A frozen table of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Plugin:
    """A strategy of another package.

    plan: its recipe entry, a subclass of `Entry` whose first docstring line is the
    summary. stage, cost, effect: as in `variegate.catalogue.Facts`. strategy: "module:Class" of a
    `variegate.train.strategies.Strategy` that takes the plan and the recipe.
    """

    plan: type[Entry]
    stage: str
    cost: str
    strategy: str
    effect: str = "untested"

    def load(self) -> Any:
        """The strategy's class."""
        module, _, name = self.strategy.partition(":")
        return getattr(import_module(module), name)


@cache
def plugins() -> dict[str, Plugin]:
    """Every strategy that an installed package offers, by name.

    Raises: RecipeError when one cannot be loaded or is no Plugin.
    """
    found: dict[str, Plugin] = {}
    for point in entry_points(group=GROUP):
        where = f"the strategy {point.name!r} of {point.value!r}"
        try:
            plugin = point.load()
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"{where} cannot be loaded: {error}; update or remove the package"
            ) from error
        if not isinstance(plugin, Plugin):
            raise RecipeError(
                f"{where} is a {type(plugin).__name__}; expected a variegate.plugins.Plugin"
            )
        found[point.name] = plugin
    return found
