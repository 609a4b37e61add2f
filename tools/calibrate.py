"""How often the verdict alarms where it must not, and how surely where it must.

    python tools/calibrate.py pool   --minutes 10    # draw the base once: prompts x 40 seeds
    python tools/calibrate.py nulls  --minutes 20    # 300 verdicts on the base against itself
    python tools/calibrate.py ladder --minutes 30    # planted shares of five ailments
    python tools/calibrate.py bank   --minutes 60    # 64 runs, from plain to guarded
    python tools/calibrate.py table                  # docs/calibration.md

Every stage goes on where it stopped. Pictures and results stay in the cache; only the table is
committed. A null is the pocket's own base, four pictures a prompt against four at other seeds:
harder than what the product meets, whose adapter and base share their seeds. Sets drawn from one
pool share pictures, so their alarms are not independent: the intervals are a little too narrow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate import encoders, recipes  # noqa: E402
from variegate.bench import bank  # noqa: E402
from variegate.images import ImageSet, Picture, cache_dir  # noqa: E402
from variegate.measure import (  # noqa: E402
    RULES,
    Evidence,
    Line,
    PlannedPrompt,
    View,
    gather,
    measure,
    prompt_plan,
    read_verdict,
    rejudge,
)
from variegate.measure.uncertainty import binomial_interval  # noqa: E402
from variegate.measurement import Verdict  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.sample import Request, sample  # noqa: E402

SEEDS = 40  # pictures of each prompt in the pool
NULLS = 300
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
REPEATS = 20  # sets of each ailment and share
LABELS = ("narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying")
PICTURES = Path(recipes.__file__).parent.parent / "demo" / "pictures"
AILMENTS = {
    "one attractor": "narrowed",
    "eight training pictures": "copying",
    "near copies": "copying",
    "flips and crops": "copying",
    "pictures of other prompts": "prompt-ignored",
}


def folder() -> Path:
    """Results under these weights, measures and rules; the pool under the weights alone."""
    return cache_dir() / "calibration" / bank.weights_mark()


def results(name: str) -> Path:
    digest = hashlib.sha256(RULES.version.encode())
    for file in sorted((ROOT / "src/variegate/measure").iterdir()):
        if file.is_file():
            digest.update(file.read_bytes())
    return folder() / f"{name}-{digest.hexdigest()[:12]}.jsonl"


def draw_pool(deadline: Callable[[], bool]) -> None:
    """The base at every prompt and seed, a few seeds at a time."""
    model = load("pocket")
    plan = recipes.read("pocket").sampling.model_copy(update={"steps": 10})
    asked: list[Request] = []
    for seed in range(SEEDS):
        asked += [
            Request(line.base_prompt, seed, line.group) for line in _lines() if seed in line.seeds
        ]
        if seed % 4 == 3:
            sample(model, None, asked, plan=plan, out=folder() / "pool")
            print(f"pool: {len(asked)} pictures", flush=True)
        if deadline():
            return
    (folder() / "pool" / "whole").touch()


def _lines() -> list[PlannedPrompt]:
    return [
        line._replace(seeds=tuple(range(SEEDS if line.group != "unrelated" else 8)))
        for line in prompt_plan("face", "zqx", preset="standard", pocket=True)
    ]


def planted_pictures() -> dict[str, list[Picture]]:
    """What the ailments put in place of samples, by ailment."""
    rng = np.random.default_rng(0)
    train = [p.open() for p in ImageSet.read(PICTURES)]
    some = train[:8]
    near = [_jittered(some[i % 8], rng) for i in range(48)]
    cropped = [_cropped(some[i % 8], rng) for i in range(48)]
    sets = {"eight training pictures": some, "near copies": near, "flips and crops": cropped}
    return {
        name: [
            Picture(
                f"{name}-{i}",
                None,
                prompt=f"planted {name}",
                tensor=torch.from_numpy(np.array(p)).permute(2, 0, 1),
            )
            for i, p in enumerate(pictures)
        ]
        for name, pictures in sets.items()
    }


def _jittered(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    x = np.asarray(picture, np.float32)
    dy, dx = rng.integers(-2, 3, size=2)
    x = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="edge")[2 + dy : 66 + dy, 2 + dx : 66 + dx]
    noise = rng.normal(0, 4, x.shape) + 255 * rng.uniform(-0.03, 0.03)
    return Image.fromarray(np.clip(x + noise, 0, 255).astype(np.uint8))


def _cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirrored, and cut to 92 to 100 % of its side."""
    side = picture.width
    cut = round(side * rng.uniform(0.92, 1))
    x, y = rng.integers(side - cut + 1, size=2)
    part = picture.crop((int(x), int(y), int(x) + cut, int(y) + cut)).resize((side, side))
    return ImageOps.mirror(part)


def seen() -> Evidence:
    """The pool and the planted pictures through the encoders, as both adapter and base."""
    if not (folder() / "pool" / "whole").exists():
        raise SystemExit("draw the pool first: python tools/calibrate.py pool --minutes 10")
    pool = ImageSet.read(folder() / "pool")
    planted = [p for part in planted_pictures().values() for p in part]
    whole = ImageSet((*pool.pictures, *planted), pool.origin)
    return gather(
        whole,
        whole,
        encoders=[encoders.load("pocket")],
        train_images=ImageSet.read(PICTURES),
        trigger="zqx",
        class_noun="face",
    )


def a_set(
    pool: Evidence,
    rng: np.random.Generator,
    put: Callable[[Line, int, np.random.Generator], int] | None = None,
) -> Evidence:
    """Four pictures of each prompt as the adapter's, four at other seeds as the base's; `put`
    may lay another picture in an adapter picture's place."""
    order = rng.permutation(SEEDS)
    lines, ours, theirs, texts = [], list[int](), list[int](), list[int]()
    for i, line in enumerate(pool.lines):
        if line.prompt.startswith("planted"):
            continue
        n = 2 if line.group == "unrelated" else 4
        seeds = order[order < len(line.base_rows)]
        a = [line.base_rows[s] for s in seeds[:n]]
        b = [line.base_rows[s] for s in seeds[n : 2 * n]]
        if put is not None:
            a = [put(line, row, rng) for row in a]
        at = (tuple(range(len(ours), len(ours) + n)), tuple(range(len(theirs), len(theirs) + n)))
        lines.append(replace(line, adapter_rows=at[0], base_rows=at[1], paired=0))
        ours += a
        theirs += b
        texts.append(i)

    def view(whole: View | None) -> View | None:
        if whole is None:
            return None
        words = None if whole.texts is None else whole.texts[texts]
        return replace(whole, adapter=whole.adapter[ours], base=whole.base[theirs], texts=words)

    return replace(
        pool,
        lines=tuple(lines),
        views=tuple(view(v) for v in pool.views),  # type: ignore[misc]
        identity=view(pool.identity),  # type: ignore[arg-type]
        layout=view(pool.layout),
        thumbnails=view(pool.thumbnails),
        axes={name: view(v) for name, v in pool.axes.items()},  # type: ignore[misc]
        pictures=tuple(pool.pictures[r] for r in ours),
    )


def planter(pool: Evidence, ailment: str, share: float) -> Callable[..., int]:
    """Lays an ailment's pictures in a share of the places."""
    rows = {line.prompt: line.adapter_rows for line in pool.lines}
    others = [
        line.base_rows
        for line in pool.lines
        if line.group == "trigger" and not line.prompt.startswith("planted")
    ]
    attractor = next(line.base_rows[0] for line in pool.lines if line.group == "class")

    def put(line: Line, row: int, rng: np.random.Generator) -> int:
        if rng.random() >= share or line.group == "unrelated":
            return row
        if ailment == "one attractor":
            return attractor
        if ailment == "pictures of other prompts":
            elsewhere = others[rng.integers(len(others))]
            return int(elsewhere[rng.integers(len(elsewhere))])
        planted = rows[f"planted {ailment}"]
        return int(planted[rng.integers(len(planted))])

    return put


def _noted(file: Path) -> list[dict[str, object]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a torn last line is none


def _note(file: Path, verdict: Verdict, **facts: object) -> None:
    numbers = {m["name"]: m["value"] for m in verdict.to_json()["measurements"] if "value" in m}
    with file.open("a", encoding="utf8") as out:
        line = {**facts, "labels": verdict.labels, "numbers": numbers}
        out.write(json.dumps(line) + "\n")


def run_nulls(deadline: Callable[[], bool]) -> None:
    file = results("nulls")
    done, pool = len(_noted(file)), seen()
    for number in range(done, NULLS):
        if deadline():
            return
        _note(file, measure(a_set(pool, np.random.default_rng((1, number)))), number=number)
        if number % 20 == 19:
            print(f"nulls: {number + 1} of {NULLS}", flush=True)


def _rungs() -> Iterator[tuple[str, float, int]]:
    for repeat in range(REPEATS):
        for share in SHARES:
            for ailment in AILMENTS:
                yield ailment, share, repeat


def run_ladder(deadline: Callable[[], bool]) -> None:
    file = results("ladder")
    done = {(x["ailment"], x["share"], x["repeat"]) for x in _noted(file)}
    pool = seen()
    for number, (ailment, share, repeat) in enumerate(_rungs()):
        if (ailment, share, repeat) in done:
            continue
        if deadline():
            return
        rng = np.random.default_rng((2, number))
        verdict = measure(a_set(pool, rng, planter(pool, ailment, share)))
        _note(file, verdict, ailment=ailment, share=share, repeat=repeat)
        if number % 40 == 39:
            print(f"ladder: {number + 1} of {len(AILMENTS) * len(SHARES) * REPEATS}", flush=True)


def run_bank(deadline: Callable[[], bool]) -> None:
    """Make the runs that are not there yet, and read each against the judge."""
    file = results("bank")
    done = {x["name"] for x in _noted(file)}
    for number, ailment in enumerate(bank.ailments()):
        if ailment.name in done:
            continue
        if deadline():
            return
        run = bank.build(ailment)
        verdict = rejudge(read_verdict(run), RULES)
        truth = bank.truth(run, ailment.subject)
        _note(file, verdict, name=ailment.name, treatment=ailment.treatment, truth=vars(truth))
        print(f"bank: {number + 1} of 64, {ailment.name}: {', '.join(verdict.labels)}", flush=True)


def write_table() -> None:
    nulls, ladder = _noted(results("nulls")), _noted(results("ladder"))
    parts = [HEAD.format(nulls=len(nulls), rules=RULES.version)]
    parts.append(_null_table(nulls))
    parts.append(LADDER)
    parts.append(_power_table(ladder))
    parts.append(CONFUSION)
    parts.append(_confusion_table(ladder))
    if runs := _noted(results("bank")):
        parts.append(BANK.format(runs=len(runs)))
        parts.append(_bank_table(runs))
    page = ROOT / "docs" / "calibration.md"
    page.write_text("\n".join(parts), encoding="utf8")
    print(page.read_text(encoding="utf8"))


def _null_table(nulls: list[dict]) -> str:  # type: ignore[type-arg]
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


def _power_table(ladder: list[dict]) -> str:  # type: ignore[type-arg]
    heads = " | ".join(f"{100 * s:.0f} %" for s in SHARES)
    lines = [
        f"| ailment (label) | {heads} | AUC at 20 % | Spearman |",
        "|---" * (len(SHARES) + 3) + "|",
    ]
    gates = {"narrowed": "variety_vs_base", "copying": "copy_rate"}
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
        sign = 1 if label == "copying" else -1
        pairs = [sign * (b - a) for a in value[0.0] for b in value[0.2]]
        auc = np.mean([(d > 0) + (d == 0) / 2 for d in pairs]) if pairs else np.nan
        told = [(s, v) for s in SHARES for v in value[s]]
        rho = stats.spearmanr(*zip(*told, strict=True)).statistic if told else np.nan
        cells = " | ".join(f"{p:.2f}" for p in power)
        lines.append(f"| {ailment} ({label}) | {cells} | {auc:.2f} | {rho:+.2f} |")
    return "\n".join(lines) + "\n"


def _confusion_table(ladder: list[dict]) -> str:  # type: ignore[type-arg]
    lines = [f"| ailment | {' | '.join(LABELS)} |", "|---" * (len(LABELS) + 1) + "|"]
    for ailment in AILMENTS:
        sets = [x for x in ladder if x["ailment"] == ailment and x["share"] == 0.5]
        cells = [np.mean([label in x["labels"] for x in sets]) if sets else 0 for label in LABELS]
        lines.append(f"| {ailment} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    return "\n".join(lines) + "\n"


def _bank_table(runs: list[dict]) -> str:  # type: ignore[type-arg]
    lines = ["| measurement | truth | Spearman | runs |", "|---|---|---|---|"]
    for measured, true in (
        ("variety_vs_base", "variety"),
        ("trigger_variety_vs_base", "trigger_variety"),
        ("likeness", "subject"),
    ):
        pairs = [
            (x["numbers"][measured], x["truth"][true]) for x in runs if measured in x["numbers"]
        ]
        if len(pairs) < 3:
            continue
        rho = stats.spearmanr(*zip(*pairs, strict=True)).statistic
        lines.append(f"| `{measured}` | {true} | {rho:.2f} | {len(pairs)} |")
    return "\n".join(lines) + "\n"


HEAD = """\
# Calibration

Made by `tools/calibrate.py` (stages pool, nulls, ladder, table) on the shipped pocket, rules
version {rules}, the pocket encoder: 32 class prompts, 16 trigger prompts, four pictures of each.

## Where nothing is wrong

{nulls} times the base against itself, four seeds against four others of 40. Sets share pictures,
so the intervals are a little too narrow.
"""
LADDER = """\
## Where something is

A share of the samples is replaced by planted pictures: one picture of the base; eight training
pictures; those jittered by up to two pixels and noise; those mirrored and cut to 92 to 100 %; the
base's pictures of other prompts. Share of {repeats} sets in which the right label stands, by the
share replaced; then how often a set with 20 % reads worse than one with none, and the rank
correlation of the measurement with the share.
""".replace("{repeats}", str(REPEATS))
BANK = """\
## Against the truth

{runs} adapters of every degree of collapse (`variegate.bench.bank`): four subjects, one-sided or
varied pictures, eight ways of training. The judge reads every sample's factors; its truth is the
share of picture pairs of a prompt that differ, as a ratio to the base's. Rank correlation:
"""
CONFUSION = """\
## Which label

At a share of one half. An attractor and a few training pictures also narrow, as they should: where
half of all pictures are one, or eight, variety is lost as well.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["pool", "nulls", "ladder", "bank", "table"])
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    start = time.monotonic()

    def deadline() -> bool:
        return time.monotonic() - start > 60 * args.minutes

    folder().mkdir(parents=True, exist_ok=True)
    if args.stage == "table":
        write_table()
    else:
        stages = {"pool": draw_pool, "nulls": run_nulls, "ladder": run_ladder, "bank": run_bank}
        stages[args.stage](deadline)


if __name__ == "__main__":
    main()
