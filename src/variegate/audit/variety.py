"""How varied the pictures of a set are, and what keeps the number low."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from variegate.audit.chart import Chart, chart
from variegate.audit.descriptors import Look, distances
from variegate.audit.duplicates import Duplicate, families
from variegate.audit.effective import effective_number, likeness, together
from variegate.audit.finding import Finding

FEW = 5  # below it one odd picture is a fifth of what is learnt
THIN = 10
LEAST_TO_COMPARE = 3  # pictures; below it "all alike" says nothing
# Medians over pairs, in units of unrelated pictures. 40 photographs of 8 subjects in many places
# lie at 0.85 to 1.0; scenes that share colour and pattern of the ground at 0.14 or below.
ONE_BACKGROUND = 0.35
ONE_PALETTE = 0.25
ONE_COMPOSITION = 0.25
# Spread of the subject's centre, as a share of the side: 0.14 in scenes over nine places, 0.015 in
# scenes over one. Photographs with the subject carefully centred lie near 0.03.
ONE_PLACE = 0.03


@dataclass(frozen=True)
class Variety:
    """effective: the effective number of different pictures. spread: per descriptor, the median
    distance over pairs (1: as unrelated ones). place: spread of the subject's centre. chart: every
    picture on a plane."""

    n: int
    effective: float
    spread: dict[str, float]
    place: float
    copies: int
    chart: Chart

    @property
    def one_place(self) -> bool:
        return self.place < ONE_PLACE

    @property
    def one_background(self) -> bool:
        return self.spread.get("background", 1.0) < ONE_BACKGROUND

    @property
    def limited_by(self) -> tuple[str, ...]:
        """What the pictures share, the most shared first; duplicates before all."""
        limits = {
            "background": ONE_BACKGROUND,
            "palette": ONE_PALETTE,
            "composition": ONE_COMPOSITION,
        }
        shared = [k for k, limit in limits.items() if self.spread.get(k, 1.0) < limit]
        shared.sort(key=lambda k: self.spread[k])
        place = ["place"] if self.one_place else []
        return (*(["duplicates"] if self.copies else []), *shared, *place)


def measure_variety(looks: list[Look], hashes: list[str], duplicates: list[Duplicate]) -> Variety:
    """The variety of a set; pictures with the same bytes are looked at once."""
    n = len(looks)
    copies = sum(len(g) - 1 for g in families(n, duplicates))
    first = {h: i for i, h in reversed(list(enumerate(hashes)))}
    row = {h: i for i, h in enumerate(sorted(first))}
    kept = [looks[first[h]] for h in row]
    if not kept:
        return Variety(0, 0.0, {}, 1.0, 0, chart(np.zeros((0, 0))))
    parts = distances(kept)
    apart = together(parts)
    effective = effective_number(likeness(apart))
    drawn = chart(apart).of([row[h] for h in hashes])
    if len(kept) < LEAST_TO_COMPARE:
        return Variety(n, effective, {}, 1.0, copies, drawn)
    pairs = np.triu_indices(len(kept), 1)
    spread = {name: float(np.median(d[pairs])) for name, d in parts.items()}
    centres = np.stack([x.box[:2] for x in kept])
    place = float(np.sqrt(centres.var(axis=0).mean()))
    return Variety(n, effective, spread, place, copies, drawn)


def judge_variety(variety: Variety, groups: list[list[str]]) -> list[Finding]:
    """What about the pictures will narrow the adapter, worst first.

    groups: the names of pictures that are one picture several times.
    """
    n = variety.n
    found = [*_count(n), *_copies(variety, groups)]
    if not variety.spread:
        return found
    if variety.effective < 0.5 * n:
        shared = ", ".join(variety.limited_by) or "a general likeness"
        found.append(
            Finding(
                "The pictures are much alike",
                f"{n} pictures count as {variety.effective:.1f} different ones; limited by: "
                f"{shared}",
                "Add pictures that differ in what is named here; a few different ones help more "
                "than many alike.",
            )
        )
    return [*found, *_shared(variety)]


def _count(n: int) -> list[Finding]:
    if n == 0:
        return [
            Finding(
                "No picture can be used",
                "0 usable pictures",
                "See the faults of each file; save the pictures as PNG or JPEG and try again.",
            )
        ]
    if n < FEW:
        return [
            Finding(
                "Very few pictures",
                f"{n} usable",
                "Add more, 10 to 20 if you can: with so few, the adapter tends to copy them.",
            )
        ]
    if n < THIN:
        return [
            Finding(
                "Few pictures",
                f"{n} usable",
                "It can work, but 10 to 20 in different places and poses copy less.",
            )
        ]
    return []


def _copies(variety: Variety, groups: list[list[str]]) -> list[Finding]:
    if not groups:
        return []
    largest = groups[0]
    return [
        Finding(
            "Some pictures are there more than once, or nearly so",
            f"{variety.copies} of {variety.n} repeat another; the largest family has "
            f"{len(largest)}: {', '.join(largest[:3])}{' ...' if len(largest) > 3 else ''}",
            "Keep one of each family: what is shown more often is memorised first.",
        )
    ]


def _shared(variety: Variety) -> list[Finding]:
    found = []
    spread = variety.spread
    if variety.one_background:
        found.append(
            Finding(
                "One background",
                f"backgrounds differ by {spread['background']:.2f}, where unrelated pictures "
                "differ by 1",
                "Take pictures in other places, cut the subject out and lay it on other grounds, "
                "or train with new backgrounds; otherwise the ground is learnt with the subject.",
            )
        )
    if spread["palette"] < ONE_PALETTE:
        found.append(
            Finding(
                "One palette",
                f"colours differ by {spread['palette']:.2f}, where unrelated pictures differ by 1",
                "Add pictures in other light and surroundings, unless the palette is the style "
                "you want to teach.",
            )
        )
    if variety.one_place:
        found.append(
            Finding(
                "The subject is always in the same place",
                f"its centre moves by {100 * variety.place:.1f} % of the side",
                "Crop some pictures so that it stands elsewhere and in other sizes, or train with "
                "zoom and shift.",
            )
        )
    return found
