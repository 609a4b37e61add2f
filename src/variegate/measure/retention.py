"""What was learnt, and what else changed: likeness, class retention, drift of unrelated prompts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from variegate.measure.evidence import Line, View
from variegate.measure.paired import Difference, summarise

LEAST_RANGE = 0.02  # of cosine between base and training pictures, below which nothing is told


def likeness(view: View, lines: tuple[Line, ...]) -> Difference | str:
    """How far the adapter's pictures went from the base's towards the training pictures.

    0: no more like them than what the base draws with the class noun; 1: as like them as they are
    to one another. The reference is the held-out pictures when there are any, so that copying does
    not pass for learning.
    """
    return _approach(view, lines, tail="greater", address="likeness")


def class_retention(
    view: View, lines: tuple[Line, ...], *, way: float | None = None
) -> Difference | str:
    """How much of the class is still itself: 1 as in the base, 0 when every picture of the class
    is as like the training pictures as they are to one another.

    One less the rise, on class prompts, of the similarity to the subject (PRES of Ruiz et al.
    2023, arXiv 2208.12242), in units of the way from base to subject. way: in its stead.
    """
    rise = _approach(view, lines, tail="greater", address="class", way=way)
    if isinstance(rise, str):
        return rise
    return Difference(1 - rise.value, 1 - rise.high, 1 - rise.low, rise.p, rise.prompts)


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
    way: float | None = None,
) -> Difference | str:
    found = rises(view, lines, way=way)
    return found if isinstance(found, str) else summarise(found, tail=tail, address=address)


def rises(
    view: View, lines: tuple[Line, ...], *, way: float | None = None
) -> list[list[float]] | str:
    """The rise of the mean cosine to the training pictures over the base's, per prompt and picture,
    in units of the way to the subject (of `way`); or why there is none."""
    if view.train is None or len(view.train) < 2:
        return "needs two training pictures or more"
    reference, _ = _reference(view)
    base = [float((view.of_base(line) @ reference.T).mean()) for line in lines]
    way = way_to_subject(view, lines) if way is None else way
    if way < LEAST_RANGE:
        return (
            f"{view.encoder} finds the base's own pictures as like the training pictures as these"
            " are to one another"
        )
    return [
        [float(a - b) / way for a in (view.of_adapter(line) @ reference.T).mean(1)]
        for line, b in zip(lines, base, strict=True)
    ]


def _mean_among(rows: Float[Tensor, "t d"]) -> float:
    t = len(rows)
    total = (rows @ rows.T).sum() - rows.square().sum()
    return float(total / (t * (t - 1)))
