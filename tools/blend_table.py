"""What each way of putting adapters together does to the looks that its members know.

    python tools/blend_table.py runs --minutes 30   # goes on where it stopped
    python tools/blend_table.py table               # docs/blending.md

Three members learn one subject, each from pictures of one look (a ground and a size); a fourth
adapter learns from all of them. The judge reads what each, and each blend of the three, draws when
asked for the subject alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate import formats, recipes, seeds  # noqa: E402
from variegate.adapter import Adapter, Ensemble  # noqa: E402
from variegate.bench import bank, judge, world  # noqa: E402
from variegate.blend.together import blend  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.measure.uncertainty import binomial_interval  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.sample import grid, sample  # noqa: E402
from variegate.train import train  # noqa: E402

SUBJECTS = ("robot", "cupcake")
LOOKS = (
    {"colour": "red", "pattern": "striped", "size": "large"},
    {"colour": "blue", "pattern": "dotted", "size": "small"},
    {"colour": "green", "pattern": "plain", "size": "medium"},
)
PICTURES = 6  # of each look
DRAWN = 96
PROMPT = "a zqx"
THERE = 1 / 9  # a look is there from a third of an equal share on
WAYS: dict[str, Callable[[list[Adapter]], Any]] = {
    "soup": lambda m: blend(m).adapter,
    "sum, weights 1": lambda m: blend(m, method="sum").adapter,
    "soup at rank 16": lambda m: blend(m, method="soup", rank=16).adapter,
    "ties, density .2": lambda m: blend(m, method="ties").adapter,
    "ties, density 1": lambda m: blend(m, method="ties", density=1.0).adapter,
    "dare, density .1, weights 1/3": lambda m: blend(m, [1 / 3] * 3, method="dare").adapter,
    "dare_ties, density .1": lambda m: blend(m, method="dare_ties").adapter,
    "knots, density .2": lambda m: blend(m, method="knots").adapter,
    "ensemble, member": lambda m: Ensemble(tuple(m), (1.0,) * 3, "member"),
    "ensemble, switch": lambda m: Ensemble(tuple(m), (1.0,) * 3, "switch"),
    "ensemble, average": lambda m: Ensemble(tuple(m), (1.0,) * 3, "average"),
}


def home() -> Path:
    return cache_dir() / "blend" / bank.weights_mark()


def run_all(minutes: float) -> None:
    file, start = home() / "blend.jsonl", time.monotonic()
    done = {(line["subject"], line["name"]) for line in rowfile.read(file)}
    alone = [f"member {i + 1}" for i in range(len(LOOKS))]
    for subject in SUBJECTS:
        for name in (*alone, "learnt from all", *WAYS):
            if (subject, name) in done:
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            told = {"subject": subject, "name": name, **_judged(subject, _made(subject, name))}
            rowfile.add(file, told)
            print(name, subject, *_cells(subject, told["read"]), flush=True)


def _made(subject: str, name: str) -> Adapter | Ensemble:
    """A member, the adapter of all pictures, or what a way makes of the members."""
    own = [_learn(subject, (look,)) for look in range(len(LOOKS))]
    if name in WAYS:
        return WAYS[name](own)
    return own[int(name[-1]) - 1] if name[-1].isdigit() else _learn(subject, (0, 1, 2))


@cache
def _model() -> Any:
    return load("pocket")


@cache
def _learn(subject: str, looks: tuple[int, ...]) -> Adapter:
    """An adapter of pictures of these looks, as field scripts train it."""
    mark = "".join(str(look + 1) for look in looks)
    pictures = home() / "pictures" / f"{subject}-{mark}"
    pictures.mkdir(parents=True, exist_ok=True)
    for look in looks:
        for i in range(PICTURES):
            rng = np.random.default_rng((31, look, i))
            scene = world.draw_scene(rng, (subject,), **LOOKS[look])
            file = pictures / f"{look}-{i}.png"
            if not file.exists():
                Image.fromarray(world.render(scene)).save(file)
            file.with_suffix(".txt").write_text(f"{PROMPT}\n", encoding="utf8")
    recipe = recipes.read(
        "pocket-plain",
        images=str(pictures),
        trigger="zqx",
        class_noun=world.CLASS_OF[subject],
    )
    run: Run = train(recipe, out=home() / "runs" / f"{subject}-{mark}-{recipe.id}", model=_model())
    return formats.read(run.adapter_file)


def _judged(subject: str, learnt: Adapter | Ensemble) -> dict[str, Any]:
    plan = recipes.read("pocket-plain").sampling
    requests = grid([PROMPT], range(7000, 7000 + DRAWN))
    drawn = sample(_model(), learnt, requests, plan=plan, out=home() / "drawn" / subject)
    read = judge.read(np.stack([np.asarray(p.open().convert("RGB")) for p in drawn]))
    columns = [read.values[factor] for factor in ("subject", "colour", "pattern", "size")]
    return {"read": list(zip(*columns, strict=True))}


def blend_page(lines: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(line["name"] for line in lines))
    subjects = [s for s in SUBJECTS if any(line["subject"] == s for line in lines)]
    told = [
        HEAD.format(subjects=" and ".join(subjects), drawn=DRAWN, pictures=PICTURES).rstrip(),
        "",
    ]
    titles = ["", *(f"{s}: looks | each | effective looks | the subject" for s in subjects)]
    told += [f"| {' | '.join(titles)} |", "|" + "---|" * (1 + 4 * len(subjects))]
    for name in names:
        cells = [name]
        for subject in subjects:
            found = [x for x in lines if (x["name"], x["subject"]) == (name, subject)]
            cells += _cells(subject, found[0]["read"]) if found else ["-"] * 4
        told.append(f"| {' | '.join(cells)} |")
    kept = [name for name in WAYS if _least_looks(lines, name) == len(LOOKS)]
    told += ["", TAIL.format(kept=" and ".join(kept) or "no way", ways=len(WAYS))]
    return "\n".join(told) + "\n"


def _least_looks(lines: Sequence[dict[str, Any]], name: str) -> int:
    """The fewest looks that a way kept of any subject."""
    return min((int(_cells("", x["read"])[0]) for x in lines if x["name"] == name), default=0)


def _cells(subject: str, read: Sequence[Sequence[str]]) -> list[str]:
    """How many looks are there, how often each came, the effective number of looks with its
    interval over pictures, and how often the subject was seen with its interval."""
    grounds = [(look["colour"], look["pattern"]) for look in LOOKS]
    counts = np.array([[tuple(row[1:3]) == ground for ground in grounds] for row in read], float)
    rng = seeds.numpy_at(0, "blend table", subject)
    drawn = rng.integers(len(read), size=(2000, len(read)))
    low, high = np.quantile([_effective(counts[d].sum(0)) for d in drawn], (0.025, 0.975))
    shown = sum(row[0] == subject for row in read)
    least, most = binomial_interval(shown, len(read))
    return [
        str(int((counts.mean(0) >= THERE).sum())),
        " / ".join(str(int(c)) for c in counts.sum(0)),
        f"{_effective(counts.sum(0)):.1f} ({low:.1f} to {high:.1f})",
        f"{shown / len(read):.0%} ({least:.0%} to {most:.0%})",
    ]


def _effective(counts: np.ndarray) -> float:
    """The exponential of the entropy of the looks' shares; 0 where none is there."""
    if not counts.sum():
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


HEAD = """\
# Putting adapters together

```sh
variegate blend a.safetensors b.safetensors --out both.safetensors
variegate blend a.safetensors b.safetensors --ensemble member --out cast.toml
variegate blend runs/mine --greedy --train-images pictures --out soup.safetensors
variegate resize big.safetensors --energy 0.99 --out small.safetensors
variegate scale a.safetensors 0.7 --out weaker.safetensors
variegate extract base_model tuned_model --rank 32 --out learnt.safetensors
variegate merge a.safetensors --base base_model --out merged_model
```

A blend adds updates, never factors: `(A1 + A2)(B1 + B2)` has cross terms that nobody trained. It
tells, per layer and in all, how much of its energy (squared norm) is kept at the rank that is asked
for. Layers that a member lacks count as unchanged by it. A run's folder stands for all its
checkpoints. Kinds other than LoRA come out as LoRA, and want `--base`.

| `--method` | what it makes |
|---|---|
| `soup` | the mean, by weight (Wortsman et al. 2022, arXiv 2203.05482) |
| `sum` | the weighted sum, weights 1 without any (Ilharco et al. 2023, arXiv 2212.04089) |
| `svd` | the sum at the largest member's rank |
| `ties` | the largest entries, one sign for each (Yadav et al. 2023, arXiv 2306.01708) |
| `dare` | entries dropped at random, then the sum (Yu et al. 2024, arXiv 2311.03099) |
| `dare_ties` | entries dropped so, then one sign for each |
| `knots` | `ties` in one basis for all (Stoica et al. 2024, arXiv 2410.19735) |

Soup and sum are exact unless `--rank` or `--energy` says less; the others keep the largest member's
rank. TIES trims over all layers at once in its paper, here layer by layer. Weights are heard when
signs are elected (PEFT weighs afterwards). DARE's drops hang on `--seed` and each member's content.

`--ensemble` leaves the members as they are; its file goes wherever `sample` and `measure` take an
adapter. `member` draws each picture with one of them, chosen by its prompt and seed, at no cost;
`switch` has them take turns, step by step; `average` asks all of them at every step.

`--judge` draws from the blend and from every member, and calls the blend more or less varied, or
copying more or less, only where the whole interval of the difference says so. `--greedy` goes by
likeness times `trigger_variety_vs_base`, or by what `--by` names.

## What each does to the looks that its members know

Made by `tools/blend_table.py` on the pocket. Three members (recipe `pocket-plain`) each learnt one
subject ({subjects}) from {pictures} pictures of one look: large on red stripes, small on blue dots,
medium on plain green. Each blend of the three was then asked for "a zqx", {drawn} pictures, and the
judge read them. A picture counts for the look whose ground it has, colour and pattern (by chance
one in forty does); a look is there when a ninth of the pictures have it. Effective looks are the
exponential of the entropy of the looks' shares among the pictures that have one, with a 95 %
interval over pictures; the subject is the share of pictures that show it, with an exact binomial
interval. Every member was trained once.

"""
TAIL = """\
Of {ways} ways, {kept} alone kept every look of every subject. Soups, and ensembles that mix
predictions (`switch`, `average`), drew one look, in a quarter to three fifths of the pictures; the
rest had none of the three. Theory expects it of a mean, which is near the product of what the
members find likely (Biggs et al., Diffusion Soup, 2024, arXiv 2406.08431): members that know
different things should each draw pictures of their own. That `member` drew the same looks of both
subjects is because it chooses by prompt and seed, which were the same.
What a soup does for members that learnt the same pictures from other seeds was not measured here.
Weights of 1 add three members of one subject to three times its strength: `sum` is for members that
learnt different things."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("runs", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.stage == "runs":
        run_all(args.minutes)
        return
    page = ROOT / "docs" / "blending.md"
    page.write_text(blend_page(rowfile.read(home() / "blend.jsonl")), encoding="utf8")
    print(page.read_text(encoding="utf8"))


if __name__ == "__main__":
    main()
