"""Whether a look without sampling sees that few pictures are being copied, and where its line lies.

    python tools/copying_table.py runs --minutes 30   # train, look at and draw every checkpoint
    python tools/copying_table.py table               # docs/copying.md

Runs of the pocket on 1, 2 and 4 pictures, four ways of training, two subjects; two more subjects
where copying is likely. At every checkpoint
the probes look, and 32 pictures of the trigger alone are drawn: the judge counts those whose
ground, pattern, size and place are all those of one picture learnt from, less what the base has by
chance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import rowfile  # noqa: E402
from probe_table import _auc, _look_at  # noqa: E402

from variegate import formats, recipes  # noqa: E402
from variegate.bench import bank, world  # noqa: E402
from variegate.bench.ailments import Pictures, draw_pictures, scenes_of  # noqa: E402
from variegate.bench.truth import _copied, read_folder  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.recipe import Guard, Recipe  # noqa: E402
from variegate.sample import Request, sample  # noqa: E402
from variegate.train import train  # noqa: E402
from variegate.train.checkpoint import ADAPTER, checkpoint_folders, step_of  # noqa: E402

WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "hot": ("optimizer.lr=2e-3",),
    "cool": ("optimizer.lr=1.5e-4",),
    "stay near": ("strategies.stay_near=on", "strategies.zoom_shift=on"),
}
COUNTS, STEPS, EVERY, DRAWN = (1, 2, 4), 240, 40, 32
SUBJECTS = ("robot", "cupcake", "unicorn", "yoyo")
LIKELY = ("plain", "hot")  # with the last two subjects, on 1 and 2 pictures
COPIED = 0.5  # share of pictures from which a checkpoint counts as copying
FIRST_SEED = 9000
HEAD = """# Seeing copying where nothing is held out

Made by `tools/copying_table.py`: runs of the pocket on 1, 2 and 4 pictures, looked at every {every}
steps. *Copies* is the share of {drawn} pictures of the trigger alone whose ground, pattern, size
and place are all those of one picture learnt from, or of its mirror image, less the base's share,
by the judge. A checkpoint counts as copying from {copied} on: {bad} of {looks} do, in {copying} of
{runs} runs.

AUC: how often a copying checkpoint's probe reads worse than another's. Then the line that a
twentieth of the others pass, and how many of the copying ones do. Checkpoints of one run are not
independent of each other, so that these figures are rougher than their number says.

| probe | AUC | line of 5 % false alarms | hits |
|---|---|---|---|
"""


def rows_file() -> Path:
    return cache_dir() / "calibration" / bank.weights_mark() / "copying.jsonl"


def _runs() -> Iterator[tuple[str, str, int, Recipe]]:
    for count in COUNTS:
        for way, settings in WAYS.items():
            for seed, subject in enumerate(SUBJECTS):
                if seed > 1 and (way not in LIKELY or count > 2):
                    continue
                recipe = recipes.read(
                    "pocket-plain",
                    settings=(
                        *settings,
                        f"optimizer.steps={STEPS}",
                        f"checkpoints.every={EVERY}",
                        "checkpoints.keep=99",
                        f"probes.every={EVERY}",
                        "guard.mode=watch",
                        f"seed={seed}",
                    ),
                    images=str(draw_pictures(Pictures(count), subject, seed)),
                    trigger="zqx",
                    class_noun=world.CLASS_OF[subject],
                )
                yield f"{subject}, {count}, {way}", subject, count, recipe


def make_runs(minutes: float) -> None:
    file, start, model = rows_file(), time.monotonic(), load("pocket")
    done = {line["name"] for line in rowfile.read(file)}
    for name, subject, count, recipe in _runs():
        if name in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        learnt = scenes_of(Pictures(count), subject, recipe.seed)
        requests = [
            Request(prompt="a zqx", group="trigger", seed=FIRST_SEED + i) for i in range(DRAWN)
        ]
        with tempfile.TemporaryDirectory() as folder:
            run = train(recipe, out=Path(folder) / "run", model=model)
            looks = {look["step"]: look["values"] for look in _look_at(run, model)}
            sample(model, None, requests, plan=recipe.sampling, out=Path(folder) / "base")
            chance = _copied(read_folder(Path(folder) / "base"), learnt)
            found = []
            for path in sorted(checkpoint_folders(run.checkpoints), key=step_of):
                step, out = step_of(path), Path(folder) / path.name
                adapter = formats.read(path / ADAPTER)
                sample(model, adapter, requests, plan=recipe.sampling, out=out)
                rows = read_folder(out)
                shown = float(np.mean([row.seen["subject"] == subject for row in rows]))
                copies = _copied(rows, learnt) - chance
                found.append(
                    {"step": step, "copies": copies, "subject": shown, "values": looks[step]}
                )
        line = {"name": name, "count": count, "looks": found}
        rowfile.add(file, line)
        print(name, *(f"{look['copies']:.2f}" for look in found), flush=True)


def page(runs: list[dict[str, Any]]) -> str:
    """docs/copying.md: what was copied, and how well each probe tells."""
    looks = [look for run in runs for look in run["looks"]]
    bad = np.array([look["copies"] >= COPIED for look in looks])
    copying_runs = sum(any(k["copies"] >= COPIED for k in run["looks"]) for run in runs)
    lines = HEAD.format(
        **{"every": EVERY, "drawn": DRAWN, "copied": COPIED, "bad": int(bad.sum())},
        **{"looks": len(looks), "copying": copying_runs, "runs": len(runs)},
    ).splitlines()
    found = []
    for name in sorted(set.intersection(*(set(look["values"]) for look in looks))):
        values = np.array([look["values"][name] for look in looks])
        sign = 1 if _auc(values, bad) >= 0.5 else -1
        line = float(np.quantile(sign * values[~bad], 0.95))
        hits = float((sign * values[bad] > line).mean())
        found.append((_auc(sign * values, bad), name, sign * line, hits))
    lines += [
        f"| `{n}` | {a:.2f} | {at:.2f} | {100 * h:.0f} % |" for a, n, at, h in sorted(found)[::-1]
    ]
    lines += ["", "## The guard's lines", ""]
    guard = Guard()
    copying = np.array([look["values"]["one_step_copying.trigger"] for look in looks])
    for name, at in (("warning", guard.copying_warning), ("alarm", guard.copying_alarm)):
        lines.append(
            f"- {name}, {at}: passed by {int((copying[bad] > at).sum())} of {int(bad.sum())} "
            f"copying checkpoints and by {int((copying[~bad] > at).sum())} of "
            f"{int((~bad).sum())} others."
        )
    steps = [look["step"] for look in runs[0]["looks"]]
    lines += ["", "## Runs", "", f"| run | copies at {', '.join(map(str, steps))} | probe |"]
    lines.append("|---|---|---|")
    for run in runs:
        copies, probe = (
            " ".join(f"{value:.2f}" for value in values)
            for values in (
                [look["copies"] for look in run["looks"]],
                [look["values"]["one_step_copying.trigger"] for look in run["looks"]],
            )
        )
        lines.append(f"| {run['name']} | {copies} | {probe} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "runs":
        make_runs(args.minutes)
    else:
        text = page(rowfile.read(rows_file()))
        (ROOT / "docs" / "copying.md").write_text(text, encoding="utf8")
        print(text)


if __name__ == "__main__":
    main()
