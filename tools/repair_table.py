"""How much of a collapsed adapter's lost variety `variegate repair` gives back, by the judge.

    python tools/repair_table.py runs --minutes 60   # goes on where it stopped
    python tools/repair_table.py table               # docs/repairing.md, below its mark

The adapters are the benchmark's: what the field trains by default and the plain recipe, on pictures
that make an adapter collapse. A run that the benchmark left is used, any other is trained. The
repair knows only its own measures; the judge reads the fresh pictures that it drew of the adapter
before and after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate.bench.ailments import scenes_of  # noqa: E402
from variegate.bench.contenders import named  # noqa: E402
from variegate.bench.suite import Cell, home  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.bench.truth import read_folder, truth  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.pick import repair  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.train import train  # noqa: E402

AILMENTS = ("one-sided", "eight pictures", "four pictures", "silent captions", "one background")
CONTENDERS = ("diffusers", "plain", "kohya", "OneTrainer")
SEEDS = 3
TRIES = 14  # of each search: what a few minutes of one core carry
COLLAPSED = 0.8  # of the base's variety, by the judge: what has more is no collapsed adapter
PRICE = 0.05  # the verb's default
WAYS = (("plain", False), ("timed", True))
MARK = "<!-- made by tools/repair_table.py: what stands below is written over -->\n"


def runs_home() -> Path:
    return cache_dir() / "repair" / POCKET.mark


def run_all(minutes: float) -> None:
    file, start = runs_home() / "rows.jsonl", time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["key"], row["way"], row["price"]) for row in _lines(file)}
    for cell, recipe, key in _cells():
        for way, timed in WAYS:
            if (key, way, PRICE) in done:
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            row = _row(cell, recipe, key, way, timed=timed)
            with file.open("a", encoding="utf8") as out:
                out.write(json.dumps(row) + "\n")
            print(_told(row), flush=True)


def _cells() -> Iterator[tuple[Cell, Recipe, str]]:
    """Those whose run is there already first."""
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
    yield from sorted(found, key=lambda each: not _adapter(each[2]).exists())


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
        of = truth(
            read_folder(found.pictures / side / "samples" / "adapter"),
            read_folder(found.pictures / side / "samples" / "base"),
            subject=POCKET.subject(cell.ailment, cell.seed),
            learnt=scenes_of(
                cell.ailment.pictures, POCKET.subject(cell.ailment, cell.seed), cell.seed
            ),
        )
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


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    text = file.read_text(encoding="utf8").splitlines(keepends=True)
    return [json.loads(line) for line in text if line.endswith("\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "runs":
        run_all(args.minutes)
        return
    raise SystemExit("the table is not written yet")


if __name__ == "__main__":
    main()
