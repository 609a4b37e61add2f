"""From evidence to the named measurements that verdicts, reports and sweeps read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from variegate.measure import adherence, copying, diversity, repeats, retention, uncertainty
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.paired import Difference
from variegate.measurement import Better, Measurement, Missing

Reading = Measurement | Missing


def read(evidence: Evidence) -> list[Reading]:
    """Every measurement that the evidence allows; what it does not allow is there as Missing.

    A test's p stands beside its measurement as a measurement of its own, `NAME_p`, so that a
    verdict can be drawn again from the numbers alone. n is the number of prompts throughout
    (copy_rate: of samples).
    """
    return [
        *_variety(evidence),
        *_trigger_variety(evidence),
        *_repeats(evidence),
        *_copying(evidence),
        *_adherence(evidence),
        *_retention(evidence),
    ]


def _variety(evidence: Evidence) -> list[Reading]:
    lines = evidence.of_group("class")
    found = _compare("variety_vs_base", evidence.views[0], lines)
    for view in (*evidence.views[1:], *filter(None, [evidence.layout])):
        found += _compare(f"variety_vs_base@{view.encoder}", view, lines)[:1]
    if evidence.faces:
        found += _compare("variety_vs_base@faces", evidence.faces, evidence.face_lines)[:1]
    if evidence.recoloured:
        found += _compare("variety_vs_base@recoloured", evidence.recoloured, lines)[:1]
    return [*found, *_axes("variety_vs_base", evidence, lines)]


def _axes(name: str, evidence: Evidence, lines: tuple[Line, ...]) -> list[Reading]:
    """The same ratio for each part of the composition, to say *what* became alike."""
    found: list[Reading] = []
    for axis, view in evidence.axes.items():
        found += _compare(f"{name}@{axis}", view, lines)[:1]
    return found


def _trigger_variety(evidence: Evidence) -> list[Reading]:
    """On the layout view: what belongs to the subject may narrow, what surrounds it may not.

    A general encoder sees mostly who is in the picture. The base draws many toys where the
    adapter rightly draws one: on rendered scenes a flawless adapter reads 0.40 on the pocket
    encoder and 0.91 here, one whose ground is always the same 0.20 and 0.32.
    The encoders' own readings stand beside it under their names.
    """
    lines = evidence.of_group("trigger")
    if not lines:
        why = "no pictures were drawn with the trigger"
        names = ("trigger_variety_vs_base", "trigger_variety_vs_base_order1")
        return [Missing(name, why) for name in names]
    if evidence.layout is None:
        why = "features alone do not show what surrounds the subject; give the pictures"
        return [Missing(name, why) for name in names]
    found = _compare("trigger_variety_vs_base", evidence.layout, lines)
    for view in evidence.views:
        found += _compare(f"trigger_variety_vs_base@{view.encoder}", view, lines)[:1]
    if evidence.recoloured_layout:
        name = "trigger_variety_vs_base@recoloured"
        found += _compare(name, evidence.recoloured_layout, lines)[:1]
    return [*found, *_axes("trigger_variety_vs_base", evidence, lines)]


def _compare(name: str, view: View, lines: tuple[Line, ...]) -> list[Reading]:
    """A ratio of effective numbers, its p, and its order-1 companion."""
    order1 = f"{name}_order1"
    least = diversity.AT_LEAST_PICTURES
    usable = [s for s in lines if min(len(s.adapter_rows), len(s.base_rows)) >= least]
    if not usable:
        why = f"no prompt has {least} pictures from both models; draw {least} seeds or more of each"
        if not lines:
            why = "no prompts of this group were drawn by both models"
        return [Missing(name, why), Missing(order1, why)]
    result = diversity.compare_variety(
        [view.of_adapter(line) for line in usable],
        [view.of_base(line) for line in usable],
        address=name,
    )
    if result is None:
        why = f"to {view.encoder} the base's own pictures of each prompt are all alike"
        return [Missing(name, why), Missing(order1, why)]
    units = "seeds, for these prompts only" if result.over_seeds else "prompts"
    source = f"order-2 effective number within prompt, {view.encoder}, over {units}"
    n = len(usable)
    return [
        Measurement(
            *(name, result.ratio, result.low, result.high, n, "higher", "of the base's"),
            source=source,
            example=_plainest(tuple(usable), result),
        ),
        Measurement(f"{name}_p", result.p, n=n, unit="p", source=f"sign flip over {units}"),
        Measurement(
            order1,
            result.order1,
            result.order1_low,
            result.order1_high,
            n,
            "higher",
            "of the base's",
            source=source.replace("order-2", "order-1"),
        ),
    ]


def _plainest(lines: tuple[Line, ...], result: diversity.Comparison) -> str:
    """The prompt that lost most, in words; "" where none lost anything."""
    worst = min(range(len(lines)), key=lambda i: result.log_ratios[i])
    if result.log_ratios[worst] >= 0:
        return ""
    line = lines[worst]
    count = min(len(line.adapter_rows), len(line.base_rows))
    asked = f"on {line.prompt!r}" if line.prompt else "without a prompt"
    return (
        f"{asked} its {count} pictures amount to {result.numbers[worst]:.1f} different ones,"
        f" the base's to {result.base_numbers[worst]:.1f}"
    )


def _repeats(evidence: Evidence) -> list[Reading]:
    lines, name = evidence.of_group("class"), "repeat_rate"
    unit = "share of samples over the base's"
    found: list[Reading] = []
    for view in evidence.views:
        result = repeats.find_repeats(view, lines)
        of = name if view is evidence.views[0] else f"{name}@{view.encoder}"
        if isinstance(result, str):
            found.append(Missing(of, result))
            continue
        source = f"nearest picture of another prompt, {view.encoder}"
        told = _difference(of, result.share, "lower", unit, source)
        if of == name and result.hits:
            told[0] = replace(told[0], example=_most_repeated(result))
        found += told if of == name else told[:1]
    if evidence.recoloured:
        result = repeats.find_repeats(evidence.recoloured, lines)
        if not isinstance(result, str):
            source = f"nearest picture of another prompt, {evidence.recoloured.encoder}"
            found += _difference(f"{name}@recoloured", result.share, "lower", unit, source)[:1]
    return found


def _most_repeated(found: repeats.Repeats) -> str:
    verb = "repeats" if found.hits == 1 else "repeat"
    return (
        f"on {found.prompt!r} {found.hits} of {found.of} pictures nearly {verb} another prompt's,"
        f" mostly that of {found.other!r}"
    )


def _copying(evidence: Evidence) -> list[Reading]:
    copies = copying.find_copies(evidence)
    if copies is None:
        why = "no training pictures were given to compare with"
        if evidence.thumbnails is None and evidence.views[0].train is not None:
            why = "features alone cannot tell a copy from a likeness; give the pictures"
        return [Missing("copy_rate", why)]
    if copies.of == 0:
        return [Missing("copy_rate", "no samples were drawn")]
    low, high = uncertainty.binomial_interval(copies.hits, copies.of)
    p = uncertainty.binomial_p(copies.hits, copies.of, rate=copies.by_chance)
    witness = evidence.copies.encoder if evidence.copies else evidence.views[0].encoder
    return [
        Measurement(
            "copy_rate",
            copies.hits / copies.of,
            low,
            high,
            copies.of,
            "lower",
            "share of samples",
            source=f"worst-tile pixel difference and {witness}, exact binomial",
        ),
        Measurement(
            "copy_rate_p", p, n=copies.of, unit="p", source=f"binomial over {copies.by_chance:.1%}"
        ),
    ]


def _adherence(evidence: Evidence) -> list[Reading]:
    names = ("adherence_vs_base", "adherence_cosine_vs_base")
    view = next((v for v in evidence.views if v.texts is not None), None)
    if view is None:
        named = ", ".join(v.encoder for v in evidence.views)
        why = f"no named encoder reads text ({named}); name a CLIP encoder as well"
        return [Missing(name, why) for name in names]
    group = "trigger" if evidence.of_group("trigger") else "class"
    rows = tuple(
        i for i, line in enumerate(evidence.lines) if line.group == group and line.base_prompt
    )
    lines = tuple(evidence.lines[i] for i in rows)
    result = adherence.compare_adherence(view, rows, lines)
    if isinstance(result, str):
        return [Missing(name, result) for name in names]
    source = f"{view.encoder}, {group} prompts"
    return [
        *_difference(names[0], result.scaled, "higher", "of the base's contrast", source),
        *_difference(names[1], result.cosine, "higher", "cosine", source)[:1],
        *_adherence_beside_recoloured(evidence, rows, lines, unit=result.base_gap),
    ]


def _adherence_beside_recoloured(
    evidence: Evidence, rows: tuple[int, ...], lines: tuple[Line, ...], *, unit: float
) -> list[Reading]:
    """In units of the base's contrast as it is: what is lost of a small rest is little."""
    view = evidence.recoloured
    if view is None or view.texts is None:
        return []
    result = adherence.compare_adherence(view, rows, lines, unit=unit)
    if isinstance(result, str):
        return []
    name, contrast = "adherence_vs_base@recoloured", "of the base's contrast"
    return [*_difference(name, result.scaled, "higher", contrast, view.encoder)[:1]]


def likeness(evidence: Evidence) -> Reading:
    """The measurement of that name alone."""
    return _approach(evidence, "likeness", "trigger", retention.likeness)[0]


def _approach(
    evidence: Evidence,
    name: str,
    group: str,
    measure: Callable[[View, tuple[Line, ...]], Difference | str],
) -> list[Reading]:
    who, lines = evidence.identity, evidence.of_group(group)
    if who.train is None:
        return [Missing(name, "no training pictures were given to compare with")]
    if not lines:
        return [Missing(name, f"no {group} prompts were drawn by both models")]
    result = measure(who, lines)
    if isinstance(result, str):
        return [Missing(name, result)]
    source = f"{who.encoder}, {group} prompts"
    return list(_difference(name, result, "higher", "0 base, 1 subject", source))


def _retention(evidence: Evidence) -> list[Reading]:
    found = _approach(evidence, "likeness", "trigger", retention.likeness)
    found += _approach(evidence, "class_retention", "class", retention.class_retention)
    found += _taken(evidence)
    lines = evidence.of_group("unrelated")
    drift: Difference | str = "no unrelated prompts were drawn by both models"
    if lines:
        drift = retention.world_drift(evidence.views[0], lines)
    if isinstance(drift, str):
        return [*found, Missing("world_drift", drift)]
    source = f"{evidence.views[0].encoder}, unrelated prompts"
    return [*found, *_difference("world_drift", drift, "lower", "(1 - cosine) / 2", source)[:1]]


def _taken(evidence: Evidence) -> list[Reading]:
    name, unit = "class_taken", "share of class pictures over the base's"
    lines = evidence.of_group("class")
    if evidence.identity.train is None or not lines:
        return []  # class_retention says why
    found: list[Reading] = []
    for view in filter(None, (evidence.identity, evidence.recoloured_identity)):
        result = retention.class_taken(view, lines)
        beside = view is not evidence.identity
        if isinstance(result, str):
            found += [] if beside else [Missing(name, result)]
            continue
        of, source = f"{name}@recoloured" if beside else name, f"{view.encoder}, class prompts"
        told = _difference(of, result.share, "lower", unit, source)
        if result.hits and not beside:
            verb = "shows" if result.hits == 1 else "show"
            many = f"{result.hits} of {result.of} pictures {verb} the subject"
            told[0] = replace(told[0], example=f"on {result.prompt!r} {many}")
        found += told[:1] if beside else told
    return found


def _difference(
    name: str, found: Difference, better: Better, unit: str, source: str
) -> list[Measurement]:
    if name.startswith("class_retention"):
        unit = "1 as the base, 0 all subject"
    return [
        Measurement(
            name, found.value, found.low, found.high, found.prompts, better, unit, source=source
        ),
        Measurement(f"{name}_p", found.p, n=found.prompts, unit="p", source="sign flip"),
    ]
