"""The search, top to bottom: scouts, trials, the front measured anew, the point to take, the page.

    ranges -> settings -> a run for each seed -> likeness, variety, limits -> the next settings
           -> front -> fresh prompts and seeds -> knee

Any number of processes may be at one search, here or on other machines that share its folder; each
asks the study for a trial when it is free. What is done is kept by what it is, so that a search
that was stopped, killed or made longer goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from variegate.errors import Interrupted, RecipeError, RequestError, RunError, WorkerLost
from variegate.images import ImageSet
from variegate.judged import short_hash, write_json
from variegate.measure import RULES
from variegate.progress import Say, silent
from variegate.recipe import Recipe
from variegate.report import write_tuning
from variegate.run import differences
from variegate.tune.book import Asked, Book, Kept, Stage
from variegate.tune.front import Limit
from variegate.tune.point import Outcome, Piece, bars_of, run_point
from variegate.tune.ranges import Space
from variegate.tune.result import Trial, ends_well, finalists, fresh_of, summary, trial_of
from variegate.workers import spread, workers

VERSION = 1  # raise it when the same search would ask or read otherwise
ASKED, RESULT, STUDY = "tune.json", "tuning.json", "study.db"
WAIT = 2.0  # seconds between looks at what other processes do
CLASS_KEPT = 0.6  # of `class_retention`, below which a trial's class has gone too far
MOST_REPEATS = 24  # suggestions in a row of what was tried already, before something is done
EXHAUSTED = "the ranges hold no more settings that were not tried: fewer than were asked"
CIRCLING = (
    f"the last {MOST_REPEATS} suggestions had all been tried already, so fewer settings were tried "
    "than were asked; wider ranges give others"
)


@dataclass(frozen=True)
class Search:
    """All that a search is: the recipe, what is varied of it, and how trials are compared.

    trials: settings in all, scouts among them. scouts: so many of them are watched while they train
    and given up where they fall behind. replicates: training seeds of each. look: the size of the
    prompt plan. limits: what a trial must keep to. finalists: of the front, measured anew.
    """

    recipe: Recipe
    space: Space
    trials: int = 24
    scouts: int = 0
    replicates: int = 1
    look: str = "quick"
    encoders: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    finalists: int = 6

    def told(self) -> dict[str, Any]:
        """What names the search: all that makes its trials comparable, but not how many there are.

        The pictures count by what is in them.
        """
        pictures = ImageSet.read(Path(self.recipe.images))
        content = sorted((p.content_hash(), p.prompt or "") for p in pictures)
        return {
            "version": VERSION,
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "pictures": short_hash(json.dumps(content)),
            "ranges": {knob.key: knob.told().partition("=")[2] for knob in self.space.knobs},
            "replicates": self.replicates,
            "look": self.look,
            "encoders": list(self.encoders),
            "limits": {limit.measurement: limit.at for limit in self.limits},
        }


def default_limits(asked: Mapping[str, float] | None = None) -> tuple[Limit, ...]:
    """Where a verdict would fail copying or adherence, or call it undertrained, and where four
    tenths of the way from class to subject are gone; asked: other lines, by name.

    Raises: RequestError for a measurement that has none.
    """
    names = ("copy_rate", "adherence_vs_base")
    gates = {gate.measurement: gate for gate in RULES.gates if gate.measurement in names}
    lines = {"likeness": RULES.learnt} | {name: gates[name].fail for name in names}
    lines["class_retention"] = CLASS_KEPT
    unknown = [name for name in asked or {} if name not in lines]
    if unknown:
        raise RequestError(
            f"--limit {unknown[0]}: there is none on that; there are {', '.join(lines)}"
        )
    above = {name for name, gate in gates.items() if gate.side == "above"}
    lines |= asked or {}
    return tuple(Limit(name, at, name in above) for name, at in lines.items())


def search(
    asked: Search,
    *,
    out: Path,
    storage: str | None = None,
    minutes: float | None = None,
    jobs: int = 1,
    on: str = "",
    patience: float = 60.0,
    command: str = "",
    work: Callable[[Piece], Outcome] = run_point,
    say: Say | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Try, compare, and say what to take: what `tune --json` prints.

    out: the folder of the search. storage: the address of a database that processes on several
    machines share; None: a file in `out`. minutes: no trial is begun after these. jobs, on: as
    `workers.workers`. work: what does a trial, wherever it is done. patience: seconds after which a
    trial whose process is silent is tried by another. tell: hears what weakens the claims.
    Raises: RequestError for what cannot be asked, RunError when `out` holds another search,
    Interrupted once all is saved.
    """
    said, began = say or silent, time.monotonic()
    told = _take_place(asked, out)
    name = f"variegate-{short_hash(json.dumps(told, sort_keys=True))}"
    url = storage or f"sqlite:///{(out / STUDY).resolve()}"

    def late() -> bool:
        return minutes is not None and time.monotonic() - began > 60 * minutes

    for note in asked.space.notes(asked.recipe):
        (tell or (lambda _: None))(note)
    try:
        with (
            Book(
                url,
                name,
                space=asked.space,
                recipe=asked.recipe,
                seed=asked.recipe.seed,
                patience=patience,
            ) as book,
            workers(on, jobs) as pool,
        ):
            desk = _Desk(asked, book, out, late, said)
            desk.begin()
            while True:
                spread(
                    pool,
                    work,
                    more=desk.more,
                    note=desk.note,
                    lost=desk.lost,
                    jobs=jobs,
                    beat=book.reclaim,
                    seconds=WAIT,
                )
                if late() or desk.done():
                    break
                said("tune", desk.ended(), asked.trials, "waiting for another process's trial")
                time.sleep(WAIT)
                book.reclaim()
            trials = desk.trials()
            fresh = dict[int, Trial]()
            if desk.done() and not late():
                have_done = partial(spread, pool, work, jobs=jobs)
                fresh = _measure_anew(asked, trials, out, have_done, late, said)
            document = summary(asked, book, trials, fresh, out=out, name=name, command=command)
            document["left"] = desk.left()
            if desk.exhausted:
                why = EXHAUSTED if asked.space.finite else CIRCLING
                document["notes"] = [*document["notes"], why]
    except (KeyboardInterrupt, Interrupted) as error:
        number = getattr(error, "signal_number", getattr(error, "number", 2))
        raise Interrupted(
            f"stopped; what is done is kept in {out}: the same command goes on from there", number
        ) from error
    write_json(out / RESULT, document)
    return document | {"page": str(write_tuning(out))}


def _take_place(asked: Search, out: Path) -> dict[str, Any]:
    """Note in the folder what is asked.

    Raises: RunError when it holds a search of something else.
    """
    told = asked.told()
    file = out / ASKED
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; expected a folder for the search, or a new path")
    if file.is_file():
        try:
            there = json.loads(file.read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}; name another folder") from error
        if changed := differences(there, told):
            listed = "\n".join(f"  {line}" for line in changed[:12])
            raise RunError(
                f"{out} holds another search:\n{listed}\nname another folder with --out, or ask "
                "the same (more --trials may be asked)"
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, told)
    return told


class _Desk:
    """Hands out pieces and notes what came of them."""

    def __init__(
        self, asked: Search, book: Book, out: Path, late: Callable[[], bool], say: Say
    ) -> None:
        self._search, self._book, self._late, self._say = asked, book, late, say
        self._home = str(out / "runs")
        self._out = dict[str, Asked]()
        self._exhausted = set[Stage]()

    def begin(self) -> None:
        """The recipe as it is comes first, as far as the ranges have it."""
        stage: Stage = "scout" if self._search.scouts else "trial"
        if not sum(self._book.counts(stage).values()):
            own = self._search.space.own(self._search.recipe)
            if own:
                self._book.queue(stage, own)
        self._say("tune", self.ended(), self._search.trials, "")

    def more(self) -> Piece | None:
        repeats = 0  # in a row
        while not self._late() and (stage := self._next_stage()) is not None:
            asked = self._book.ask(stage)
            if self._book.rank(asked) >= self._most(stage):  # others were quicker
                self._book.drop(asked)
                return None
            before = next((k for k in self._book.kept(stage) if k.key == asked.key), None)
            if before is not None:
                self._repeat(asked, before)
            elif self._book.is_elsewhere(asked):
                self._book.drop(asked, repeats=True)
            elif (piece := self._piece(asked)) is not None:
                return piece
            else:
                continue
            repeats += 1
            if repeats == MOST_REPEATS:
                repeats = 0
                if not self._book.queue_untried(stage):
                    self._exhausted.add(stage)
        return None

    def _next_stage(self) -> Stage | None:
        """The stage that is to have a trial; none of its own asking once it is exhausted, but what
        waits in its queue."""
        for stage in ("scout", "trial"):
            counts = self._book.counts(stage)
            begun = counts["running"] + counts["complete"] + counts["pruned"]
            if begun < self._most(stage) and (counts["waiting"] or stage not in self._exhausted):
                return stage
        return None

    def _most(self, stage: Stage) -> int:
        """How many of a stage there are to be: of all settings, those that a scout was given up
        with are no trials, and those that one is still out with are not yet."""
        if stage == "scout":
            return min(self._search.scouts, self._search.trials)
        scouts = self._book.counts("scout")
        return self._search.trials - scouts["pruned"] - scouts["running"]

    def _piece(self, asked: Asked) -> Piece | None:
        """The piece of a trial; None when the recipe refuses its settings, which is told."""
        search, stage = self._search, asked.stage
        try:
            recipes = tuple(
                search.space.recipe(asked.values, search.recipe, seed=search.recipe.seed + i)
                for i in range(search.replicates)
            )
        except RecipeError as error:
            self._fail(asked, str(error))
            return None
        name = f"{stage} {asked.number}"
        self._out[name] = asked
        others = [k.rungs for k in self._book.kept("scout")] if stage == "scout" else []
        return Piece(
            name,
            recipes,
            self._home,
            look=search.look,
            encoders=search.encoders,
            scout=stage == "scout",
            bars=bars_of(others),
        )

    def _repeat(self, asked: Asked, before: Kept) -> None:
        """What is asked again has its answer."""
        self._book.tell(
            asked,
            before.objectives,
            constraints=before.constraints,
            rungs=before.rungs,
            pruned=before.state == "pruned",
            repeats=True,
        )

    def note(self, piece: Piece, outcome: Outcome) -> None:
        asked = self._out.pop(piece.name)
        if outcome.failed:
            self._fail(asked, outcome.failed, outcome.seconds)
        elif asked.stage == "scout":
            given_up = outcome.given_up is not None
            if not given_up:  # before it is told, so that no survivor is lost in between
                self._book.queue("trial", asked.values)
            self._book.tell(
                asked,
                [outcome.rungs[-1] if outcome.rungs else 0.0],
                rungs=outcome.rungs,
                pruned=given_up,
                seconds=outcome.seconds,
            )
        else:
            trial = trial_of(asked.number, asked.values, outcome.measured)
            self._book.tell(
                asked,
                (max(0.0, trial.likeness.value), trial.variety.value),
                constraints=trial.broken(self._search.limits) | {"ends": -1.0},
                figures=outcome.measured,
                seconds=outcome.seconds,
            )
        self._say("tune", self.ended(), self._search.trials, piece.name)

    def lost(self, piece: Piece, error: WorkerLost) -> None:
        self._fail(self._out.pop(piece.name), str(error))

    def _fail(self, asked: Asked, why: str, seconds: float = 0.0) -> None:
        """Settings that do not work are an answer too: the least there is, out of bounds."""
        if asked.stage == "scout":
            self._book.tell(asked, (), pruned=True, failed=why, seconds=seconds)
            return
        self._book.tell(asked, (0.0, 0.0), constraints={"ends": 1.0}, failed=why, seconds=seconds)

    def ended(self) -> int:
        scouts, trials = self._book.counts("scout"), self._book.counts("trial")
        return min(self._search.trials, scouts["pruned"] + trials["complete"] + trials["pruned"])

    @property
    def exhausted(self) -> bool:
        """Whether fewer settings were found than were asked."""
        return "trial" in self._exhausted and self.ended() < self._search.trials

    def left(self) -> int:
        """How many settings are still to be tried."""
        if not self.exhausted:
            return max(0, self._search.trials - self.ended())
        counts = [self._book.counts(stage) for stage in ("scout", "trial")]
        return sum(count["waiting"] + count["running"] for count in counts)

    def done(self) -> bool:
        """Whether all that was asked has ended, everywhere."""
        return self._next_stage() is None and not any(
            self._book.counts(stage)["running"] for stage in ("scout", "trial")
        )

    def trials(self) -> list[Trial]:
        return [
            trial_of(kept.number, kept.values, kept.figures)
            for kept in self._book.kept("trial")
            if kept.figures and ends_well(kept)
        ]


def _measure_anew(
    asked: Search,
    trials: list[Trial],
    out: Path,
    have_done: Callable[..., None],
    late: Callable[[], bool],
    say: Say,
) -> dict[int, Trial]:
    """The front's adapters on prompts and seeds that nothing was chosen by, by number; none while
    some are left. One process at a time; whoever waited finds it done."""
    best = finalists(trials, asked.limits, most=asked.finalists)
    waiting, found = list(best), dict[int, Trial]()
    by_name = {f"front {trial.number}": trial for trial in best}

    def more() -> Piece | None:
        if not waiting or late():
            return None
        trial = waiting.pop(0)
        recipes = tuple(
            asked.space.recipe(trial.values, asked.recipe, seed=asked.recipe.seed + i)
            for i in range(asked.replicates)
        )
        home = str(out / "runs")
        name = f"front {trial.number}"
        return Piece(name, recipes, home, look=asked.look, encoders=asked.encoders, fresh=True)

    def note(piece: Piece, outcome: Outcome) -> None:
        trial = by_name[piece.name]
        if outcome.measured:
            found[trial.number] = fresh_of(trial, outcome.measured)
        say("measure the front anew", len(found), len(best), "")

    say("measure the front anew", 0, len(best), "")
    with FileLock(out / "front.lock"):
        have_done(more=more, note=note)
    return found if len(found) == len(best) else {}  # what is done is kept for the next time
