"""The benchmark's cells: ailment x contender x seed, each trained, drawn, judged and kept as a row.

A cell is named by a hash of its recipe, its pictures, the weights and `VERSION`, so what was done
once is never done again, and what changed is. Rows come from the package (what was published on the
pocket), and from the cache (what was done here).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from variegate.bench.ailments import Ailment
from variegate.bench.contenders import Contender, named
from variegate.bench.scoreboard import why_column
from variegate.bench.testbed import POCKET, Testbed
from variegate.drawn import draw_both
from variegate.encoders import load_encoders
from variegate.errors import RequestError
from variegate.formats import read as read_adapter
from variegate.images import ImageSet, cache_dir
from variegate.measure import RULES, Evidence, gather, measure
from variegate.measure.verdict import judged_by
from variegate.measurement import Measurement, Missing
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import train
from variegate.workers import spread, workers

# Raise it when the same cell would give another row: so too when a default of the recipe changes.
VERSION = 2
PUBLISHED = "results.parquet"


@dataclass(frozen=True)
class Cell:
    """One training run of the benchmark, on the pocket or elsewhere."""

    ailment: Ailment
    contender: Contender
    seed: int
    bed: Testbed = POCKET

    @property
    def name(self) -> str:
        return f"{self.ailment.name} / {self.contender.name} / {self.seed}"

    def recipe(self) -> Recipe:
        given = self.bed.given(self.ailment, self.seed)
        return self.ailment.recipe(self.contender.recipe(), self.seed, given)

    def key(self, recipe: Recipe) -> str:
        """What names the cell: all that its row depends on."""
        # What is as it is by default does not count, so that a new setting makes no row old.
        told = recipe.model_dump(
            mode="json", exclude={"base"}, exclude_none=True, exclude_defaults=True
        )
        told |= {
            "images": _content(recipe.images),
            "kinds": [
                recipe.adapter.kind,
                recipe.optimizer.kind,
                recipe.optimizer.schedule.kind,
            ],
        }
        text = json.dumps([VERSION, self.bed.mark, told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _content(folder: str) -> str:
    """What names the files of a folder that never changes."""
    content = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix != ".part":  # another process is at it
            content.update(file.read_bytes())
    return content.hexdigest()


def cells(
    suite: str,
    *,
    strategies: Sequence[str] = (),
    ailments: Sequence[str] = (),
    seeds: int | None = None,
    bed: Testbed = POCKET,
) -> list[Cell]:
    """The cells of a suite, or those that are named, the most telling first.

    quick: plain, the default and one of the field on two ailments and the healthy set. full: the
    core ailments x all contenders, then all ailments x the combinations, the field and the default;
    where a judge reads them, what the gate compares comes twice as often, since subjects differ
    more than settings do.
    Raises: RequestError for names that there are not, and ailments that cannot be made here.
    """
    known, others = bed.ailments, bed.contenders
    for name in ailments:
        if why := bed.left_out().get(name):
            raise RequestError(f"{name!r} {why}; leave it out, or take of {', '.join(known)}")
        if name not in known:
            raise RequestError(f"no ailment is called {name!r}; there are {', '.join(known)}")
    count = seeds or (1 if suite == "quick" else 3)
    if suite == "quick":
        who = named(strategies or bed.rivals, others)
        where = [known[n] for n in ailments or bed.quick]
        return list(_product(bed, where, who, range(count)))
    core = [a for a in known.values() if a.core]
    if strategies or ailments:
        where = [known[n] for n in ailments] if ailments else core
        who = named(strategies or list(others), others)
        return list(_product(bed, where, who, range(count)))
    front = named(["plain", "default", "field", "combination"], others)
    # Seed by seed, so that a table that is cut short is a whole one of fewer seeds.
    found = list[Cell]()
    for seed in range(count):
        found += _product(bed, known.values(), front, [seed])
        found += _product(bed, core, list(others.values()), [seed])
    if bed.yardstick.read_by == "judge":
        gated = [a for a in known.values() if a.held_out]
        found += _product(bed, gated, named(["default", "field"], others), range(count, 2 * count))
    return list(dict.fromkeys(found))


def _product(
    bed: Testbed, where: Iterable[Ailment], who: Sequence[Contender], seeds: Iterable[int]
) -> Iterator[Cell]:
    for seed, contender, ailment in itertools.product(seeds, who, where):
        yield Cell(ailment, contender, seed, bed)


# --- one cell -----------------------------------------------------------------------------------


def run_cell(cell: Cell, home: Path) -> dict[str, Any]:
    """Train, draw, judge and measure; the row. A few pictures stay beside it as one sheet."""
    recipe, bed = cell.recipe(), cell.bed
    key = cell.key(recipe)
    folder, began = home / "runs" / key, time.monotonic()
    # A base in few bits is loaded by the run itself; pictures are drawn with the whole one.
    model = None if recipe.memory.base_bits else bed.load(recipe)
    anew = not folder.exists()  # what was trained before, in part or whole, has no time
    run = train(recipe, out=folder, model=model)
    trained = time.monotonic() - began
    ours, theirs = draw_both(
        model or bed.load(recipe),
        read_adapter(run.adapter_file),
        bed.plan(recipe),
        recipe.sampling,
        out=folder / "drawn",
        say=silent,
    )
    found = bed.truth(cell.ailment, cell.seed, folder / "drawn")
    row = {
        "key": key,
        "ailment": cell.ailment.name,
        "strategy": cell.contender.name,
        "group": cell.contender.group,
        "seed": cell.seed,
        "subject": bed.subject(cell.ailment, cell.seed),
        "steps": recipe.optimizer.steps,
        "train_seconds": round(trained, 1) if anew else None,
        "seconds": round(time.monotonic() - began, 1),
        **{f"true.{name}": round(value, 4) for name, value in found.items()},
        **_seen(bed, recipe, ours, theirs),
        **_guarded(run),
    }
    _sheet(folder / "drawn", home / "sheets" / f"{key}.png", *bed.sheet)
    shutil.rmtree(folder / "drawn")
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return row


_eyes = lru_cache(maxsize=2)(load_encoders)


def _seen(bed: Testbed, recipe: Recipe, ours: ImageSet, base: ImageSet) -> dict[str, Any]:
    """What the product's own measures and verdict say of the same pictures, and why a figure that
    runs are compared by could not be had."""
    evidence: Evidence = gather(
        ours,
        base,
        encoders=_eyes(bed.encoders),
        train_images=bed.subject_pictures(recipe),
        trigger=bed.trigger,
        class_noun=recipe.class_noun,
    )
    verdict = measure(evidence)
    row: dict[str, Any] = {
        f"seen.{m.name}": round(m.value, 4)
        for m in verdict.measurements
        if isinstance(m, Measurement)
    }
    row |= {
        f"seen.{m.name}.{edge}": round(number, 4)
        for m in verdict.measurements
        if isinstance(m, Measurement) and m.name in judged_by(RULES)
        for edge, number in (("low", m.low), ("high", m.high))
        if number is not None
    }
    compared = {column for figure in bed.yardstick.figures for column in figure.columns}
    row |= {
        why_column(f"seen.{m.name}"): m.why
        for m in verdict.measurements
        if isinstance(m, Missing) and f"seen.{m.name}" in compared
    }
    row |= {"weak_encoder": True} if verdict.weak_encoder else {}
    return row | {"labels": " ".join(sorted(verdict.labels)), "rules": verdict.rules}


def _guarded(run: Run) -> dict[str, Any]:
    """What the guard did, and when it first spoke, as a share of the steps."""
    orders = run.read_journal("order")
    ends = run.read_journal("finish")[-1]
    first = orders[0]["step"] / run.recipe.optimizer.steps if orders else None
    return {
        "orders": " ".join(f"{o['do']}@{o['step']}" for o in orders),
        "first_order": first,
        "chosen_step": ends.get("chosen"),
    }


def _sheet(drawn: Path, file: Path, columns: int, side: int) -> None:
    """The adapter's first pictures: two lines of class prompts over two of the trigger's."""
    lines = [
        json.loads(text)
        for text in (drawn / "adapter" / "metadata.jsonl").read_text("utf8").splitlines()
    ]
    rows = []
    for group in ("class", "trigger"):
        own = [x["file_name"] for x in lines if x["group"] == group]
        first = own[:: max(1, len(own) // (2 * columns))][: 2 * columns]
        rows += [first[:columns], first[columns:]]
    sheet = Image.new("RGB", (columns * side, len(rows) * side), "white")
    for y, names in enumerate(rows):
        for x, name in enumerate(names):
            with Image.open(drawn / "adapter" / name) as picture:
                sheet.paste(picture.convert("RGB").resize((side, side)), (x * side, y * side))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(min(256, side)).save(file, optimize=True)


def sheets(rows: Sequence[dict[str, Any]], *, bed: Testbed = POCKET) -> list[dict[str, Any]]:
    """Pictures for the page: plain and default side by side, the first seed of each ailment."""
    folder, found = home(bed) / "sheets", []
    told = [f for f in bed.yardstick.figures if f.name in (bed.yardstick.variety, "likeness")]
    for ailment in bed.ailments:
        for row in rows:
            file = folder / f"{row['key']}.png"
            wanted = row["ailment"] == ailment and row["group"] in ("plain", "default")
            if wanted and row["seed"] == 0 and file.exists():
                values = [(figure.name, figure.of(row)) for figure in told]
                kept = ", ".join(f"{name} {v:.2f}" for name, v in values if v is not None)
                title = f"{ailment}, {row['strategy']}"
                found.append({"title": title, "text": kept, "file": file})
    return found


def command_of(
    suite: str,
    strategies: str | None,
    ailments: str | None,
    seeds: int | None,
    *,
    bed: Testbed = POCKET,
) -> str:
    """The command that makes a table again."""
    words = ["variegate", "bench", *bed.words(), "--suite", suite]
    for name, value in (("strategies", strategies), ("ailments", ailments), ("seeds", seeds)):
        words += [f"--{name}", str(value)] if value else []
    return shlex.join(words)


# --- many cells ---------------------------------------------------------------------------------


def home(bed: Testbed = POCKET) -> Path:
    """Where rows, sheets and runs of these weights are kept."""
    return cache_dir() / "bench" / bed.mark


def rows_done(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows that there are, by key: published ones and those of this folder."""
    found = {row["key"]: row for row in published()}
    file = folder / "rows.jsonl"
    if file.exists():
        for line in file.read_text(encoding="utf8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a crash; it will be made again
                continue
            found[row["key"]] = row
    return found


def published() -> list[dict[str, Any]]:
    """The rows that ship with the package."""
    import pyarrow.parquet as parquet

    with resources.as_file(resources.files(__package__) / PUBLISHED) as file:
        if not file.exists():
            return []
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def write_table(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Rows as Parquet, in an order of their own."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    ordered = sorted(rows, key=lambda r: (r["ailment"], r["strategy"], r["seed"]))
    columns = {name: [row.get(name) for row in ordered] for name in names}
    part = file.with_suffix(".part")
    parquet.write_table(arrow.table(columns), part, compression="zstd")
    part.replace(file)


def run_suite(
    asked: Sequence[Cell],
    *,
    minutes: float | None = None,
    jobs: int = 1,
    on: str = "",
    say: Say | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows of all cells, of one bed, that are done, making those that are not while the time
    lasts.

    minutes: no cell is begun after these. jobs: processes side by side, each on its share of the
    cores. on: "ray" spreads them over a Ray cluster. tell: hears what is to be done before it is
    begun. What was done stays done, whatever stops it.
    """
    if not asked:
        return []
    folder, say, started = home(asked[0].bed), say or silent, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    done = rows_done(folder)
    recipes = {cell: cell.recipe() for cell in asked}
    keys = {cell: cell.key(recipe) for cell, recipe in recipes.items()}
    # Cells of one recipe under two names are one piece of work.
    left = list({keys[cell]: cell for cell in asked if keys[cell] not in done}.values())
    if left and tell:
        tell(foretell({cell: recipes[cell] for cell in left}))
    total = len(set(keys.values()))
    made = total - len(left)
    say("bench", made, total, "")

    def note(cell: Cell, row: dict[str, Any]) -> None:
        nonlocal made
        with (folder / "rows.jsonl").open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        done[row["key"]] = row
        made += 1
        say("bench", made, total, cell.name)

    waiting = list(left)

    def more() -> Cell | None:
        return waiting.pop(0) if waiting and not _late(started, minutes) else None

    if left:
        with workers(on, jobs) as pool:
            spread(pool, partial(run_cell, home=folder), more=more, note=note, jobs=jobs)
    found = []
    for cell in asked:
        if row := done.get(keys[cell]):
            told = {"ailment": cell.ailment.name, "strategy": cell.contender.name}
            found.append(row | told | {"group": cell.contender.group})
    return found


def foretell(left: Mapping[Cell, Recipe]) -> str:
    """How much work some cells are, counted from their recipes."""
    steps = sum(recipe.optimizer.steps for recipe in left.values())
    rows = sum(recipe.optimizer.steps * recipe.optimizer.batch_size for recipe in left.values())
    ours, passes, theirs = 0, 0, dict[tuple[str, int, str], int]()
    for cell, recipe in left.items():
        sampling = recipe.sampling
        # The empty prompt is asked beside each, where there is guidance.
        each = sampling.steps * (2 if sampling.guidance_scale > 1 else 1)
        plan = cell.bed.plan(recipe)
        drawn = {(line.adapter_prompt, seed) for line in plan for seed in line.seeds}
        ours, passes = ours + len(drawn), passes + len(drawn) * each
        same = sampling.model_dump_json(exclude={"preset"})
        theirs |= {(line.base_prompt, seed, same): each for line in plan for seed in line.seeds}
    return (
        f"To be made: {len(left)} runs, {steps:,} training steps in all, {rows:,} pictures forward "
        f"and back beside what strategies add; then {ours:,} pictures of the adapters and "
        f"{len(theirs):,} of the base, kept for another time: "
        f"{passes + sum(theirs.values()):,} passes of the network."
    )


def _late(started: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - started > 60 * minutes
