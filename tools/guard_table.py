"""What the guard costs and saves: its choice beside every checkpoint of the run without it.

    python tools/guard_table.py runs --minutes 60   # goes on where it stopped
    python tools/guard_table.py table               # docs/guard.md

Each recipe of the bank (`variegate.bench.bank`) is trained once more with `guard.mode=autopilot`.
The judge reads the chosen adapter, and every checkpoint of the run that was only watched. Regret
is the mode entropy, class and trigger prompts alike, of the best of those checkpoints whose
likeness is within three points of the best likeness, less that of the guard's choice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate import formats  # noqa: E402
from variegate.adapter import Adapter  # noqa: E402
from variegate.bench import bank  # noqa: E402
from variegate.drawn import draw_both  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.measure import prompt_plan  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.progress import silent  # noqa: E402
from variegate.recipe import Guard  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.train import train  # noqa: E402
from variegate.train.checkpoint import ADAPTER, checkpoint_folders, step_of  # noqa: E402

NEAR = 0.03  # of likeness below the best
SEEDS = 4


def home() -> Path:
    return cache_dir() / "guard" / bank.weights_mark()


def run_all(minutes: float) -> None:
    file, start, model = home() / "guard.jsonl", time.monotonic(), load("pocket")
    done = {line["name"] for line in rowfile.read(file)}
    for ailment in bank.ailments():
        if ailment.name in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        watched = Run.open(bank.build(ailment))
        recipe = ailment.recipe().model_copy(update={"guard": Guard()})
        folder = home() / bank.run_of(ailment).name
        guarded = train(recipe, out=folder, model=model)
        points = [
            {"step": step_of(path), **_judged(ailment, formats.read(path / ADAPTER), model)}
            for path in sorted(checkpoint_folders(watched.checkpoints), key=step_of)
        ]
        told = {
            "name": ailment.name,
            "points": points,
            "chosen": _judged(ailment, formats.read(guarded.adapter_file), model),
            "orders": [(x["step"], x["do"]) for x in guarded.read_journal("order")],
        }
        rowfile.add(file, told)
        print(f"{ailment.name}: regret {_regret(told):+.2f}, {told['orders']}", flush=True)


def _judged(ailment: bank.Ailment, adapter: Adapter, model: Any) -> dict[str, float]:
    """The judge's entropies and likeness of 128 pictures, drawn and let go."""
    whole = prompt_plan(ailment.class_noun, "zqx", preset="standard", pocket=True)
    some = [line for line in whole if line.group == "class"][::2]
    some += [line for line in whole if line.group == "trigger"]
    plan = [
        line._replace(seeds=tuple(range(9000 + SEEDS * i, 9000 + SEEDS * (i + 1))))
        for i, line in enumerate(some)
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        draw_both(model, adapter, plan, ailment.recipe().sampling, out=out, say=silent)
        return bank.entropies(out, ailment.subject)


def _regret(told: dict[str, Any]) -> float:
    points = told["points"]
    best = max(p["likeness"] for p in points)
    near = [p["entropy"] for p in points if p["likeness"] >= best - NEAR]
    return float(max(near) - told["chosen"]["entropy"])


def guard_page(runs: Sequence[dict[str, Any]]) -> str:
    regrets = np.array([_regret(run) for run in runs])
    short = [max(p["likeness"] for p in r["points"]) - r["chosen"]["likeness"] for r in runs]
    lines = [
        HEAD.format(
            runs=len(runs),
            good=int((regrets <= 0.05).sum()),
            median=float(np.median(regrets)),
            short=100 * float(np.median(short)),
        ),
        "| run | entropy: last | chosen | likeness: last | best | chosen | regret | orders |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, regret in zip(runs, regrets, strict=True):
        last, chosen = run["points"][-1], run["chosen"]
        cells = [
            run["name"],
            *(f"{x:.2f}" for x in (last["entropy"], chosen["entropy"], last["likeness"])),
            f"{max(p['likeness'] for p in run['points']):.2f}",
            f"{chosen['likeness']:.2f}",
            f"{regret:+.2f}",
            ", ".join(f"{do} {step}" for step, do in run["orders"]) or "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEAD = """\
# What the guard costs and saves

Made by `tools/guard_table.py`: {runs} recipes of the bank, each trained as it is and once more with
`guard.mode=autopilot`. Entropy is that of the factors that a prompt leaves open, by the judge, as a
share of the base's, the mean of class and trigger prompts (64 pictures each); likeness the share
of trigger pictures that show the subject (64 pictures: off by six points by chance). Regret is
the entropy of the best checkpoint of the run without a guard, among those whose likeness is within
three points of its best, less that of the guard's choice.

Regret is at most .05 in {good} of {runs} runs, its median {median:+.2f}. That says nothing of
likeness, which the guard gives up where it eases: its choice lies {short:.0f} points (median) below
the best of the other run's checkpoints.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "runs":
        run_all(args.minutes)
        return
    page = ROOT / "docs" / "guard.md"
    page.write_text(guard_page(rowfile.read(home() / "guard.jsonl")), encoding="utf8")
    print(page.read_text(encoding="utf8"))


if __name__ == "__main__":
    main()
