"""What was learnt, and what else changed: likeness, class retention, drift of unrelated prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variegate.measure.evidence import Line, View
from variegate.measure.paired import Difference, summarise, summarise_gap

LEAST_RANGE = 0.02  # of cosine between base and training pictures, below which nothing is told
COMMON = 0.99
FARTHER = 1.1  # a picture of the subject is this much farther out than 99 of 100 of the base's


def likeness(view: View, lines: tuple[Line, ...]) -> Difference | str:
    """How far the adapter's pictures went from the base's towards the training pictures.

    0: no more like them than what the base draws with the class noun; 1: as like them as they are
    to one another. The reference is the held-out pictures when there are any, so that copying does
    not pass for learning.
    """
    return _approach(view, lines, tail="greater", address="likeness")


def class_retention(view: View, lines: tuple[Line, ...]) -> Difference | str:
    """How much of the class is still itself: 1 as in the base, 0 when every picture of the class
    is as like the training pictures as they are to one another.

    One less the rise, on class prompts, of the similarity to the subject (PRES of Ruiz et al.
    2023, arXiv 2208.12242), in units of the way from base to subject.
    """
    rise = _approach(view, lines, tail="greater", address="class")
    if isinstance(rise, str):
        return rise
    return Difference(1 - rise.value, 1 - rise.high, 1 - rise.low, rise.p, rise.prompts)


@dataclass(frozen=True)
class Taken:
    """The share of class pictures that show the subject less the base's share, and the prompt with
    most of them: how many, of how many."""

    share: Difference
    prompt: str
    hits: int
    of: int


def class_taken(view: View, lines: tuple[Line, ...]) -> Taken | str:
    """How many pictures asked by the class alone show the subject.

    A picture counts when it is more like the training pictures (mean cosine) than hardly any that
    the base draws: by a tenth farther from the median of the base's than 99 of 100 of these lie.
    `class_retention` moves as well when all pictures of the class drift a little; this does not.
    Ours; the tenth was found on 20 adapters whose truth is known and tried on others
    (docs/calibration.md).

    Returns why not, as text, where it cannot be told.
    """
    if view.train is None or len(view.train) < 2:
        return "needs two training pictures or more"
    reference, ceiling = _reference(view)
    ours, theirs = (
        [(of(line) @ reference.T).mean(1) for line in lines]
        for of in (view.of_adapter, view.of_base)
    )
    base = torch.cat(theirs)
    usual = float(base.median())
    far = usual + FARTHER * (float(base.quantile(COMMON)) - usual)
    if ceiling < far:
        return (
            f"{view.encoder} finds some of the base's own pictures as like the training pictures as"
            " these are to one another"
        )
    hits = [rows > far for rows in ours]
    worst = max(range(len(lines)), key=lambda i: float(hits[i].float().mean()))
    share = summarise_gap(
        [own.float().tolist() for own in hits],
        [(rows > far).float().tolist() for rows in theirs],
        tail="greater",
        address="taken",
    )
    return Taken(share, lines[worst].prompt, int(hits[worst].sum()), len(hits[worst]))


def world_drift(view: View, lines: tuple[Line, ...]) -> Difference | str:
    """How far pictures of unrelated prompts moved from the base's of the same seed: the mean of
    (1 - cosine) / 2; 0 untouched, 0.5 nothing in common."""
    drifts = []
    for line in lines:
        k = line.paired
        if k:
            cosine = (view.of_adapter(line)[:k] * view.of_base(line)[:k]).sum(1)
            drifts.append([max(0.0, float(1 - c) / 2) for c in cosine])
    if not drifts:
        return "no prompt was drawn by both models with the same seeds"
    return summarise(drifts, tail="greater", address="drift")


def way_to_subject(view: View, lines: tuple[Line, ...]) -> float:
    """What lies, in cosine, between the base's pictures and the training pictures' own likeness to
    one another."""
    reference, ceiling = _reference(view)
    base = [float((view.of_base(line) @ reference.T).mean()) for line in lines]
    return ceiling - sum(base) / len(base)


def _reference(view: View) -> tuple[Float[Tensor, "t d"], float]:
    """The pictures that likeness is taken to, and the mean likeness that these have themselves."""
    assert view.train is not None
    if view.held_out is not None and len(view.held_out):
        return view.held_out, float((view.held_out @ view.train.T).mean())
    return view.train, _mean_among(view.train)


def _approach(
    view: View,
    lines: tuple[Line, ...],
    *,
    tail: str,
    address: str,
) -> Difference | str:
    found = nearness(view, lines)
    return found if isinstance(found, str) else summarise_gap(*found, tail=tail, address=address)


def nearness(
    view: View, lines: tuple[Line, ...]
) -> tuple[list[list[float]], list[list[float]]] | str:
    """The mean cosine to the training pictures of the adapter's and of the base's, per prompt and
    picture, in units of the way to the subject; or why there is none."""
    if view.train is None or len(view.train) < 2:
        return "needs two training pictures or more"
    reference, _ = _reference(view)
    way = way_to_subject(view, lines)
    if way < LEAST_RANGE:
        return (
            f"{view.encoder} finds the base's own pictures as like the training pictures as these"
            " are to one another"
        )
    ours, theirs = (
        [((of(line) @ reference.T).mean(1) / way).tolist() for line in lines]
        for of in (view.of_adapter, view.of_base)
    )
    return ours, theirs


def _mean_among(rows: Float[Tensor, "t d"]) -> float:
    t = len(rows)
    total = (rows @ rows.T).sum() - rows.square().sum()
    return float(total / (t * (t - 1)))
