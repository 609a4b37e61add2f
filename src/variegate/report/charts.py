"""Curves as inline SVG: text stays text, colours come from the page, output is reproducible."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from variegate.report.pictures import spread
from variegate.report.record import Journal, Point
from variegate.report.text import plain
from variegate.report.words import PROBE_PARTS, probe_words

MOST_POINTS = 240  # drawn per curve
MOST_SERIES = 6  # per chart, as many as there are told-apart colours
MOST_CHARTS = 14

# Stand-ins that matplotlib draws with; each becomes the page's own colour, light or dark.
INK = "#010101"
FAINT = "#020202"
SERIES = tuple(f"#0100{i:02x}" for i in range(1, MOST_SERIES + 1))
COLOURS = {
    INK: "var(--soft)",
    FAINT: "var(--line)",
    **{hue: f"var(--series-{i})" for i, hue in enumerate(SERIES, 1)},
}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "variegate",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """One figure: its words, its drawing, and a key (series number, name) when it has several."""

    title: str
    meaning: str
    name: str
    svg: Markup
    key: tuple[tuple[int, str], ...]
    note: str


def journal_charts(journal: Journal, *, prefix: str = "chart") -> list[Chart]:
    """One chart per family of curves: the loss first, then every family of probes by name.

    A family is the name up to its last part: `one_step_variety.class` and
    `one_step_variety.trigger` share one chart. Ids inside the drawings start with
    `prefix` and are unique on a page.
    """
    families: dict[str, dict[str, list[Point]]] = {}
    order = list(PROBE_PARTS)

    def rank(name: str) -> tuple[bool, bool, str, int, str]:
        family, part = _family(name)
        place = order.index(part) if part in order else len(order)
        return family != "loss", family != "terms", family, place, part

    for name in sorted(journal.curves, key=rank):
        family, part = _family(name)
        families.setdefault(family, {})[part] = journal.curves[name]
    terms = families.get("terms", {})
    if len(terms) == 1:  # one term is the loss itself
        del families["terms"]
    better = {_family(name)[0]: way for name, way in journal.better.items()}
    return [
        _chart(family, parts, better=better.get(family, ""), prefix=f"{prefix}{i}")
        for i, (family, parts) in enumerate(list(families.items())[:MOST_CHARTS])
    ]


def _family(name: str) -> tuple[str, str]:
    if name.startswith("terms_"):
        return "terms", name.removeprefix("terms_")
    for mark in (".", "_"):
        stem, _, part = name.rpartition(mark)
        if stem and (mark == "." or part in PROBE_PARTS):
            return stem, part
    return name, ""


def _chart(family: str, parts: Mapping[str, Sequence[Point]], *, better: str, prefix: str) -> Chart:
    title, meaning = probe_words(family)
    noisy = family in ("loss", "terms")
    shown = dict(list(parts.items())[:MOST_SERIES])
    note = ""
    if len(parts) > MOST_SERIES:
        note = f"{MOST_SERIES} of {len(parts)} curves are shown. "
    window = _window(max(len(points) for points in shown.values())) if noisy else 1
    if window > 1:
        note += f"Running mean over about {window} noted steps; faint: as noted."
    elif better in ("higher", "lower"):
        note += f"{better.capitalize()} is better."
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for hue, points in zip(SERIES, shown.values(), strict=False):
            _draw(axes, points, hue=hue, window=window, faint=len(shown) == 1)
        if "vs_base" in family or family.endswith("_variety"):
            axes.axhline(1.0, color=INK, linewidth=0.8, dashes=(3, 3))
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.locator_params(nbins=5)
        svg = _inline(figure, prefix=prefix, label=_spoken(title, shown))
    names = [PROBE_PARTS.get(part, part.replace("_", " ")) for part in shown]
    key = tuple(enumerate(names, 1)) if len(shown) > 1 or names[0] else ()
    return Chart(title, meaning, family, svg, key, note.strip())


@dataclass(frozen=True)
class Dot:
    """One point of a scatter, in a series from 1, with its name where it is to be told, and what it
    may be along either axis."""

    x: float
    y: float
    series: int
    name: str = ""
    across: tuple[float, float] | None = None
    upward: tuple[float, float] | None = None


def scatter(
    dots: Sequence[Dot],
    *,
    axes: tuple[str, str],
    label: str,
    prefix: str,
    small: bool = False,
    log: bool = False,
    ticks: Sequence[str] = (),
) -> Markup:
    """Points in a plane as inline SVG, the named ones with their names beside them.

    small: a fraction of the page's width. log: x by its logarithm. ticks: what x = 0, 1, 2 .. are
    called, where x only counts.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.6) if small else (8.4, 5.2), layout="constrained")
        plot = figure.add_subplot()
        if log:
            plot.set_xscale("log")
        if ticks:
            plot.set_xticks(range(len(ticks)), [plain(tick, 12) for tick in ticks])
        for dot in dots:
            hue = SERIES[(dot.series - 1) % MOST_SERIES]
            thin: Any = {"color": hue, "linewidth": 1.2, "alpha": 0.55 if dot.name else 0.2}
            if dot.across:
                plot.plot(dot.across, [dot.y, dot.y], **thin)
            if dot.upward:
                plot.plot([dot.x, dot.x], dot.upward, **thin)
            plot.plot([dot.x], [dot.y], marker="o", ms=6 if dot.name else 4, color=hue)
        # From the top down, each name below the one before where they would touch.
        lowest: list[tuple[float, float]] = []
        high = max((d.y for d in dots), default=1.0) - min((d.y for d in dots), default=0.0)
        for dot in sorted(dots, key=lambda d: -d.y):
            if not dot.name:
                continue
            y = dot.y
            for x, taken in lowest:
                if abs(dot.x - x) < 0.2 and y > taken - 0.035 * high:
                    y = taken - 0.035 * high
            lowest.append((dot.x, y))
            plot.annotate(
                plain(dot.name),
                (dot.x, y),
                xytext=(7, 0),
                textcoords="offset points",
                fontsize=9,
                va="center",
                color=INK,
            )
        plot.set_xlabel(axes[0])
        plot.set_ylabel(axes[1])
        plot.margins(0.08)
        plot.grid(color=FAINT, linewidth=0.6)
        plot.set_axisbelow(True)
        plot.tick_params(length=0)
        return _inline(figure, prefix=prefix, label=label)


def _window(count: int) -> int:
    """Noted steps that a running mean spans: about a twentieth of them."""
    return max(1, min(50, count // 20))


def _draw(axes: Axes, points: Sequence[Point], *, hue: str, window: int, faint: bool) -> None:
    shown = spread(points, MOST_POINTS)
    steps = [p.step for p in shown]
    if window > 1:
        if faint:
            axes.plot(steps, [p.value for p in shown], color=hue, linewidth=0.7, alpha=0.25)
        smooth = dict(zip((p.step for p in points), running_mean(points, window), strict=True))
        axes.plot(steps, [smooth[s] for s in steps], color=hue, linewidth=1.8)
        return
    low = [p.value if p.low is None else p.low for p in shown]
    high = [p.value if p.high is None else p.high for p in shown]
    if low != high:
        axes.fill_between(steps, low, high, color=hue, alpha=0.15, linewidth=0)
    marker = "o" if len(shown) <= 30 else ""
    axes.plot(steps, [p.value for p in shown], color=hue, linewidth=1.8, marker=marker, ms=3)


def running_mean(points: Sequence[Point], window: int) -> list[float]:
    """Mean of the last `window` values at each point.

    >>> running_mean([Point(0, 1.0), Point(1, 3.0), Point(2, 5.0)], 2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for i in range(len(points)):
        recent = points[max(0, i - window + 1) : i + 1]
        means.append(math.fsum(p.value for p in recent) / len(recent))
    return means


def _spoken(title: str, parts: Mapping[str, Sequence[Point]]) -> str:
    """What a reader who cannot see the chart is told."""
    told = [
        f"{PROBE_PARTS.get(part, part) or 'it'} goes from {points[0].value:.3g} at step "
        f"{points[0].step} to {points[-1].value:.3g} at step {points[-1].step}"
        for part, points in parts.items()
    ]
    return f"{title}: " + "; ".join(told) + "."


_ID = re.compile(r' id="([^"]*)"')


def _inline(figure: Figure, *, prefix: str, label: str) -> Markup:
    """The figure as one `<svg>` element for the page."""
    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = _ID.sub(lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)
    for stand_in, colour in COLOURS.items():
        text = text.replace(stand_in, colour)
    # The first patch is the figure's own ground, the second the axes': the page shows through.
    text = text.replace("fill: #ffffff", "fill: none")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"\s*\n\s*", " ", text)
    said = escape(plain(label))
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{said}"', 1))
