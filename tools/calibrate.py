"""How often the verdict alarms where it must not, and how surely where it must.

    python tools/calibrate.py pool   --minutes 10    # draw the base once: prompts x 40 seeds
    python tools/calibrate.py nulls  --minutes 20    # 300 verdicts on the base against itself
    python tools/calibrate.py shared --minutes 20    # the same, all prompts at the same seeds
    python tools/calibrate.py scatter --minutes 5    # what size of loss a plan can show
    python tools/calibrate.py ladder --minutes 30    # planted shares of five ailments
    python tools/calibrate.py controls --minutes 10  # other styles, samplers, sizes: no collapse
    python tools/calibrate.py bank   --minutes 60    # 64 runs, from plain to guarded
    python tools/calibrate.py table                  # docs/calibration.md

Every stage goes on where it stopped. Pictures and measurements stay in the cache, and only the
table is committed; it judges what was measured by the rules of the day, so that new rules cost no
new measuring. A null is the pocket's own base, four pictures a prompt against four at other seeds,
drawn for each prompt apart: harder than what the product meets, whose adapter and base share their
seeds. Sets drawn from one
pool share pictures, so their alarms are not independent: the intervals are a little too narrow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from calibration_tables import (  # noqa: E402
    AILMENTS,
    ONE_SIDED,
    REPEATS,
    SHARES,
    calibration_page,
)

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
    judge,
    prompt_plan,
    read,
    rejudge,
)
from variegate.measure.diversity import compare_variety  # noqa: E402
from variegate.measure.gather import beside_recoloured, in_identity  # noqa: E402
from variegate.measurement import Measurement, Verdict  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.sample import Request, sample  # noqa: E402

SEEDS = 40  # pictures of each prompt in the pool
OTHER_SEEDS = 40  # and in that of another sampler: as many, or seeds would meet more often
NULLS = 300
SCATTERS = 60  # sets of four and of eight pictures a prompt
CONTROLS = 40  # sets of each style, size or sampler that is no collapse
JUDGES = ("verdict", "wording", "rules", "power", "describe", "tables", "advice")  # measure nothing
STAGES = ("pool", "nulls", "shared", "scatter", "ladder", "controls", "bank", "table")
LEARNT = "robot"  # who the training pictures show
EYE = encoders.load("pocket")


def folder() -> Path:
    """Results under these weights and measures; the pool under the weights alone."""
    return cache_dir() / "calibration" / bank.weights_mark()


def results(name: str) -> Path:
    digest = hashlib.sha256()
    for file in sorted((ROOT / "src/variegate/measure").glob("*.py")):
        if file.stem not in JUDGES:
            digest.update(file.read_bytes())
    return folder() / f"{name}-{digest.hexdigest()[:12]}.jsonl"


def draw_pool(deadline: Callable[[], bool]) -> None:
    """The base at every prompt and seed, a few seeds at a time; then some by another sampler."""
    model = load("pocket")
    plan = recipes.read("pocket").sampling.model_copy(update={"steps": 10})
    other = plan.model_copy(update={"sampler": "dpmpp_2m", "steps": 14})
    for name, how, count in (("pool", plan, SEEDS), ("other sampler", other, OTHER_SEEDS)):
        asked: list[Request] = []
        for seed in range(count):
            asked += [
                Request(line.base_prompt, seed, line.group)
                for line in _lines()
                if seed in line.seeds
            ]
            if seed % 4 == 3:
                sample(model, None, asked, plan=how, out=folder() / name)
                print(f"{name}: {len(asked)} pictures", flush=True)
            if deadline():
                return
        (folder() / name / "whole").touch()


def _lines() -> list[PlannedPrompt]:
    return [
        line._replace(seeds=tuple(range(SEEDS if line.group != "unrelated" else 8)))
        for line in prompt_plan("face", "zqx", preset="standard", pocket=True)
    ]


def training_pictures(kind: str = "varied") -> ImageSet:
    """Twelve pictures, `varied` or `one-sided`: the subject large in the middle on one ground, each
    nearly the copy of another."""
    return ImageSet.read(bank.render_pictures(LEARNT, f"{kind} 12"))


def planted_pictures(kind: str = "varied") -> dict[str, list[Picture]]:
    """What the ailments put in place of samples, by ailment."""
    rng = np.random.default_rng(0)
    train = [p.open() for p in training_pictures(kind)]
    some = train[:8]
    near = [_jittered(some[i % 8], rng) for i in range(48)]
    cropped = [_cropped(some[i % 8], rng) for i in range(48)]
    sets = {"eight training pictures": some, "near copies": near, "flips and crops": cropped}
    if kind == "one-sided":
        sets = {ONE_SIDED: near}
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


@dataclass(frozen=True)
class Pool:
    """Pictures, and the same through the encoders as both adapter and base."""

    pictures: ImageSet
    evidence: Evidence


def seen(kind: str = "varied") -> Pool:
    """The pool and the planted pictures."""
    pool = _drawn("pool")
    planted = [p for part in planted_pictures(kind).values() for p in part]
    return look_at(ImageSet((*pool.pictures, *planted), pool.origin), training_pictures(kind))


def _drawn(name: str) -> ImageSet:
    if not (folder() / name / "whole").exists():
        raise SystemExit("draw the pool first: python tools/calibrate.py pool --minutes 10")
    return ImageSet.read(folder() / name)


def look_at(whole: ImageSet, trained_on: ImageSet) -> Pool:
    evidence = gather(
        whole,
        whole,
        encoders=[EYE],
        train_images=trained_on,
        trigger="zqx",
        class_noun="face",
    )
    return Pool(whole, evidence)


def verdict_of(evidence: Evidence) -> Verdict:
    return judge(
        read(evidence), encoders=[evidence.views[0].encoder], weak_encoder=evidence.weak_encoder
    )


def a_set(
    pool: Pool,
    rng: np.random.Generator,
    put: Callable[[Line, int, np.random.Generator], int] | None = None,
    *,
    count: int = 4,
    unique: bool = False,
    shared: bool = False,
) -> Evidence:
    """`count` pictures of each prompt as the adapter's, as many at other seeds as the base's.

    put: may lay another picture in an adapter picture's place, none twice in a prompt if `unique`.
    shared: all prompts take the same seeds.
    """
    order = rng.permutation(SEEDS) if shared else None
    lines, ours, theirs, texts = [], list[int](), list[int](), list[int]()
    for i, line in enumerate(pool.evidence.lines):
        if line.prompt.startswith("planted"):
            continue
        n = 2 if line.group == "unrelated" else count
        seeds = rng.permutation(len(line.base_rows))
        if order is not None:
            seeds = order[order < len(line.base_rows)]
        a = [line.base_rows[s] for s in seeds[:n]]
        b = [line.base_rows[s] for s in seeds[n : 2 * n]]
        if put is not None:
            a = [put(line, row, rng) for row in a]
            while unique and len(set(a)) < n:
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

    whole = pool.evidence
    first, layout, palette = (
        view(v) for v in (whole.views[0], whole.layout, whole.axes["palette"])
    )
    assert first is not None
    assert layout is not None
    assert palette is not None
    some = [
        ImageSet(tuple(pool.pictures.pictures[row] for row in rows), "a set")
        for rows in (ours, theirs)
    ]
    recoloured, recoloured_layout = beside_recoloured(
        EYE, first, layout, palette, tuple(lines), (some[0], some[1])
    )
    return replace(
        whole,
        lines=tuple(lines),
        views=(first,),
        identity=in_identity(EYE, first),
        layout=layout,
        recoloured=recoloured,
        recoloured_identity=recoloured and in_identity(EYE, recoloured),
        recoloured_layout=recoloured_layout,
        thumbnails=view(whole.thumbnails),
        axes={name: view(v) for name, v in whole.axes.items()},  # type: ignore[misc]
        pictures=tuple(whole.pictures[r] for r in ours),
    )


def planter(pool: Pool, ailment: str, share: float) -> Callable[..., int]:
    """Lays an ailment's pictures in a share of the places."""
    lines = pool.evidence.lines
    rows = {line.prompt: line.adapter_rows for line in lines}
    others = [
        line.base_rows
        for line in lines
        if line.group == "trigger" and not line.prompt.startswith("planted")
    ]
    attractor = next(line.base_rows[0] for line in lines if line.group == "class")

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


def _noted(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a torn last line is none


def _note(file: Path, verdict: Verdict, **facts: object) -> None:
    with file.open("a", encoding="utf8") as out:
        out.write(json.dumps({**facts, "verdict": verdict.to_json()}) + "\n")


def _judged(noted: dict[str, Any]) -> dict[str, Any]:
    """What was noted of a set, with the verdict that its measurements earn today."""
    if "verdict" not in noted:
        return noted
    verdict = rejudge(Verdict.from_json(noted["verdict"]), RULES)
    numbers = {m.name: m.value for m in verdict.measurements if isinstance(m, Measurement)}
    palette = any("colours became alike" in note for note in verdict.notes)
    return {**noted, "labels": verdict.labels, "numbers": numbers, "palette": palette}


def run_nulls(deadline: Callable[[], bool], *, shared: bool = False) -> None:
    file = results("shared" if shared else "nulls")
    done, pool = len(_noted(file)), seen()
    for number in range(done, NULLS):
        if deadline():
            return
        evidence = a_set(pool, np.random.default_rng((1, number)), shared=shared)
        _note(file, verdict_of(evidence), number=number)
        if number % 20 == 19:
            print(f"nulls: {number + 1} of {NULLS}", flush=True)


def run_scatter(deadline: Callable[[], bool]) -> None:
    """How far the logarithms of the prompts' ratios scatter where nothing is wrong."""
    file = results("scatter")
    done, pool = len(_noted(file)), seen()
    for number in range(done, SCATTERS):
        if deadline():
            return
        count = (4, 8)[number % 2]
        evidence = a_set(pool, np.random.default_rng((4, number)), count=count)
        found = {}
        for name, group, view in (
            ("variety_vs_base", "class", evidence.views[0]),
            ("trigger_variety_vs_base", "trigger", evidence.layout),
        ):
            assert view is not None
            lines = evidence.of_group(group)
            compared = compare_variety(
                [view.of_adapter(line) for line in lines], [view.of_base(line) for line in lines]
            )
            assert compared is not None
            found[name] = float(np.std(compared.log_ratios, ddof=1))
        with file.open("a", encoding="utf8") as out:
            out.write(json.dumps({"seeds": count, "scatter": found}) + "\n")


def _rungs() -> Iterator[tuple[str, float, int]]:
    for repeat in range(REPEATS):
        for share in SHARES:
            for ailment in AILMENTS:
                yield ailment, share, repeat


def run_ladder(deadline: Callable[[], bool]) -> None:
    file = results("ladder")
    done = {(x["ailment"], x["share"], x["repeat"]) for x in _noted(file)}
    usual, one_sided = seen(), seen("one-sided")
    for number, (ailment, share, repeat) in enumerate(_rungs()):
        if (ailment, share, repeat) in done:
            continue
        if deadline():
            return
        rng, pool = np.random.default_rng((2, number)), one_sided if ailment == ONE_SIDED else usual
        verdict = verdict_of(a_set(pool, rng, planter(pool, ailment, share)))
        _note(file, verdict, ailment=ailment, share=share, repeat=repeat)
        if number % 40 == 39:
            print(f"ladder: {number + 1} of {len(AILMENTS) * len(SHARES) * REPEATS}", flush=True)


def _controls() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Styles and sizes that are no collapse, as what they do to a picture."""

    def sepia(picture: Image.Image) -> Image.Image:
        return ImageOps.colorize(picture.convert("L"), "#1c0f05", "#fff1d6")

    return {
        "black and white": lambda picture: picture.convert("L").convert("RGB"),
        "one palette (sepia)": sepia,
        "another resolution (48 pixels)": lambda picture: picture.resize((48, 48)),
        "another sampler (dpmpp_2m, 14 steps)": lambda picture: picture,
    }


def run_controls(deadline: Callable[[], bool]) -> None:
    """The adapter's pictures styled, sized or sampled in another way than the base's."""
    file = results("controls")
    done = {(x["control"], x["repeat"]) for x in _noted(file)}
    pool = _drawn("pool")
    for name, change in _controls().items():
        if all((name, repeat) in done for repeat in range(CONTROLS)):
            continue
        source = _drawn("other sampler") if "sampler" in name else pool
        changed = [
            replace(
                p,
                key=f"changed {p.key}",
                file=None,
                tensor=torch.from_numpy(np.array(change(p.open()))).permute(2, 0, 1).contiguous(),
                prompt=f"planted {p.prompt}",
            )
            for p in source
        ]
        both = look_at(ImageSet((*pool.pictures, *changed), name), training_pictures())
        rows = {(s.group, s.prompt): s.base_rows for s in both.evidence.lines}

        def put(line: Line, row: int, rng: np.random.Generator) -> int:
            own = rows[line.group, f"planted {line.prompt}"]  # noqa: B023
            return int(own[rng.integers(len(own))])

        for repeat in range(CONTROLS):
            if (name, repeat) in done:
                continue
            if deadline():
                return
            rng = np.random.default_rng((3, repeat))
            verdict = verdict_of(a_set(both, rng, put, unique=True))
            _note(file, verdict, control=name, repeat=repeat)
        print(f"controls: {name}", flush=True)


def run_bank(deadline: Callable[[], bool]) -> None:
    """Make the runs that are not there yet, draw from them, and read each against the judge."""
    file = results("bank")
    done, model = {x["name"] for x in _noted(file)}, load("pocket")
    for number, ailment in enumerate(bank.ailments()):
        if ailment.name in done:
            continue
        if deadline():
            return
        run = bank.build(ailment)
        verdict = verdict_of(bank.evidence_of(ailment, run, model))
        truth, *halves = (vars(bank.truth(run, ailment.subject, half=h)) for h in (None, 0, 1))
        told = {"name": ailment.name, "treatment": ailment.treatment}
        _note(file, verdict, **told, truth=truth, halves=halves)
        print(f"bank: {number + 1} of 64, {ailment.name}: {', '.join(verdict.labels)}", flush=True)


def write_table() -> None:
    stages = [stage for stage in STAGES if stage not in ("pool", "table")]
    noted = {stage: [_judged(x) for x in _noted(results(stage))] for stage in stages}
    page = ROOT / "docs" / "calibration.md"
    page.write_text(calibration_page(noted, controls=list(_controls())), encoding="utf8")
    print(page.read_text(encoding="utf8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    start = time.monotonic()

    def deadline() -> bool:
        return time.monotonic() - start > 60 * args.minutes

    folder().mkdir(parents=True, exist_ok=True)
    if args.stage == "table":
        write_table()
    else:
        stages = {
            "pool": draw_pool,
            "nulls": run_nulls,
            "shared": partial(run_nulls, shared=True),
            "ladder": run_ladder,
            "controls": run_controls,
            "scatter": run_scatter,
            "bank": run_bank,
        }
        stages[args.stage](deadline)


if __name__ == "__main__":
    main()
