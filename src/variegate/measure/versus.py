"""Two adapters of one base against each other, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.measure.copying import find_copies
from variegate.measure.diversity import AT_LEAST_PICTURES, log_ratios
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.retention import LEAST_RANGE, nearness, way_to_subject
from variegate.measure.uncertainty import RESAMPLES
from variegate.measurement import Measurement, Missing

# Of the spread of likeness among an adapter's own pictures: how far from their median one is to lie
# to count as surely like, or unlike, the subject.
CLEAR = 0.5
# Along the line that best tells the subject from what the base draws anyway: how many of the base's
# own standard deviations lie between its middle and a picture that may be either, and at most how
# much of the way. On the pocket, where a judge knows, 4 to 6 do as well.
APART, FARTHEST = 5.0, 0.8
SHRINK = 0.6  # of that line's covariance, drawn towards a ball: pictures are few beside features
TOLD_APART = 0.8  # what it counts beside likeness to training pictures and to the other's pictures
# A headline and the group of prompts that it is read from.
_CLASS = ("variety_vs_base", "class")
_TRIGGER = ("trigger_variety_vs_base", "trigger")


def versus(left: Evidence, right: Evidence) -> list[Measurement | Missing]:
    """How much more varied the right adapter is than the left: right minus left of both headlines.

    Both were asked the same prompts and stand against the same base. Prompts are resampled for
    both at once, so what makes a prompt easy or hard cancels.
    """
    found = (_of_class(left, right), _of_trigger(left, right))
    return [gap.told() if isinstance(gap, _Gap) else gap for gap in found]


def copies_versus(left: Evidence, right: Evidence) -> Measurement | Missing:
    """How much more the right adapter copies than the left: its copy rate minus the other's.

    Both against their own evidence's training pictures; the prompts that both were asked are
    resampled for both at once.
    """
    name = "copy_rate"
    shares = _copied(left), _copied(right)
    shared = sorted(shares[0].keys() & shares[1].keys())
    if not shares[0] or not shares[1]:
        return Missing(name, "no training pictures were given to compare with")
    if len(shared) < 2:
        return Missing(name, "fewer than two prompts were drawn by both adapters")
    one, other = (np.array([own[prompt] for prompt in shared]) for own in shares)
    drawn = _resampled(name, len(shared))
    low, high = np.quantile((other - one)[drawn].mean(1), (0.025, 0.975))
    value = float((other - one).mean())
    source = "the same prompts, percentile bootstrap over prompts"
    bounds = min(float(low), value), max(float(high), value)
    return Measurement(
        name, value, *bounds, len(shared), "lower", "share of samples", source=source
    )


def gain(left: Evidence, right: Evidence) -> Measurement | Missing:
    """How much more varied the right adapter is than the left, in the mean of both headlines, or in
    the one there is. Prompts of either group are resampled for both adapters at once."""
    found = [g for g in (_of_class(left, right), _of_trigger(left, right)) if isinstance(g, _Gap)]
    name = "variety_gain"
    if not found:
        return Missing(name, "fewer than two prompts of a group were drawn by both adapters")
    low, high = np.quantile(np.mean([gap.drawn for gap in found], axis=0), (0.025, 0.975))
    value = float(np.mean([gap.value for gap in found]))
    prompts = sum(gap.prompts for gap in found)
    source = "the mean of " + " and ".join(gap.name for gap in found)
    bounds = min(float(low), value), max(float(high), value)
    return Measurement(name, value, *bounds, prompts, "higher", "of the base's", source=source)


def kept(evidence: Evidence) -> Measurement | Missing:
    """How much of its base's variety an adapter keeps: the mean of both headlines, or the one there
    is. Prompts of either group are resampled."""
    name, found = "variety_kept", list[tuple[str, np.ndarray]]()
    for of, group, view in _headlines(evidence):
        lines = [line for line in evidence.of_group(group) if _enough(line)]
        ratios = _log_ratios(view, lines) if lines else None
        if ratios is not None:
            found.append((of, ratios))
    if not found:
        return Missing(name, "no prompt has four pictures of both models that can be compared")
    draws = [np.exp(x[_resampled(of, len(x))].mean(1)) for of, x in found]
    low, high = np.quantile(np.mean(draws, axis=0), (0.025, 0.975))
    value = float(np.mean([np.exp(x.mean()) for _, x in found]))
    source = "the mean of " + " and ".join(of for of, _ in found)
    prompts, unit = sum(len(x) for _, x in found), "of the base's"
    if min(len(x) for _, x in found) < 2:  # one prompt says nothing of how far others would differ
        return Measurement(name, value, None, None, prompts, "higher", unit, source=source)
    bounds = min(float(low), value), max(float(high), value)
    return Measurement(name, value, *bounds, prompts, "higher", unit, source=source)


def paired_variety(left: Evidence, right: Evidence) -> tuple[float, ...]:
    """How much more varied the right adapter is than the left, prompt by prompt of either group, as
    a logarithm: what a sign flip or a bootstrap over prompts is asked of."""
    found = list[float]()
    for (name, group, ours), (_, _, theirs) in zip(
        _headlines(left), _headlines(right), strict=True
    ):
        pair = _shared_ratios(name, group, left, right, ours, theirs, least=1)
        if not isinstance(pair, Missing):
            found += (float(x) for x in pair[1] - pair[0])
    return tuple(found)


def recognised(
    left: Evidence, right: Evidence, ordinary: Float[Tensor, "o d"] | None = None
) -> Measurement | Missing:
    """How often the right adapter's trigger pictures show the subject, for each time that the
    left's do.

    A picture counts mostly by how surely it lies on the training pictures' side of Fisher's line
    between them and what the base draws anyway: five of the base's standard deviations from its
    middle. The rest is how surely it is as like the subject as the better half of the left's
    pictures, the mean of two: like the training pictures, and like what the left adapter draws.
    The mean over pictures over that of the left's own, at the same seeds. `likeness`, a mean of
    cosines, still nearness when every picture shows the subject already, as pictures become alike.
    Somebody else, who differs across the line and not along it, is missed but for the rest.

    ordinary: the base's pictures through the first encoder (`gather.first_features`), the more of
    them the surer the line; None: those of the left evidence.
    Source: R. A. Fisher, The use of multiple measurements in taxonomic problems, 1936.
    """
    name, found = "recognised", paired_recognised(left, right, ordinary)
    if isinstance(found, Missing):
        return found
    values = 1 + np.array([np.mean(own) for own in found])
    value, unit, n = float(values.mean()), "times as often as the other", len(values)
    source = f"{right.identity.encoder}, the same prompts, percentile bootstrap over prompts"
    if n < 2:
        return Measurement(name, value, None, None, n, "higher", unit, source=source)
    low, high = np.quantile(values[_resampled(name, n)].mean(1), (0.025, 0.975))
    bounds = min(float(low), value), max(float(high), value)
    return Measurement(name, value, *bounds, n, "higher", unit, source=source)


def paired_recognised(
    left: Evidence, right: Evidence, ordinary: Float[Tensor, "o d"] | None = None
) -> tuple[tuple[float, ...], ...] | Missing:
    """What `recognised` is the mean of, less 1, seed by seed of each trigger prompt that both were
    asked."""
    name, who = "recognised", left.identity
    lines = {line.prompt: line for line in right.of_group("trigger")}
    asked = [line for line in left.of_group("trigger") if line.paired]
    shared = [(i, lines[a.prompt]) for i, a in enumerate(asked) if a.prompt in lines]
    shared = [(i, b) for i, b in shared if b.paired]
    if not shared:
        return Missing(name, "no trigger prompt was drawn by both adapters")
    if who.train is None or len(who.train) < 2:
        return Missing(name, "needs two training pictures or more")
    if way_to_subject(who, tuple(asked)) < LEAST_RANGE:
        return Missing(name, f"{who.encoder} finds the base's own pictures as like")
    subject = who.train if who.held_out is None else torch.cat([who.train, who.held_out])
    own = [who.of_adapter(line)[: line.paired] for line in asked]
    sizes = [len(rows) for rows in own]
    theirs = [right.identity.of_adapter(b)[: min(sizes[i], b.paired)] for i, b in shared]
    drawn, starts = torch.cat(own), np.cumsum([0, *sizes])

    def to_others(rows: Float[Tensor, "k d"], start: int) -> Float[Tensor, " k"]:
        """The mean cosine to what left drew, but the one of the same prompt and seed."""
        cosines = rows @ drawn.T
        same = cosines[range(len(rows)), range(start, start + len(rows))]
        return (cosines.sum(1) - same) / max(1, len(drawn) - 1)

    whole_view = left.views[0]
    apart = _apart(whole_view.base if ordinary is None else ordinary, whole_view)
    learnt = _surely((drawn @ subject.T).mean(1), [(x @ subject.T).mean(1) for x in theirs])
    alike = _surely(
        to_others(drawn, 0),
        [to_others(x, int(starts[i])) for x, (i, _) in zip(theirs, shared, strict=True)],
    )

    def counted(
        rows: Float[Tensor, "k d"], one: Float[Tensor, " k"], other: Float[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        return TOLD_APART * apart(rows) + (1 - TOLD_APART) * (one + other) / 2

    seen = [whole_view.of_adapter(line)[: line.paired] for line in asked]
    mine = counted(torch.cat(seen), learnt[0], alike[0]).split(sizes)
    whole = float(
        torch.cat([mine[i][: len(x)] for x, (i, _) in zip(theirs, shared, strict=True)]).mean()
    )
    found = []
    for (i, line), one, other in zip(shared, learnt[1], alike[1], strict=True):
        gap = counted(right.views[0].of_adapter(line)[: len(one)], one, other) - mine[i][: len(one)]
        found.append(tuple((gap / whole).tolist()))
    return tuple(found)


def _apart(
    base: Float[Tensor, "o d"], view: View
) -> Callable[[Float[Tensor, "k d"]], Float[Tensor, " k"]]:
    """How surely a picture is of the subject, along Fisher's line between it and the base's."""
    assert view.train is not None
    subject = view.train if view.held_out is None else torch.cat([view.train, view.held_out])
    middle, there = base.mean(0), subject.mean(0)
    around = torch.cat([base - middle, subject - there])
    spread = around.T @ around / len(around)
    ball = torch.eye(len(spread)) * spread.diagonal().mean()
    line = torch.linalg.solve((1 - SHRINK) * spread + SHRINK * ball, there - middle)
    start, way = middle @ line, (there - middle) @ line
    soft = max(float((base @ line / way).std(correction=0)), 1e-3)
    edge = min(APART * soft, FARTHEST)
    return lambda rows: (((rows @ line - start) / way - edge) / soft).sigmoid()


def _surely(
    own: Float[Tensor, " n"], theirs: list[Float[Tensor, " k"]]
) -> tuple[Float[Tensor, " n"], list[Float[Tensor, " k"]]]:
    """How surely each number lies in the upper half of an adapter's own: a half at their median."""
    half, soft = own.quantile(0.5), max(CLEAR * float(own.std(correction=0)), 1e-3)
    return ((own - half) / soft).sigmoid(), [((x - half) / soft).sigmoid() for x in theirs]


def _headlines(evidence: Evidence) -> list[tuple[str, str, View]]:
    layout = [(*_TRIGGER, evidence.layout)] if evidence.layout else []
    return [(*_CLASS, evidence.views[0]), *layout]


def likeness_versus(left: Evidence, right: Evidence) -> Measurement | Missing:
    """How much liker the right adapter's trigger pictures are to the training pictures than the
    left's: right minus left of `likeness`, over the prompts that both were asked."""
    name, per_prompt = "likeness", []
    for evidence in (left, right):
        lines = evidence.of_group("trigger")
        found = nearness(evidence.identity, lines) if lines else "no trigger prompts were drawn"
        if isinstance(found, str):
            return Missing(name, found)
        per_prompt.append(
            {line.prompt: np.mean(a) - np.mean(b) for line, a, b in zip(lines, *found, strict=True)}
        )
    shared = [prompt for prompt in per_prompt[0] if prompt in per_prompt[1]]
    if len(shared) < 2:
        return Missing(name, "fewer than two trigger prompts were drawn by both adapters")
    one, other = (np.array([own[prompt] for prompt in shared]) for own in per_prompt)
    drawn = _resampled(name, len(shared))
    low, high = np.quantile((other - one)[drawn].mean(1), (0.025, 0.975))
    value = float((other - one).mean())
    source = f"{right.identity.encoder}, the same prompts, percentile bootstrap over prompts"
    bounds = min(float(low), value), max(float(high), value)
    unit = "0 base, 1 subject"
    return Measurement(name, value, *bounds, len(shared), "higher", unit, source=source)


def subject_kept(left: Evidence, right: Evidence) -> Measurement | Missing:
    """How much of the left adapter's subject the right one still draws: 1 where its pictures are as
    like the left's as those are to one another, 0 where they are no more so than the base's.

    By who is in the picture, each picture under the trigger beside the left adapter's of the same
    prompt and the other seeds. One picture beside that of the same seed would also count what the
    subject's own pictures differ in, such as its size. It sees what `likeness` does not: pictures
    that are as near to the training pictures on the whole, and of somebody else.
    """
    name, who = "subject_kept", left.identity
    lost = paired_subject(left, right)
    if isinstance(lost, Missing):
        return lost
    kept = 1 + np.array([np.mean(own) for own in lost])
    low, high = np.quantile(kept[_resampled(name, len(kept))].mean(1), (0.025, 0.975))
    value = float(kept.mean())
    source = f"{who.encoder}, the same prompts, percentile bootstrap over prompts"
    bounds = min(float(low), value), max(float(high), value)
    unit = "1 the same subject, 0 the base's"
    return Measurement(name, value, *bounds, len(kept), "higher", unit, source=source)


def paired_subject(left: Evidence, right: Evidence) -> tuple[tuple[float, ...], ...] | Missing:
    """What `subject_kept` is the mean of, less 1: what the right adapter's picture lost of the left
    one's subject, seed by seed of each trigger prompt that both were asked."""
    name, who = "subject_kept", left.identity
    lines = {line.prompt: line for line in right.of_group("trigger")}
    shared = [(a, lines[a.prompt]) for a in left.of_group("trigger") if a.prompt in lines]
    shared = [(a, b) for a, b in shared if min(a.paired, b.paired) > 1]
    if len(shared) < 2:
        return Missing(name, "fewer than two trigger prompts were drawn by both adapters")
    lost, way = list[Float[Tensor, " k"]](), list[float]()
    for a, b in shared:
        k = min(a.paired, b.paired)
        own = who.of_adapter(a)[:k]
        same = _alike(own, own)
        lost.append(_alike(right.identity.of_adapter(b)[:k], own) - same)
        way.append(float((same - _alike(who.of_base(a)[:k], own)).mean()))
    room = float(np.mean(way))
    if room < LEAST_RANGE:
        return Missing(name, f"{who.encoder} finds the base's own pictures as like")
    return tuple(tuple((each / room).tolist()) for each in lost)


def subject_spread(evidence: Evidence) -> float | None:
    """How much a subject's own pictures differ, in the units of `subject_kept`: 0 where all are of
    one look, as much as they fall short of being the same. None where that cannot be told."""
    who = evidence.identity
    lines = [line for line in evidence.of_group("trigger") if line.paired > 1]
    same, way = list[float](), list[float]()
    for line in lines:
        own = who.of_adapter(line)[: line.paired]
        same.append(float(_alike(own, own).mean()))
        way.append(same[-1] - float(_alike(who.of_base(line)[: line.paired], own).mean()))
    if not lines or np.mean(way) < LEAST_RANGE:
        return None
    return float((1 - np.mean(same)) / np.mean(way))


def _alike(one: Float[Tensor, "k d"], other: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """Of each row the mean cosine to the rows of another, but the one at its own place."""
    cosines = one @ other.T
    return (cosines.sum(1) - cosines.diagonal()) / (len(cosines) - 1)


def _copied(evidence: Evidence) -> dict[tuple[str, str], float]:
    """The share of each prompt's pictures that are copies; empty where that cannot be told."""
    copies = find_copies(evidence)
    if copies is None:
        return {}
    taken = {match.picture for match in copies.matches}
    return {
        (line.group, line.prompt): float(np.mean([row in taken for row in line.adapter_rows]))
        for line in evidence.lines
        if line.adapter_rows
    }


@dataclass(frozen=True)
class _Gap:
    """right minus left of a headline; drawn: the same of each resampling of the prompts."""

    name: str
    value: float
    drawn: np.ndarray
    prompts: int
    encoder: str

    def told(self) -> Measurement:
        low, high = np.quantile(self.drawn, (0.025, 0.975))
        bounds = min(float(low), self.value), max(float(high), self.value)
        source = f"{self.encoder}, the same prompts, percentile bootstrap over prompts"
        of = "of the base's"
        return Measurement(
            self.name, self.value, *bounds, self.prompts, "higher", of, source=source
        )


def _of_class(left: Evidence, right: Evidence) -> _Gap | Missing:
    return _gap(*_CLASS, left, right, left.views[0], right.views[0])


def _of_trigger(left: Evidence, right: Evidence) -> _Gap | Missing:
    if not left.layout or not right.layout:
        return Missing(_TRIGGER[0], "features alone do not show what surrounds the subject")
    return _gap(*_TRIGGER, left, right, left.layout, right.layout)


def _gap(
    name: str, group: str, left: Evidence, right: Evidence, ours: View, theirs: View
) -> _Gap | Missing:
    found = _shared_ratios(name, group, left, right, ours, theirs)
    if isinstance(found, Missing):
        return found
    one, other = found
    drawn = _resampled(name, len(one))
    gaps = np.exp(other[drawn].mean(1)) - np.exp(one[drawn].mean(1))
    value = float(np.exp(other.mean()) - np.exp(one.mean()))
    return _Gap(name, value, gaps, len(one), theirs.encoder)


def _shared_ratios(
    name: str,
    group: str,
    left: Evidence,
    right: Evidence,
    ours: View,
    theirs: View,
    *,
    least: int = 2,
) -> tuple[np.ndarray, np.ndarray] | Missing:
    """The log ratios to the base of both, at the prompts of a group that both were asked."""
    lines = {line.prompt: line for line in right.of_group(group)}
    shared = [(a, lines[a.prompt]) for a in left.of_group(group) if a.prompt in lines]
    shared = [(a, b) for a, b in shared if _enough(a) and _enough(b)]
    if len(shared) < least:
        return Missing(name, f"fewer than two {group} prompts were drawn by both adapters")
    one = _log_ratios(ours, [a for a, _ in shared])
    other = _log_ratios(theirs, [b for _, b in shared])
    if one is None or other is None:
        return Missing(name, "the base's own pictures of each prompt are all alike")
    return one, other


def _resampled(name: str, prompts: int) -> np.ndarray:
    rng = seeds.numpy_at(0, "measure.versus", name)
    return rng.integers(prompts, size=(RESAMPLES, prompts))


def _enough(line: Line) -> bool:
    return min(len(line.adapter_rows), len(line.base_rows)) >= AT_LEAST_PICTURES


def _log_ratios(view: View, lines: list[Line]) -> np.ndarray | None:
    found = log_ratios(
        [view.of_adapter(line) for line in lines], [view.of_base(line) for line in lines]
    )
    return None if found is None else np.asarray(found)
