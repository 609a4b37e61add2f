"""Two adapters of one base against each other, prompt by prompt."""

from __future__ import annotations

import numpy as np

from variegate import seeds
from variegate.measure.copying import find_copies
from variegate.measure.diversity import AT_LEAST_PICTURES, compare_variety
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.uncertainty import RESAMPLES
from variegate.measurement import Measurement, Missing


def versus(left: Evidence, right: Evidence) -> list[Measurement | Missing]:
    """How much more varied the right adapter is than the left: right minus left of both headlines.

    Both were asked the same prompts and stand against the same base. Prompts are resampled for
    both at once, so what makes a prompt easy or hard cancels.
    """
    name = "trigger_variety_vs_base"
    return [
        _difference("variety_vs_base", "class", left, right, left.views[0], right.views[0]),
        _difference(name, "trigger", left, right, left.layout, right.layout)
        if left.layout and right.layout
        else Missing(name, "features alone do not show what surrounds the subject"),
    ]


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
    rng = seeds.numpy_at(0, "measure.versus", name)
    drawn = rng.integers(len(shared), size=(RESAMPLES, len(shared)))
    low, high = np.quantile((other - one)[drawn].mean(1), (0.025, 0.975))
    value = float((other - one).mean())
    source = "the same prompts, percentile bootstrap over prompts"
    bounds = min(float(low), value), max(float(high), value)
    return Measurement(
        name, value, *bounds, len(shared), "lower", "share of samples", source=source
    )


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


def _difference(
    name: str, group: str, left: Evidence, right: Evidence, ours: View, theirs: View
) -> Measurement | Missing:
    lines = {line.prompt: line for line in right.of_group(group)}
    shared = [(a, lines[a.prompt]) for a in left.of_group(group) if a.prompt in lines]
    shared = [(a, b) for a, b in shared if _enough(a) and _enough(b)]
    if len(shared) < 2:
        return Missing(name, f"fewer than two {group} prompts were drawn by both adapters")
    one = _log_ratios(ours, [a for a, _ in shared], name)
    other = _log_ratios(theirs, [b for _, b in shared], name)
    if one is None or other is None:
        return Missing(name, "the base's own pictures of each prompt are all alike")
    rng = seeds.numpy_at(0, "measure.versus", name)
    drawn = rng.integers(len(one), size=(RESAMPLES, len(one)))
    gaps = np.exp(other[drawn].mean(1)) - np.exp(one[drawn].mean(1))
    low, high = np.quantile(gaps, (0.025, 0.975))
    value = float(np.exp(other.mean()) - np.exp(one.mean()))
    source = f"{theirs.encoder}, the same prompts, percentile bootstrap over prompts"
    return Measurement(
        name,
        value,
        min(float(low), value),
        max(float(high), value),
        len(shared),
        "higher",
        "of the base's",
        source=source,
    )


def _enough(line: Line) -> bool:
    return min(len(line.adapter_rows), len(line.base_rows)) >= AT_LEAST_PICTURES


def _log_ratios(view: View, lines: list[Line], address: str) -> np.ndarray | None:
    found = compare_variety(
        [view.of_adapter(line) for line in lines],
        [view.of_base(line) for line in lines],
        address=address,
    )
    return None if found is None else np.asarray(found.log_ratios)
