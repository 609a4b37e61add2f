"""The judge: a pure function from measurements and rules to a verdict.

The judge sees numbers only. The same measurements give the same verdict on any day under the same
rules version, and another under other rules without a picture being looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from variegate.encoders import REAL_ENCODER
from variegate.measure.rules import RULES, Gate, Rules
from variegate.measure.uncertainty import holm
from variegate.measure.wording import (
    ADVICE,
    CLAUSES,
    SENTENCES,
    STRANGE,
    alarm,
    colour_hides,
    disagree,
    listed,
    palette_only,
    passed,
    placed_alike,
    what_is_alike,
)
from variegate.measurement import (
    Advice,
    Label,
    Measurement,
    Missing,
    Reason,
    Severity,
    Verdict,
)

HEADLINE = "variety_vs_base"
MOST_PROMPTS = 256  # more than four times the largest preset: nobody draws that many


def judge(
    measurements: Sequence[Measurement | Missing],
    rules: Rules = RULES,
    *,
    encoders: Sequence[str] = (),
    weak_encoder: bool = False,
    plan: Mapping[str, Any] | None = None,
) -> Verdict:
    """The verdict that these measurements earn under these rules.

    A label stands on every gate that alarms. A gate whose loss may be of colours alone, and was not
    measured well enough to tell, has the benefit of the doubt; one that must be shown to be well
    has it only while nothing else is wrong. With no label, the verdict is `inconclusive` if a
    variety that matters was missing or is not shown to be well, or encoders disagree on it, or the
    encoder does not know such pictures, `undertrained` if the subject was not learnt, else
    `healthy`. `undertrained` also stands beside other labels.
    encoders: names as in the measurements, the deciding one first.
    """
    found = {m.name: m for m in measurements if isinstance(m, Measurement)}
    missing = {m.name: m.why for m in measurements if isinstance(m, Missing)}
    notes = _notes(found, missing, weak_encoder)
    p: dict[str, float] = {
        g.measurement: found[f"{g.measurement}_p"].value for g in rules.gates if _tested(g, found)
    }
    together = holm(p)
    in_stead: dict[str, Measurement] = {}  # of a gate's own measurement
    split: list[Reason] = []
    alarms: list[tuple[Gate, Severity, bool]] = []  # whether it may be of colours alone
    for gate in rules.gates:
        name = gate.measurement
        if name not in p:
            continue
        sure = p[name] < rules.alpha and together[name] < rules.family
        own = found[name]
        severity = _severity(gate, own) if sure else None
        lost = severity is not None or _past(gate, own.value)
        beyond = _beyond_colours(gate, found, rules) if lost else "ill"
        if beyond == "well":
            in_stead[name] = beside = found[gate.recoloured or ""]
            notes.append(palette_only(own, beside))
        elif gate.agreed and (other := _dissenter(gate, own, severity, found, encoders)):
            split.append(Reason("inconclusive", "warn", name, disagree(own, other)))
        elif severity:
            alarms.append((gate, severity, beyond == "unsure"))
    ill = any(not doubtful for *_, doubtful in alarms)
    reasons: list[Reason] = []
    for gate, severity, doubtful in alarms:
        if doubtful and not (ill and gate.clear is not None):
            told = colour_hides(gate.label)
            split.append(Reason("inconclusive", "warn", gate.measurement, told))
        else:
            reasons.append(_reason(gate, severity, found, rules))
    alarmed = {r.label for r in reasons}
    if (learnt := found.get("likeness")) and _edge(learnt, "high") < rules.learnt:
        reasons.append(
            Reason("undertrained", "warn", "likeness", SENTENCES["undertrained"](learnt))
        )
    if "trigger-narrowed" not in alarmed and (note := placed_alike(found)):
        notes.append(note)
    if not alarmed:
        doubted = {reason.measurement for reason in split}
        doubts = _doubts(rules, {**found, **in_stead}, missing)
        reasons += [*split, *(d for d in doubts if d.measurement not in doubted)]
    else:
        notes += [reason.sentence for reason in split]
    if not reasons and weak_encoder:
        reasons.append(Reason("inconclusive", "warn", "variety_vs_base", STRANGE))
    labels: tuple[Label, ...] = tuple(dict.fromkeys(r.label for r in reasons)) or ("healthy",)
    return Verdict(
        labels=labels,
        sentence=_sentence(labels, reasons, {**found, **in_stead}),
        reasons=tuple(reasons),
        advice=_advise(labels),
        measurements=tuple(measurements),
        rules=rules.version,
        encoders=tuple(encoders),
        weak_encoder=weak_encoder,
        plan=dict(plan or {}),
        notes=tuple(notes),
    )


def judged_by(rules: Rules) -> frozenset[str]:
    """The names of the measurements whose value or interval may change a label."""
    own = [gate.measurement for gate in rules.gates]
    beside = [gate.recoloured for gate in rules.gates if gate.recoloured]
    return frozenset(["likeness", *own, *beside, *(f"{name}@palette" for name in own)])


def _tested(gate: Gate, found: Mapping[str, Measurement]) -> bool:
    return gate.measurement in found and f"{gate.measurement}_p" in found


def _edge(measurement: Measurement, edge: str) -> float:
    number = getattr(measurement, edge)
    return measurement.value if number is None else float(number)


def _severity(gate: Gate, measurement: Measurement) -> Severity | None:
    number = _edge(measurement, gate.edge)
    sign = 1 if gate.side == "below" else -1
    if sign * number < sign * gate.fail:
        return "fail"
    return "warn" if sign * number < sign * gate.warn else None


def _beyond_colours(
    gate: Gate, found: Mapping[str, Measurement], rules: Rules
) -> Literal["well", "unsure", "ill"]:
    """How it stands beside the base in the adapter's own colours, where palettes were lost.

    "ill" as well where palettes kept as much as the whole did, and so explain nothing. A
    measurement with no palette of its own also wants variety beside that base to be well: one
    ground behind everything is a lost palette too, and no style.
    """
    beside, palette = (
        found.get(name) for name in (gate.recoloured or "", f"{gate.measurement}@palette")
    )
    if beside is None or _still_ill(gate, beside):
        return "ill"
    if palette is not None:
        if palette.value >= min(gate.warn, found[gate.measurement].value):
            return "ill"
        return "well" if _shown_well(gate, beside) else "unsure"
    whole = next((g for g in rules.gates if g.measurement == HEADLINE), None)
    if whole is None or f"{HEADLINE}@palette" not in found:
        return "ill"
    varied = _beyond_colours(whole, found, rules)
    return "unsure" if varied == "well" and not _shown_well(gate, beside) else varied


def _shown_well(gate: Gate, m: Measurement) -> bool:
    """Whether it is on the good side at its best guess, and clear of what the gate asks for."""
    return not _past(gate, m.value) and (gate.clear is None or _edge(m, "low") >= gate.clear)


def _still_ill(gate: Gate, m: Measurement) -> bool:
    """Whether a measurement, which has no test of its own, is surely past the margin; or, where
    health must be shown, surely less than the base's and nearer to `clear` than to `warn`."""
    near = _edge(m, "high" if gate.side == "below" else "low")
    if gate.clear is not None and near < 1 and m.value < (gate.warn + gate.clear) / 2:
        return True
    return _past(gate, near)


def _dissenter(
    gate: Gate,
    own: Measurement,
    severity: Severity | None,
    found: Mapping[str, Measurement],
    encoders: Sequence[str],
) -> Measurement | None:
    """A further encoder's measurement that reads the margin the other way than the first's.

    Against an alarm its value is enough; against a first that reads well it must be past the margin
    as surely as an alarm must.
    """
    for encoder in encoders[1:]:
        other = found.get(f"{gate.measurement}@{encoder}")
        if other is None:
            continue
        if severity and not _past(gate, other.value):
            return other
        if not severity and not _past(gate, own.value) and _severity(gate, other):
            return other
    return None


def _past(gate: Gate, value: float) -> bool:
    return value < gate.warn if gate.side == "below" else value > gate.warn


def _reason(
    gate: Gate, severity: Severity, found: Mapping[str, Measurement], rules: Rules
) -> Reason:
    m = found[gate.measurement]
    sentence = alarm(gate.label, m) + what_is_alike(found, m, below=gate.warn)
    if m.example:
        sentence += f" At its plainest, {m.example}."
    if gate.label != "copying" and m.n < rules.few_prompts:
        which = "this one prompt" if m.n == 1 else f"these {m.n} prompts"
        sentence += f" This holds for {which} only; more prompts could say more."
    return Reason(gate.label, severity, gate.measurement, sentence)


def _doubts(
    rules: Rules, found: Mapping[str, Measurement], missing: Mapping[str, str]
) -> list[Reason]:
    """Why health is not shown, for each gate that asks for it to be."""
    doubts = []
    headlines = [g for g in rules.gates if g.clear is not None]
    for gate in headlines:
        m = found.get(gate.measurement)
        if m is None:
            continue
        assert gate.clear is not None
        if m.value >= gate.warn and _edge(m, "low") >= gate.clear:
            continue
        doubts.append(Reason("inconclusive", "warn", gate.measurement, _doubt(gate, m, gate.clear)))
    if not any(g.measurement in found for g in headlines):
        name = headlines[0].measurement if headlines else "variety_vs_base"
        why = missing.get(name, "it was not measured")
        doubts.append(
            Reason("inconclusive", "warn", name, f"Variety could not be measured: {why}.")
        )
    return doubts


def _doubt(gate: Gate, m: Measurement, clear: float) -> str:
    sentence = SENTENCES["inconclusive"](m)
    needed = prompts_to_settle(m, warn=gate.warn, clear=clear)
    if needed is None:
        return f"{sentence} It lies so near the limit that more prompts would hardly settle it."
    return f"{sentence} About {needed} prompts instead of {m.n} would settle it."


def prompts_to_settle(m: Measurement, *, warn: float, clear: float) -> int | None:
    """How many prompts would, at this value and this scatter, tell narrowed from not.

    The interval's half width in logarithms shrinks with the root of the number of prompts; it must
    come to less than the way from the value to the limit that is in question (`warn` for a value
    below it, `clear` for one above). None: more than anybody would draw.
    """
    low, high = max(_edge(m, "low"), 1e-6), max(_edge(m, "high"), 1e-6)
    half = max(math.log(high / low) / 2, 1e-6)
    value = max(m.value, 1e-6)
    gap = math.log(value / clear) if value >= warn else math.log(warn / value)
    if gap <= 0:
        return None
    needed = max(m.n + 1, math.ceil(1.2 * m.n * (half / gap) ** 2))  # a fifth to spare
    return needed if needed <= MOST_PROMPTS else None


def _sentence(
    labels: Sequence[Label], reasons: Sequence[Reason], found: Mapping[str, Measurement]
) -> str:
    """The gravest finding, and what else was found, in one sentence."""
    if labels == ("healthy",):
        return passed(found)
    gravest = min(reasons, key=lambda r: r.severity != "fail")
    others = [CLAUSES[label] for label in labels if label != gravest.label and label in CLAUSES]
    first = gravest.sentence.split(". ")[0].removesuffix(".")
    return f"{first}; it also {listed(others)}." if others else f"{first}."


def _notes(found: Mapping[str, Measurement], missing: Mapping[str, str], weak: bool) -> list[str]:
    notes = []
    if "class_retention" in found and "class_taken" not in found:
        why = missing.get("class_taken", "it was measured before this was known; measure it again")
        notes.append(f"Whether the class is forgotten was not tested: {why}.")
    if "copy_rate" in missing:
        notes.append(f"Copying was not tested: {missing['copy_rate']}.")
    if weak:
        notes.append(
            "The pictures are far from what the pocket encoder knows, so read all figures with"
            f" care and measure again with --encoder {REAL_ENCODER}."
        )
    return notes


def _advise(labels: Sequence[Label]) -> tuple[Advice, ...]:
    """What to try, most useful first: what answers more of the labels leads."""
    votes: dict[str, tuple[int, int, Advice]] = {}
    place = 0
    for label in labels:
        for advice in ADVICE[label]:
            count, first, kept = votes.get(advice.strategy, (0, place, advice))
            votes[advice.strategy] = (count + 1, first, kept)
            place += 1
    ranked = sorted(votes.values(), key=lambda v: (-v[0], v[1]))
    return tuple(advice for _, _, advice in ranked)
