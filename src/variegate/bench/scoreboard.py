"""What the rows of the benchmark say: leaderboard, front, gate, and how right the detector was.

Contenders are compared cell by cell: same ailment, same seed, same subject, same prompts. The unit
of replication is the cell: a difference's interval is Student's over cells, from 8 on a
bootstrap's. It tells of other ailments and seeds, and of other subjects only where seeds are
several, since all cells of a seed share theirs. What is compared is a yardstick's matter: on the
pocket what the judge knows, on a base of the user's what the product measures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from variegate.bench.ailments import AILMENTS, HEALTHY
from variegate.encoders import REAL_ENCODER
from variegate.measure import RULES, judge
from variegate.measure.uncertainty import bca_interval, binomial_interval, student_interval
from variegate.measure.verdict import judged_by
from variegate.measurement import Measurement

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One number of a row. columns: of which it is the mean; of those a row lacks it has none."""

    name: str
    words: str
    meaning: str
    columns: tuple[str, ...]

    def of(self, row: Mapping[str, Any]) -> float | None:
        values = [row.get(column) for column in self.columns]
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None


@dataclass(frozen=True)
class Yardstick:
    """What runs are compared by: the first figure is the variety that is kept.

    read_by: who says so. says: the same in a sentence, for whoever reads a table of it. timed:
    whether seconds of training can be compared, since one machine made all rows.
    """

    read_by: Literal["judge", "measures"]
    says: str
    figures: tuple[Figure, ...]
    timed: bool = False

    @property
    def variety(self) -> str:
        return self.figures[0].name


def _judged(name: str, words: str, meaning: str) -> Figure:
    return Figure(name, words, meaning, (f"true.{name}",))


def _measured(name: str, words: str, meaning: str) -> Figure:
    return Figure(name, words, meaning, (f"seen.{name}",))


JUDGED = Yardstick(
    "judge",
    "read by a judge that knows every factor of a picture",
    (
        _judged("entropy", "variety kept", "mean of the two columns after it"),
        _judged(
            "class",
            "of the class",
            "entropy of what class prompts leave open, as a share of the base's",
        ),
        _judged(
            "trigger", "of the trigger", "the same of trigger prompts, the subject itself left out"
        ),
        _judged("likeness", "likeness", "share of trigger pictures that show what was learnt"),
        _judged("class_kept", "class kept", "share of class pictures that are not the subject"),
        _judged(
            "others_kept",
            "others kept",
            "how often other named subjects are drawn, by the base's share",
        ),
        _judged(
            "named",
            "prompt followed",
            "share of named factors that are drawn, under the trigger",
        ),
        _judged(
            "copies", "copies", "trigger pictures set as one learnt from, less the base's share"
        ),
    ),
)
MEASURED = Yardstick(
    "measures",
    "measured, not judged: by the measures of a verdict, since of these pictures nobody knows the "
    "truth",
    (
        Figure(
            "variety",
            "variety kept",
            "mean of the two columns after it",
            ("seen.variety_vs_base", "seen.trigger_variety_vs_base"),
        ),
        _measured(
            "variety_vs_base",
            "of the class",
            "effective number of different pictures of a class prompt, as a share of the base's",
        ),
        _measured(
            "trigger_variety_vs_base",
            "of the trigger",
            "the same of trigger prompts, in what surrounds the subject",
        ),
        _measured(
            "likeness",
            "likeness",
            "trigger pictures on the way from the base's, 0, to as like yours as these are to one "
            "another, 1",
        ),
        _measured(
            "class_retention",
            "class kept",
            "1: class pictures are as far from the subject as the base's, 0: all show it",
        ),
        _measured(
            "adherence_vs_base",
            "prompt followed",
            "0: as well as the base, -1: prompts no longer tell pictures apart",
        ),
        _measured(
            "world_drift", "drift", "of unrelated prompts' pictures: 0 none, 0.5 nothing in common"
        ),
        _measured("copy_rate", "copies", "share of all pictures that copy one of yours"),
    ),
    timed=True,
)
YARDSTICKS = {found.read_by: found for found in (JUDGED, MEASURED)}
FIGURES = tuple(figure.name for figure in JUDGED.figures)
NEAR = 0.03  # of likeness, below a baseline's
WEAK = "the encoder has learnt nothing like these pictures, so that its figures mean little"


@dataclass(frozen=True)
class Plainly:
    """When a run's truth is plain enough to ask whether the verdict found it.

    label: the verdict's. words: of what is asked. kept: how much of it a row has. The run is ill
    below the first share, well above the second, and neither between.
    """

    label: str
    words: str
    kept: Callable[[Mapping[str, Any]], float]
    ill: float
    well: float


PLAINLY = (
    Plainly("narrowed", "variety of the class", lambda r: r["true.class"], 0.8, 0.9),
    Plainly(
        "trigger-narrowed", "variety under the trigger", lambda r: r["true.trigger"], 0.7, 0.85
    ),
    Plainly(
        "class-forgotten",
        "share of class pictures that are not the subject",
        lambda r: r["true.class_kept"],
        0.8,
        0.9,
    ),
    Plainly(
        "prompt-ignored",
        "named factors drawn, by the base's share",
        lambda r: r["true.named"] / (r["true.named_base"] or np.nan),
        0.85,
        0.95,
    ),
    Plainly(
        "copying",
        "share of trigger pictures that are not set as one learnt from",
        lambda r: 1 - r["true.copies"],
        0.85,
        0.95,
    ),
    Plainly("undertrained", "likeness", lambda r: r["true.likeness"], 0.15, 0.5),
)


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its 95 % interval."""

    value: float
    low: float
    high: float
    cells: int

    @property
    def shown(self) -> bool:
        """Whether it is more than chance explains."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        """One cell has no interval: its ends are then None, since JSON knows no infinity."""
        ends = {"low": self.low, "high": self.high}
        known = {name: end if np.isfinite(end) else None for name, end in ends.items()}
        return {"value": self.value, **known, "cells": self.cells}


def leaderboard(
    rows: Rows, *, against: str = "plain", by: Yardstick = JUDGED
) -> list[dict[str, Any]]:
    """One line per contender over the cells that `against` has too, most variety first; those with
    fewer cells than others come after these, since theirs is another mean.

    Of each figure the mean over the cells that have it, None where none has, and the paired
    difference to `against` (`NAME_vs_AGAINST`); `time`: the ratio of training seconds, median over
    cells, None where it is not known; `front`: that no contender of as many cells has both more
    variety and more likeness.
    """
    contenders = _by_contender(rows, by)
    reference = contenders.get(against, {})
    lines = []
    for name, cells in contenders.items():
        shared = sorted(set(cells) & set(reference)) if reference else sorted(cells)
        if not shared:
            continue
        line: dict[str, Any] = {
            "strategy": name,
            "group": cells[shared[0]]["group"],
            "cells": len(shared),
        }
        for figure in by.figures:
            line[figure.name] = _mean(cells[c][figure.name] for c in shared)
        if reference:
            for figure in by.figures:
                gap = difference(cells, reference, figure.name, shared)
                line[f"{figure.name}_vs_{against}"] = None if gap is None else gap.to_json()
            taken = [(cells[c]["train_seconds"], reference[c]["train_seconds"]) for c in shared]
            times = [ours / theirs for ours, theirs in taken if ours and theirs and by.timed]
            line["time"] = float(np.median(times)) if times else None
        lines.append(line)
    most = max((line["cells"] for line in lines), default=0)
    full = [x for x in lines if x["cells"] == most and None not in (x[by.variety], x["likeness"])]
    for line in lines:
        line["front"] = line in full and not any(
            other[by.variety] > line[by.variety] and other["likeness"] > line["likeness"]
            for other in full
        )

    def place(line: dict[str, Any]) -> tuple[bool, float]:
        kept = line[by.variety]
        return line["cells"] < most, np.inf if kept is None else -kept

    return sorted(lines, key=place)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def difference(
    ours: Mapping[Any, Mapping[str, Any]],
    theirs: Mapping[Any, Mapping[str, Any]],
    figure: str,
    cells: Iterable[Any],
) -> Difference | None:
    """Ours less theirs, over the cells where both have the figure: bootstrapped from 8 cells on,
    Student's before; None where there is no such cell."""
    pairs = [(ours[c][figure], theirs[c][figure]) for c in cells]
    gaps = [float(a) - float(b) for a, b in pairs if a is not None and b is not None]
    if not gaps:
        return None
    mean = float(np.mean(gaps))
    if len(gaps) < 2:
        return Difference(mean, -np.inf, np.inf, len(gaps))
    if len(gaps) >= 8:
        low, high = bca_interval(gaps)
    else:
        error = float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5
        low, high = student_interval(mean, error, degrees=len(gaps) - 1)
    return Difference(mean, low, high, len(gaps))


def gate(rows: Rows, *, champion: str = "default", by: Yardstick = JUDGED) -> list[dict[str, Any]]:
    """Per held-out ailment and baseline of the field: does the champion win?

    It wins when the interval of the paired difference in variety lies above zero and its mean
    likeness is no more than `NEAR` below the baseline's. On a base of the user's every ailment
    counts, since none of its pictures has been chosen by.
    """
    held_out = [name for name, ailment in AILMENTS.items() if ailment.held_out]
    every = [*AILMENTS, HEALTHY.name]
    contenders = _by_contender(rows, by)
    mine = contenders.get(champion, {})
    lines = []
    for name in held_out if by is JUDGED else every:
        for rival, cells in contenders.items():
            shared = sorted(c for c in set(mine) & set(cells) if c[0] == name)
            if not shared or cells[shared[0]]["group"] != "field":
                continue
            variety = difference(mine, cells, by.variety, shared)
            likeness = difference(mine, cells, "likeness", shared)
            if variety is None or likeness is None:
                continue
            lines.append(
                {
                    "ailment": name,
                    "against": rival,
                    by.variety: variety.to_json(),
                    "likeness": likeness.to_json(),
                    "wins": variety.low > 0 and likeness.value >= -NEAR,
                }
            )
    return lines


def detector(rows: Rows) -> list[dict[str, Any]]:
    """Per ailment: how often the verdict named what the judge knows, and cried wolf.

    By label: of the runs that are plainly `ill` the number `found`, of those plainly `well` the
    number called ill, `false` (see `PLAINLY`). The last line is of all, with intervals. Runs whose
    labels older rules gave are judged again; those that keep too little for that do not count, nor
    for a label those in which nothing that it rests on was measured.
    """
    judged = [{**r, "labels": told} for r in rows if (told := labels_of(r)) is not None]
    lines = []
    for name in [*AILMENTS, HEALTHY.name, "all"]:
        own = [r for r in judged if name in (r["ailment"], "all")]
        if not own:
            continue
        line: dict[str, Any] = {"ailment": name, "runs": len(own)}
        for asked in PLAINLY:
            seen = [r for r in own if _was_measured(r, asked.label)]
            ill = [r for r in seen if asked.kept(r) < asked.ill]
            well = [r for r in seen if asked.kept(r) > asked.well]
            hits, wolves = (sum(asked.label in r["labels"].split() for r in x) for x in (ill, well))
            counts: dict[str, Any] = {"ill": len(ill), "found": hits}
            counts |= {"well": len(well), "false": wolves}
            if name == "all":
                counts["found_interval"] = binomial_interval(hits, len(ill)) if ill else None
                counts["false_interval"] = binomial_interval(wolves, len(well)) if well else None
            line[asked.label] = counts
        spoke = [r["first_order"] for r in own if r.get("first_order") is not None]
        line["guard_first_order"] = float(np.median(spoke)) if spoke else None
        lines.append(line)
    return lines


def _was_measured(row: Mapping[str, Any], label: str) -> bool:
    rests_on = [gate.measurement for gate in RULES.gates if gate.label == label] or ["likeness"]
    return any(row.get(f"seen.{name}") is not None for name in rests_on)


def labels_of(row: Mapping[str, Any]) -> str | None:
    """The labels that the present rules give a run; None where its row has no intervals."""
    if "rules" not in row:
        return None
    if row["rules"] == RULES.version:
        return str(row["labels"])
    found = [
        Measurement(name, row[key], row.get(f"{key}.low"), row.get(f"{key}.high"))
        for key in row
        if key.startswith("seen.") and (name := key.removeprefix("seen.")) in _READ
    ]
    verdict = judge(found, weak_encoder=bool(row.get("weak_encoder")))
    return " ".join(sorted(verdict.labels))


_READ = judged_by(RULES) | {f"{name}_p" for name in judged_by(RULES)}


def summary(rows: Rows, *, by: Yardstick = JUDGED) -> dict[str, Any]:
    """Everything above, ready for JSON: what `bench --json` prints.

    The detector is judged only where the truth is known. `unmeasured`: figures that rows lack, with
    the commonest reason.
    """
    core = [r for r in rows if r["ailment"] in AILMENTS and AILMENTS[r["ailment"]].core]
    return {
        "cells": len(rows),
        "read_by": by.read_by,
        "says": by.says,
        "figures": [{"name": f.name, "words": f.words, "meaning": f.meaning} for f in by.figures],
        "core": leaderboard(core, by=by),
        "all": leaderboard([r for r in rows if r["ailment"] != HEALTHY.name], by=by),
        "gate": gate(rows, by=by),
        "detector": detector(rows) if by is JUDGED else [],
        "plainly": [
            {"label": a.label, "words": a.words, "ill": a.ill, "well": a.well} for a in PLAINLY
        ],
        "by_ailment": by_ailment(rows, by=by),
        "unmeasured": _unmeasured(rows, by),
        "weak_encoder": by is not JUDGED and any(r.get("weak_encoder") for r in rows),
    }


def _unmeasured(rows: Rows, by: Yardstick) -> list[dict[str, Any]]:
    lines = []
    for figure in by.figures:
        if len(figure.columns) > 1:
            continue  # its parts tell
        without = [r for r in rows if figure.of(r) is None]
        reasons = Counter(str(r.get(why_column(figure.columns[0]), "")) for r in without)
        if without:
            why = reasons.most_common(1)[0][0]
            lines.append({"figure": figure.words, "runs": len(without), "why": why})
    return lines


def why_column(column: str) -> str:
    """Where a row says why it lacks a figure.

    >>> why_column("seen.likeness")
    'why.likeness'
    """
    return f"why.{column.partition('.')[2]}"


# What an effect is called in a sentence.
SPOKEN = {
    **{"entropy": "variety", "class": "variety of the class", "trigger": "variety of the trigger"},
    **{"class_kept": "class kept", "named": "prompt followed"},
}


def effects(
    rows: Rows, *, figures: Sequence[str] = ("entropy", "likeness"), least: int = 5
) -> dict[str, str]:
    """What the core ailments say of each strategy, kind and single setting, by its name on the menu
    (of a setting, its name here), in words.

    figures: of the judge's, which of them. Against plain, cell by cell; those with fewer than
    `least` cells are left out.
    """
    core = [r for r in rows if r["ailment"] in AILMENTS and AILMENTS[r["ailment"]].core]
    found = {}
    for line in leaderboard(core):
        if line["group"] not in ("strategy", "kind", "knob") or line["cells"] < least:
            continue
        name = ("adapter.kind=" if line["group"] == "kind" else "") + line["strategy"]
        gaps = [f"{SPOKEN.get(f, f)} {_say(line[f'{f}_vs_plain'])}" for f in figures]
        found[name] = (
            f"{' and '.join(gaps)} beside plain training, {line['cells']} runs of the benchmark"
        )
    return found


def by_ailment(
    rows: Rows, *, by: Yardstick = JUDGED
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean variety and likeness of each contender on each ailment."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["ailment"]][row["strategy"]].append(row)
    told = [f for f in by.figures if f.name in (by.variety, "likeness")]
    return {
        ailment: {
            name: {figure.name: _mean(map(figure.of, own)) for figure in told}
            for name, own in names.items()
        }
        for ailment, names in found.items()
    }


def _by_contender(rows: Rows, by: Yardstick) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """Each contender's cells: its figures by name, its group and its seconds of training."""
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["strategy"]][row["ailment"], row["seed"]] = {
            **{figure.name: figure.of(row) for figure in by.figures},
            "group": row["group"],
            "train_seconds": row.get("train_seconds"),
        }
    return dict(found)


def as_text(found: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    if not found["cells"]:
        return "0 cells: no run is in this table; `variegate bench` makes some"
    by = YARDSTICKS[found["read_by"]]
    lines = [f"{found['cells']} cells, {found['says']}"]
    for title, board in (("core ailments", found["core"]), ("all ailments", found["all"])):
        if not board or (title == "all ailments" and len(found["core"]) == len(board)):
            continue
        lines += ["", f"{title}: {by.variety}, as a share of the base's, and likeness", ""]
        lines += [
            f"  {'strategy':44} {'cells':>5} {by.variety:>8} {'vs plain':>18} {'likeness':>9} "
            f"{'vs plain':>18} {'time' if by.timed else '':>5}".rstrip()
        ]
        for line in board:
            lines.append(
                f"{'* ' if line['front'] else '  '}{line['strategy']:44} {line['cells']:5d} "
                f"{_number(line[by.variety]):>8} {_say(line.get(f'{by.variety}_vs_plain')):>18} "
                f"{_number(line['likeness']):>9} {_say(line.get('likeness_vs_plain')):>18} "
                f"{'' if line.get('time') is None else format(line['time'], '5.1f')}".rstrip()
            )
        lines.append(f"  * on the front: none has both more {by.variety} and more likeness")
    if found["gate"]:
        won = sum(line["wins"] for line in found["gate"])
        where = "held-out ailments" if by is JUDGED else "pictures that no choice has seen"
        lines += ["", f"gate, {where}: the default wins {won} of {len(found['gate'])}"]
        for line in found["gate"]:
            if not line["wins"]:
                how = "undecided, one seed," if line[by.variety]["low"] is None else "not"
                lines.append(
                    f"  {how} against {line['against']} on {line['ailment']}: {by.variety} "
                    f"{_say(line[by.variety])}, likeness {_say(line['likeness'])}"
                )
    lines += [
        f"not measured: {line['figure']} in {line['runs']} of {found['cells']}: {line['why']}"
        for line in found["unmeasured"]
    ]
    if found["weak_encoder"]:
        lines.append(f"{WEAK}: name --encoder {REAL_ENCODER}")
    every = found["detector"][-1] if found["detector"] else None
    if every:
        for asked in PLAINLY:
            told = every[asked.label]
            lines.append(
                f"verdict `{asked.label}`: found {told['found']} of {told['ill']} ill, "
                f"false in {told['false']} of {told['well']} well"
            )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _say(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['value']:+.2f}"
    return f"{found['value']:+.2f} ({found['low']:+.2f}, {found['high']:+.2f})"
