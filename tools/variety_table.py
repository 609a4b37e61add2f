"""What each method of sampling does to a finished adapter's pictures, by the judge.

    python tools/variety_table.py run --minutes 45              # goes on where it stopped
    python tools/variety_table.py run --minutes 45 --part 1/2   # beside another with --part 2/2
    python tools/variety_table.py table                         # docs/sampling.md, and effects

The adapters are the benchmark's, in different states: what the plain recipe, the default and the
field's settings trained on pictures that make an adapter collapse, and on healthy ones. One that
the benchmark left is used, any other is trained. All methods draw the same prompts at the
same seeds, and time is the processor's own, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate.bench.ailments import scenes_of  # noqa: E402
from variegate.bench.contenders import named  # noqa: E402
from variegate.bench.suite import Cell, home  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.bench.truth import read_folder, truth  # noqa: E402
from variegate.formats import read as read_adapter  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.recipe import Recipe, SamplingMethods, SamplingPlan, combination  # noqa: E402
from variegate.run import Run  # noqa: E402
from variegate.sample import Request, sample  # noqa: E402
from variegate.train import train  # noqa: E402
from variegate.train.checkpoint import ADAPTER  # noqa: E402

VERSION = 1  # raise it when the same method would give another row
AILMENTS = (
    *("one-sided", "four pictures", "eight pictures", "one background"),
    *("silent captions", "text encoder", "wide", "healthy"),
)
CONTENDERS = ("plain", "diffusers", "OneTrainer", "kohya", "default")
ADAPTERS = 20
# Of each group the first prompts, eight seeds each: 96 pictures of a method.
PROMPTS = {"trigger": 8, "class": 4}
SEEDS_EACH = 8
MARK = "<!-- made by tools/variety_table.py: what stands below is written over -->\n"
EFFECTS = ROOT / "src" / "variegate" / "sampling_effects.json"


@dataclass(frozen=True)
class Way:
    """One way of drawing: settings on the sampling plan, and the adapter's strength.

    is_alone: a method at its defaults by itself, whose effect goes on the menu. needs_file: what an
    earlier checkpoint of the run is needed for.
    """

    name: str
    methods: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    strength: float = 1.0
    is_alone: bool = False
    needs_file: bool = False


def _alone(name: str) -> Way:
    return Way(name, {name: {}}, is_alone=True)


WAYS = (
    Way("plain"),
    # What anybody can do without a method: the controls.
    Way("guidance 1", plan={"guidance_scale": 1.0}),
    Way("guidance 3", plan={"guidance_scale": 3.0}),
    Way("strength 0.7", strength=0.7),
    _alone("late_adapter"),
    Way("late_adapter, at once", {"late_adapter": {"width": 0.0}}),
    Way("late_adapter, boundary 0.8", {"late_adapter": {"boundary": 0.8}}),
    Way("late_adapter, boundary 0.6", {"late_adapter": {"boundary": 0.6}}),
    _alone("noise_choice"),
    Way("noise_choice, optimise", {"noise_choice": {"way": "optimise"}}),
    Way("noise_choice, balanced", {"noise_choice": {"way": "balanced"}}),
    _alone("cads"),
    Way("cads, longer", {"cads": {"full": 0.3, "none": 1.0, "strength": 0.25}}),
    _alone("spell"),
    Way("spell, radius 0.3", {"spell": {"radius": 0.3}}),
    _alone("shield"),
    Way("shield, radius 0.8", {"shield": {"radius": 0.8}}),
    _alone("particle"),
    _alone("autoguidance"),
    Way("autoguidance, base", {"autoguidance": {"weaker": "base"}}),
    Way("autoguidance, checkpoint", {"autoguidance": {"weaker": "file"}}, needs_file=True),
    Way("variety low"),
    Way("variety medium"),
    Way("variety high"),
    Way("late_adapter + shield", {"late_adapter": {}, "shield": {}}),
    Way("late_adapter + spell 0.3", {"late_adapter": {}, "spell": {"radius": 0.3}}),
    Way("late_adapter, guidance 2", {"late_adapter": {}}, {"guidance_scale": 2.0}),
    Way("late_adapter 0.6, strength 1.2", {"late_adapter": {"boundary": 0.6}}, strength=1.2),
    Way(
        "late_adapter 0.6, strength 1.2 + spell 0.3",
        {"late_adapter": {"boundary": 0.6}, "spell": {"radius": 0.3}},
        strength=1.2,
    ),
    # Of much guidance, which is what these are about.
    Way("guidance 3, interval", {"interval": {}}, {"guidance_scale": 3.0}),
    Way("guidance 3, delayed", {"delayed": {"before": 1.0}}, {"guidance_scale": 3.0}),
    Way("guidance 3, rescale", {"rescale": {}}, {"guidance_scale": 3.0}),
    Way("cfg_pp, scale 0.2", {"cfg_pp": {"scale": 0.2}}),
)


def rows_file() -> Path:
    """In the repository: hours of work that another day goes on with."""
    return ROOT / "tools" / "rows" / "variety" / f"{POCKET.mark}-{VERSION}.jsonl"


# --- drawing and judging ------------------------------------------------------------------------


def run_all(minutes: float, names: Sequence[str] = (), part: tuple[int, int] = (1, 1)) -> None:
    """Adapter by adapter, each with every way before the next: a table cut short is a whole one of
    fewer adapters. names: of the ways, where not all are wanted; plain is always drawn. part: the
    how-manieth of how many processes this is, each of which takes its own adapters."""
    file, start = rows_file(), time.monotonic()
    done = {(row["key"], row["way"], row["asked"]) for row in rowfile.read(file)}
    same = {(row["key"], row["asked"]): row for row in rowfile.read(file)}
    for cell, recipe, key in _cells()[part[0] - 1 :: part[1]]:
        for way in WAYS:
            if names and way.name not in ("plain", *names):
                continue
            asked = _asked(recipe, way)
            if (key, way.name, asked) in done:
                continue
            if (key, asked) in same:  # the same settings under another name
                rowfile.add(file, {**same[key, asked], "way": way.name})
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            _train_if_missing(cell, recipe, key)
            row = _row(cell, recipe, key, way)
            if row is None:
                continue
            rowfile.add(file, row)
            print(_told(row), flush=True)


def _cells() -> list[tuple[Cell, Recipe, str]]:
    """In such an order that any beginning of them holds different states."""
    found = []
    for i in range(ADAPTERS):
        turn, ailment = divmod(i, len(AILMENTS))
        contender = CONTENDERS[(i + turn) % len(CONTENDERS)]
        cell = Cell(POCKET.ailments[AILMENTS[ailment]], *named([contender], POCKET.contenders), 0)
        recipe = cell.recipe()
        found.append((cell, recipe, cell.key(recipe)))
    return found


def _adapter(key: str) -> Path:
    return home() / "runs" / key / "adapter.safetensors"


def _halfway(key: str) -> Path:
    """Where what was learnt by half of the run is kept."""
    return home() / "runs" / key / "halfway.safetensors"


def _train_if_missing(cell: Cell, recipe: Recipe, key: str) -> None:
    if not _adapter(key).exists():
        run: Run = train(recipe, out=home() / "runs" / key, model=POCKET.load(recipe))
        found = sorted(run.checkpoints.glob("step-*"))
        if len(found) > 2:
            shutil.copyfile(found[len(found) // 2] / ADAPTER, _halfway(key))
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def _asked(recipe: Recipe, way: Way) -> str:
    """What tells a way's row from one of other settings under the same name."""
    methods = SamplingMethods.model_validate(_methods(way) | _placeholders(way))
    told = [recipe.sampling.model_dump(mode="json", exclude_none=True), way.plan, way.strength]
    text = json.dumps([*told, methods.model_dump(mode="json", exclude_none=True)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _methods(way: Way) -> dict[str, Any]:
    if way.name.startswith("variety "):
        found = combination(way.name.split()[1])  # type: ignore[arg-type]
        return found.model_dump(exclude_none=True) if found else {}
    copied: dict[str, Any] = json.loads(json.dumps(way.methods))
    return copied


def _placeholders(way: Way) -> dict[str, Any]:
    return {"autoguidance": {"weaker": "file", "file": "?"}} if way.needs_file else {}


def _plan(recipe: Recipe, key: str, way: Way) -> SamplingPlan | None:
    """None where the way cannot be gone with this adapter."""
    methods = _methods(way)
    if "shield" in methods:
        methods["shield"]["images"] = recipe.images
    if way.needs_file:
        if not _halfway(key).exists():
            return None
        methods["autoguidance"]["file"] = str(_halfway(key))
    tables = recipe.sampling.model_dump(exclude_none=True) | way.plan
    return SamplingPlan.model_validate(tables | ({"methods": methods} if methods else {}))


def _requests(recipe: Recipe, *, of_base: bool, strength: float = 1.0) -> list[Request]:
    counts, found = dict.fromkeys(PROMPTS, 0), []
    for line in POCKET.plan(recipe):
        if counts.get(line.group, 99) >= PROMPTS.get(line.group, 0):
            continue
        counts[line.group] += 1
        prompt = line.base_prompt if of_base else line.adapter_prompt
        for seed in range(line.seeds[0], line.seeds[0] + SEEDS_EACH):
            found.append(Request(prompt, seed, line.group, 1.0 if of_base else strength))
    return found


def _row(cell: Cell, recipe: Recipe, key: str, way: Way) -> dict[str, Any] | None:
    plan = _plan(recipe, key, way)
    if plan is None:
        return None
    model, learnt = POCKET.load(recipe), read_adapter(_adapter(key))
    base = cache_dir() / "variety" / POCKET.mark / "base" / recipe.class_noun
    sample(model, None, _requests(recipe, of_base=True), plan=recipe.sampling, out=base)
    subject = POCKET.subject(cell.ailment, cell.seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        wanted = _requests(recipe, of_base=False, strength=way.strength)
        sample(model, learnt, wanted, plan=plan, out=Path(folder))
        seconds = time.process_time() - began
        of = truth(
            read_folder(Path(folder)),
            read_folder(base),
            subject=subject,
            learnt=scenes_of(cell.ailment.pictures, subject, cell.seed),
        )
    return {
        "key": key,
        "ailment": cell.ailment.name,
        "contender": cell.contender.name,
        "seed": cell.seed,
        "way": way.name,
        "asked": _asked(recipe, way),
        **{name: round(of[name], 4) for name in TRUE},
        "seconds": round(seconds, 2),
    }


TRUE = ("trigger", "class", "entropy", "named", "named_base", "likeness", "class_kept", "copies")


def _told(row: dict[str, Any]) -> str:
    return (
        f"{row['ailment']}, {row['contender']}, seed {row['seed']}, {row['way']}: variety "
        f"{row['trigger']:.2f} (class {row['class']:.2f}), named {row['named']:.2f}, likeness "
        f"{row['likeness']:.2f}, copies {row['copies']:.2f}, {row['seconds']:.1f} s"
    )


# --- the page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What a way changes against plain: the mean over adapters, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(differences: Sequence[float]) -> Change:
        """Of paired differences, one of each adapter; resampled over adapters."""
        told = np.array(differences, float)
        draws = np.random.default_rng(0).integers(len(told), size=(4000, len(told)))
        low, high = np.quantile(told[draws].mean(1), (0.025, 0.975))
        return Change(float(told.mean()), float(low), float(high))

    @property
    def is_shown(self) -> bool:
        """Whether it is more than noise."""
        return self.low > 0 or self.high < 0

    def told(self, scale: float = 1.0, digits: int = 2) -> str:
        mean, low, high = (f"{scale * v:+.{digits}f}" for v in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def changes(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each way but plain: its changes, its time against plain's, and on how many adapters."""
    latest = {(row["key"], row["way"]): row for row in rows}  # of settings that changed, the last
    rows = list(latest.values())
    plain = {row["key"]: row for row in rows if row["way"] == "plain"}
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        own = [row for row in rows if row["way"] == way.name and row["key"] in plain]
        if way.name == "plain" or not own:
            continue
        pairs = [(row, plain[row["key"]]) for row in own]
        of = {name: Change.of([a[name] - b[name] for a, b in pairs]) for name in TRUE}
        times = np.median([a["seconds"] / b["seconds"] for a, b in pairs])
        found[way.name] = {**of, "time": float(times), "adapters": len(own)}
    return found


def on_the_front(found: dict[str, dict[str, Any]]) -> set[str]:
    """The ways that no other, nor plain, beats in variety under the trigger and in likeness."""
    most = max((of["adapters"] for of in found.values()), default=0)
    points = {
        name: (of["trigger"].mean, of["likeness"].mean)
        for name, of in found.items()
        if of["adapters"] == most  # means over other adapters cannot be compared
    }
    points["plain"] = (0.0, 0.0)
    return {
        name
        for name, own in points.items()
        if not any(
            other[0] >= own[0] and other[1] >= own[1] and other != own for other in points.values()
        )
    }


def page_part(rows: Sequence[dict[str, Any]]) -> str:
    """What stands below the mark of the page."""
    plain = list({row["key"]: row for row in rows if row["way"] == "plain"}.values())
    if not plain:
        return "Not measured yet.\n"
    found = changes(rows)
    front = on_the_front(found)
    states = sorted({f"{row['contender']}" for row in plain})
    told = [
        HEAD.format(
            adapters=len(plain),
            ailments=len({row["ailment"] for row in plain}),
            states=", ".join(states),
            pictures=SEEDS_EACH * sum(PROMPTS.values()),
            **{name: f"{np.mean([row[name] for row in plain]):.2f}" for name in TRUE},
        ).rstrip(),
        "",
        "| way | adapters | variety, trigger | variety, class | named followed | likeness, points "
        "| copies, points | time | front |",
        "|" + "---|" * 9,
    ]
    for name, of in found.items():
        cells = [
            name,
            str(of["adapters"]),
            of["trigger"].told(),
            of["class"].told(),
            of["named"].told(),
            of["likeness"].told(100, 0),
            of["copies"].told(100, 0),
            f"{of['time']:.2f}",
            "yes" if name in front else "",
        ]
        told.append(f"| {' | '.join(cells)} |")
    helpless = [
        n for n, of in found.items() if not (of["trigger"].is_shown and of["trigger"].mean > 0)
    ]
    told += [
        "",
        f"No more variety under the trigger than plain is shown by: {', '.join(helpless)}.",
    ]
    return "\n".join(told) + "\n"


HEAD = """\
Made by `tools/variety_table.py` on the pocket, from {adapters} adapters on {ailments} kinds of
training pictures, as trained by: {states}. Each way draws {pictures} pictures of each adapter, at
the same prompts and seeds, in 10 steps of DDIM. Variety is the entropy, by the judge, of what a
prompt leaves open, as a share of the base's; named followed the share of what trigger prompts name
that is drawn; likeness the share of trigger pictures that show the subject; copies the share set in
all as a training picture, less the base's. Plain sampling has {trigger} (trigger) and {class}
(class), {named}, {likeness} and {copies}. What stands below are changes against it, means over
adapters with 95 % intervals over adapters; time is processor time against plain's. On the front is
what no other way beats both in variety under the trigger and in likeness, of those that all
adapters were drawn with. Not here: [ensembles](blending.md).
"""


def effects(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the menu says of each method alone."""
    told = {}
    for way in WAYS:
        of = changes(rows).get(way.name)
        if way.is_alone and of is not None:
            sure = "" if of["trigger"].is_shown else ", which is no difference shown"
            told[f"sampling.methods.{way.name}"] = (
                f"variety under the trigger {of['trigger'].told()}{sure}; likeness "
                f"{of['likeness'].told(100, 0)} points ({of['adapters']} adapters of the pocket)"
            )
    return told


def _part(text: str) -> tuple[int, int]:
    own, _, of = text.partition("/")
    if not (own.isdigit() and of.isdigit() and 1 <= int(own) <= int(of)):
        raise argparse.ArgumentTypeError("say it as 1/2: the first of two")
    return int(own), int(of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--way", action="append", default=[], choices=[way.name for way in WAYS])
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N")
    args = parser.parse_args()
    if args.stage == "run":
        run_all(args.minutes, args.way, args.part)
        return
    page = ROOT / "docs" / "sampling.md"
    rows = rowfile.read(rows_file())
    rowfile.write_below(page, MARK, page_part(rows))
    EFFECTS.write_text(json.dumps(effects(rows), indent=2) + "\n", encoding="utf8")
    print(page_part(rows))


if __name__ == "__main__":
    main()
