"""Two adapters of one base against each other, prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.measure.copying import find_copies
from variegate.measure.diversity import AT_LEAST_PICTURES, compare_variety
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.retention import LEAST_RANGE, rises
from variegate.measure.uncertainty import RESAMPLES
from variegate.measurement import Measurement, Missing


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


def likeness_versus(left: Evidence, right: Evidence) -> Measurement | Missing:
    """How much liker the right adapter's trigger pictures are to the training pictures than the
    left's: right minus left of `likeness`, over the prompts that both were asked."""
    name, per_prompt = "likeness", []
    for evidence in (left, right):
        lines = evidence.of_group("trigger")
        found = rises(evidence.identity, lines) if lines else "no trigger prompts were drawn"
        if isinstance(found, str):
            return Missing(name, found)
        per_prompt.append({line.prompt: np.mean(x) for line, x in zip(lines, found, strict=True)})
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
    lines = {line.prompt: line for line in right.of_group("trigger")}
    shared = [(a, lines[a.prompt]) for a in left.of_group("trigger") if a.prompt in lines]
    shared = [(a, b) for a, b in shared if min(a.paired, b.paired) > 1]
    if len(shared) < 2:
        return Missing(name, "fewer than two trigger prompts were drawn by both adapters")
    found = list[tuple[float, float, float]]()
    for a, b in shared:
        k = min(a.paired, b.paired)
        own, theirs = who.of_adapter(a)[:k], who.of_base(a)[:k]
        new = right.identity.of_adapter(b)[:k]
        found.append((_alike(own, new), _alike(own, own), _alike(own, theirs)))
    alike, same, unlike = np.array(found).T
    room = float(np.mean(same) - np.mean(unlike))
    if room < LEAST_RANGE:
        return Missing(name, f"{who.encoder} finds the base's own pictures as like")
    kept = 1 - (same - alike) / room
    low, high = np.quantile(kept[_resampled(name, len(kept))].mean(1), (0.025, 0.975))
    value = float(kept.mean())
    source = f"{who.encoder}, the same prompts, percentile bootstrap over prompts"
    bounds = min(float(low), value), max(float(high), value)
    unit = "1 the same subject, 0 the base's"
    return Measurement(name, value, *bounds, len(kept), "higher", unit, source=source)


def _alike(one: Float[Tensor, "k d"], other: Float[Tensor, "k d"]) -> float:
    """The mean cosine of the rows of one with those of another but at their own places."""
    cosines = one @ other.T
    k = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (k * (k - 1)))


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
    return _gap("variety_vs_base", "class", left, right, left.views[0], right.views[0])


def _of_trigger(left: Evidence, right: Evidence) -> _Gap | Missing:
    name = "trigger_variety_vs_base"
    if not left.layout or not right.layout:
        return Missing(name, "features alone do not show what surrounds the subject")
    return _gap(name, "trigger", left, right, left.layout, right.layout)


def _gap(
    name: str, group: str, left: Evidence, right: Evidence, ours: View, theirs: View
) -> _Gap | Missing:
    lines = {line.prompt: line for line in right.of_group(group)}
    shared = [(a, lines[a.prompt]) for a in left.of_group(group) if a.prompt in lines]
    shared = [(a, b) for a, b in shared if _enough(a) and _enough(b)]
    if len(shared) < 2:
        return Missing(name, f"fewer than two {group} prompts were drawn by both adapters")
    one = _log_ratios(ours, [a for a, _ in shared], name)
    other = _log_ratios(theirs, [b for _, b in shared], name)
    if one is None or other is None:
        return Missing(name, "the base's own pictures of each prompt are all alike")
    drawn = _resampled(name, len(one))
    gaps = np.exp(other[drawn].mean(1)) - np.exp(one[drawn].mean(1))
    value = float(np.exp(other.mean()) - np.exp(one.mean()))
    return _Gap(name, value, gaps, len(shared), theirs.encoder)


def _resampled(name: str, prompts: int) -> np.ndarray:
    rng = seeds.numpy_at(0, "measure.versus", name)
    return rng.integers(prompts, size=(RESAMPLES, prompts))


def _enough(line: Line) -> bool:
    return min(len(line.adapter_rows), len(line.base_rows)) >= AT_LEAST_PICTURES


def _log_ratios(view: View, lines: list[Line], address: str) -> np.ndarray | None:
    found = compare_variety(
        [view.of_adapter(line) for line in lines],
        [view.of_base(line) for line in lines],
        address=address,
    )
    return None if found is None else np.asarray(found.log_ratios)
