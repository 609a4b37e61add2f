"""Measurements as the page shows them: a sentence, a range on an axis, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from variegate.measurement import Measurement, Missing, Verdict
from variegate.report.text import MINUS, number, percent
from variegate.report.words import NUMBERS, NumberWords


@dataclass(frozen=True)
class Mark:
    """A value and its interval as percentages along an axis."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """The drawn axis: texts at its ends, and a tick where "no change" lies (or None)."""

    start: str
    end: str
    tick: float | None
    tick_name: str


@dataclass(frozen=True)
class Number:
    """A headline number, ready to show; `missing` says why there is none."""

    name: str
    title: str
    value: str = ""
    sentence: str = ""
    sureness: str = ""
    technical: str = ""
    axis: Axis | None = None
    mark: Mark | None = None
    missing: str = ""


def headline_numbers(verdict: Verdict) -> list[Number]:
    """The headline numbers that the verdict holds or misses, in the order artists ask for them."""
    found = {m.name: m for m in verdict.measurements}
    return [_number(found[name], words) for name, words in NUMBERS.items() if name in found]


def _number(m: Measurement | Missing, words: NumberWords) -> Number:
    if isinstance(m, Missing):
        return Number(m.name, words.title, missing=m.why)
    low, high = interval(m)
    start, end = _scale([m], words)
    value = say(m.value, words)
    return Number(
        name=m.name,
        title=words.title,
        value=value,
        sentence=_sentence(m, words).replace("{value}", value),
        sureness=sureness(m, words),
        technical=technical(m),
        axis=axis([m], words),
        mark=_mark(m.value, low, high, start, end),
    )


def say(value: float, words: NumberWords) -> str:
    """The value in the way its headline is read."""
    if words.style == "plain":
        return f"{value:.2f}".replace("-", MINUS)
    return percent(value, signed=words.style == "change")


def say_difference(m: Measurement, words: NumberWords) -> str:
    """A difference of two headline numbers, with its interval when it has one."""

    def text(value: float) -> str:
        if words.style == "plain":
            return f"{value:+.2f}".replace("-", MINUS)
        return percent(value, signed=True).removesuffix("\N{NO-BREAK SPACE}%")

    unit = "" if words.style == "plain" else " points"
    if m.low is None or m.high is None:
        return text(m.value) + unit
    return f"{text(m.value)}{unit} ({text(m.low)} to {text(m.high)})"


def interval(m: Measurement) -> tuple[float, float]:
    """The interval of a measurement, in order; its value twice when it has none."""
    low = m.value if m.low is None else m.low
    high = m.value if m.high is None else m.high
    return min(low, high), max(low, high)


def has_interval(m: Measurement) -> bool:
    return m.low is not None and m.high is not None


def _sentence(m: Measurement, words: NumberWords) -> str:
    if words.reference is None:
        return words.same
    if m.name == "copy_rate" and m.value == 0:
        return "None of the pictures repeats a training picture."
    low, high = interval(m)
    if high < words.reference:
        return words.below
    return words.above if low > words.reference else words.same


def sureness(m: Measurement, words: NumberWords) -> str:
    """How sure the number is, in words: the width of its interval against the drawn axis."""
    if not has_interval(m):
        return "How sure: unknown, no range was measured."
    low, high = interval(m)
    start, end = words.scale
    width = (high - low) / (end - start)
    how = "Fairly sure" if width <= 0.15 else "Rough" if width <= 0.4 else "Very unsure"
    text = f"{how}: between {say(low, words)} and {say(high, words)}."
    if words.reference is not None and words.reference_name == "base" and low <= words.reference:
        text += " That includes no change." if high >= words.reference else ""
    return text


def technical(m: Measurement) -> str:
    """The measurement as a researcher reads it."""
    parts = [f"{m.name} = {number(m.value)}"]
    if has_interval(m):
        parts[0] += f" [{number(m.low)}, {number(m.high)}]"
    parts.append(f"n = {m.n}")
    parts.extend(str(x) for x in (m.unit, m.source) if x)
    return " · ".join(parts)


def axis(measurements: Sequence[Measurement], words: NumberWords) -> Axis:
    """The axis that holds all of the intervals."""
    start, end = _scale(measurements, words)
    tick = None if words.reference is None else _along(words.reference, start, end)
    if not words.reference_name or words.reference in (start, end):
        tick = None
    return Axis(say(start, words), say(end, words), tick, words.reference_name)


def marks(measurements: Sequence[Measurement | None], words: NumberWords) -> list[Mark | None]:
    """Several measurements on one axis."""
    start, end = _scale([m for m in measurements if m is not None], words)
    return [None if m is None else _mark(m.value, *interval(m), start, end) for m in measurements]


def _scale(measurements: Sequence[Measurement], words: NumberWords) -> tuple[float, float]:
    ends = [interval(m) for m in measurements]
    start = min([words.scale[0], *(low for low, _ in ends)])
    end = max([words.scale[1], *(high for _, high in ends)])
    return start, end


def _mark(value: float, low: float, high: float, start: float, end: float) -> Mark:
    return Mark(*(_along(x, start, end) for x in (value, low, high)))


def _along(value: float, start: float, end: float) -> float:
    return round(100 * (value - start) / (end - start), 2)
