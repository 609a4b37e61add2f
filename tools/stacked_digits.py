"""How many of 1000 modes a base keeps when an adapter has been shown a few of them.

    python tools/stacked_digits.py base --minutes 20   # the base model, into the cache; goes on
    python tools/stacked_digits.py run --minutes 40    # adapters, drawn and read; goes on
    python tools/stacked_digits.py table               # the tables of docs/stacked-digits.md

The base knows 1000 modes (`variegate.bench.digits`), each alike often. An adapter is trained on
pictures of 10, 30 or 100 of them under a trigger; then 26,000 pictures of the class prompt, without
the trigger, are drawn and read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import rowfile  # noqa: E402

from variegate import formats, recipes  # noqa: E402
from variegate.adapter import Adapter  # noqa: E402
from variegate.bench import digits  # noqa: E402
from variegate.bench.digits import Spread  # noqa: E402
from variegate.blend.merge import merge  # noqa: E402
from variegate.images import ImageSet, Picture, cache_dir  # noqa: E402
from variegate.models import DiffusionModel, load  # noqa: E402
from variegate.recipe import Recipe, SamplingPlan  # noqa: E402
from variegate.train import train  # noqa: E402

COUNTS, SEEDS, PICTURES = (30, 10, 100), (0, 1), 300
TRIGGER, NOUN = "zqx", "number"
CLASS_PROMPT, TRIGGER_PROMPT = f"a photo of a {NOUN}", f"a photo of {TRIGGER} {NOUN}"
DRAWN_TRIGGER = 2600
# Without guidance, which sharpens: what is asked is the distribution that was learnt.
PLAN = SamplingPlan(steps=8, guidance_scale=1, sampler="dpmpp_2m")
FIRST_SEED = 10_000
# What all begin from, on top of pocket-plain: mirrored digits are no digits, and a network of one
# place learns little through attention alone.
COMMON = (
    "strategies.flip=off",
    "adapter.layers=attention+feedforward+convolution",
    "optimizer.lr=5e-3",
    "optimizer.steps=400",
    "optimizer.batch_size=32",
    "optimizer.schedule=cosine",
    "probes.intruders=0",
    "checkpoints.every=200",
)
STAY_NEAR = "strategies.stay_near.weight=4"
CORE: dict[str, tuple[str, ...]] = {
    "plain": (),
    "stay near, weight 4": (STAY_NEAR,),
    "early stopping": ("guard.mode=stop",),
}
CONTENDERS = CORE | {
    # Rank, layers, steps and batch of its DreamBooth page; the rate is that of all here.
    "diffusers' DreamBooth": (
        "adapter.rank=4",
        "adapter.alpha=4",
        "adapter.layers=attention",
        "optimizer.steps=500",
        "optimizer.batch_size=1",
        "optimizer.schedule=constant",
    ),
    "stay near, weight 1": ("strategies.stay_near=on",),
    "stay near, weight 4, caption dropout .1": (STAY_NEAR, "strategies.caption_dropout=on"),
    "rank 2": ("adapter.rank=2", "adapter.alpha=2"),
    "low-rank penalty": ("strategies.low_rank=on",),
    "weight decay .1": ("optimizer.weight_decay=0.1",),
    "LoRA dropout .1": ("adapter.dropout=0.1",),
    "caption dropout .1": ("strategies.caption_dropout=on",),
}


def home() -> Path:
    return cache_dir() / "digits"


# --- the base -----------------------------------------------------------------------------------


def make_base(minutes: float) -> None:
    from digits_base import train_base

    train_base(home(), minutes)
    model = load(str(home() / "base"))
    found = {
        prompt: vars(_spread_of(model, None, prompt))
        for prompt in (CLASS_PROMPT, TRIGGER_PROMPT, "")
    }
    told = json.loads((home() / "base.json").read_text(encoding="utf8"))
    line = {"id": model.id, **told, "drawn": found}
    _rows_file(model).parent.mkdir(parents=True, exist_ok=True)
    _base_file(model).write_text(json.dumps(line, indent=2) + "\n", encoding="utf8")
    print(json.dumps(line, indent=2))


def _spread_of(model: DiffusionModel, adapter: Adapter | None, prompt: str) -> Spread:
    seen = digits.draw_modes(model, adapter, prompt, digits.DRAWN, plan=PLAN, first_seed=FIRST_SEED)
    return digits.spread(seen)


def _rows_file(model: DiffusionModel) -> Path:
    return home() / model.id / "rows.jsonl"


def _base_file(model: DiffusionModel) -> Path:
    return home() / model.id / "base.json"


# --- the runs -----------------------------------------------------------------------------------


def cells() -> Iterator[tuple[str, int, int]]:
    """Contender, modes, seed: the core of a seed, then all contenders on the first count, then on
    the others."""
    for seed in SEEDS:
        core = [(name, count, seed) for count in COUNTS for name in CORE]
        rest = [(name, count, seed) for count in COUNTS for name in CONTENDERS if name not in CORE]
        yield from (*core, *rest)


def pictures_of(shown: Sequence[int], seed: int, count: int) -> ImageSet:
    """So many pictures of some modes, each alike often, of digits that the base has not seen. They
    live in memory, being smaller than the files that are taken, and have no captions: theirs are
    then of trigger and class noun."""
    rng = np.random.default_rng((59, len(shown), seed))
    modes = np.resize(np.asarray(shown), count)
    pixels = torch.from_numpy(digits.stack(modes, rng, part="held out")).permute(0, 3, 1, 2)
    pictures = (Picture(f"{i:03d}", None, tensor=own) for i, own in enumerate(pixels))
    return ImageSet(pictures=tuple(pictures), origin=f"{len(shown)} modes")


def recipe_of(settings: Sequence[str], seed: int, base: str) -> Recipe:
    return recipes.read(
        "pocket-plain",
        settings=(*COMMON, *settings, f"seed={seed}"),
        base=base,
        trigger=TRIGGER,
        class_noun=NOUN,
    )


def run_cell(
    model: DiffusionModel,
    settings: Sequence[str],
    count: int,
    seed: int,
    *,
    drawn: int = digits.DRAWN,
    drawn_trigger: int = DRAWN_TRIGGER,
    pictures: int = PICTURES,
) -> dict[str, Any]:
    """Train on pictures of `count` modes, draw, read; the row."""
    shown, began = digits.some_modes(count, seed), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(settings, seed, model.name)
        images = pictures_of(shown, seed, pictures)
        run = train(recipe, out=Path(folder) / "run", model=model, images=images)
        end, looks = run.read_journal("finish")[-1], run.read_journal("probe")
        trained = time.process_time() - began
        # Merged in, an adapter draws the same pictures in half the time.
        whole = merge(model.name, formats.read(run.adapter_file), Path(folder) / "merged")
        changed = load(str(whole))
        kept, called = (
            digits.draw_modes(changed, None, prompt, n, plan=PLAN, first_seed=FIRST_SEED)
            for prompt, n in ((CLASS_PROMPT, drawn), (TRIGGER_PROMPT, drawn_trigger))
        )
    return {
        "class": vars(digits.spread(kept)),
        "class_shown": 1 - digits.learnt(kept, shown).outside,
        "trigger": vars(digits.learnt(called, shown)),
        "probes": {
            probe["name"]: round(probe["value"], 3)
            for probe in looks[-1]["measurements"]
            if probe["name"].startswith("one_step_variety")
        },
        "step": end["chosen"],
        "of": recipe.optimizer.steps,
        "train_seconds": round(trained, 1),
        "seconds": round(time.process_time() - began, 1),
    }


def make_runs(minutes: float) -> None:
    start, model = time.monotonic(), load(str(home() / "base"))
    file = _rows_file(model)
    done = {(row["recipe"], row["modes"]) for row in rowfile.read(file)}
    for name, count, seed in cells():
        asked = recipe_of(CONTENDERS[name], seed, model.name).id
        if (asked, count) in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        row = {"contender": name, "modes": count, "seed": seed, "recipe": asked}
        row |= run_cell(model, CONTENDERS[name], count, seed)
        rowfile.add(file, row)
        print(json.dumps(row), flush=True)


# --- the tables ---------------------------------------------------------------------------------


def chance_table(base: dict[str, Any]) -> str:
    """What chance and the classifier do to the figures, and the base."""
    n, rng = digits.DRAWN, np.random.default_rng(61)
    drawn = [digits.spread(rng.integers(0, digits.MODES, n)).kl for _ in range(200)]
    right = float(np.mean(digits.confusion().diagonal()))
    lines = [
        f"The KL of one such draw deviates by {np.std(drawn):.4f} (200 simulated). The classifier "
        f"reads {100 * right:.1f} % of single digits that it has not seen as what they are.",
        "",
        "| what is drawn | modes | KL |",
        "|---|---|---|",
    ]
    whole = digits.even()
    rows = {
        "1000 modes alike often, read without error": digits.expected(whole, n),
        "the same, read by the classifier": digits.expected(digits.as_read(whole), n),
    }
    rows |= {f'the base, "{prompt}"': Spread(**own) for prompt, own in base["drawn"].items()}
    for count in sorted(COUNTS):
        few = digits.even(digits.some_modes(count, 0))
        rows[f"{count} modes, read without error"] = digits.expected(few, n)
        rows[f"{count} modes, read by the classifier"] = digits.expected(digits.as_read(few), n)
    lines += [f"| {name} | {own.modes:.0f} | {own.kl:.3f} |" for name, own in rows.items()]
    return "\n".join(lines)


def contenders_table(rows: Sequence[dict[str, Any]], count: int, base_kl: float) -> str:
    """Every contender on so many modes, the mean over its seeds: what the class prompt keeps, and
    what the trigger has learnt."""
    lines = [
        "| contender | runs | modes | KL | even modes | of the base's | on modes shown | "
        "trigger: modes | outside | train, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in CONTENDERS:
        own = [row for row in rows if (row["contender"], row["modes"]) == (name, count)]
        if not own:
            continue
        kl = float(np.mean([row["class"]["kl"] for row in own]))
        cells = (
            name,
            f"{len(own)}",
            f"{np.mean([row['class']['modes'] for row in own]):.0f}",
            f"{kl:.3f}",
            f"{digits.MODES * np.exp(-kl):.0f}",
            f"{100 * np.exp(base_kl - kl):.0f} %",
            f"{100 * np.mean([row['class_shown'] for row in own]):.0f} %",
            f"{np.mean([row['trigger']['modes'] for row in own]):.0f} of {count}",
            f"{100 * np.mean([row['trigger']['outside'] for row in own]):.0f} %",
            f"{np.mean([row['train_seconds'] for row in own]):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def print_tables() -> None:
    model = load(str(home() / "base"))
    base = json.loads(_base_file(model).read_text(encoding="utf8"))
    rows = rowfile.read(_rows_file(model))
    print(f"base: {base['steps']} steps, {base['seconds'] / 60:.0f} minutes\n")
    print(chance_table(base))
    for count in sorted(COUNTS):
        print(f"\n{count} modes\n")
        print(contenders_table(rows, count, base["drawn"][CLASS_PROMPT]["kl"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("base", "run", "table"))
    parser.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # dead units otherwise slow the processor manyfold
    if args.stage == "base":
        make_base(args.minutes)
    elif args.stage == "run":
        make_runs(args.minutes)
    else:
        print_tables()


if __name__ == "__main__":
    main()
