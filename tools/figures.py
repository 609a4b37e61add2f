"""The pictures of docs/collapse.md, and the table beside them.

    python tools/figures.py --work runs/figures      # train, draw, docs/figures/*.png, the table

Three adapters of one subject, a robot, on the pocket. `collapsed`: the recipe `pocket-plain` on the
demo's twelve pictures, all on one ground. `kept`: the recipe `pocket` on the same. `copied`:
`pocket-plain` on two pictures. What is in the work folder already is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate import formats, recipes  # noqa: E402
from variegate.bench.ailments import Pictures, draw_pictures  # noqa: E402
from variegate.bench.truth import Row, read_folder  # noqa: E402
from variegate.measure.uncertainty import binomial_interval  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.sample import grid, sample  # noqa: E402
from variegate.train import train  # noqa: E402

DEMO = ROOT / "src/variegate/demo/pictures"
FIGURES = ROOT / "docs/figures"
NOUN, TRIGGER, SUBJECT = "face", "zqx", "robot"
CLASS, CALLED = f"a {NOUN}", f"a {TRIGGER}"
NAMED = f"a small {TRIGGER} on a blue background at the top"
TOP = {"top", "top left", "top right"}
PROMPTS, DRAWN, FIRST_SEED = (CLASS, CALLED, NAMED), 64, 4000
COLUMNS, SIDE, GAP, LABEL = 9, 64, 4, 104
INK, PAPER, COLOURS = (70, 70, 75), (255, 255, 255), 192

Strip = tuple[str, Sequence[Path]]


def learn(name: str, recipe: str, images: Path, work: Path) -> Run:
    """The run of one adapter, trained where it is not there yet."""
    out = work / name
    if Run.journal_in(out).exists() and Run.open(out).adapter_file.exists():
        return Run.open(out)
    asked = recipes.read(recipe, images=str(images), trigger=TRIGGER, class_noun=NOUN)
    return train(asked, out=out)


def strips(rows: Sequence[Strip], file: Path) -> None:
    """Rows of pictures with a name before each, as one small PNG."""
    width, height = LABEL + COLUMNS * (SIDE + GAP), len(rows) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width - GAP, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for i, (label, pictures) in enumerate(rows):
        top = i * (SIDE + GAP)
        pen.multiline_text((0, top + 16), label, INK, font=font, spacing=2)
        for j, picture in enumerate(pictures[:COLUMNS]):
            with Image.open(picture) as opened:
                sheet.paste(opened.convert("RGB"), (LABEL + j * (SIDE + GAP), top))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(file, optimize=True)


def told(rows: Sequence[Row], prompt: str) -> tuple[str, str]:
    """How many pictures of a prompt have the training pictures' colour of ground, with an interval;
    and the effective number of grounds, colour and pattern together."""
    grounds = [(r.seen["colour"], r.seen["pattern"]) for r in rows if r.prompt == prompt]
    hits = sum(colour == "green" for colour, _ in grounds)
    low, high = binomial_interval(hits, len(grounds))
    counts = np.array([grounds.count(g) for g in set(grounds)], float) / len(grounds)
    effective = float(np.exp(-(counts * np.log(counts)).sum()))
    share = f"{hits / len(grounds):.0%} ({low:.0%} to {high:.0%})"
    return share, f"{effective:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/figures")
    work = parser.parse_args().work
    two = draw_pictures(Pictures(count=2), SUBJECT, 0)
    runs = {
        "collapsed": learn("collapsed", "pocket-plain", DEMO, work),
        "kept": learn("kept", "pocket", DEMO, work),
        "copied": learn("copied", "pocket-plain", two, work),
    }
    model, plan = load("pocket"), recipes.read("pocket").sampling
    requests = grid(PROMPTS, range(FIRST_SEED, FIRST_SEED + DRAWN), group="figure")
    drawn: dict[str, dict[str, list[Path]]] = {}
    seen: dict[str, list[Row]] = {}
    for name in ("base", "collapsed", "kept"):
        adapter = formats.read(runs[name].adapter_file) if name in runs else None
        out = work / "drawn" / name
        sample(model, adapter, requests, plan=plan, out=out)
        seen[name] = read_folder(out)
        drawn[name] = by_prompt(out)
    three = (("the base", "base"), ("collapsed", "collapsed"), ("kept", "kept"))
    strips([(label, drawn[n][CLASS]) for label, n in three], FIGURES / "class.png")
    strips([(label, drawn[n][CALLED]) for label, n in three], FIGURES / "trigger.png")
    strips(
        [
            (f'collapsed,\n"{CALLED}"', drawn["collapsed"][CALLED]),
            ("collapsed,\nsmall, blue, top", drawn["collapsed"][NAMED]),
        ],
        FIGURES / "named.png",
    )
    captions = [file.read_text("utf8").strip() for file in sorted(two.glob("*.txt"))]
    asked = grid(captions, range(FIRST_SEED, FIRST_SEED + COLUMNS), group="figure")
    out = work / "drawn" / "copied"
    sample(model, formats.read(runs["copied"].adapter_file), asked, plan=plan, out=out)
    copies = by_prompt(out)
    strips(
        [
            ("learnt from", sorted(two.glob("*.png"))),
            *((f'"{caption}"', copies[caption]) for caption in captions),
        ],
        FIGURES / "copying.png",
    )
    print("| | on green | effective grounds | trigger: on green | effective grounds |")
    print("|---|---|---|---|---|")
    for label, name in three:
        cells = [*told(seen[name], CLASS), *told(seen[name], CALLED)]
        print(f"| {label} | {' | '.join(cells)} |")
    obeyed = [r.seen for r in seen["collapsed"] if r.prompt == NAMED]
    for factor, values in (("size", {"small"}), ("position", TOP), ("colour", {"blue"})):
        print(f"collapsed, {NAMED}: {factor} is obeyed in", end=" ")
        print(f"{sum(s[factor] in values for s in obeyed)} of {len(obeyed)}")


def by_prompt(home: Path) -> dict[str, list[Path]]:
    """The pictures of a samples folder, by prompt and in the order of their seeds."""
    lines = [json.loads(line) for line in (home / "metadata.jsonl").read_text("utf8").splitlines()]
    found: dict[str, list[Path]] = {}
    for line in lines:
        found.setdefault(line["prompt"], []).append(home / line["file_name"])
    return found


if __name__ == "__main__":
    main()
