"""What stands beside the judged measurements and decides nothing.

Each is a number that the field reports, taken here so that a verdict can be compared with papers
and other tools. The functions behind them say in their docstrings what each one confuses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from variegate import seeds
from variegate.errors import FeaturesError
from variegate.measure import uncertainty
from variegate.measure.distance import frechet_distance, kid, mmd
from variegate.measure.diversity import AT_LEAST_PICTURES, mean_pairwise_distance
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.fidelity import fidelity
from variegate.measure.memorisation import (
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
    ours = view.adapter[[row for line in lines for row in line.adapter_rows]]
    theirs = view.base[[row for line in lines for row in line.base_rows]]
    n = min(len(ours), len(theirs))
    names = ("precision", "recall", "density", "coverage", "frechet_distance", "kid", "mmd")
    if n <= NEIGHBOURS:
        why = f"{n} class pictures of a model; these want more than {NEIGHBOURS}, at best 1,000"
        return [Missing(name, why) for name in names]
    source = f"class pictures against the base's, {view.encoder}; reported, never a gate"
    found = fidelity(theirs, ours, k=NEIGHBOURS)
    values = {name: getattr(found, name) for name in names[:4]}
    values["frechet_distance"] = float(frechet_distance(theirs, ours))
    values["kid"] = kid(theirs, ours)[0]
    values["mmd"] = mmd(_some(theirs), _some(ours))
    lower = ("frechet_distance", "kid", "mmd")
    edges: dict[str, tuple[float | None, float | None]] = {
        name: _share(values[name], len(theirs if name in ("recall", "coverage") else ours))
        for name in ("precision", "recall", "coverage")
    }
    return [
        Measurement(
            name,
            values[name],
            low,
            high,
            n,
            "lower" if name in lower else "higher",
            source=source if found.enough else f"{source}; degenerate below 1,000 pictures",
        )
        for name in names
        for low, high in [edges.get(name, (None, None))]
    ]


def _share(value: float, of: int) -> tuple[float, float]:
    """The interval of a share of pictures, taken as independent."""
    return uncertainty.binomial_interval(round(value * of), of)


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
    asked = [*evidence.of_group("trigger"), *evidence.of_group("caption")]
    rows = [row for line in asked or evidence.lines for row in line.adapter_rows]
    samples = view.adapter[rows]
    source = f"{view.encoder}; reported, never a gate"
    orbit = orbited(samples, train)
    shares: tuple[tuple[str, float, Better], ...] = (
        ("near_ratio", near_ratio(samples, train), "lower"),
        ("authenticity", authenticity(samples, train), "higher"),
    )
    found: list[Reading] = [
        _top_likeness(view, samples, train),
        *(
            Measurement(
                name, value, *_share(value, len(rows)), n=len(rows), better=better, source=source
            )
            for name, value, better in shares
        ),
        _or_missing(
            "cluster_distance", lambda: cluster_distance(samples, train), len(rows), source
        ),
        Measurement(
            "orbited_pictures",
            float(orbit.pictures),
            float(orbit.low),
            float(orbit.high),
            len(rows),
            "higher",
            f"of {len(train)} training pictures",
            source=source,
        ),
    ]
    held_out = view.held_out
    if held_out is None:
        found.append(Missing("data_copying", "no pictures were held out of training"))
    else:
        found.append(
            _or_missing(
                "data_copying", lambda: data_copying(samples, train, held_out), len(rows), source
            )
        )
    return [*found, _self_lock(evidence, view, train)]


def _top_likeness(view: View, samples: Tensor, train: Tensor) -> Reading:
    """What 95 of 100 samples stay below in cosine to their nearest training picture, beside what
    training pictures have to one another and the base's pictures to them."""

    def top(rows: Tensor, same: bool = False) -> float:
        alike = 1 - nearest(rows, train, k=1, same=same).distance[:, 0].square() / 2  # unit rows
        return float(alike.double().quantile(TOP))

    return Measurement(
        "top_likeness",
        top(samples),
        n=len(samples),
        unit="cosine",
        source=(
            f"{view.encoder}; training pictures to one another {top(train, same=True):.2f}, the"
            f" base's to them {top(view.base):.2f}"
        ),
    )


def _self_lock(evidence: Evidence, view: View, train: Tensor) -> Reading:
    """Is a picture asked with a training caption nearest to that caption's own picture?"""
    name = "self_against_other"
    of_caption: dict[str, list[int]] = {}
    for row, caption in enumerate(evidence.captions):
        of_caption.setdefault(caption, []).append(row)
    pairs = [
        (row, of_caption[line.prompt][0])
        for line in evidence.of_group("caption")
        if len(of_caption.get(line.prompt, ())) == 1
        for row in line.adapter_rows
    ]
    if not pairs:
        why = "no picture was drawn with a caption that one training picture alone has"
        return Missing(name, why)
    rows, own = (list(part) for part in zip(*pairs, strict=True))
    contrast = self_against_other(view.adapter[rows], train, torch.tensor(own))
    return Measurement(
        name,
        contrast.mean,
        n=len(rows),
        better="lower",
        unit="cosine",
        source=f"{view.encoder}; {contrast.locked:.0%} lie nearest to their own caption's picture",
    )


def _or_missing(name: str, number: Callable[[], float], n: int, source: str) -> Reading:
    try:
        return Measurement(name, number(), n=n, source=source)
    except FeaturesError as error:
        return Missing(name, str(error))
