"""The benchmark's cells: ailment x contender x seed, each trained, drawn, judged and kept as a row.

A cell is named by a hash of its recipe, its pictures, the pocket's weights and `VERSION`, so what
was done once is never done again, and what changed is. Rows come from the package (what was
published), and from the cache (what was done here).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from variegate.bench.ailments import AILMENTS, HEALTHY, TRIGGER, Ailment, fixed_factors, scenes_of
from variegate.bench.bank import weights_mark
from variegate.bench.contenders import Contender, contenders, named
from variegate.bench.truth import read_folder, truth
from variegate.drawn import draw_both
from variegate.encoders import load_encoders
from variegate.errors import RequestError
from variegate.formats import read as read_adapter
from variegate.images import ImageSet, cache_dir
from variegate.measure import Evidence, gather, measure, prompt_plan
from variegate.measurement import Measurement
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import train

# Raise it when the same cell would give another row: so too when a default of the recipe changes.
VERSION = 2
# Seeds of each prompt: a prompt's variety is read from its own pictures.
SEEDS = {"class": 6, "trigger": 8, "unrelated": 2}
PROMPTS = {"class": 24, "trigger": 16, "unrelated": 16}
FIRST_SEED = 5000  # which no training and no verdict of a run itself has seen
PUBLISHED = "results.parquet"


@dataclass(frozen=True)
class Cell:
    """One training run of the benchmark."""

    ailment: Ailment
    contender: Contender
    seed: int

    @property
    def name(self) -> str:
        return f"{self.ailment.name} / {self.contender.name} / {self.seed}"

    def recipe(self) -> Recipe:
        return self.ailment.recipe(self.contender.recipe(), self.seed)

    def key(self, recipe: Recipe) -> str:
        """What names the cell: all that its row depends on."""
        pixels = hashlib.sha256()
        for file in sorted(Path(recipe.images).iterdir()):
            if file.suffix in (".png", ".txt"):
                pixels.update(file.read_bytes())
        # What is as it is by default does not count, so that a new setting makes no row old.
        told = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        told |= {
            "images": pixels.hexdigest(),
            "kinds": [
                recipe.adapter.kind,
                recipe.optimizer.kind,
                recipe.optimizer.schedule.kind,
            ],
        }
        text = json.dumps([VERSION, weights_mark(), told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cells(
    suite: str,
    *,
    strategies: Sequence[str] = (),
    ailments: Sequence[str] = (),
    seeds: int | None = None,
) -> list[Cell]:
    """The cells of a suite, or those that are named, the most telling first.

    quick: plain, the default and two of the field on three ailments and the healthy set. full: the
    core ailments x all contenders, then all ailments x the combinations, the field and the default.
    Raises: RequestError for names that there are not.
    """
    known = AILMENTS | {HEALTHY.name: HEALTHY}
    for name in ailments:
        if name not in known:
            raise RequestError(f"no ailment is called {name!r}; there are {', '.join(known)}")
    count = seeds or (1 if suite == "quick" else 3)
    if suite == "quick":
        who = named(list(strategies) or ["plain", "default", "diffusers"])
        where = [known[n] for n in ailments or ("one-sided", "four pictures", HEALTHY.name)]
        return list(_product(where, who, range(count)))
    core = [a for a in AILMENTS.values() if a.core]
    if strategies or ailments:
        where = [known[n] for n in ailments] if ailments else core
        return list(_product(where, named(list(strategies) or list(contenders())), range(count)))
    front = ["plain", "default", "field", "combination"]
    every = [*AILMENTS.values(), HEALTHY]
    # Seed by seed, so that a table that is cut short is a whole one of fewer seeds.
    found = list[Cell]()
    for seed in range(count):
        found += _product(every, named(front), [seed])
        found += _product(core, list(contenders().values()), [seed])
    return list(dict.fromkeys(found))


def _product(
    where: Iterable[Ailment], who: Sequence[Contender], seeds: Iterable[int]
) -> Iterator[Cell]:
    for seed, contender, ailment in itertools.product(seeds, who, where):
        yield Cell(ailment, contender, seed)


# --- one cell -----------------------------------------------------------------------------------


def run_cell(cell: Cell, home: Path, base: str = "pocket") -> dict[str, Any]:
    """Train, draw, judge and measure; the row. A few pictures stay beside it as one sheet."""
    recipe = cell.recipe().model_copy(update={"base": base})
    key = cell.key(recipe)
    folder, began = home / "runs" / key, time.monotonic()
    model = _model(base)
    run = train(recipe, out=folder, model=model)
    trained = time.monotonic() - began
    ours, theirs = draw_both(
        model,
        read_adapter(run.adapter_file),
        _plan(recipe),
        recipe.sampling,
        out=folder / "drawn",
        say=silent,
    )
    pictures = cell.ailment.pictures
    subject = cell.ailment.subject(cell.seed)
    style = fixed_factors(pictures, cell.seed) if pictures.concept == "style" else None
    found = truth(
        read_folder(folder / "drawn" / "adapter"),
        read_folder(folder / "drawn" / "base"),
        subject=subject,
        learnt=scenes_of(pictures, subject, cell.seed),
        style=style,
    )
    row = {
        "key": key,
        "ailment": cell.ailment.name,
        "strategy": cell.contender.name,
        "group": cell.contender.group,
        "seed": cell.seed,
        "subject": subject,
        "steps": recipe.optimizer.steps,
        "train_seconds": round(trained, 1),
        "seconds": round(time.monotonic() - began, 1),
        **{f"true.{name}": round(value, 4) for name, value in found.items()},
        **_seen(recipe, run, ours, theirs),
        **_guarded(run),
    }
    _sheet(folder / "drawn", home / "sheets" / f"{key}.png")
    shutil.rmtree(folder / "drawn")
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return row


_MODELS: dict[str, DiffusionModel] = {}


def _model(base: str) -> DiffusionModel:
    """Loaded once in each process."""
    if base not in _MODELS:
        _MODELS[base] = load_model(base)
    return _MODELS[base]


def _plan(recipe: Recipe) -> list[Any]:
    whole = prompt_plan(recipe.class_noun, TRIGGER, preset="standard", pocket=True)
    kept, counts = [], dict.fromkeys(PROMPTS, 0)
    for i, line in enumerate(whole):
        if counts.get(line.group, 99) >= PROMPTS.get(line.group, 0):
            continue
        counts[line.group] += 1
        first = FIRST_SEED + 8 * i
        kept.append(line._replace(seeds=tuple(range(first, first + SEEDS[line.group]))))
    return kept


def _seen(recipe: Recipe, run: Run, ours: ImageSet, base: ImageSet) -> dict[str, Any]:
    """What the product's own measures and verdict say of the same pictures."""
    learnt = ImageSet.read(Path(recipe.images))
    evidence: Evidence = gather(
        ours,
        base,
        encoders=load_encoders(()),
        train_images=learnt,
        trigger=TRIGGER,
        class_noun=recipe.class_noun,
    )
    verdict = measure(evidence)
    row: dict[str, Any] = {
        f"seen.{m.name}": round(m.value, 4)
        for m in verdict.measurements
        if isinstance(m, Measurement)
    }
    return row | {"labels": " ".join(sorted(verdict.labels))}


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


def _sheet(drawn: Path, file: Path, *, columns: int = 8) -> None:
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
    side = 64
    sheet = Image.new("RGB", (columns * side, len(rows) * side), "white")
    for y, names in enumerate(rows):
        for x, name in enumerate(names):
            with Image.open(drawn / "adapter" / name) as picture:
                sheet.paste(picture.convert("RGB").resize((side, side)), (x * side, y * side))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(64).save(file, optimize=True)


def sheets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures for the page: plain and default side by side, the first seed of each ailment."""
    folder, found = home() / "sheets", []
    for ailment in AILMENTS:
        for row in rows:
            file = folder / f"{row['key']}.png"
            told = row["ailment"] == ailment and row["group"] in ("plain", "default")
            if told and row["seed"] == 0 and file.exists():
                kept = f"variety {row['true.entropy']:.2f}, likeness {row['true.likeness']:.2f}"
                title = f"{ailment}, {row['strategy']}"
                found.append({"title": title, "text": kept, "file": file})
    return found


def command_of(suite: str, strategies: str | None, ailments: str | None, seeds: int | None) -> str:
    """The command that makes a table again."""
    words = ["variegate", "bench", "--suite", suite]
    for name, value in (("strategies", strategies), ("ailments", ailments), ("seeds", seeds)):
        words += [f"--{name}", str(value)] if value else []
    return shlex.join(words)


# --- many cells ---------------------------------------------------------------------------------


def home() -> Path:
    """Where rows, sheets and runs of this pocket are kept."""
    return cache_dir() / "bench" / weights_mark()


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
) -> list[dict[str, Any]]:
    """The rows of all cells that are done, making those that are not while the time lasts.

    minutes: no cell is begun after these. jobs: processes side by side, each on its share of the
    cores. on: "ray" spreads them over a Ray cluster. What was done stays done, whatever stops it.
    """
    folder, say, started = home(), say or silent, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    done = rows_done(folder)
    keys = {cell: cell.key(cell.recipe()) for cell in asked}
    # Cells of one recipe under two names are one piece of work.
    left = list({keys[cell]: cell for cell in asked if keys[cell] not in done}.values())
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

    if left:
        with _workers(on, jobs) as pool:
            _spread(pool, left, folder, jobs, note, lambda: _late(started, minutes))
    found = []
    for cell in asked:
        if row := done.get(keys[cell]):
            told = {"ailment": cell.ailment.name, "strategy": cell.contender.name}
            found.append(row | told | {"group": cell.contender.group})
    return found


def _late(started: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - started > 60 * minutes


def _spread(
    pool: Executor,
    left: Sequence[Cell],
    folder: Path,
    jobs: int,
    note: Callable[[Cell, dict[str, Any]], None],
    late: Callable[[], bool],
) -> None:
    """Ask the pool for every cell, no more than a few ahead, until it is late."""
    waiting, running = list(left), dict[Future[dict[str, Any]], Cell]()
    try:
        while (waiting and not late()) or running:
            while waiting and len(running) < jobs and not late():
                cell = waiting.pop(0)
                asked = (cell.ailment.name, cell.contender.name, cell.seed, str(folder))
                running[pool.submit(_named_cell, *asked)] = cell
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    note(running.pop(future), future.result())
    except BaseException:
        for future in running:
            future.cancel()
        raise


def _named_cell(ailment: str, contender: str, seed: int, folder: str) -> dict[str, Any]:
    """A cell by its names, which travel between processes where its functions do not."""
    known = AILMENTS | {HEALTHY.name: HEALTHY}
    return run_cell(Cell(known[ailment], contenders()[contender], seed), Path(folder))


@contextmanager
def _workers(on: str, jobs: int) -> Iterator[Executor]:
    """Processes of this machine, or of a Ray cluster.

    Raises: RequestError when Ray is asked for and is not there.
    """
    if on == "ray":
        yield _RayPool()
        return
    if on:
        raise RequestError(f"--on {on!r}: there is 'ray'; leave it out for this machine")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_settle_in, initargs=(threads,)
    ) as pool:
        yield pool


class _RayPool(Executor):
    """A Ray cluster as an executor: the one that RAY_ADDRESS names, else one of this machine."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise RequestError(
                "--on ray needs Ray: pip install ray; or leave it out for this machine"
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False)

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        found: Future[Any] = self._ray.remote(work).remote(*given, **named).future()
        return found


def _settle_in(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
