"""The study that several processes share: Optuna's, in an embedded SQLite file or a database of the
user's, with a lease on every trial.

Two studies stand in it: scouts, of one objective, and trials, of two with constraints. Optuna's
heartbeats are told here, since trials are asked for and told rather than run by `optimize`: a
process that is silent for too long loses its trial, which is then tried once more. Each suggestion
takes its randomness from how many there were before, so that a search that was stopped goes on as
it would have.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from variegate import seeds
from variegate.errors import RequestError, WorkError
from variegate.recipe import Recipe
from variegate.tune.ranges import Knob, Space, Value

Stage = Literal["scout", "trial"]
RETRIES = 1  # of a trial whose process fell silent
STARTUP = 6  # trials by chance before any are suggested by what came of others
TRIES = 6  # at opening a storage that several processes make at once
MADE_MEANWHILE = ("already exists", "duplicate key", "UNIQUE constraint", "database is locked")
REPEATED = "repeats"  # trials that ask what another has asked already
VALUES, FIGURES, FAILED, SECONDS, RUNGS = "values", "figures", "failed", "seconds", "rungs"


@dataclass(frozen=True)
class Asked:
    """A trial that this process holds: its number in its stage, and what it tries."""

    stage: Stage
    number: int
    values: dict[str, Value]
    trial: Any = field(repr=False, compare=False)

    @property
    def key(self) -> tuple[tuple[str, Value], ...]:
        """What two trials share that are one."""
        return tuple(sorted(self.values.items()))


@dataclass(frozen=True)
class Kept:
    """A trial that ended, as the study keeps it."""

    number: int
    values: dict[str, Value]
    state: Literal["complete", "pruned"]
    objectives: tuple[float, ...] = ()
    constraints: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    rungs: tuple[float, ...] = ()
    failed: str = ""
    repeats: bool = False
    seconds: float = 0.0

    @property
    def key(self) -> tuple[tuple[str, Value], ...]:
        return tuple(sorted(self.values.items()))


class Book:
    """The shared study. Used as a context: while it is open its trials are kept alive."""

    def __init__(
        self, url: str, name: str, *, space: Space, recipe: Recipe, seed: int, patience: float
    ) -> None:
        """Raises: RequestError when Optuna is not there, or the storage cannot be reached."""
        self._optuna = _optuna()
        self._space, self._recipe, self._seed = space, recipe, seed
        self._held = dict[tuple[Stage, int], Asked]()
        self._stop = threading.Event()
        self._interval = max(1, int(patience / 4))
        self._storage = self._open(url, patience)
        self._studies = {
            stage: self._optuna.create_study(
                storage=self._storage,
                study_name=f"{name}/{stage}",
                directions=["maximize"] * (1 if stage == "scout" else 2),
                load_if_exists=True,
            )
            for stage in ("scout", "trial")
        }

    def _open(self, url: str, patience: float) -> Any:
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        storages = self._optuna.storages
        shown = hidden(url)
        if url.startswith("postgresql://"):  # version 3 of the driver
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        # Processes that wait for one another wait a while before they give up.
        waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {}
        for attempt in range(TRIES):
            try:
                with _calm():
                    return storages.RDBStorage(
                        url,
                        engine_kwargs={"pool_pre_ping": True, **waits},
                        heartbeat_interval=self._interval,
                        grace_period=max(1, int(patience)),
                        heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(
                            max_retry=RETRIES
                        ),
                    )
            except (SQLAlchemyError, ArgumentError, ImportError, ValueError) as error:
                said = hidden(str(error).splitlines()[0])
                # Another process is making the same tables at this very moment.
                if attempt + 1 < TRIES and any(text in said for text in MADE_MEANWHILE):
                    time.sleep(0.5 * (attempt + 1))
                    continue
                raise RequestError(
                    f"--storage {shown} cannot be used: {said}; expected sqlite:///FILE or "
                    "postgresql://USER@HOST/DATABASE of a server that is up; "
                    "pip install 'variegate[tune]' brings the driver"
                ) from error
        raise AssertionError("unreachable")

    # --- whose trial is whose -------------------------------------------------------------------

    def __enter__(self) -> Book:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for asked in list(self._held.values()):
            self.give_back(asked)
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _beat(self) -> None:
        """Say of every trial that is held that somebody is at it."""
        while not self._stop.wait(self._interval / 2):
            for asked in list(self._held.values()):
                # A database that is away for a moment costs a beat; if it stays away, the trial.
                with contextlib.suppress(Exception):
                    self._storage.record_heartbeat(asked.trial._trial_id)

    def ask(self, stage: Stage) -> Asked:
        """The next trial of a stage: one that was given back or lost by another, else a new one."""
        study, space = self._studies[stage], self._space
        self.reclaim()
        known = self._trials(stage)
        study.sampler = self._sampler(stage, known)
        with _calm():
            trial = study.ask()
            asked = Asked(stage, trial.number, {}, trial)
            self._held[stage, trial.number] = asked  # from now on it is given back, come what may
            self._storage.record_heartbeat(trial._trial_id)
            if trial.number > len(known):  # others asked in the same moment
                study.sampler = self._sampler(stage, known, after=trial.number - len(known))
            for knob in space.knobs:
                if space.asked_of(asked.values, knob, self._recipe):
                    asked.values[knob.key] = self._suggest(trial, knob)
            trial.set_user_attr(VALUES, asked.values)
        return asked

    def is_elsewhere(self, asked: Asked) -> bool:
        """Whether a trial of its stage that was begun before has the same values and has not ended
        yet."""
        return any(
            t.state.name == "RUNNING"
            and t.number < asked.number
            and t.user_attrs.get(VALUES) == asked.values
            for t in self._trials(asked.stage)
        )

    def queue(self, stage: Stage, values: Mapping[str, Value], *, anew: bool = False) -> None:
        """Have some values tried next, unless they wait or were tried already; those that are not
        named are suggested. anew: in any case."""
        knobs = {knob.key: knob for knob in self._space.knobs}
        with _calm():
            self._studies[stage].enqueue_trial(
                {key: _to_study(knobs[key], value) for key, value in values.items()},
                skip_if_exists=not anew,
            )

    def queue_untried(self, stage: Stage) -> bool:
        """Have a combination tried next that no trial of either stage has, drawn at an address of
        its own; False when there is none left, or when they are not finite.

        Does nothing while others wait in the stage.
        """
        if self.counts(stage)["waiting"]:
            return True
        if not self._space.finite:
            return False
        trials = [*self._trials("scout"), *self._trials("trial")]
        tried = [values for t in trials if (values := t.user_attrs.get(VALUES))]
        rng = seeds.numpy_at(self._seed, "tune", stage, "untried", len(tried))
        every = self._space.combinations(self._recipe, rng)
        left = next((values for values in every if values not in tried), None)
        if left is None:
            return False
        self.queue(stage, left, anew=True)  # a trial that was dropped may have had the same
        return True

    def give_back(self, asked: Asked) -> None:
        """Let a trial be taken up by whoever asks next, this process among them."""
        states, storages = self._optuna.trial.TrialState, self._optuna.storages
        study = self._studies[asked.stage]
        del self._held[asked.stage, asked.number]
        with _calm():
            study.tell(asked.number, state=states.FAIL, skip_if_finished=True)
            trial = next(t for t in study.get_trials(deepcopy=False) if t.number == asked.number)
            if trial.state == states.FAIL:
                storages.RetryHeartbeatStaleTrialCallback()(study, _unretried(trial))

    def drop(self, asked: Asked, *, repeats: bool = False) -> None:
        """Let go of a trial as though it had not been asked for: one too many, or one that repeats
        what is being tried."""
        self._held.pop((asked.stage, asked.number), None)
        states = self._optuna.trial.TrialState
        with _calm(), contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            asked.trial.set_user_attr(VALUES, None)
            if repeats:
                asked.trial.set_user_attr(REPEATED, True)
            self._studies[asked.stage].tell(asked.number, state=states.FAIL, skip_if_finished=True)

    def reclaim(self) -> None:
        """Take the trials of processes that fell silent from them; each is tried once more."""
        with _calm():
            for study in self._studies.values():
                self._lease(study)
                self._optuna.storages.fail_stale_trials(study)

    def _lease(self, study: Any) -> None:
        """Begin the lease of running trials that have none: Optuna never calls a trial stale that
        had no heartbeat, as one has whose process was killed just when it was handed out."""
        from sqlalchemy import column, select, table
        from sqlalchemy.exc import SQLAlchemyError

        running = self._optuna.trial.TrialState.RUNNING
        begun = [t._trial_id for t in study.get_trials(deepcopy=False, states=(running,))]
        if not begun:
            return
        of = column("trial_id")
        leased = select(of).select_from(table("trial_heartbeats")).where(of.in_(begun))
        try:
            with self._storage.engine.connect() as connection:
                known = set(connection.scalars(leased))
        except SQLAlchemyError as error:  # as Optuna tells it of its own questions
            raise self._optuna.exceptions.StorageInternalError(str(error)) from error
        for trial_id in begun:
            if trial_id not in known:
                self._storage.record_heartbeat(trial_id)

    # --- what came of them ----------------------------------------------------------------------

    def tell(
        self,
        asked: Asked,
        objectives: Sequence[float],
        *,
        constraints: Mapping[str, float] | None = None,
        figures: Sequence[Mapping[str, Any]] = (),
        rungs: Sequence[float] = (),
        pruned: bool = False,
        failed: str = "",
        repeats: bool = False,
        seconds: float = 0.0,
    ) -> bool:
        """Note what came of a trial. constraints: above 0 is broken. False: another process has
        this trial by now, and what is told is left out."""
        states, trial = self._optuna.trial.TrialState, asked.trial
        self._held.pop((asked.stage, asked.number), None)
        with _calm():
            try:
                for name, value in (constraints or {}).items():
                    trial.set_constraint(name, float(value))
                for name, told in (
                    (FIGURES, list(figures)),
                    (RUNGS, list(rungs)),
                    (FAILED, failed),
                    (REPEATED, repeats),
                    (SECONDS, round(seconds, 1)),
                ):
                    if told:
                        trial.set_user_attr(name, told)
                for rung, score in enumerate(rungs if asked.stage == "scout" else ()):
                    trial.report(score, rung)
            except self._optuna.exceptions.UpdateFinishedTrialError:
                return False
            state = states.PRUNED if pruned else states.COMPLETE
            self._studies[asked.stage].tell(
                trial, None if pruned else list(objectives), state=state, skip_if_finished=True
            )
        return True

    def kept(self, stage: Stage) -> list[Kept]:
        """The trials of a stage that ended, in order."""
        states = self._optuna.trial.TrialState
        found = list[Kept]()
        for trial in self._trials(stage):
            if trial.state not in (states.COMPLETE, states.PRUNED):
                continue
            told = trial.user_attrs
            found.append(
                Kept(
                    trial.number,
                    dict(told.get(VALUES, {})),
                    "complete" if trial.state == states.COMPLETE else "pruned",
                    tuple(trial.values or ()),
                    dict(trial.constraints),
                    list(told.get(FIGURES, ())),
                    tuple(told.get(RUNGS, ())),
                    str(told.get(FAILED, "")),
                    bool(told.get(REPEATED, False)),
                    float(told.get(SECONDS, 0.0)),
                )
            )
        return found

    def counts(self, stage: Stage) -> dict[str, int]:
        """How many trials of a stage are waiting, running, complete, pruned; repeats left out."""
        names = {"WAITING": "waiting", "RUNNING": "running"}
        found = {"waiting": 0, "running": 0, "complete": 0, "pruned": 0}
        for trial in self._trials(stage):
            if not trial.user_attrs.get(REPEATED) and trial.state.name != "FAIL":
                found[names.get(trial.state.name, trial.state.name.lower())] += 1
        return found

    def rank(self, asked: Asked) -> int:
        """How many trials of its stage that count were begun before this one."""
        alive = [
            t.number
            for t in self._trials(asked.stage)
            if t.state.name in ("RUNNING", "COMPLETE", "PRUNED") and not t.user_attrs.get(REPEATED)
        ]
        return sum(number < asked.number for number in alive)

    def _trials(self, stage: Stage) -> list[Any]:
        with _calm():
            return list(self._studies[stage].get_trials(deepcopy=False))

    # --- suggestions ----------------------------------------------------------------------------

    def _sampler(self, stage: Stage, known: Sequence[Any], *, after: int = 0) -> Any:
        """Tree-structured Parzen estimators (Bergstra et al. 2011; of several objectives Ozaki et
        al. 2022), begun anew for each trial at an address of its own: how many there were before.

        known: the trials of the stage. after: trials more that others began meanwhile.
        """
        before = after + sum(
            t.state.name != "FAIL" or bool(t.user_attrs.get(REPEATED)) for t in known
        )
        seed = seeds.number(self._seed, "tune", stage, before) % 2**32
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)

    def _suggest(self, trial: Any, knob: Knob) -> Value:
        if knob.choices and knob.ordered:  # by its place, so that neighbours are neighbours
            return knob.choices[trial.suggest_int(knob.key, 0, len(knob.choices) - 1)]
        if knob.choices:
            found: Value = trial.suggest_categorical(knob.key, list(knob.choices))
            return found
        if knob.whole:
            whole = trial.suggest_int(knob.key, int(knob.low), int(knob.high), log=knob.log)
            return int(whole)
        # Four digits are told and tried, so that what is told is what was tried.
        exact = trial.suggest_float(knob.key, knob.low, knob.high, log=knob.log)
        return min(max(float(f"{exact:.4g}"), knob.low), knob.high)


def _to_study(knob: Knob, value: Value) -> Value:
    """A value as the study holds it."""
    return knob.choices.index(value) if knob.choices and knob.ordered else value


def _unretried(trial: Any) -> Any:
    """A trial whose process let go of it by itself: that is no failure to be counted."""
    found = copy.deepcopy(trial)
    found.system_attrs.pop("retry_history", None)
    return found


def hidden(url: str) -> str:
    """A database's address without its password.

    >>> hidden("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", url)


def _optuna() -> Any:
    """Raises: RequestError with the line that installs it."""
    try:
        import optuna
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "tune needs Optuna: pip install 'variegate[tune]' (or: pip install 'optuna>=5')"
        ) from error
    if int(optuna.__version__.split(".")[0]) < 5:
        raise RequestError(
            f"tune needs Optuna 5 or newer; found {optuna.__version__}: pip install -U 'optuna>=5'"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return optuna


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Without the warnings that parts of Optuna are experimental; a database that fails is told as
    what it is.

    Raises: WorkError when the storage does not answer.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except optuna.exceptions.StorageInternalError as error:
            raise WorkError(
                f"the study's storage does not answer: {hidden(str(error).splitlines()[0])}; what "
                "is done is kept: the same command goes on from there"
            ) from error
