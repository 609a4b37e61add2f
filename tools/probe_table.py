"""Which probe sees collapse coming, how early, and how often it cries wolf.

    python tools/probe_table.py looks --minutes 30   # every probe at every checkpoint of the bank
    python tools/probe_table.py table                # docs/probes.md

Stands on the bank of runs (`tools/calibrate.py bank` makes it): 64 adapters, half of them
collapsed, whose end the judge has read. Looks are kept in the cache; only the table is committed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate import formats  # noqa: E402
from variegate.adapter import attach  # noqa: E402
from variegate.bench import bank  # noqa: E402
from variegate.images import ImageSet, cache_dir  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.train.checkpoint import ADAPTER, checkpoint_folders, step_of  # noqa: E402
from variegate.train.data import Latents, picture_side, read_training_set  # noqa: E402
from variegate.train.fit import Means  # noqa: E402
from variegate.train.learner import Learner  # noqa: E402
from variegate.train.spectra import Intruders  # noqa: E402
from variegate.train.strategies import cook  # noqa: E402
from variegate.train.watch import Watch  # noqa: E402

QUIET = 0.05  # share of sound runs that a probe's line may alarm on
LOST = {"class": ("modes", 0.85), "trigger": ("trigger_modes", 0.75)}  # of the base's modes
HIGHER_IS_WELL = ("one_step_variety", "loss_vs_base.held_out", "loss_vs_base.train")


def looks_file() -> Path:
    return cache_dir() / "calibration" / bank.weights_mark() / "looks-2.jsonl"


def take_looks(minutes: float) -> None:
    """Every probe at every checkpoint of every run of the bank that is not there yet."""
    file, start, model = looks_file(), time.monotonic(), load("pocket")
    done = {line["name"] for line in rowfile.read(file)}
    for ailment in bank.ailments():
        if ailment.name in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        run = bank.build(ailment)
        bank.draw(ailment, run, model)
        found = _look_at(Run.open(run), model)
        truth = vars(bank.truth(run, ailment.subject))
        rowfile.add(file, {"name": ailment.name, "truth": truth, "looks": found})
        print(f"{ailment.name}: {len(found)} looks", flush=True)


def _look_at(run: Run, model: Any) -> list[dict[str, Any]]:
    recipe = run.recipe
    strategies = cook(recipe)
    data = read_training_set(
        ImageSet.read(Path(recipe.images)),
        recipe,
        side=picture_side(recipe, model),
        pocket=True,
        needs_masks=False,
    )
    on = attach(model, recipe.adapter, seed=recipe.seed)
    try:
        means = Means(recipe.optimizer, "float32", False, "")
        learner = Learner(model, on, recipe, strategies, means, tell=print)
        with on.silenced(), on.watched():
            watch = Watch(
                recipe,
                model.schedule,
                Latents(model, recipe, {}),
                train=data.train,
                held_out=data.held_out,
                predict=learner.predict_base,
                pocket=True,
            )
        strange = Intruders(dict(on.base_weights()), most=10, seed=recipe.seed)
        found = []
        for path in sorted(checkpoint_folders(run.checkpoints), key=step_of):
            step = step_of(path)
            adapter = formats.read(path / ADAPTER)
            on.load(adapter)
            with on.watched():
                seen = watch.look(learner.predict, step)
            values = {m.name: m.value for m in (*seen, strange.look(adapter, step)[0])}
            share = step / recipe.optimizer.steps
            found.append({"step": step, "share": share, "values": values})
        return found
    finally:
        on.detach()


def probe_page(runs: Sequence[dict[str, Any]]) -> str:
    parts = [HEAD.format(runs=len(runs))]
    for group, (truth, limit) in LOST.items():
        lost = np.array([run["truth"][truth] < limit for run in runs])
        parts.append(GROUP.format(group=group, limit=100 * limit, lost=int(lost.sum())))
        parts.append(_table(runs, lost))
    return "\n".join(parts)


def _table(runs: Sequence[dict[str, Any]], lost: np.ndarray) -> str:
    heads = ("probe", "AUC at the end", "at half", "at a quarter", "hits at 5 % false alarms")
    lines = [f"| {' | '.join((*heads, 'first seen at'))} |", "|---" * (len(heads) + 1) + "|"]
    rows = []
    for name in sorted({n for run in runs for look in run["looks"] for n in look["values"]}):
        sign = -1 if name.startswith(HIGHER_IS_WELL) else 1
        badness = [
            [
                (look["share"], sign * look["values"][name])
                for look in run["looks"]
                if name in look["values"]
            ]
            for run in runs
        ]
        if not all(badness):
            continue
        aucs = [_auc(np.array([_at(b, share) for b in badness]), lost) for share in (1, 0.5, 0.25)]
        worst = np.array([max(v for _, v in points) for points in badness])
        line = float(np.quantile(worst[~lost], 1 - QUIET))
        ill = [points for points, bad in zip(badness, lost, strict=True) if bad]
        seen = [next((s for s, v in points if v > line), None) for points in ill]
        early = [s for s in seen if s is not None]
        told = f"{100 * np.median(early):.0f} % of the steps" if early else ""
        cells = [f"`{name}`", *(f"{a:.2f}" for a in aucs), f"{len(early)} of {len(ill)}", told]
        rows.append((aucs[0], f"| {' | '.join(cells)} |"))
    return "\n".join([*lines, *(text for _, text in sorted(rows, reverse=True))]) + "\n"


def _at(points: Sequence[tuple[float, float]], share: float) -> float:
    """The value at the look that is nearest to a share of the steps."""
    return min(points, key=lambda p: abs(p[0] - share))[1]


def _auc(values: np.ndarray, lost: np.ndarray) -> float:
    gaps = values[lost][:, None] - values[~lost][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


HEAD = """\
# Which probe sees collapse coming

Made by `tools/probe_table.py` on {runs} pocket runs of every degree of collapse (four subjects,
one-sided or varied pictures, eight ways of training), each looked at at its checkpoints, every 60
steps. A run counts as lost when the judge finds in 256 class or 128 trigger pictures fewer modes of
the factors that a prompt leaves open than the share below of the base's.

AUC: how often a lost run's probe reads worse than a sound one's, at the end, and at the checkpoints
nearest to half and to a quarter of the steps. Then, with a line that a twentieth of the sound runs
ever pass, how many lost runs pass it, and when (the median).
"""
GROUP = """\
## Lost with the {group} prompts

Below {limit:.0f} % of the base's modes: {lost} runs.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("looks", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "looks":
        take_looks(args.minutes)
        return
    page = ROOT / "docs" / "probes.md"
    page.write_text(probe_page(rowfile.read(looks_file())), encoding="utf8")
    print(page.read_text(encoding="utf8"))


if __name__ == "__main__":
    main()
