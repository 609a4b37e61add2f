"""What is varied: `--range adapter.rank=2,4,8`, parsed at the door with all faults told at once.

    adapter.rank=2,4,8,16          one of a list; numbers keep their order
    optimizer.lr=1e-5..5e-4:log    anything between two ends, evenly on a log scale
    optimizer.steps=300..1200      whole where the recipe's entry is whole
    strategies.stay_near=on,off    a strategy as the recipe has it, or left out
    adapter.alpha/rank=0.5,1,2     what the update is scaled by, whatever the rank

What only some kinds of adapter know is varied in those only; what is set of a strategy, only while
that is on.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import islice, product
from typing import TYPE_CHECKING, Any, get_args

from variegate.errors import RecipeError, RequestError
from variegate.recipe import ADAPTER_KINDS, OptimizerPlan, Recipe
from variegate.recipe.whole import field_at

if TYPE_CHECKING:
    from numpy.random import Generator

Value = bool | int | float | str
SCALE = "adapter.alpha/rank"
# What all trials must share, or they could not be compared.
SHARED = frozenset({"base", "images", "trigger", "class_noun", "seed", "sampling", "held_out"})
MOST_CHECKED = 256  # combinations of choices that are tried on the recipe beforehand


@dataclass(frozen=True)
class Knob:
    """One entry of the recipe and the values it may take: `choices`, or all from `low` to `high`.

    whole: integers only. log: evenly spread in the logarithm.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def ordered(self) -> bool:
        """Whether its values have an order: a range, or a list of numbers."""
        return all(_is_number(value) for value in self.choices)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that are tried on the recipe beforehand."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def values(self) -> Sequence[Value]:
        """All that it may take, in order; none are listed of a range of fractions."""
        if self.choices or not self.whole:
            return self.choices
        return range(int(self.low), int(self.high) + 1)

    def has(self, value: Any) -> bool:
        """Whether it may take a value."""
        if self.choices:
            return value in self.choices
        return _is_number(value) and self.low <= float(value) <= self.high

    def told(self) -> str:
        """As it is written on the command line."""
        if self.choices:
            return f"{self.key}={','.join(map(spell, self.choices))}"
        low, high = map(spell, self.ends)
        return f"{self.key}={low}..{high}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """All that is varied of one recipe, in the order in which it is decided: what switches others
    on or off first."""

    knobs: tuple[Knob, ...]

    def asked_of(self, values: Mapping[str, Value], knob: Knob, recipe: Recipe) -> bool:
        """Whether a knob means anything once what stands before it is decided."""
        table, _, name = knob.key.rpartition(".")
        if values.get(table) == "off":
            return False
        for of, kinds in (("adapter", ADAPTER_KINDS), ("optimizer", _optimizers())):
            kind = values.get(f"{of}.kind")
            if kind in kinds and knob.key.startswith(f"{of}.") and name != "kind":
                entry = knob.key.split(".")[1].partition("/")[0]
                return entry in kinds[str(kind)].model_fields
        return True

    @property
    def finite(self) -> bool:
        """Whether all combinations can be listed: no knob is a range of fractions."""
        return all(knob.values for knob in self.knobs)

    def combinations(self, recipe: Recipe, rng: Generator) -> Iterator[dict[str, Value]]:
        """Every combination of a finite space that means something, once each; where it begins and
        goes on is drawn by chance."""

        def walk(decided: dict[str, Value], knobs: Sequence[Knob]) -> Iterator[dict[str, Value]]:
            if not knobs:
                yield decided
                return
            knob, *rest = knobs
            if not self.asked_of(decided, knob, recipe):
                yield from walk(decided, rest)
                return
            first = int(rng.integers(len(knob.values)))
            for i in range(len(knob.values)):
                value = knob.values[(first + i) % len(knob.values)]
                yield from walk({**decided, knob.key: value}, rest)

        return walk({}, self.knobs)

    def settings(self, values: Mapping[str, Value], recipe: Recipe) -> tuple[str, ...]:
        """`key.sub=value` for a recipe, in an order in which they can be laid on it."""
        told = [f"{k}={spell(v)}" for k, v in values.items() if k != SCALE]
        if SCALE in values:
            rank = values.get("adapter.rank", getattr(recipe.adapter, "rank", 0))
            told.append(f"adapter.alpha={spell(float(values[SCALE]) * float(rank))}")
        return tuple(told)

    def recipe(self, values: Mapping[str, Value], recipe: Recipe, **given: Any) -> Recipe:
        """The recipe with these values.

        Raises: RecipeError when they do not go together.
        """
        tables = recipe.model_dump(mode="json", exclude_none=True)
        return Recipe.build(tables, settings=self.settings(values, recipe), **given)

    def own(self, recipe: Recipe) -> dict[str, Value]:
        """The recipe's own values, as far as they lie in the ranges."""
        return self._split(recipe)[0]

    def _split(self, recipe: Recipe) -> tuple[dict[str, Value], dict[str, Any]]:
        """The recipe's own values inside the ranges, and those outside; None: it sets none."""
        tables = recipe.model_dump(mode="json")
        inside, outside = dict[str, Value](), dict[str, Any]()
        for knob in self.knobs:
            if self.asked_of(inside, knob, recipe):
                value = _value_in(tables, knob.key)
                (inside if knob.has(value) else outside)[knob.key] = value
        return inside, outside

    def notes(self, recipe: Recipe) -> list[str]:
        """What weakens a claim about the recipe as it is, or about what mattered."""
        return [*self._outside(recipe), *self._scaled(recipe)]

    def _outside(self, recipe: Recipe) -> list[str]:
        """That the recipe as it is will not be tried, where ranges leave its values out."""
        _, outside = self._split(recipe)
        if not outside:
            return []
        parts = [
            f"{knob.key} is {'not set' if outside[knob.key] is None else spell(outside[knob.key])}"
            f", and its range is {knob.told().partition('=')[2]}"
            for knob in self.knobs
            if knob.key in outside
        ]
        return [
            f"the recipe itself is not tried: {'; '.join(parts)}. The first trial has all else as "
            "the recipe has it; ranges that hold its values too have it tried"
        ]

    def _scaled(self, recipe: Recipe) -> list[str]:
        """That the update's scale goes along with the rank, where only the rank is varied."""
        knobs = {knob.key: knob for knob in self.knobs}
        alpha, rank = getattr(recipe.adapter, "alpha", None), knobs.get("adapter.rank")
        if rank is None or alpha is None or {SCALE, "adapter.alpha"} & knobs.keys():
            return []
        ends = [float(alpha) / float(end) for end in (min(rank.ends), max(rank.ends))]
        return [
            f"adapter.alpha stays {alpha:g} while adapter.rank is varied, so the update's scale "
            f"alpha/rank goes from {ends[0]:g} to {ends[1]:g} with it; `--range {SCALE}=0.5,1,2` "
            "tells the two apart"
        ]


def spell(value: Value) -> str:
    """As a setting is written.

    >>> spell(True), spell(8), spell(2.0), spell(1e-5), spell("on")
    ('true', '8', '2.0', '1e-05', 'on')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_space(texts: Sequence[str], recipe: Recipe) -> Space:
    """What some ranges vary of a recipe.

    Raises: RequestError with every fault of all ranges: of their form, of entries that the recipe
    has not or values it refuses, and of choices that do not go together.
    """
    faults, knobs = list[str](), dict[str, Knob]()
    for text in texts:
        try:
            knob = _parse(text, recipe)
        except ValueError as error:
            faults.append(f"{text}: {error}")
            continue
        if knob.key in knobs:
            faults.append(f"{text}: {knob.key} has a range already, {knobs[knob.key].told()}")
            continue
        knobs[knob.key] = knob
    space = Space(tuple(sorted(knobs.values(), key=_turn)))
    if {SCALE, "adapter.alpha"} <= knobs.keys():
        faults.append(f"{SCALE} and adapter.alpha are one thing; vary one of them")
    for knob in space.knobs:
        faults += _refused(space, knob, recipe)
    if not faults:
        faults += _at_odds(space, recipe)
    if not texts:
        faults.append(
            "nothing is varied: give `--range KEY=VALUES`, such as --range adapter.rank=4,8,16 or "
            f"--range optimizer.lr=1e-5..5e-4:log, or --preset {'|'.join(presets())}"
        )
    if faults:
        listed = "\n".join(f"  {fault}" for fault in dict.fromkeys(faults))
        raise RequestError(f"--range cannot be used:\n{listed}")
    return space


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Ranges to start from, by the job: each with `about`, `source` and `ranges`."""
    text = resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf8")
    return tomllib.loads(text)


def with_preset(name: str | None, texts: Sequence[str]) -> list[str]:
    """A preset's ranges, those that are asked in place of its own.

    Raises: RequestError when there is no such preset.
    """
    if name is None:
        return list(texts)
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(presets())}"
        raise RequestError(f"--preset {name!r} is none; {hint}")
    asked = {text.partition("=")[0].strip() for text in texts}
    own = [text for text in presets()[name]["ranges"] if text.partition("=")[0] not in asked]
    return [*own, *texts]


# --- one range ----------------------------------------------------------------------------------


def _parse(text: str, recipe: Recipe) -> Knob:
    """Raises: ValueError with what is wrong, and what to write."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise ValueError(
            "expected KEY=VALUES, as adapter.rank=2,4,8 or optimizer.lr=1e-5..1e-3:log"
        )
    if key.partition(".")[0] in SHARED:
        raise ValueError(f"trials are compared at one {key}; use --set, or another search")
    if ".." in values:
        return _range(key, values, recipe)
    if values.endswith(":log"):
        raise ValueError("a list has no scale; :log goes with LOW..HIGH")
    choices = tuple(_value(part.strip()) for part in values.split(","))
    if "" in choices:
        raise ValueError("an empty value in the list")
    if len(set(map(spell, choices))) < len(choices):
        raise ValueError("a value comes twice")
    if len(choices) == 1:
        raise ValueError(f"one value is no range; use --set {key}={values}")
    if all(_is_number(value) for value in choices):
        choices = tuple(sorted(choices, key=float))
    return Knob(key, choices)


def _range(key: str, values: str, recipe: Recipe) -> Knob:
    span, _, scale = values.partition(":")
    if scale not in ("", "log"):
        near = (
            "; did you mean :log?" if difflib.get_close_matches(scale, ["log"], cutoff=0.3) else ""
        )
        raise ValueError(f"no scale is called {scale!r}{near}")
    low_text, _, high_text = (part.strip() for part in span.partition(".."))
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        raise ValueError(f"expected two numbers, LOW..HIGH; found {span!r}") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the ends must be finite")
    if low >= high:
        raise ValueError(f"the low end {low_text} is not below the high end {high_text}")
    if scale and low <= 0:
        raise ValueError(f":log needs a low end above 0; found {low_text}")
    found = field_at(key, recipe)
    whole = found is not None and _is_whole(found)
    if whole and (low != int(low) or high != int(high)):
        raise ValueError("this entry is a whole number, and so must its ends be")
    return Knob(key, (), low, high, bool(scale), whole)


def _value(text: str) -> Value:
    """As a setting's value is read."""
    try:
        found = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return found if isinstance(found, bool | int | float | str) else text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(annotation: Any) -> bool:
    kinds = set(get_args(annotation)) or {annotation}
    return int in kinds and float not in kinds


def _turn(knob: Knob) -> int:
    """Kinds and strategies are decided before what is set of them."""
    deep = knob.key.count(".")
    return 0 if knob.key.endswith(".kind") else 1 if _is_switch(knob) else 2 + deep


def _is_switch(knob: Knob) -> bool:
    return knob.key.startswith("strategies.") and knob.key.count(".") == 1


# --- what the recipe says of it -----------------------------------------------------------------


def _refused(space: Space, knob: Knob, recipe: Recipe) -> Iterator[str]:
    """What the recipe refuses of one knob alone."""
    if knob.key == SCALE and not hasattr(recipe.adapter, "alpha"):
        yield f"{knob.told()}: kind {recipe.adapter.kind!r} has no alpha"
        return
    before = _context(space, knob, recipe)
    for value in knob.ends:
        try:
            space.recipe({**before, knob.key: value}, recipe)
        except RecipeError as error:
            for fault in _lines(error):
                yield f"{knob.told()}: {fault}"
            if knob.choices and not _is_known(knob.key, recipe):
                return


def _is_known(key: str, recipe: Recipe) -> bool:
    return field_at(key, recipe) is not None


def _context(space: Space, knob: Knob, recipe: Recipe) -> dict[str, Value]:
    """The first choice of a kind, where kinds are varied, that knows a knob."""
    found = dict[str, Value]()
    for other in space.knobs:
        if other.key.endswith(".kind") and other is not knob:
            fit = [v for v in other.choices if space.asked_of({other.key: v}, knob, recipe)]
            same = other.key.split(".")[0] == knob.key.split(".")[0]
            found |= {other.key: fit[0]} if fit and same else {}
    return found


def _at_odds(space: Space, recipe: Recipe) -> list[str]:
    """Choices that the recipe takes alone and refuses together."""
    named = [knob for knob in space.knobs if not knob.ordered]
    found = list[str]()
    for picked in islice(product(*[knob.choices for knob in named]), MOST_CHECKED):
        chosen = {knob.key: value for knob, value in zip(named, picked, strict=True)}
        for end in (0, -1):
            values = dict[str, Value]()
            for knob in space.knobs:
                if space.asked_of(values, knob, recipe):
                    values[knob.key] = chosen.get(knob.key, knob.ends[end])
            try:
                space.recipe(values, recipe)
            except RecipeError as error:
                of = ", ".join(f"{key}={spell(value)}" for key, value in chosen.items())
                found += [f"{of or 'together'}: {fault}" for fault in _lines(error)]
    return found[:8]


def _lines(error: RecipeError) -> list[str]:
    """The faults that an error of a recipe lists."""
    head, _, rest = str(error).partition("\n")
    return [line.strip() for line in rest.splitlines()] or [head]


def _value_in(tables: Mapping[str, Any], key: str) -> Any:
    if key == SCALE:
        plan = tables["adapter"]
        return plan["alpha"] / plan["rank"] if {"alpha", "rank"} <= plan.keys() else None
    value: Any = tables
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if key.startswith("strategies.") and key.count(".") == 1:
        return "off" if value is None else "on"
    return value


def _optimizers() -> dict[str, Any]:
    union = get_args(get_args(OptimizerPlan)[0])
    return {plan.model_fields["kind"].default: plan for plan in union}
