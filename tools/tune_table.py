"""The searches of docs/tuning.md: as many trials by `tune`, by chance, and the field's defaults.

    python tools/tune_table.py run --minutes 60     # does what is not done yet; run it again
    python tools/tune_table.py run --minutes 60 --ailments "four pictures" --arms chance field
    python tools/tune_table.py table                # docs/tuning.md, below its mark

Each case is an ailment of the benchmark with one seed. A search sees only what the product measures
of its trials, on prompts and seeds of its own; the judge reads other pictures, those that the
benchmark draws of every run. All arms share the benchmark's cells: settings that two of them ask
are one run. What an arm is worth is the hypervolume, by the judge, of what it would offer: the
front of what it measured, of trials that keep to the limits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import rowfile  # noqa: E402

from variegate import seeds  # noqa: E402
from variegate.bench.contenders import named  # noqa: E402
from variegate.bench.suite import Cell, home, rows_done, run_cell  # noqa: E402
from variegate.bench.testbed import POCKET  # noqa: E402
from variegate.images import cache_dir  # noqa: E402
from variegate.measure.uncertainty import student_interval  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402
from variegate.tune.book import Book  # noqa: E402
from variegate.tune.front import front, hypervolume, knee  # noqa: E402
from variegate.tune.point import RUNGS, Outcome, Piece, bars_of, run_point  # noqa: E402
from variegate.tune.ranges import Space, Value, read_space, with_preset  # noqa: E402
from variegate.tune.result import Trial, trial_of  # noqa: E402
from variegate.tune.search import default_limits  # noqa: E402

AILMENTS = ("one-sided", "four pictures", "silent captions")
SEEDS = 2
TRIALS = 24
SCOUTS = TRIALS // 3  # the verb's default
ARMS = ("tune", "chance", "field")
FIELD = ("diffusers", "kohya", "OneTrainer", "ai-toolkit", "plain")
# Shorter runs than the preset's, so that a table of them can be made.
RANGES = tuple(with_preset("pocket", ["optimizer.steps=80..240"]))
LIMITS = default_limits()
JUDGED = ("entropy", "likeness", "class_kept", "copies")
MARK = "<!-- made by tools/tune_table.py: what stands below is written over -->\n"


def place() -> Path:
    return cache_dir() / "tune" / POCKET.mark


def rows_home() -> Path:
    """The lines of all trials, in the repository: hours of work that another day goes on with."""
    return ROOT / "tools" / "rows" / "tune" / POCKET.mark


class Case:
    """An ailment with one seed: the plain recipe on its pictures, and what is varied of it."""

    def __init__(self, ailment: str, seed: int) -> None:
        self.ailment, self.seed = ailment, seed
        self.plain = POCKET.contenders["plain"]
        self.recipe = self.cell(()).recipe()
        self.space: Space = read_space(RANGES, self.recipe)

    def cell(self, settings: Sequence[str]) -> Cell:
        """The benchmark's cell of the plain recipe with some settings."""
        told = (*self.plain.settings, *settings)
        name = "plain" if not settings else "tuned"
        contender = replace(self.plain, name=name, settings=told)
        return Cell(POCKET.ailments[self.ailment], contender, self.seed)

    @property
    def name(self) -> str:
        return f"{self.ailment}, seed {self.seed}"


# --- one trial ----------------------------------------------------------------------------------


def measured(cell: Cell, scout: bool, bars: tuple[float | None, ...]) -> Outcome:
    """What the product sees of a cell's run, on pictures of the search."""
    recipe = cell.recipe()
    runs = place() / "runs"
    piece = Piece(cell.name, (recipe,), str(runs), scout=scout, bars=bars)
    _lend(recipe, cell.key(recipe), runs)
    return run_point(piece)


def judged(cell: Cell) -> dict[str, Any]:
    """The cell's row, from the benchmark if that has it: the same run, read by the judge."""
    recipe = cell.recipe()
    key = cell.key(recipe)
    if row := rows_done(home()).get(key):
        return row
    _lend(recipe, key, home() / "runs", back=True)
    row = run_cell(cell, home())
    rowfile.add(home() / "rows.jsonl", row)
    return row


def _lend(recipe: Recipe, key: str, runs: Path, *, back: bool = False) -> None:
    """A run that the benchmark left, where the search looks for it; back: the other way round. An
    adapter alone is moved: whoever has it finds the run finished."""
    theirs, ours = home() / "runs" / key, place() / "runs" / recipe.id
    source, target = (ours, theirs) if back else (theirs, ours)
    if target.exists() or not (source / "adapter.safetensors").exists():
        return
    target.mkdir(parents=True)
    for name in ("recipe.toml", "journal.jsonl", "adapter.safetensors"):
        shutil.copyfile(source / name, target / name)


# --- the arms -----------------------------------------------------------------------------------


def run_all(minutes: float, ailments: Sequence[str], arms: Sequence[str]) -> None:
    start = time.monotonic()
    for case in _cases(ailments):
        for arm in arms:
            for told in chain(_arm(case, arm), _judge(case, arm)):
                print(f"{case.name}, {arm}: {told}", flush=True)
                if time.monotonic() - start > 60 * minutes:
                    return


def _cases(ailments: Sequence[str] = AILMENTS) -> list[Case]:
    """Seed by seed, so that a table that is cut short is a whole one of fewer seeds."""
    return [Case(ailment, seed) for seed in range(SEEDS) for ailment in ailments]


def _arm(case: Case, arm: str) -> Iterator[str]:
    """Do an arm trial by trial; what is done is passed over."""
    file = _file(case, arm)
    done = rowfile.read(file)
    asked = {"tune": _tuned, "chance": _by_chance, "field": _of_the_field}[arm]
    for line in asked(case, done):
        rowfile.add(file, line)
        yield line["told"]


def _judge(case: Case, arm: str) -> Iterator[str]:
    """Have the judge read what an arm offers, and no more."""
    known = _judgements()
    for line in offered(rowfile.read(_file(case, arm))):
        if line["key"] in known:
            continue
        settings = tuple(line["settings"])
        cell = (
            Cell(POCKET.ailments[case.ailment], POCKET.contenders[line["contender"]], case.seed)
            if "contender" in line
            else case.cell(settings)
        )
        row = judged(cell)
        true = {name: row[f"true.{name}"] for name in JUDGED}
        rowfile.add(rows_home() / "judged.jsonl", {"key": line["key"], **true})
        yield f"true {true['likeness']:.2f}, {true['entropy']:.2f}: {', '.join(settings)}"


def _judgements() -> dict[str, dict[str, float]]:
    return {line["key"]: line for line in rowfile.read(rows_home() / "judged.jsonl")}


def _file(case: Case, arm: str) -> Path:
    return rows_home() / f"{case.ailment}-{case.seed}-{arm}.jsonl".replace(" ", "-")


def _line(case: Case, cell: Cell, outcome: Outcome, values: Mapping[str, Value]) -> dict[str, Any]:
    """A trial's line: what is seen of it, and what it is."""
    line: dict[str, Any] = {
        "values": dict(values),
        "settings": list(case.space.settings(values, case.recipe)),
        "key": cell.key(cell.recipe()),
        "rungs": list(outcome.rungs),
        "given_up": outcome.given_up,
        "failed": outcome.failed,
        "figures": list(outcome.measured),
    }
    if not outcome.measured:
        end = f"given up at {outcome.given_up} of {RUNGS}" if outcome.given_up else "went through"
        told = f"scout {outcome.failed or end}: {', '.join(line['settings'])}"
        return line | {"told": told}
    trial = trial_of(0, values, outcome.measured)
    told = f"seen {trial.likeness.value:.2f}, {trial.variety.value:.2f}: "
    return line | {"told": told + ", ".join(line["settings"])}


def _tuned(case: Case, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As the verb does it: the recipe first, scouts, then what Optuna suggests. The study is told
    what is done already, so that it goes on as it would have."""
    place().mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{place() / f'{case.ailment}-{case.seed}.db'}".replace(" ", "-")
    book = Book(
        url,
        f"{case.name}/{len(done)}",
        space=case.space,
        recipe=case.recipe,
        seed=case.seed,
        patience=3600.0,
    )
    with book:
        waiting = list(done)
        book.queue("scout", case.space.own(case.recipe))
        scouts, ended = list[list[float]](), 0
        while ended < TRIALS:
            stage = "scout" if len(scouts) < SCOUTS else "trial"
            asked = book.ask(stage)
            cell = case.cell(case.space.settings(asked.values, case.recipe))
            if stage == "scout":
                bars = bars_of(scouts)
                scored = _told(waiting, stage, asked.values)
                outcome = (
                    Outcome((), tuple(scored["rungs"]), scored["given_up"], scored["failed"])
                    if scored
                    else measured(cell, True, bars)
                )
                scouts.append(list(outcome.rungs))
                gone = outcome.given_up is not None or bool(outcome.failed)
                if not gone:
                    book.queue("trial", asked.values)
                book.tell(
                    asked,
                    [outcome.rungs[-1] if len(outcome.rungs) == RUNGS else 0.0],
                    rungs=outcome.rungs,
                    pruned=gone,
                )
                ended += gone
                if scored is None:
                    yield _line(case, cell, outcome, asked.values) | {"stage": "scout"}
                else:
                    waiting.remove(scored)
                continue
            before = _told(waiting, stage, asked.values)
            if before is None:
                line = _line(case, cell, measured(cell, False, (None,) * RUNGS), asked.values)
                line |= {"stage": stage}
                yield line
            else:
                line = before
                waiting.remove(before)
            ended += 1
            trial = _trial(line)
            if trial is None:
                book.tell(asked, (0.0, 0.0), constraints={"ends": 1.0}, failed=line["failed"])
                continue
            book.tell(
                asked,
                (max(0.0, trial.likeness.value), trial.variety.value),
                constraints=trial.broken(LIMITS) | {"ends": -1.0},
            )


def _told(waiting: list[dict[str, Any]], stage: str, values: Any) -> dict[str, Any] | None:
    """The line that is there already of what is asked."""
    same = (w for w in waiting if (w["stage"], w["values"]) == (stage, values))
    return next(same, None)


def _by_chance(case: Case, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same ranges, each trial drawn at an address of its own; the recipe as it is comes first
    here too."""
    for i in range(len(done), TRIALS):
        values = case.space.own(case.recipe) if i == 0 else {}
        rng = seeds.numpy_at(case.seed, "tune table", case.ailment, i)
        for knob in case.space.knobs:
            if knob.key in values or not case.space.asked_of(values, knob, case.recipe):
                continue
            values[knob.key] = _drawn(knob, rng)
        cell = case.cell(case.space.settings(values, case.recipe))
        yield _line(case, cell, measured(cell, False, (None,) * RUNGS), values)


def _drawn(knob: Any, rng: np.random.Generator) -> Value:
    if knob.choices:
        return knob.choices[int(rng.integers(len(knob.choices)))]
    low, high = (np.log(knob.low), np.log(knob.high)) if knob.log else (knob.low, knob.high)
    drawn = float(rng.uniform(low, high))
    drawn = float(np.exp(drawn)) if knob.log else drawn
    if knob.whole:
        return round(drawn)
    return min(max(float(f"{drawn:.4g}"), knob.low), knob.high)


def _of_the_field(case: Case, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the field does by default, and the plain recipe."""
    for contender in named(FIELD, POCKET.contenders)[len(done) :]:
        cell = Cell(POCKET.ailments[case.ailment], contender, case.seed)
        outcome = measured(cell, False, (None,) * RUNGS)
        yield _line(case, cell, outcome, {}) | {"contender": contender.name}


def _trial(line: Mapping[str, Any]) -> Trial | None:
    return trial_of(0, line["values"], line["figures"]) if line["figures"] else None


# --- the page -----------------------------------------------------------------------------------


def offered(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What an arm would offer: of the trials that keep to the limits the front, as it is seen."""
    able = [x for x in lines if (t := _trial(x)) is not None and t.keeps(LIMITS)]
    points = [_seen(line) for line in able]
    return [able[i] for i in front(points)]


def _seen(line: Mapping[str, Any]) -> tuple[float, float]:
    trial = _trial(line)
    assert trial is not None
    return trial.point


def _true(line: Mapping[str, Any]) -> tuple[float, float]:
    true = _judgements()[line["key"]]
    return (true["likeness"], min(1.0, true["entropy"]))


def page_part(cases: Sequence[tuple[str, Mapping[str, Sequence[Mapping[str, Any]]]]]) -> str:
    """Of the cases whose arms are all there."""
    told = [HEAD.format(trials=TRIALS, scouts=SCOUTS, field=", ".join(FIELD[:-1])).rstrip(), ""]
    cases = [(name, arms) for name, arms in cases if len(arms) == len(ARMS)]
    if len(cases) < (whole := len(AILMENTS) * SEEDS):
        told += [
            f"**{len(cases)} of {whole} cases are done so far**: an example, and no proof.",
            "",
        ]
    told.append("| pictures | arm | trials | hypervolume of what it offers | the point to take: ")
    told[-1] += "likeness | variety |"
    told.append("|" + "---|" * 6)
    areas: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for name, arms in cases:
        for arm, lines in arms.items():
            kept = offered(lines)
            areas[arm][name] = hypervolume([_true(line) for line in kept])
            cells = [name, ARM_WORDS[arm], str(_ended(lines)), f"{areas[arm][name]:.3f}"]
            if kept:
                taken = kept[knee([_seen(line) for line in kept])]
                cells += [f"{share:.2f}" for share in _true(taken)]
            else:
                cells += ["nothing keeps to the limits", ""]
            told.append(f"| {' | '.join(cells)} |")
    told.append("")
    for other in ("chance", "field"):
        gaps = [areas["tune"][n] - areas[other][n] for n in areas["tune"] if n in areas[other]]
        if len(gaps) > 1:
            mean = float(np.mean(gaps))
            error = float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5
            low, high = student_interval(mean, error, degrees=len(gaps) - 1)
            sure = "surely" if low > 0 or high < 0 else "not surely"
            told.append(
                f"- `tune` less {ARM_WORDS[other]}: {mean:+.3f} of hypervolume ({low:+.3f} to "
                f"{high:+.3f}, Student's interval over {len(gaps)} cases), {sure} a difference; "
                f"more in {sum(gap > 0 for gap in gaps)} of {len(gaps)}."
            )
    return "\n".join(told) + "\n"


def _ended(lines: Sequence[Mapping[str, Any]]) -> int:
    """Settings that were tried: a scout that was not given up is a trial later."""
    return sum(bool(x["figures"] or x["failed"]) or x["given_up"] is not None for x in lines)


ARM_WORDS = {"tune": "`tune`", "chance": "chance", "field": "the field's defaults"}
HEAD = """\
## Against chance, and against defaults

Made by `tools/tune_table.py` on the pocket. Each case is an ailment of the
[benchmark](benchmark.md) with one seed and its own subject; ranges are those of `--preset pocket`,
one training seed each. `tune` had {trials} settings, {scouts} of them as scouts; chance drew as
many from the same ranges, the recipe as it is first in both; the field's defaults are {field},
and the plain recipe. Ranges are the preset's but for 80 to 240 steps. Each arm offers the front of
what the product measured of its trials; the judge then reads pictures of those runs that no arm has
seen (304 of each). Hypervolume is of likeness (share of trigger pictures that show the subject) and
variety (entropy as a share of the base's) from the corner where both are nought: 1 is the most.

"""


def _found() -> list[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """The arms of each case that are there, whole ones only."""
    found = []
    for case in _cases():
        arms = {}
        for arm in ARMS:
            lines = rowfile.read(_file(case, arm))
            whole = len(FIELD) if arm == "field" else TRIALS
            judged_too = all(line["key"] in _judgements() for line in offered(lines))
            if _ended(lines) >= whole and judged_too:
                arms[arm] = lines
        if arms:
            found.append((case.name, arms))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--minutes", type=float, default=60)
    # Two processes may share the work, neither with an ailment's arm that the other has.
    parser.add_argument("--ailments", nargs="+", choices=AILMENTS, default=AILMENTS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    args = parser.parse_args()
    if args.stage == "run":
        run_all(args.minutes, args.ailments, args.arms)
        return
    page = ROOT / "docs" / "tuning.md"
    part = page_part(_found())
    rowfile.write_below(page, MARK, part)
    print(part)


if __name__ == "__main__":
    main()
