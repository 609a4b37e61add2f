"""Looks for the default recipe of the pocket, on ailments that are not held out.

    python tools/default_search.py runs --minutes 60 [--only NAME ...]   # goes on where it was
    python tools/default_search.py runs --only "as it is" --training-seed 11   # how much is chance
    python tools/default_search.py table
    python tools/default_search.py demo --only "as it is"   # the same of the demo's pictures
    python tools/default_search.py shrunk   # how far subjects are known that zoom_shift zooms out

The default with one setting or a few changed, and the field beside it, on four ailments with a
subject each. What is looked for: likeness no lower than any of the field's, and then entropy. What
was found is in docs/defaults.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate import formats, recipes  # noqa: E402
from variegate.bench import judge, world  # noqa: E402
from variegate.bench.ailments import AILMENTS, KNOWN  # noqa: E402
from variegate.bench.contenders import FIELD, PLAIN, Contender  # noqa: E402
from variegate.bench.suite import Cell, home, run_cell  # noqa: E402
from variegate.bench.truth import read_pictures, truth  # noqa: E402
from variegate.drawn import draw_both  # noqa: E402
from variegate.measure import prompt_plan  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.progress import silent  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402
from variegate.train import train  # noqa: E402
from variegate.train.masks import find_masks  # noqa: E402
from variegate.train.paint import paint_open  # noqa: E402
from variegate.train.strategies.zoom_shift import keep_in_view, move  # noqa: E402

DEMO = ROOT / "src/variegate/demo/pictures"
ZOOMS = (1.0, 0.85, 0.75, 0.65)

CELLS = (
    ("eight pictures", 0),
    ("silent captions", 1),
    ("one-sided", 2),
    ("one background", 3),
)
FREE = (
    "strategies.caption_scene=off",
    "strategies.zoom_shift=off",
    "strategies.new_background=off",
    "strategies.stay_near.weight=1",
    "strategies.stay_near.batch_size=4",
    "strategies.layout_prior.boundary=0.85",
    "strategies.layout_prior.batch_size=4",
    "optimizer.lr=2e-3",
)
MOVED = (*FREE, "strategies.zoom_shift=on", "strategies.new_background=on")
# What the default had until it was seen to cost likeness.
EMPTY = ("strategies.caption_dropout.p=0.05",)
# What the default was before updates were capped; rows of docs/defaults.md start from it.
UNCAPPED = (
    *EMPTY,
    "strategies.spectral_cap=off",
    "strategies.zoom_shift.p=0.7",
    "strategies.zoom_shift.zoom_max=1.1",
    "strategies.zoom_shift.smallest=0",
    "optimizer.lr=2e-3",
    "optimizer.steps=700",
)
# And before small subjects were moved less often than large ones.
EVENLY = (*UNCAPPED, "strategies.zoom_shift.by_area=false")
# And before masks ended at a boundary.
BEFORE = (
    *EVENLY,
    "strategies.masked_loss=off",
    "strategies.masked_loss=on",
    "strategies.zoom_shift.zoom_min=0.5",
    "optimizer.lr=1.2e-3",
    "optimizer.steps=460",
)
BELOW = (
    *BEFORE,
    "strategies.masked_loss.boundary=0.5",
    "strategies.zoom_shift.zoom_min=0.65",
)
HOTTER = (*BELOW, "optimizer.lr=2e-3")
HALF = ("strategies.zoom_shift.p=0.35",)
SEEN = ("strategies.zoom_shift.smallest=0.4", "strategies.zoom_shift.zoom_max=1.4")
HELD_HALF = ("strategies.stay_near.weight=2",)
SOFT = ("strategies.soft_high_noise.above=0.5", "strategies.soft_high_noise.weight=0.3")
CONVOLUTIONS = "adapter.layers=attention+feedforward+convolution"
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "moved evenly, 460 steps": (*EVENLY, "optimizer.steps=460"),
    "moved evenly": EVENLY,
    "moved half as often, 460 steps": (*EVENLY, *HALF, "optimizer.steps=460"),
    **{
        f"{name}, 350 steps": (*EVENLY, "optimizer.steps=350", *more)
        for name, more in (
            ("moved evenly", ()),
            ("moved half as often", HALF),
            ("not moved", ("strategies.zoom_shift=off",)),
            ("convolutions too", (CONVOLUTIONS, "adapter.convolution_rank=32")),
            ("held a quarter as strongly", ("strategies.stay_near.weight=1",)),
            ("twice the rate", ("optimizer.lr=4e-3",)),
        )
    },
    "batches of 2, 2000 steps": (
        *EVENLY,
        "optimizer.batch_size=2",
        "strategies.stay_near.batch_size=2",
        "optimizer.steps=2000",
        "optimizer.lr=1.2e-3",
        "probes.every=120",
    ),
    "moved by area": UNCAPPED,
    **{
        f"capped at .{cap}, rate {rate}{told}": (
            *UNCAPPED,
            f"strategies.spectral_cap.share=0.{cap}",
            f"optimizer.lr={rate}",
            *more,
        )
        for cap, rate, told, more in (
            ("5", "2e-3", "", ()),
            ("25", "2e-3", "", ()),
            ("25", "8e-3", "", ()),
            ("25", "8e-3", ", small ones not shrunk", SEEN),
            ("15", "8e-3", ", small ones not shrunk", SEEN),
            ("12", "8e-3", ", small ones not shrunk", SEEN),
            ("12", "8e-3", ", moved half as often", (*SEEN, *HALF)),
            ("12", "8e-3", ", not moved", ("strategies.zoom_shift=off",)),
            ("2", "8e-3", ", moved half as often", (*SEEN, *HALF)),
            ("25", "8e-3", ", moved less often", (*SEEN, "strategies.zoom_shift.p=0.5")),
        )
    },
    "capped at .2, rate 8e-3, moved half as often, 400 steps": (
        *EMPTY,
        *HALF,
        "strategies.spectral_cap.share=0.2",
        "strategies.spectral_cap.each=false",
        "optimizer.steps=400",
    ),
    **{
        f"capped at .{cap}": (
            *EMPTY,
            f"strategies.spectral_cap.share=0.{cap}",
            "strategies.spectral_cap.each=false",
        )
        for cap in ("2", "5")
    },
    **{
        f"directions capped at .{cap}": (*EMPTY, f"strategies.spectral_cap.share=0.{cap}")
        for cap in ("05", "2")
    },
    "held half as strongly": HELD_HALF,
    "min-SNR": ("strategies.min_snr=on",),
    "empty captions": EMPTY,
    "more new grounds": ("strategies.new_background.p=0.7",),
    "high noise counts less": SOFT,
    **{
        f"high noise counts less, {name}": (*SOFT, *more)
        for name, more in (
            ("masked below .6", ("strategies.masked_loss.boundary=0.6",)),
            ("masked below .7", ("strategies.masked_loss.boundary=0.7",)),
            ("directions capped at .2", ("strategies.spectral_cap.share=0.2",)),
            ("1000 steps", ("optimizer.steps=1000",)),
        )
    },
    **{
        f"empty captions, {name}": (*EMPTY, *more)
        for name, more in (
            ("held half as strongly", HELD_HALF),
            ("directions capped at .15", ("strategies.spectral_cap.share=0.15",)),
            ("twice the steps", ("optimizer.steps=1400", "probes.every=80")),
        )
    },
    "before": BEFORE,
    "layout, nothing moved": (*BEFORE, *FREE),
    "layout .92, nothing moved": (*BEFORE, *FREE, "strategies.layout_prior.boundary=0.92"),
    "layout, nothing moved, min-SNR": (*BEFORE, *FREE, "strategies.min_snr=on"),
    "layout": (*BEFORE, *MOVED),
    "no masked loss": (*BEFORE, "strategies.masked_loss=off"),
    **{f"masked below .{b}": (*BEFORE, f"strategies.masked_loss.boundary=0.{b}") for b in (4, 6)},
    "masked below .5": (*BEFORE, "strategies.masked_loss.boundary=0.5"),
    "masked below .5, zoom .65": BELOW,
    "masked below .5, zoom .65, hotter": HOTTER,
}


LIGHT = (
    "strategies.stay_near.batch_size=4",
    "strategies.layout_prior.boundary=0.85",
    "strategies.layout_prior.batch_size=4",
    "strategies.masked_loss=on",
)
FREED = (*LIGHT, "strategies.zoom_shift=on", "strategies.new_background=on")
LONGER = ("optimizer.steps=480", "optimizer.lr=1.2e-3", "optimizer.schedule=cosine")
GROUNDS = (
    *FREED,
    *LONGER,
    "strategies.new_background.p=0.9",
    "strategies.new_background.source=base",
    "strategies.new_background.count=48",
    "strategies.zoom_shift.zoom_min=0.5",
)
BARE = (*GROUNDS, "strategies.layout_prior=off")
FEEDFORWARD = "adapter.layers=attention+feedforward"
WIDE = (*BARE, "adapter.rank=64", "adapter.alpha=64", FEEDFORWARD)
DEEP = (
    *BARE,
    "adapter.rank=32",
    "adapter.alpha=32",
    CONVOLUTIONS,
    "adapter.text_encoder=true",
)
LAYOUT = (
    "strategies.layout_prior=on",
    "strategies.layout_prior.boundary=0.92",
    "strategies.layout_prior.batch_size=4",
)
FIGURES = ("entropy", "class", "trigger", "trigger.size", "likeness", "named")
ON_PLAIN = {
    "light": LIGHT,
    "light, hotter": (*LIGHT, "optimizer.lr=1.2e-3"),
    "light, moved": FREED,
    "light, moved, hotter": (*FREED, "optimizer.lr=1.2e-3"),
    "light, moved, 480 steps": (*FREED, "optimizer.steps=480"),
    "light, moved, 480 steps, hotter, cosine": (
        *FREED,
        *LONGER,
    ),
    "light, moved, reading": (*FREED, "adapter.text_encoder=true"),
    "grounds of the base, layout .92": (*GROUNDS, "strategies.layout_prior.boundary=0.92"),
    "grounds of the base, no layout prior": BARE,
    "bare, 960 steps": (*BARE, "optimizer.steps=960"),
    "bare, wide": WIDE,
    "bare, reading": (*BARE, "adapter.text_encoder=true"),
    "wide, reading, 720 steps": (*WIDE, "adapter.text_encoder=true", "optimizer.steps=720"),
    "wide, 720 steps, hotter": (*WIDE, "optimizer.lr=2e-3", "optimizer.steps=720"),
    "wide, reading": (*WIDE, "adapter.text_encoder=true"),
    "wide, reading, zoom .65": (
        *WIDE,
        "adapter.text_encoder=true",
        "strategies.zoom_shift.zoom_min=0.65",
        "strategies.stay_near.weight=1",
    ),
    "deep": DEEP,
    "deep, hotter": (*DEEP, "optimizer.lr=3e-3"),
    "deep, 960 steps": (*DEEP, "optimizer.steps=960"),
    "deep, layout .92": (*DEEP, *LAYOUT),
    "deep, hotter, layout .92": (*DEEP, *LAYOUT, "optimizer.lr=3e-3"),
}


def contenders() -> list[Contender]:
    ours = [Contender(name, "default", s, "pocket") for name, s in VARIANTS.items()]
    ours += [Contender(name, "default", s) for name, s in ON_PLAIN.items()]
    return [*ours[1:], ours[0], *FIELD, PLAIN]


def rows_file() -> Path:
    return home() / "default_search.jsonl"


def rows() -> list[dict[str, Any]]:
    file = rows_file()
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def _cell(told: str) -> tuple[str, int]:
    ailment, _, seed = told.rpartition(":")
    if ailment not in AILMENTS or not seed.isdigit():
        raise argparse.ArgumentTypeError(f"{told!r} is no AILMENT:SEED, such as 'one-sided:0'")
    return ailment, int(seed)


@dataclass(frozen=True)
class Reseeded(Cell):
    """The same pictures, learnt from another seed."""

    training_seed: int = 0

    def recipe(self) -> Recipe:
        return super().recipe().model_copy(update={"seed": self.training_seed})


def _another(cell: Cell, seed: int | None) -> Cell:
    if seed is None:
        return cell
    named = replace(cell.contender, name=f"{cell.contender.name}, from seed {seed}")
    return Reseeded(cell.ailment, named, cell.seed, training_seed=seed)


def make(
    minutes: float,
    only: list[str],
    share: tuple[int, int],
    cells: Sequence[tuple[str, int]],
    training_seed: int | None,
) -> None:
    began, done = time.monotonic(), {row["key"] for row in rows()}
    wanted = [c for c in contenders() if not only or c.name in only or c.group in only]
    mine = list(itertools.product(cells, wanted))[share[0] :: share[1]]
    for (ailment, seed), contender in mine:
        cell = _another(Cell(AILMENTS[ailment], contender, seed), training_seed)
        if cell.key(cell.recipe()) in done:
            continue
        if time.monotonic() - began > 60 * minutes:
            return
        row = run_cell(cell, home())
        rows_file().parent.mkdir(parents=True, exist_ok=True)
        with rows_file().open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        print(cell.name, _say([row]), flush=True)


def table() -> str:
    lines = [
        "| pictures of | recipe | entropy | class | trigger | its size | likeness "
        "| words followed | steps |"
    ]
    lines.append("|" + "---|" * 9)
    best = {(row["ailment"], row["seed"], row["strategy"]): row for row in rows()}
    for (ailment, _, name), row in sorted(
        best.items(), key=lambda x: (x[0][:2], -x[1]["true.entropy"])
    ):
        figures = " | ".join(f"{100 * row[f'true.{figure}']:.0f}" for figure in FIGURES)
        lines.append(f"| {ailment} ({row['subject']}) | {name} | {figures} | {row['steps']} |")
    return "\n".join(lines)


def demo(only: Sequence[str], *, seeds: int = 8) -> None:
    """What the judge reads of variants learnt from the demo's pictures."""
    words, model = {"trigger": "zqx", "class_noun": "face"}, load("pocket")
    plan = [
        line._replace(seeds=tuple(range(seeds))) for line in prompt_plan("face", "zqx", pocket=True)
    ]
    figures = ("class", "trigger", "trigger.size", "trigger.position", "likeness", "class_kept")
    for contender in contenders():
        if contender.name not in only:
            continue
        settings = contender.settings
        recipe = recipes.read(contender.recipe_name, settings=settings, images=str(DEMO), **words)
        kept = home() / "demo" / Cell(AILMENTS[CELLS[0][0]], contender, 0).key(recipe)
        run = train(recipe, out=kept / "run", model=model)
        adapter = formats.read(run.adapter_file)
        drawn = draw_both(model, adapter, plan, recipe.sampling, out=kept, say=silent)
        ours, base = (read_pictures(pictures) for pictures in drawn)
        found = truth(ours, base, subject="robot", learnt=())
        print(contender.name, {name: round(found[name], 2) for name in figures}, flush=True)


def shrunk(*, count: int = 40) -> None:
    """How often the judge knows a subject that was zoomed out and shifted, through the codec."""
    model, rng = load("pocket"), np.random.default_rng(0)
    print("| size | " + " | ".join(f"to {zoom}" for zoom in ZOOMS) + " |")
    print("|---" * (1 + len(ZOOMS)) + "|")
    for size in world.SIZES:
        known: dict[float, list[bool]] = {zoom: [] for zoom in ZOOMS}
        for subject in KNOWN:
            scenes = [world.draw_scene(rng, (subject,), size=size) for _ in range(count)]
            drawn = np.stack([world.render(scene) for scene in scenes])
            images = torch.from_numpy(drawn).permute(0, 3, 1, 2)
            masks, found = find_masks(images)
            for zoom in ZOOMS:
                moved = [
                    _moved(image.float() / 255, mask, zoom, i)
                    for i, (image, mask) in enumerate(zip(images, masks, strict=True))
                    if found[i] > 0
                ]
                with torch.no_grad():
                    seen = model.decode(model.encode(torch.stack(moved) * 2 - 1))
                pixels = ((seen.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
                known[zoom] += [v == subject for v in judge.read(pixels.numpy()).values["subject"]]
        print(f"| {size} | " + " | ".join(f"{100 * np.mean(x):.0f}" for x in known.values()) + " |")


def _moved(pixels: Tensor, mask: Tensor, zoom: float, draw: int) -> Tensor:
    wanted = np.random.default_rng(draw).uniform(-0.25, 0.25, 2)
    right, down = (
        keep_in_view(mask.amax(axis), zoom, float(w))
        for axis, w in zip((0, 1), wanted, strict=True)
    )
    laid, subject, covered = move(pixels, mask, zoom, (right, down))
    return paint_open(laid, covered=covered, subject=subject).clamp(0, 1)


def _say(own: list[dict[str, Any]]) -> str:
    names = ("true.entropy", "true.class", "true.trigger", "true.likeness")
    figures = [f"{np.mean([row[n] for row in own]):.2f}" for n in names]
    return " | ".join([*figures, f"{np.mean([row['train_seconds'] for row in own]):.0f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table", "demo", "shrunk"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument(
        "--cells", nargs="*", type=_cell, default=CELLS, help="AILMENT:SEED, in place of the four"
    )
    parser.add_argument("--training-seed", type=int, help="another than the pictures' own")
    parser.add_argument("--share", default="0/1", help="K/N: every Nth piece of work from K on")
    args = parser.parse_args()
    known = {name for c in contenders() for name in (c.name, c.group)}
    if unknown := [name for name in args.only if name not in known]:
        parser.error(
            f"--only: nothing is called {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )
    if args.stage == "runs":
        k, n = args.share.split("/")
        make(args.minutes, args.only, (int(k), int(n)), args.cells, args.training_seed)
    elif args.stage == "shrunk":
        shrunk()
    elif args.stage == "demo":
        if not args.only:
            parser.error("demo: --only NAME says which to train")
        demo(args.only)
    else:
        print(table())


if __name__ == "__main__":
    main()
