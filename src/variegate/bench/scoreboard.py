"""What the rows of the benchmark say: leaderboard, front, gate, and how right the detector was.

Contenders are compared cell by cell: same ailment, same seed, same subject, same prompts. The unit
of replication is the cell, so a difference's interval is a bootstrap over cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from variegate.bench.ailments import AILMENTS, HEALTHY
from variegate.measure.uncertainty import bca_interval, binomial_interval, student_interval

Rows = Sequence[Mapping[str, Any]]
FIGURES = (
    *("entropy", "class", "trigger", "likeness", "class_kept", "others_kept", "named", "copies"),
)
NEAR = 0.03  # of likeness, below a baseline's
# What a run's truth is called: ill below the first share of the base's entropy, well above the
# second, and neither between.
ILL, WELL = {"class": 0.8, "trigger": 0.7}, {"class": 0.9, "trigger": 0.85}
LABELS = {"class": "narrowed", "trigger": "trigger-narrowed"}


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


def leaderboard(rows: Rows, *, against: str = "plain") -> list[dict[str, Any]]:
    """One line per contender over the cells that `against` has too, most entropy first.

    Of each figure the mean; of entropy and likeness also the paired difference to `against`;
    `time`: the ratio of training seconds, median over cells; `front`: that no contender of as many
    cells has both more entropy and more likeness.
    """
    by = _by_contender(rows)
    reference = by.get(against, {})
    lines = []
    for name, cells in by.items():
        shared = sorted(set(cells) & set(reference)) if reference else sorted(cells)
        if not shared:
            continue
        line: dict[str, Any] = {
            "strategy": name,
            "group": cells[shared[0]]["group"],
            "cells": len(shared),
        }
        for figure in FIGURES:
            line[figure] = float(np.mean([cells[c][f"true.{figure}"] for c in shared]))
        if reference:
            for figure in ("entropy", "likeness"):
                line[f"{figure}_vs_{against}"] = asdict(
                    difference(cells, reference, f"true.{figure}", shared)
                )
            times = [cells[c]["train_seconds"] / reference[c]["train_seconds"] for c in shared]
            line["time"] = float(np.median(times))
        lines.append(line)
    most = max((line["cells"] for line in lines), default=0)
    for line in lines:
        line["front"] = line["cells"] == most and not any(
            other["entropy"] > line["entropy"] and other["likeness"] > line["likeness"]
            for other in lines
            if other["cells"] == most
        )
    return sorted(lines, key=lambda line: -line["entropy"])


def difference(
    ours: Mapping[Any, Mapping[str, Any]],
    theirs: Mapping[Any, Mapping[str, Any]],
    figure: str,
    cells: Iterable[Any],
) -> Difference:
    """Ours less theirs, cell by cell: bootstrapped from 8 cells on, Student's before."""
    gaps = [float(ours[c][figure]) - float(theirs[c][figure]) for c in cells]
    mean = float(np.mean(gaps))
    if len(gaps) < 2:
        return Difference(mean, -np.inf, np.inf, len(gaps))
    if len(gaps) >= 8:
        low, high = bca_interval(gaps)
    else:
        error = float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5
        low, high = student_interval(mean, error, degrees=len(gaps) - 1)
    return Difference(mean, low, high, len(gaps))


def gate(rows: Rows, *, champion: str = "default") -> list[dict[str, Any]]:
    """Per held-out ailment and baseline of the field: does the champion win?

    It wins when the interval of the paired difference in entropy lies above zero and its mean
    likeness is no more than `NEAR` below the baseline's.
    """
    by = _by_contender(rows)
    mine = by.get(champion, {})
    lines = []
    for name, ailment in AILMENTS.items():
        if not ailment.held_out:
            continue
        for rival, cells in by.items():
            shared = sorted(c for c in set(mine) & set(cells) if c[0] == name)
            if not shared or cells[shared[0]]["group"] != "field":
                continue
            entropy = difference(mine, cells, "true.entropy", shared)
            likeness = difference(mine, cells, "true.likeness", shared)
            lines.append(
                {
                    "ailment": name,
                    "against": rival,
                    "entropy": asdict(entropy),
                    "likeness": asdict(likeness),
                    "wins": entropy.low > 0 and likeness.value >= -NEAR,
                }
            )
    return lines


def detector(rows: Rows) -> list[dict[str, Any]]:
    """Per ailment: how often the verdict named what the judge knows, and cried wolf.

    ill and well: runs whose truth is plain (see `ILL` and `WELL`). The last line is of all.
    """
    lines = []
    for name in [*AILMENTS, HEALTHY.name, "all"]:
        own = [r for r in rows if name in (r["ailment"], "all")]
        if not own:
            continue
        line: dict[str, Any] = {"ailment": name, "runs": len(own)}
        for side, label in LABELS.items():
            ill = [r for r in own if r[f"true.{side}"] < ILL[side]]
            well = [r for r in own if r[f"true.{side}"] > WELL[side]]
            hits = sum(label in r["labels"].split() for r in ill)
            wolves = sum(label in r["labels"].split() for r in well)
            line |= {
                f"{side}_ill": len(ill),
                f"{side}_found": hits,
                f"{side}_well": len(well),
                f"{side}_false": wolves,
            }
            if name == "all":
                line[f"{side}_found_interval"] = binomial_interval(hits, len(ill)) if ill else None
                line[f"{side}_false_interval"] = (
                    binomial_interval(wolves, len(well)) if well else None
                )
        spoke = [r["first_order"] for r in own if r.get("first_order") is not None]
        line["guard_first_order"] = float(np.median(spoke)) if spoke else None
        lines.append(line)
    return lines


def summary(rows: Rows) -> dict[str, Any]:
    """Everything above, ready for JSON: what `bench --json` prints."""
    core = [r for r in rows if r["ailment"] in AILMENTS and AILMENTS[r["ailment"]].core]
    return {
        "cells": len(rows),
        "core": leaderboard(core),
        "all": leaderboard([r for r in rows if r["ailment"] != HEALTHY.name]),
        "gate": gate(rows),
        "detector": detector(rows),
        "by_ailment": by_ailment(rows),
    }


def effects(rows: Rows, *, least: int = 5) -> dict[str, str]:
    """What the core ailments say of each strategy and kind, by its name on the menu, in words.

    Against plain, cell by cell; those with fewer than `least` cells are left out.
    """
    core = [r for r in rows if r["ailment"] in AILMENTS and AILMENTS[r["ailment"]].core]
    found = {}
    for line in leaderboard(core):
        if line["group"] not in ("strategy", "kind") or line["cells"] < least:
            continue
        name = (
            line["strategy"] if line["group"] == "strategy" else f"adapter.kind={line['strategy']}"
        )
        gaps = [
            f"{what} {_say(line[f'{figure}_vs_plain'])}"
            for figure, what in (("entropy", "variety"), ("likeness", "likeness"))
        ]
        found[name] = (
            f"{' and '.join(gaps)} beside plain training, {line['cells']} runs of the benchmark "
            f"({line['time']:.1f} times the training time)"
        )
    return found


def by_ailment(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Mean entropy and likeness of each contender on each ailment."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["ailment"]][row["strategy"]].append(row)
    return {
        ailment: {
            name: {
                "entropy": float(np.mean([r["true.entropy"] for r in own])),
                "likeness": float(np.mean([r["true.likeness"] for r in own])),
            }
            for name, own in names.items()
        }
        for ailment, names in found.items()
    }


def _by_contender(rows: Rows) -> dict[str, dict[tuple[str, int], Mapping[str, Any]]]:
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["strategy"]][row["ailment"], row["seed"]] = row
    return dict(found)


def as_text(found: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    if not found["cells"]:
        return "0 cells: no run is in this table; `variegate bench` makes some"
    lines = [f"{found['cells']} cells"]
    for title, board in (("core ailments", found["core"]), ("all ailments", found["all"])):
        if not board or (title == "all ailments" and len(found["core"]) == len(board)):
            continue
        lines += ["", f"{title}: share of the base's entropy kept, and likeness", ""]
        lines += [
            f"  {'strategy':44} {'cells':>5} {'entropy':>8} {'vs plain':>18} {'likeness':>9} "
            f"{'vs plain':>18} {'time':>5}"
        ]
        for line in board:
            lines.append(
                f"{'* ' if line['front'] else '  '}{line['strategy']:44} {line['cells']:5d} "
                f"{line['entropy']:8.2f} {_say(line.get('entropy_vs_plain')):>18} "
                f"{line['likeness']:9.2f} {_say(line.get('likeness_vs_plain')):>18} "
                f"{line.get('time', 1):5.1f}"
            )
        lines.append("  * on the front: none has both more entropy and more likeness")
    if found["gate"]:
        won = sum(line["wins"] for line in found["gate"])
        lines += ["", f"gate, held-out ailments: the default wins {won} of {len(found['gate'])}"]
        for line in found["gate"]:
            if not line["wins"]:
                lines.append(
                    f"  not against {line['against']} on {line['ailment']}: entropy "
                    f"{_say(line['entropy'])}, likeness {_say(line['likeness'])}"
                )
    every = found["detector"][-1] if found["detector"] else None
    if every:
        for side, label in LABELS.items():
            lines.append(
                f"verdict `{label}`: found {every[f'{side}_found']} of {every[f'{side}_ill']} ill, "
                f"false in {every[f'{side}_false']} of {every[f'{side}_well']} well"
            )
    return "\n".join(lines)


def _say(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if not np.isfinite(found["low"]):
        return f"{found['value']:+.2f}"
    return f"{found['value']:+.2f} ({found['low']:+.2f}, {found['high']:+.2f})"
