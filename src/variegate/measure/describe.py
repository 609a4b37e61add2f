"""What stands beside the judged measurements and decides nothing.

Each is a number that the field reports, taken here so that a verdict can be compared with papers
and other tools. The functions behind them say in their docstrings what each one confuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from variegate import seeds
from variegate.errors import FeaturesError
from variegate.measure import uncertainty
from variegate.measure.distance import frechet_distance, kid, mmd
from variegate.measure.diversity import AT_LEAST_PICTURES, mean_pairwise_distance
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.fidelity import ENOUGH, fidelity
from variegate.measure.memorisation import (
    Contrast,
    authenticity,
    cluster_distance,
    data_copying,
    near_ratio,
    orbited,
    self_against_other,
)
from variegate.measure.neighbours import nearest
from variegate.measurement import Better, Measurement, Missing

Reading = Measurement | Missing
NEIGHBOURS = 5  # k of precision to coverage
MOST_ROWS = 2_000  # of each set, under a kernel of all pairs
SHARES = ("precision", "recall", "coverage", "near_ratio", "authenticity")
MAY_BE_NEGATIVE = ("kid", "mmd", "data_copying", "self_against_other")
TOP = 0.95  # quantile of the samples' likeness to their nearest training picture


def describe(evidence: Evidence) -> list[Reading]:
    """Every reported number that the evidence allows, by the first encoder; n is the number of
    pictures it rests on, but for mean_distance_vs_base that of prompts."""
    view = evidence.views[0]
    return [
        *_spread(view, evidence.of_group("class")),
        *_between(view, evidence.of_group("class")),
        *_memory(evidence, view),
    ]


def _spread(view: View, lines: tuple[Line, ...]) -> list[Reading]:
    name = "mean_distance_vs_base"
    logs = []
    for line in lines:
        if min(len(line.adapter_rows), len(line.base_rows)) < AT_LEAST_PICTURES:
            continue
        ours, theirs = (
            mean_pairwise_distance(rows) for rows in (view.of_adapter(line), view.of_base(line))
        )
        if min(ours, theirs) > 0:
            logs.append(float(np.log(ours / theirs)))
    if not logs:
        return [Missing(name, "no prompt has pictures of both models that differ")]
    low, high = uncertainty.bca_interval(logs, address=name)
    value, low, high = (float(np.exp(x)) for x in (np.mean(logs), low, high))
    source = f"mean pairwise distance within prompt, {view.encoder}; blind to copies of a few"
    return [
        Measurement(
            name,
            value,
            min(low, value),
            max(high, value),
            len(logs),
            "higher",
            "of the base's",
            source=source,
        )
    ]


def _between(view: View, lines: tuple[Line, ...]) -> list[Reading]:
    """The adapter's class pictures against the base's, as two sets."""
    names = ("precision", "recall", "density", "coverage", "frechet_distance", "kid", "mmd")

    def sets(kept: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = ([], []) if not kept else zip(*(_rows(lines[i]) for i in kept), strict=True)
        ours, theirs = ([row for part in own for row in part] for own in rows)
        return view.adapter[ours], view.base[theirs]

    def numbers(kept: Sequence[int]) -> list[float]:
        ours, theirs = sets(kept)
        found = fidelity(theirs, ours, k=NEIGHBOURS)
        # Below 1,000 pictures every subset of KID's is the whole set.
        subsets = 1 if max(len(ours), len(theirs)) <= 1000 else 100
        return [
            *(found.precision, found.recall, found.density, found.coverage),
            float(frechet_distance(theirs, ours)),
            kid(theirs, ours, subsets=subsets)[0],
            mmd(_some(theirs), _some(ours)),
        ]

    n = min(map(len, sets(range(len(lines)))))
    if n <= 2 * NEIGHBOURS:
        why = f"{n} class pictures of a model; these want more than {2 * NEIGHBOURS}"
        return [Missing(name, f"{why}, at best 1,000") for name in names]
    source = f"class pictures against the base's, {view.encoder}; reported, never a gate"
    if n < ENOUGH:
        source = f"{source}; degenerate below {ENOUGH:,} pictures"
    return _with_intervals(
        {name: "higher" if name in names[:4] else "lower" for name in names},
        numbers,
        units=len(lines),
        n=n,
        source=source,
    )


def _rows(line: Line) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return line.adapter_rows, line.base_rows


def _with_intervals(
    names: Mapping[str, Better],
    numbers: Callable[[Sequence[int]], Sequence[float]],
    *,
    units: int,
    n: int,
    source: str,
    unit: str = "",
) -> list[Reading]:
    """Numbers of sets of pictures, the prompts jackknifed. Shares and distances stay in range.

    Without intervals where one prompt holds so many of the pictures that the others are too few.
    """
    found: Sequence[tuple[float, float | None, float | None]]
    try:
        found = uncertainty.jackknife(numbers, units)
    except FeaturesError:
        found = [(value, None, None) for value in numbers(range(units))]
    readings: list[Reading] = []
    for (name, better), (value, low, high) in zip(names.items(), found, strict=True):
        if low is not None and high is not None:
            low = low if name in MAY_BE_NEGATIVE else max(low, 0.0)
            if name in SHARES:  # none of so many, or all of them, still leaves room
                least, most = uncertainty.binomial_interval(round(value * n), n)
                low, high = min(low, least), max(min(high, 1.0), most)
        readings.append(Measurement(name, value, low, high, n, better, unit, source=source))
    return readings


def _some(rows: Tensor) -> Tensor:
    """Up to 2,000 rows, always the same: the kernel of all would not fit into memory."""
    if len(rows) <= MOST_ROWS:
        return rows
    chosen = seeds.numpy_at(0, "measure.describe", len(rows)).permutation(len(rows))[:MOST_ROWS]
    return rows[torch.from_numpy(chosen)]


def _memory(evidence: Evidence, view: View) -> list[Reading]:
    """The adapter's pictures against those it learnt from: where it was asked for the subject, if
    it was, else all."""
    names = (
        *("top_likeness", "near_ratio", "authenticity", "cluster_distance", "orbited_pictures"),
        *("data_copying", "self_against_other"),
    )
    train = view.train
    if train is None or len(train) < 3:
        why = "no training pictures were given to compare with"
        if train is not None:
            why = f"{len(train)} training pictures; these want three or more"
        return [Missing(name, why) for name in names]
    lines = (*evidence.of_group("trigger"), *evidence.of_group("caption")) or evidence.lines

    def drawn(kept: Sequence[int]) -> Tensor:
        return view.adapter[[row for i in kept for row in lines[i].adapter_rows]]

    samples = drawn(range(len(lines)))
    held_out = view.held_out
    numbers: dict[str, tuple[Better, Callable[[Tensor], float]]] = {
        "near_ratio": ("lower", lambda rows: near_ratio(rows, train)),
        "authenticity": ("higher", lambda rows: authenticity(rows, train)),
        "cluster_distance": ("neither", lambda rows: cluster_distance(rows, train)),
        "top_likeness": ("neither", lambda rows: _top_likeness(rows, train)),
    }
    if held_out is not None:
        numbers["data_copying"] = ("neither", lambda rows: data_copying(rows, train, held_out))
    found: list[Reading] = []
    if held_out is None:
        found.append(Missing("data_copying", "no pictures were held out of training"))
    for name, (better, number) in numbers.items():
        source = f"{view.encoder}; reported, never a gate"
        if name == "top_likeness":
            among = _top_likeness(train, train, same=True)
            of_base = _top_likeness(view.base, train)
            source = (
                f"{view.encoder}; training pictures to one another {among:.2f}, the base's to "
                f"them {of_base:.2f}"
            )
        try:
            found += _with_intervals(
                {name: better},
                lambda kept, number=number: [number(drawn(kept))],  # type: ignore[misc]
                units=len(lines),
                n=len(samples),
                source=source,
                unit="cosine" if name == "top_likeness" else "",
            )
        except FeaturesError as error:
            found.append(Missing(name, str(error)))
    orbit = orbited(samples, train)
    return [
        *found,
        Measurement(
            "orbited_pictures",
            float(orbit.pictures),
            float(orbit.low),
            float(orbit.high),
            len(samples),
            "higher",
            f"of {len(train)} training pictures",
            source=f"{view.encoder}; reported, never a gate",
        ),
        _self_lock(evidence, view, train),
    ]


def _top_likeness(rows: Tensor, train: Tensor, *, same: bool = False) -> float:
    """What 95 of 100 rows stay below in cosine to their nearest training picture."""
    alike = 1 - nearest(rows, train, k=1, same=same).distance[:, 0].square() / 2  # unit rows
    return float(alike.double().quantile(TOP))


def _self_lock(evidence: Evidence, view: View, train: Tensor) -> Reading:
    """Is a picture asked with a training caption nearest to that caption's own picture?"""
    name = "self_against_other"
    of_caption: dict[str, list[int]] = {}
    for row, caption in enumerate(evidence.captions):
        of_caption.setdefault(caption, []).append(row)
    lines = [
        line
        for line in evidence.of_group("caption")
        if len(of_caption.get(line.prompt, ())) == 1 and line.adapter_rows
    ]
    if not lines:
        why = "no picture was drawn with a caption that one training picture alone has"
        return Missing(name, why)

    def contrast(kept: Sequence[int]) -> Contrast:
        pairs = [
            (row, of_caption[lines[i].prompt][0]) for i in kept for row in lines[i].adapter_rows
        ]
        rows, own = (list(part) for part in zip(*pairs, strict=True))
        return self_against_other(view.adapter[rows], train, torch.tensor(own))

    locked = contrast(range(len(lines))).locked
    source = f"{view.encoder}; {locked:.0%} lie nearest to their own caption's picture"
    (reading,) = _with_intervals(
        {name: "lower"},
        lambda kept: [contrast(kept).mean],
        units=len(lines),
        n=sum(len(line.adapter_rows) for line in lines),
        source=source,
        unit="cosine",
    )
    return reading
