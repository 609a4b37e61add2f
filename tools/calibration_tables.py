"""The page that `calibrate.py` writes: its tables, and what is said above each."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from variegate.measure import RULES, seen_loss
from variegate.measure.uncertainty import binomial_interval

Noted = list[dict[str, Any]]

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
REPEATS = 20  # sets of each ailment and share
LABELS = ("narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying")
CHOSEN_ON = 20  # adapters of the bank by which the reach of `class_taken` was set
ONE_SIDED = "near copies of one-sided pictures"
AILMENTS = {
    "one attractor": "narrowed",
    "eight training pictures": "copying",
    "near copies": "copying",
    "flips and crops": "copying",
    "near copies of one-sided pictures": "copying",
    "pictures of other prompts": "prompt-ignored",
}


def calibration_page(noted: dict[str, Noted], *, controls: list[str]) -> str:
    """docs/calibration.md, from what each stage noted; stages not yet run are left out."""
    nulls, ladder = noted["nulls"], noted["ladder"]
    parts = [HEAD.format(nulls=len(nulls), rules=RULES.version), _null_table(nulls)]
    if shared := noted["shared"]:
        parts += [SHARED.format(sets=len(shared)), _null_table(shared)]
    parts += [THRESHOLDS, _threshold_table(nulls)]
    parts += [POWER, _scatter_table(noted["scatter"])]
    parts += [LADDER, _power_table(ladder), CONFUSION, _confusion_table(ladder)]
    parts += [CONTROL, _control_table(noted["controls"], controls)]
    if runs := noted["bank"]:
        parts += [BANK.format(runs=len(runs)), _bank_table(runs)]
        parts += [FORGOTTEN.format(chosen=CHOSEN_ON), _forgotten_table(runs)]
    return "\n".join(parts)


def _null_table(nulls: Noted) -> str:
    lines = ["| label | false alarms | 95 % interval |", "|---|---|---|"]
    any_label = sum(bool(set(x["labels"]) & set(LABELS)) for x in nulls)
    for name, hits in [
        *((label, sum(label in x["labels"] for x in nulls)) for label in LABELS),
        ("any of them", any_label),
    ]:
        low, high = binomial_interval(hits, len(nulls))
        lines.append(f"| {name} | {hits} | {100 * low:.1f} to {100 * high:.1f} % |")
    unsure = sum("inconclusive" in x["labels"] for x in nulls)
    lines.append(f"| (inconclusive) | {unsure} | |")
    return "\n".join(lines) + "\n"


def _threshold_table(nulls: Noted) -> str:
    """Each gate's margin beside the value that one null in a hundred passes (conformal: the
    k-th worst of n with k = floor(0.01 (n + 1)), so that a new null passes it in at most 1 %)."""
    heads = ("measurement", "worst null", "1 % threshold", "margin of the rules")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for gate in RULES.gates:
        numbers = [x["numbers"] for x in nulls]
        values = sorted(x[gate.measurement] for x in numbers if gate.measurement in x)
        if len(values) < 99:
            continue
        if gate.side == "above":
            values = values[::-1]
        at = values[int(0.01 * (len(values) + 1)) - 1]
        cells = (f"{values[0]:.3f}", f"{at:.3f}", f"{gate.side} {gate.warn:g} ({gate.edge})")
        lines.append(f"| `{gate.measurement}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _scatter_table(found: Noted) -> str:
    lines = [
        "| measurement | pictures of a prompt | deviation | seen with 16 prompts | 32 | 64 |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("variety_vs_base", "trigger_variety_vs_base"):
        for count in (4, 8):
            own = [x["scatter"][name] for x in found if x["seeds"] == count]
            if not own:
                continue
            seen = [seen_loss(name, prompts=p, seeds=count) for p in (16, 32, 64)]
            cells = " | ".join(f"{100 * s:.0f} %" for s in seen if s is not None)
            lines.append(f"| `{name}` | {count} | {np.mean(own):.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def _control_table(controls: Noted, names: list[str]) -> str:
    heads = " | ".join(LABELS)
    lines = [f"| control | sets | {heads} | palette told |", "|---" * (len(LABELS) + 3) + "|"]
    for name in names:
        sets = [x for x in controls if x["control"] == name]
        if not sets:
            continue
        cells = [sum(label in x["labels"] for x in sets) for label in LABELS]
        told = sum(x["palette"] for x in sets)
        lines.append(f"| {name} | {len(sets)} | {' | '.join(map(str, cells))} | {told} |")
    return "\n".join(lines) + "\n"


def _power_table(ladder: Noted) -> str:
    heads = " | ".join(f"{100 * s:.0f} %" for s in SHARES)
    lines = [
        f"| ailment (label) | {heads} | AUC at 20 % | Spearman |",
        "|---" * (len(SHARES) + 3) + "|",
    ]
    gates = {"narrowed": "repeat_rate", "copying": "copy_rate"}
    gates["prompt-ignored"] = "adherence_vs_base"
    for ailment, label in AILMENTS.items():
        own = [x for x in ladder if x["ailment"] == ailment]
        power = []
        for share in SHARES:
            sets = [x for x in own if x["share"] == share]
            power.append(np.mean([label in x["labels"] for x in sets]) if sets else np.nan)
        value = {
            share: [
                x["numbers"][gates[label]]
                for x in own
                if x["share"] == share and gates[label] in x["numbers"]
            ]
            for share in SHARES
        }
        sign = -1 if label == "prompt-ignored" else 1
        pairs = [sign * (b - a) for a in value[0.0] for b in value[0.2]]
        auc = np.mean([(d > 0) + (d == 0) / 2 for d in pairs]) if pairs else np.nan
        told = [(s, v) for s in SHARES for v in value[s]]
        rho = stats.spearmanr(*zip(*told, strict=True)).statistic if told else np.nan
        cells = " | ".join(f"{p:.2f}" for p in power)
        lines.append(f"| {ailment} ({label}) | {cells} | {auc:.2f} | {rho:+.2f} |")
    return "\n".join(lines) + "\n"


def _confusion_table(ladder: Noted) -> str:
    lines = [f"| ailment | {' | '.join(LABELS)} |", "|---" * (len(LABELS) + 1) + "|"]
    for ailment in AILMENTS:
        sets = [x for x in ladder if x["ailment"] == ailment and x["share"] == 0.5]
        cells = [np.mean([label in x["labels"] for x in sets]) if sets else 0 for label in LABELS]
        lines.append(f"| {ailment} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines) + "\n"


def _bank_table(runs: Noted) -> str:
    heads = ("measurement", "truth", "Spearman", "Pearson", "truth's halves, Spearman", "runs")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for measured, true in (
        ("variety_vs_base", "modes"),
        ("variety_vs_base", "pairs"),
        ("trigger_variety_vs_base", "trigger_modes"),
        ("trigger_variety_vs_base", "trigger_pairs"),
        ("class_taken", "apart"),
        ("class_retention", "apart"),
        ("likeness", "subject"),
    ):
        told = [x for x in runs if measured in x["numbers"]]
        if len(told) < 3:
            continue
        values = [x["numbers"][measured] for x in told]
        truth = [x["truth"][true] for x in told]
        halves = [[x["halves"][h][true] for x in told] for h in (0, 1)]
        found = (
            stats.spearmanr(values, truth).statistic,
            stats.pearsonr(values, truth).statistic,
            stats.spearmanr(*halves).statistic,
        )
        cells = " | ".join(f"{r:.2f}" for r in found)
        lines.append(f"| `{measured}` | {true} | {cells} | {len(told)} |")
    return "\n".join(lines) + "\n"


def _forgotten_table(runs: Noted) -> str:
    """How often the class is called forgotten where the judge sees that it is, and where not."""
    lines = [
        "| adapters | forgotten | told | kept | told | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in (("set on", runs[:CHOSEN_ON]), ("others", runs[CHOSEN_ON:])):
        if not own:
            continue
        cells = []
        for some in (
            [x for x in own if x["truth"]["apart"] < 0.8],
            [x for x in own if x["truth"]["apart"] > 0.9],
        ):
            cells += [len(some), sum("class-forgotten" in x["labels"] for x in some)]
        told = [x for x in own if "class_taken" in x["numbers"]]
        pairs = [(x["numbers"]["class_taken"], x["truth"]["apart"]) for x in told]
        rho = stats.spearmanr(*zip(*pairs, strict=True)).statistic if len(pairs) > 2 else np.nan
        lines.append(f"| {len(own)} {name} | {' | '.join(map(str, cells))} | {rho:+.2f} |")
    return "\n".join(lines) + "\n"


HEAD = """\
# Calibration

Made by `tools/calibrate.py` (stages pool, nulls, shared, scatter, ladder, controls, bank, table)
on the shipped pocket, rules version {rules}, the pocket encoder: 32 class prompts, 16 trigger
prompts, four pictures of each.

## Where nothing is wrong

{nulls} times the base against itself, four seeds against four others of 40. Sets share pictures,
so the intervals are a little too narrow.
"""
SHARED = """\
The same {sets} times with one set of seeds for all prompts, as most tools draw: pictures of one
seed are alike whatever the prompt, so prompts repeat one another and alarms are many. This is why
every prompt has seeds of its own here.
"""
THRESHOLDS = """\
What chance alone does to each gate's measurement, and the value past which a new null falls in at
most one of a hundred cases (conformal, by rank among these nulls). A gate asks for more: its p, and
its interval beyond the margin.
"""
POWER = """\
## What a plan can show

The deviation over prompts of the logarithm of the ratio, where nothing is wrong, and the share of
the base's variety at or below which nine of ten adapters are told apart from the margin
(`variegate.measure.power`).
"""
CONTROL = """\
## What is no collapse

The base's own pictures, changed as an adapter may change them on purpose, against the base's. Sets
in which each label stands; then those where the verdict tells that the colours alone became alike.
"""
LADDER = """\
## Where something is

A share of the samples is replaced by planted pictures: one picture of the base; eight training
pictures; those jittered by up to two pixels and noise; those mirrored and cut to 92 to 100 %; the
base's pictures of other prompts; and jittered copies of training pictures that are all much the
same, where a new picture of the subject looks like a copy too, so that a share of one in ten is
taken for chance. Share of {repeats} sets in which the right label stands, by the
share replaced; then how often a set with 20 % reads worse than one with none, and the rank
correlation of the measurement with the share.
""".replace("{repeats}", str(REPEATS))
BANK = """\
## Against the truth

{runs} adapters of every degree of collapse (`variegate.bench.bank`): four subjects, one-sided or
varied pictures, eight ways of training; 256 class and 128 trigger pictures of each. The judge reads
every sample's factors. Its truth, as a ratio to the base's: `modes`, how many values of a factor a
prompt's eight pictures show; `pairs`, the share of picture pairs of a prompt that differ; `subject`
and `apart`, the share of trigger pictures that show the subject and of class pictures that do not.
About half of the runs lost next to nothing, and their order is chance: so the truth from one half
of the pictures is also laid beside the truth from the other. Likeness is told by features and the
subject by a classifier that names one of eighty: short and gentle runs look like the subject before
they are taken for it.
"""
FORGOTTEN = """\
*Class-forgotten* on the same adapters: forgotten is a class whose pictures are the subject, to the
judge, in more than a fifth, kept one in less than a tenth. How far out a picture must lie to count
as the subject (`class_taken`) was set on the first {chosen}; the others are of the same four
subjects.
"""
CONFUSION = """\
## Which label

At a share of one half. Where half of all pictures are one, variety is lost and prompts are ignored
as well, and copies of the subject take the place of the class and of what prompts ask for.
"""
