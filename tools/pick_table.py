"""How far `variegate pick` stays behind the whole grid that it draws a quarter of, by the judge.

    python tools/pick_table.py run --minutes 60   # goes on where it stopped
    python tools/pick_table.py run --minutes 60 --subjects taco ghost   # beside another
    python tools/pick_table.py table              # docs/picking.md, below its mark

The runs are the benchmark's: plain and field settings on pictures that make an adapter collapse and
on healthy ones, each with four checkpoints; of the subjects that are held out there, since what
`pick` goes by was chosen on the others. Every point of the grid is drawn whole
(8 prompts of each group, 4 pictures a prompt) and read by the judge; then `pick` searches the same
grid at a quarter of its pictures, which it finds drawn, and only its last check is drawn anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate.bench.ailments import NEW, scenes_of  # noqa: E402
from variegate.bench.contenders import named  # noqa: E402
from variegate.bench.suite import Cell  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.bench.truth import Row, read_pictures, truth  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.pick.choosing import MARGIN, SHARE, pick, plain_of  # noqa: E402
from variegate.pick.points import checkpoints_of, grid  # noqa: E402
from variegate.pick.stand import Bench  # noqa: E402
from variegate.recipe import Checkpoints, Recipe  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.train import train  # noqa: E402

AILMENTS = ("one-sided", "eight pictures", "one background", "healthy")
CONTENDERS = ("plain", "diffusers", "OneTrainer")
RUNS = 30
CHECKPOINTS = 4
STRENGTHS = (0.6, 0.8, 1.0)
GUIDANCE = (1.0, 1.4)
PROMPTS = 8  # of each group, of every point: 64 pictures
STEPS = 12  # of denoising, of the pictures that are checked
AIM = 0.05
MARK = "<!-- made by tools/pick_table.py: what stands below is written over -->\n"


def home() -> Path:
    return cache_dir() / "pick-table" / POCKET.mark


def rows_file() -> Path:
    """In the repository: hours of work that another day goes on with."""
    return ROOT / "tools" / "rows" / "pick" / f"{POCKET.mark}.jsonl"


def run_all(minutes: float, subjects: Sequence[str]) -> None:
    start = time.monotonic()
    done = {row["key"] for row in rowfile.read(rows_file())}
    for cell in cells():
        recipe = recipe_of(cell)
        key = cell.key(recipe)
        if key in done or POCKET.subject(cell.ailment, cell.seed) not in subjects:
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        row = row_of(cell, recipe, key)
        rowfile.add(rows_file(), row)
        print(_told(row), flush=True)


def cells() -> list[Cell]:
    """Subject by subject in turn, each with other settings and pictures than the one before."""
    pairs = [(a, c) for a in AILMENTS for c in named(CONTENDERS, POCKET.contenders)]
    found = list[Cell]()
    for turn in range(-(-RUNS // len(NEW))):
        for seed in range(len(NEW)):
            ailment, contender = pairs[(turn + 2 * seed) % len(pairs)]
            unseen = replace(POCKET.ailments[ailment], held_out=True)
            found.append(Cell(unseen, contender, seed))
    return found[:RUNS]


def recipe_of(cell: Cell) -> Recipe:
    recipe = cell.recipe()
    every = max(1, recipe.optimizer.steps // CHECKPOINTS)
    # A search draws with two thirds of the steps.
    sampling = recipe.sampling.model_copy(update={"steps": STEPS})
    kept = Checkpoints(every=every, keep=99)
    return recipe.model_copy(update={"checkpoints": kept, "sampling": sampling})


def row_of(cell: Cell, recipe: Recipe, key: str) -> dict[str, Any]:
    began = time.monotonic()
    run = train(recipe, out=home() / "runs" / key, model=POCKET.load(recipe))
    trained = time.monotonic() - began
    judged = judge_grid(cell, run)
    drawn = time.monotonic() - began - trained
    found = pick(
        run.folder,
        strengths=STRENGTHS,
        guidance=GUIDANCE,
        checkpoints=CHECKPOINTS,
        share=SHARE,
        prompts=PROMPTS,
        out=home() / "picked" / key,
    )
    row = {
        "key": key,
        "ailment": cell.ailment.name,
        "contender": cell.contender.name,
        "seed": cell.seed,
        "subject": POCKET.subject(cell.ailment, cell.seed),
        "points": judged,
        "picked": found.point.name,
        "searched": found.searched.name,
        "reference": found.reference.name,
        "front": [p.point.name for p in found.points if p.on_front],
        "samples": found.samples_used,
        "of_grid": found.samples_of_grid,
        "cannot_tell": bool(found.cannot_tell),
        "seconds": [round(x, 1) for x in (trained, drawn, time.monotonic() - began)],
    }
    shutil.rmtree(run.folder, ignore_errors=True)  # tens of MB of optimizer states
    return row


def judge_grid(cell: Cell, run: Run) -> list[dict[str, Any]]:
    """Every point drawn whole and read by the judge, of all pictures and of those of either half of
    the prompts."""
    found, told = checkpoints_of(run.folder, most=CHECKPOINTS)
    bench = Bench.on(found, run, prompts=PROMPTS, told=told)
    subject = POCKET.subject(cell.ailment, cell.seed)
    learnt = scenes_of(cell.ailment.pictures, subject, cell.seed)
    points = grid(found, STRENGTHS, GUIDANCE)
    plain = plain_of(points, bench.own)
    means = {point: bench.look(point, PROMPTS).likeness for point in points}
    reference = max((p for p in points if plain(p)), key=lambda p: means[p])
    rows = []
    for point in points:
        ours, base = (read_pictures(pictures) for pictures in bench.draw_whole(point))
        own = truth(ours, base, subject=subject, learnt=learnt)
        row: dict[str, Any] = {"name": point.name, "plain": plain(point)}
        row["mean likeness"] = round(means[point], 4)
        row["recognised"] = round(getattr(bench.likeness(reference, point), "value", 0.0), 4)
        row |= {k: round(own[k], 4) for k in ("entropy", "class", "trigger", "likeness")}
        for half in (0, 1):
            some = [_half(side, half) for side in (ours, base)]
            part = truth(some[0], some[1], subject=subject, learnt=learnt)
            row[f"half {half}"] = [round(part[k], 4) for k in ("entropy", "likeness")]
        rows.append(row)
    return rows


def _half(rows: Sequence[Row], half: int) -> list[Row]:
    """Every second prompt of each group."""
    order: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if (row.group, row.prompt) not in order:
            order[row.group, row.prompt] = counts.get(row.group, 0)
            counts[row.group] = counts.get(row.group, 0) + 1
    return [row for row in rows if order[row.group, row.prompt] % 2 == half]


# --- what it comes to ---------------------------------------------------------------------------


def regret(row: dict[str, Any], of: str = "picked") -> float:
    """The entropy of the grid's best point that keeps the likeness, less that of the pick's."""
    points = {p["name"]: (p["entropy"], p["likeness"], p["plain"]) for p in row["points"]}
    return points[best_of(points)][0] - points[row[of]][0]


def best_of(points: dict[str, tuple[float, float, bool]]) -> str:
    """The most entropy at no more than the margin below the likeness of the best plain point."""
    floor = max(like for _, like, plain in points.values() if plain) - MARGIN
    near = {name: entropy for name, (entropy, like, _) in points.items() if like >= floor}
    return max(near, key=lambda name: near[name])


def fair_regret(row: dict[str, Any]) -> float:
    """The same without the luck of the best of thirty: the grid's point chosen on half of the
    prompts, both valued on the other half, the mean of both ways."""
    found = []
    for half in (0, 1):
        mine, other = f"half {half}", f"half {1 - half}"
        chosen = best_of({p["name"]: (*p[mine], p["plain"]) for p in row["points"]})
        value = {p["name"]: p[other][0] for p in row["points"]}
        found.append(value[chosen] - value[row["picked"]])
    return float(np.mean(found))


def short(row: dict[str, Any]) -> float:
    """How far the pick's likeness lies below the best plain point's."""
    best = max(p["likeness"] for p in row["points"] if p["plain"])
    return float(best - next(p["likeness"] for p in row["points"] if p["name"] == row["picked"]))


def fair_short(row: dict[str, Any]) -> float:
    """The same without the luck of the best of four: the plain point chosen on half of the prompts,
    both valued on the other half, the mean of both ways."""
    found = []
    for half in (0, 1):
        mine, other = f"half {half}", f"half {1 - half}"
        best = max((p for p in row["points"] if p["plain"]), key=lambda p: p[mine][1])
        picked = next(p for p in row["points"] if p["name"] == row["picked"])
        found.append(best[other][1] - picked[other][1])
    return float(np.mean(found))


def plain_regret(row: dict[str, Any]) -> float:
    """Regret of the plain point of most likeness, which is what people take by eye."""
    best = max((p for p in row["points"] if p["plain"]), key=lambda p: p["likeness"])
    points = {p["name"]: (p["entropy"], p["likeness"], p["plain"]) for p in row["points"]}
    return float(points[best_of(points)][0] - best["entropy"])


def page_part(rows: Sequence[dict[str, Any]]) -> str:
    """What stands below the mark of the page."""
    regrets = np.array([regret(row) for row in rows])
    fair = np.array([fair_regret(row) for row in rows])
    plain = np.array([plain_regret(row) for row in rows])
    lacks = np.array([short(row) for row in rows])
    fair_lacks = np.array([fair_short(row) for row in rows])
    shares = np.array([row["samples"] / row["of_grid"] for row in rows])
    told = [
        HEAD.format(
            runs=len(rows),
            points=CHECKPOINTS * len(STRENGTHS) * len(GUIDANCE),
            good=int((regrets <= AIM).sum()),
            median=float(np.median(regrets)),
            whole=float(regrets.mean()),
            fair=float(fair.mean()),
            low=float(_interval(fair)[0]),
            high=float(_interval(fair)[1]),
            plain=float(plain.mean()),
            share=f"{100 * shares.max():.0f}",
            lack=100 * float(np.median(lacks)),
            far=int((lacks > MARGIN + 0.05).sum()),
            fair_lack=100 * float(fair_lacks.mean()),
            fair_low=100 * _interval(fair_lacks)[0],
            fair_high=100 * _interval(fair_lacks)[1],
            open=sum(row["cannot_tell"] for row in rows),
            mean=_goes_with(rows, "mean likeness"),
            recognised=_goes_with(rows, "recognised"),
        ).rstrip(),
        "",
        LINE_HEAD,
        "|" + "---|" * 8,
    ]
    for row in rows:
        points = {p["name"]: p for p in row["points"]}
        mine = points[row["picked"]]
        judged = {p["name"]: (p["entropy"], p["likeness"], p["plain"]) for p in row["points"]}
        best = points[best_of(judged)]
        cells_ = [
            f"{row['ailment']}, {row['contender']}, {row['subject']}",
            f"`{best['name']}`",
            f"`{row['picked']}`",
            f"{best['entropy']:.2f} | {mine['entropy']:.2f}",
            f"{mine['likeness']:.2f} ({best['likeness']:.2f})",
            f"{regret(row):+.2f}",
            f"{fair_regret(row):+.2f}",
        ]
        told.append(f"| {' | '.join(cells_)} |")
    return "\n".join(told) + "\n"


def _goes_with(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The correlation of a measure with the judge's likeness over a run's points: median, range."""
    found = [
        float(
            np.corrcoef([p[name] for p in row["points"]], [p["likeness"] for p in row["points"]])[
                0, 1
            ]
        )
        for row in rows
        if np.std([p["likeness"] for p in row["points"]]) > 0
    ]
    return f"{np.median(found):.2f} (median; {min(found):.2f} to {max(found):.2f})"


def _interval(values: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(4000, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


LINE_HEAD = (
    "| run | the grid's best | picked | variety: best | picked | likeness picked (best) | regret | "
    "fair regret |"
)
HEAD = """\
## What it costs and saves

Made by `tools/pick_table.py` on the pocket: {runs} runs of plain and field settings on six
subjects that nothing was chosen on, {points} points each, every one drawn whole (64 pictures) and
read by the judge; `pick` searched the same grid with at most {share} % of its pictures, the check
at fresh prompts counted in. Variety is the entropy of what prompts leave open, as a share of the
base's, the mean of class and trigger prompts; likeness the share of 32 trigger pictures that show
the subject (off by eight points by chance).

*Regret* is the variety of the grid's best point whose likeness is within three points of the best
plain one's, less that of the pick's point. Its mean is {whole:+.2f}, its median {median:+.2f}, and
it is at most .05 in {good} of {runs} runs; that of the likest plain checkpoint is {plain:+.2f}
(mean). The best of {points} points, by 64 pictures each, is partly luck: chosen on half of the
prompts and valued on the other half, the whole grid's choice is better than the pick's by
{fair:+.2f} ({low:+.2f} to {high:+.2f} over runs).

The pick's likeness lies {lack:.0f} points (median) below the best plain one's, by more than 8 in
{far} runs. Below a plain one that is chosen on half of the prompts and valued on the other it lies
by {fair_lack:.0f} points (mean; {fair_low:.0f} to {fair_high:.0f}). In {open} runs it said that it
cannot tell.

What the search goes by: over the points of a run, `recognised` goes with the judge's likeness at a
correlation of {recognised} over runs, the mean likeness of the verdict at {mean}.
"""


def _told(row: dict[str, Any]) -> str:
    return (
        f"{row['ailment']}, {row['contender']}, {row['subject']}: regret {regret(row):+.2f} (fair "
        f"{fair_regret(row):+.2f}, plain {plain_regret(row):+.2f}), likeness {short(row):+.2f} "
        f"short, {row['samples']} of {row['of_grid']}, {row['seconds']} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--subjects", nargs="+", choices=NEW, default=NEW)
    args = parser.parse_args()
    if args.stage == "run":
        run_all(args.minutes, args.subjects)
        return
    page = ROOT / "docs" / "picking.md"
    part = page_part(rowfile.read(rows_file()))
    rowfile.write_below(page, MARK, part)
    print(part)


if __name__ == "__main__":
    main()
