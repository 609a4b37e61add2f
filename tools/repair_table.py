"""How much of a collapsed adapter's lost variety `variegate repair` gives back, by the judge.

    python tools/repair_table.py runs --minutes 60   # goes on where it stopped
    python tools/repair_table.py edits --minutes 30  # each edit alone, likewise
    python tools/repair_table.py table               # docs/repairing.md, below its mark

The adapters are the benchmark's: what the field trains by default and the plain recipe, on pictures
that make an adapter collapse. A run that the benchmark left is used, any other is trained. The
repair knows only its own measures; the judge reads the fresh pictures that it drew of the adapter
before and after.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate.bench.ailments import scenes_of  # noqa: E402
from variegate.bench.contenders import named  # noqa: E402
from variegate.bench.suite import Cell, home  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.bench.truth import read_folder, truth  # noqa: E402
from variegate.blended import Judge  # noqa: E402
from variegate.formats import read as read_adapter  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.measure import read as read_off  # noqa: E402
from variegate.measure.versus import subject_kept  # noqa: E402
from variegate.pick import repair  # noqa: E402
from variegate.pick.mending import Bench, knobs_of  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.train import train  # noqa: E402

AILMENTS = ("one-sided", "eight pictures", "four pictures", "silent captions", "one background")
CONTENDERS = ("diffusers", "plain", "kohya", "OneTrainer")
SEEDS = 3
TRIES = 8  # of each search: what a few minutes of one core carry
COLLAPSED = 0.8  # of the base's variety, by the judge: what has more is no collapsed adapter
PRICE = 0.1  # the verb's default
# Of whom each edit alone is told.
ALONE = (("one-sided", "diffusers", 2), ("eight pictures", "OneTrainer", 0))
WAYS = (("plain", False), ("timed", True))
MARK = "<!-- made by tools/repair_table.py: what stands below is written over -->\n"


def runs_home() -> Path:
    return cache_dir() / "repair" / POCKET.mark


def run_all(minutes: float) -> None:
    file, start = runs_home() / "rows.jsonl", time.monotonic()
    done = {(row["key"], row["way"], row["price"]) for row in rowfile.read(file)}
    cells = list(_cells())
    for way, timed in WAYS:
        for cell, recipe, key in cells:
            if (key, way, PRICE) in done:
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            row = _row(cell, recipe, key, way, timed=timed)
            rowfile.add(file, row)
            print(_told(row), flush=True)


def _cells() -> Iterator[tuple[Cell, Recipe, str]]:
    """Those whose run is there already first, and those that take long to train last."""
    cells = [
        Cell(POCKET.ailments[ailment], contender, seed)
        for seed in range(SEEDS)
        for contender in named(CONTENDERS, POCKET.contenders)
        for ailment in AILMENTS
    ]
    found = []
    for cell in cells:
        recipe = cell.recipe()
        found.append((cell, recipe, cell.key(recipe)))
    long = 1000  # steps
    yield from sorted(
        found, key=lambda each: (not _adapter(each[2]).exists(), each[1].optimizer.steps > long)
    )


def _adapter(key: str) -> Path:
    return home() / "runs" / key / "adapter.safetensors"


def _row(cell: Cell, recipe: Recipe, key: str, way: str, *, timed: bool) -> dict[str, Any]:
    if not _adapter(key).exists():
        run: Run = train(recipe, out=home() / "runs" / key, model=POCKET.load(recipe))
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    began = time.monotonic()
    found = repair(
        _adapter(key),
        base="pocket",
        out=runs_home() / "repaired" / f"{key}-{way}.safetensors",
        train_images=Path(recipe.images),
        trigger=POCKET.trigger,
        class_noun=recipe.class_noun,
        price=PRICE,
        tries=TRIES,
        timed=timed,
    )
    row: dict[str, Any] = {
        "key": key,
        "ailment": cell.ailment.name,
        "contender": cell.contender.name,
        "seed": cell.seed,
        "way": way,
        "price": PRICE,
        "written": found.file is not None,
        "words": [edit.words for edit in found.edits],
        "kept": getattr(found.kept, "value", None),
        "seconds": round(time.monotonic() - began, 1),
    }
    if found.pictures is None:
        return row | {"said": found.said}
    for side in ("before", "after"):
        of = _truth(cell, found.pictures / side / "samples")
        verdict = found.before if side == "before" else found.after
        assert verdict is not None
        row |= {f"{side}.{name}": round(of[name], 4) for name in TRUE}
        row |= {f"{side}.seen.{n}": round(m.value, 4) for n in SEEN if (m := verdict.find(n))}
    return row


TRUE = ("class", "trigger", "entropy", "likeness", "class_kept")
SEEN = ("variety_vs_base", "trigger_variety_vs_base", "likeness")


def _told(row: dict[str, Any]) -> str:
    head = f"{row['ailment']}, {row['contender']}, seed {row['seed']}, {row['way']}"
    if "before.entropy" not in row:
        return f"{head}: {row['said']}"
    return (
        f"{head}: variety {row['before.entropy']:.2f} -> {row['after.entropy']:.2f}, likeness "
        f"{row['before.likeness']:.2f} -> {row['after.likeness']:.2f} (seen "
        f"{row['before.seen.likeness']:.2f} -> {row['after.seen.likeness']:.2f}), "
        f"{'written' if row['written'] else 'not written'}, {row['seconds']:.0f} s: "
        f"{'; '.join(row['words'])}"
    )


# --- each edit alone ----------------------------------------------------------------------------


def run_edits(minutes: float) -> None:
    """Every level of every knob alone, on the first adapters of the table that collapsed."""
    file, start = runs_home() / "edits.jsonl", time.monotonic()
    done = {(row["key"], row["words"]) for row in rowfile.read(file)}
    there = {key: (cell, recipe) for cell, recipe, key in _cells() if _adapter(key).exists()}
    asked = [(key, *there[key]) for key in (_cell_key(*names) for names in ALONE) if key in there]
    for key, cell, recipe in asked:
        learnt = read_adapter(_adapter(key))
        judge = Judge.on(
            "pocket",
            [learnt],
            train_images=Path(recipe.images),
            trigger=POCKET.trigger,
            class_noun=recipe.class_noun,
        )
        bench = Bench(learnt, judge, seed=0, tries=0)
        knobs = knobs_of(learnt, timed=True, timesteps=1000)
        edits = [(), *((edit,) for knob in knobs for edit in knob.levels)]
        for edit in edits:
            words = edit[0].words if edit else "as it is"
            if (key, words) in done:
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            drawn = runs_home() / "edits" / key
            seen = bench.judge.evidence(bench.edited(edit), out=drawn)
            of, kept = _truth(cell, drawn), subject_kept(bench.before, seen)
            like = next(m for m in read_off(seen) if m.name == "likeness")
            row = {
                "key": key,
                "ailment": cell.ailment.name,
                "contender": cell.contender.name,
                "seed": cell.seed,
                "words": words,
                **{name: round(of[name], 4) for name in TRUE},
                "seen.likeness": getattr(like, "value", None),
                "seen.kept": getattr(kept, "value", None),
            }
            rowfile.add(file, row)
            print(row, flush=True)


def _cell_key(ailment: str, contender: str, seed: int) -> str:
    cell = Cell(POCKET.ailments[ailment], POCKET.contenders[contender], seed)
    return cell.key(cell.recipe())


def _truth(cell: Cell, drawn: Path) -> dict[str, float]:
    subject = POCKET.subject(cell.ailment, cell.seed)
    return truth(
        read_folder(drawn / "adapter"),
        read_folder(drawn / "base"),
        subject=subject,
        learnt=scenes_of(cell.ailment.pictures, subject, cell.seed),
    )


# --- the page -----------------------------------------------------------------------------------


def page_part(rows: Sequence[dict[str, Any]], edits: Sequence[dict[str, Any]]) -> str:
    """What stands below the mark of the page."""
    judged = [row for row in rows if "before.entropy" in row]
    ill = [row for row in judged if row["before.entropy"] < COLLAPSED]
    told = [
        HEAD.format(
            count=len({row["key"] for row in ill}),
            all=len({row["key"] for row in rows}),
            tries=TRIES,
            price=f"{PRICE:.0%}",
            collapsed=f"{COLLAPSED:.0%}",
        ).rstrip()
    ]
    told += ["", "| repair | adapters | written | lost variety given back, median (quarters) | "]
    told[-1] += "likeness before | after | points lost, median (quarters) | at least half back at "
    told[-1] += "5 points or less |"
    told.append("|" + "---|" * 8)
    for way, _ in WAYS:
        own = [row for row in ill if row["way"] == way]
        if own:
            told.append(_summary(way, own))
    for way, title in (("plain", "As a plain file"), ("timed", "Acting late in the noise")):
        own = [row for row in ill if row["way"] == way]
        told += ["", f"{title}:", "", LINE_HEAD, "|" + "---|" * 7, *map(_line, own)] if own else []
    if edits:
        told += ["", *_edits_table(edits)]
    return "\n".join(told) + "\n"


def _back(row: dict[str, Any]) -> float:
    """The share of the lost variety that the adapter a user is left with has again."""
    if not row["written"]:
        return 0.0
    return (row["after.entropy"] - row["before.entropy"]) / (1 - row["before.entropy"])


def _points(row: dict[str, Any]) -> float:
    return 100 * (row["before.likeness"] - row["after.likeness"]) if row["written"] else 0.0


def _summary(way: str, own: Sequence[dict[str, Any]]) -> str:
    back, points = np.array([*map(_back, own)]), np.array([*map(_points, own)])
    good = int(((back >= 0.5) & (points <= 5)).sum())
    before, after = (
        np.mean([row[f"{side}.likeness"] for row in own]) for side in ("before", "after")
    )
    cells = [
        "a plain file" if way == "plain" else "`--timed`",
        str(len(own)),
        str(sum(row["written"] for row in own)),
        f"{np.median(back):.0%} ({np.quantile(back, 0.25):.0%} to {np.quantile(back, 0.75):.0%})",
        f"{before:.0%}",
        f"{after:.0%}",
        f"{np.median(points):.0f} ({np.quantile(points, 0.25):.0f} to "
        f"{np.quantile(points, 0.75):.0f})",
        f"{good} of {len(own)}",
    ]
    return f"| {' | '.join(cells)} |"


def _line(row: dict[str, Any]) -> str:
    cells = [
        row["ailment"],
        row["contender"],
        str(row["seed"]),
        f"{row['before.entropy']:.2f} to {row['after.entropy']:.2f}",
        f"{row['before.likeness']:.2f} to {row['after.likeness']:.2f}",
        f"{_back(row):.0%}" if row["written"] else "not written",
        "; ".join(row["words"]) or "nothing",
    ]
    return f"| {' | '.join(cells)} |"


def _edits_table(edits: Sequence[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(row["key"] for row in edits))
    names = [
        next(f"{r['ailment']}, {r['contender']}" for r in edits if r["key"] == key) for key in keys
    ]
    told = [EDITS, "", f"| edit | {' | '.join(f'{n}: variety | likeness | kept' for n in names)} |"]
    told.append("|" + "---|" * (1 + 3 * len(keys)))
    for words in dict.fromkeys(row["words"] for row in edits):
        cells = [words]
        for key in keys:
            row = next((r for r in edits if (r["key"], r["words"]) == (key, words)), None)
            cells += (
                [f"{row['entropy']:.2f}", f"{row['likeness']:.2f}", f"{row['seen.kept']:.2f}"]
                if row
                else ["-"] * 3
            )
        told.append(f"| {' | '.join(cells)} |")
    told += ["", "Over these edits, the correlation with the likeness that the judge sees:", ""]
    told += ["| adapter | `subject_kept` | likeness to the training pictures |", "|---|---|---|"]
    for key, name in zip(keys, names, strict=True):
        own = [row for row in edits if row["key"] == key]
        true = [row["likeness"] for row in own]
        pair = [np.corrcoef(true, [row[f"seen.{of}"] for row in own])[0, 1] for of in SIGHTS]
        told.append(f"| {name} | {pair[0]:.2f} | {pair[1]:.2f} |")
    return told


SIGHTS = ("kept", "likeness")
LINE_HEAD = "| pictures | trained by | seed | variety | likeness | given back | what was done |"
HEAD = """\
## What it gives back

Made by `tools/repair_table.py` on the pocket, from {all} adapters that the field's settings and
the plain recipe trained on pictures that make an adapter collapse; {count} of them kept less than
{collapsed} of the base's variety, and are told here. Each was repaired with {tries} tries at a
price of {price}, its training pictures given. The repair knows its own measures alone; the judge
then read 112 fresh pictures of the adapter before and after. Variety is the entropy of what prompts
leave open as a share of the base's, the mean of class and trigger prompts; likeness the share of
trigger pictures that show the subject (48 of an adapter, so a single one is good to about 7
points). Given back is the share of what was lost. A repair that was not written gives nothing back.

"""
EDITS = """\
## Each edit alone

The judge on 56 pictures of each edit alone (32 without the trigger, 24 with it: likeness is good to
about 10 points), and what the search itself sees as kept of the subject."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "edits", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage != "table":
        (run_all if args.stage == "runs" else run_edits)(args.minutes)
        return
    page = ROOT / "docs" / "repairing.md"
    rows, edits = (rowfile.read(runs_home() / name) for name in ("rows.jsonl", "edits.jsonl"))
    rowfile.write_below(page, MARK, page_part(rows, edits))
    print(page_part(rows, edits))


if __name__ == "__main__":
    main()
