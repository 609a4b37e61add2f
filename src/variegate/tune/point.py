"""One trial: an adapter for each training seed, learnt, drawn and measured, every run in a folder
that is named by its recipe, so that nothing is done twice and whatever was stopped goes on.

A scout is watched while it trains, by the probes of its journal, and given up where it falls behind
what others had learnt and kept at the same share of their steps.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from variegate.device import pick_device
from variegate.drawn import draw_both
from variegate.encoders import Encoder, load_encoders
from variegate.errors import NoMemory, NotFinite, RunLocked
from variegate.formats import read as read_adapter
from variegate.formats import stamp
from variegate.images import ImageSet
from variegate.judged import keep_verdict, short_hash, write_json
from variegate.measure import PlannedPrompt, fit_advice, gather, measure, prompt_plan
from variegate.measurement import Missing, Verdict
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.progress import Say
from variegate.recipe import Recipe
from variegate.report import write_report
from variegate.run import Run
from variegate.train import caption_of, train
from variegate.trial import learnt_and_held_out

RUNGS = 8  # parts of a scout's steps at whose ends it is compared
FRESH = "fresh"  # where in a run's folder its pictures of other prompts and seeds are
FIRST_SEED = 20_000  # of the search's pictures, and of the fresh ones: no trial's own
FRESH_SEED = 40_000
OUTCOME = "outcome.json"
VERSION = 1  # raise it when the same pictures would give another outcome
# What is read off every trial; the first two are variety, the third likeness.
NAMES = (
    *("variety_vs_base", "trigger_variety_vs_base", "likeness"),
    *("copy_rate", "adherence_vs_base", "class_retention"),
)
LEARNING = ("low", "middle")  # noise at which a subject is learnt
Look = str  # the size of a prompt plan: quick, standard, thorough


@dataclass(frozen=True)
class Piece:
    """One trial as a worker is handed it. Small, and the same wherever it is done.

    recipes: one for each training seed. home: where runs lie. look: how many pictures it is
    measured by. scout: it is watched while it trains, and not measured. bars: what a scout must
    not fall below at the end of each rung; None: nothing to compare with. fresh: measured anew, on
    prompts and seeds that the search has not seen.
    """

    name: str
    recipes: tuple[Recipe, ...]
    home: str
    look: Look = "quick"
    encoders: tuple[str, ...] = ()
    scout: bool = False
    bars: tuple[float | None, ...] = (None,) * RUNGS
    fresh: bool = False

    @property
    def runs(self) -> list[Path]:
        return [Path(self.home) / recipe.id for recipe in self.recipes]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    measured: for each training seed its measurements by name. rungs: what a scout had at the end
    of each. given_up: the rung after which it was given up. failed: why there is no adapter.
    """

    measured: tuple[dict[str, Any], ...] = ()
    rungs: tuple[float, ...] = ()
    given_up: int | None = None
    failed: str = ""
    seconds: float = 0.0


class _GivenUp(Exception):
    """A scout fell behind."""


def run_point(piece: Piece) -> Outcome:
    """Do a trial, or what is left of it.

    A loss that is no number and a batch that does not fit are outcomes: those settings do not work.
    Raises: RequestError for what no trial could do, Interrupted once all is saved.
    """
    began = time.monotonic()
    scouting = _Scouting(piece)
    measured = []
    try:
        for recipe, folder in zip(piece.recipes, piece.runs, strict=True):
            _learn(recipe, folder, scouting.follow(folder, recipe) if piece.scout else None)
            if piece.scout:
                scouting.end(folder, recipe)
                break
            measured.append(_measured(recipe, folder, piece))
    except _GivenUp:
        taken = time.monotonic() - began
        return Outcome((), tuple(scouting.rungs), len(scouting.rungs), seconds=taken)
    except (NotFinite, NoMemory) as error:
        return Outcome(failed=str(error), seconds=time.monotonic() - began)
    return Outcome(tuple(measured), tuple(scouting.rungs), seconds=time.monotonic() - began)


def _learn(recipe: Recipe, folder: Path, say: Say | None) -> Run:
    """The run in its folder, which another process may be at work in."""
    # A base in few bits is loaded by the run itself; pictures are drawn with the whole one.
    model = None if recipe.memory.base_bits else base_of(recipe)
    while True:
        try:
            return train(recipe, out=folder, model=model, say=say)
        except RunLocked:
            time.sleep(1.0)


def _measured(recipe: Recipe, folder: Path, piece: Piece) -> dict[str, Any]:
    """What a finished run's pictures measure; as they were measured before, if they were."""
    run = Run.open(folder)
    model, eyes = base_of(recipe), _eyes(piece.encoders)
    learnt, held_out = learnt_and_held_out(run)
    asked = fresh_plan if piece.fresh else search_plan
    plan = asked(recipe, piece.look, ImageSet.read(Path(recipe.images)), pocket=model.pocket)
    place = folder / FRESH if piece.fresh else folder
    adapter = read_adapter(run.adapter_file)
    sampling = recipe.sampling.model_copy(
        update={"sampler": model.nearest_sampler(recipe.sampling.sampler)}
    )
    told = [VERSION, repr(plan), model.id, [e.id for e in eyes], sampling.model_dump(mode="json")]
    mark = short_hash(json.dumps(told), adapter.digest())
    if (known := _known(place / OUTCOME, mark)) is not None:
        return known
    ours, base = draw_both(model, adapter, plan, sampling, out=place / "samples", say=_silent)
    evidence = gather(
        ours,
        base,
        encoders=eyes,
        train_images=learnt,
        held_out=held_out if len(held_out) else None,
        trigger=recipe.trigger,
        class_noun=recipe.class_noun,
    )
    verdict = measure(evidence)
    verdict = replace(verdict, advice=fit_advice(verdict.advice, recipe))
    keep_verdict(place, verdict, evidence, learnt)
    if not piece.fresh:
        stamp(run.adapter_file, verdict)
    write_report(place)
    found = _read_off(verdict)
    write_json(place / OUTCOME, {"mark": mark, "found": found})
    return found


def _known(file: Path, mark: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(file.read_text(encoding="utf8"))
        return dict(kept["found"]) if kept["mark"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_off(verdict: Verdict) -> dict[str, Any]:
    """The measurements that trials are compared by, what is missing with its reason, and the
    verdict's labels."""
    found: dict[str, Any] = {"labels": list(verdict.labels)}
    told = {m.name: m for m in verdict.measurements}
    for name in NAMES:
        m = told.get(name, Missing(name, "this version does not measure it"))
        if isinstance(m, Missing):
            found[name] = {"why": m.why}
        else:
            found[name] = {"value": m.value, "low": m.low, "high": m.high}
    return found


def _silent(phase: str, done: int, total: int, note: str) -> None:
    """Many trials at once tell nobody of their steps."""


@lru_cache(maxsize=1)
def _eyes(names: tuple[str, ...]) -> list[Encoder]:
    return list(load_encoders(names))


def base_of(recipe: Recipe) -> DiffusionModel:
    """The recipe's base, loaded once in each process."""
    return _load(recipe.base, recipe.clip_skip, recipe.zero_terminal_snr, recipe.t5_tokenizer)


@lru_cache(maxsize=1)
def _load(
    base: str, clip_skip: int, zero_terminal_snr: bool, t5_tokenizer: str | None
) -> DiffusionModel:
    return load_model(
        base,
        device=pick_device(),
        clip_skip=clip_skip,
        zero_terminal_snr=zero_terminal_snr,
        t5_tokenizer=t5_tokenizer,
    )


# --- what is asked ------------------------------------------------------------------------------


def search_plan(
    recipe: Recipe, look: Look, pictures: ImageSet, *, pocket: bool
) -> tuple[PlannedPrompt, ...]:
    """The prompts that trials are compared by: the same, at the same seeds, for all of them."""
    return _plan(recipe, look, pictures, FIRST_SEED, pocket=pocket)


def fresh_plan(
    recipe: Recipe, look: Look, pictures: ImageSet, *, pocket: bool
) -> tuple[PlannedPrompt, ...]:
    """Prompts that the search's plan of that size has not asked, at other seeds.

    Captions are the pictures' own and stay; a group in which too few are left unasked is filled up
    with some that were asked, at the other seeds.
    """
    seen = {line.adapter_prompt for line in search_plan(recipe, look, pictures, pocket=pocket)}
    every = _plan(recipe, "thorough", pictures, FRESH_SEED, pocket=pocket)
    wanted = _plan(recipe, "standard", pictures, FRESH_SEED, pocket=pocket)
    sizes = Counter(line.group for line in wanted)
    seeds = {line.group: len(line.seeds) for line in wanted}
    kept = list[PlannedPrompt]()
    for group, size in sizes.items():
        lines = [(8 * i, line) for i, line in enumerate(every) if line.group == group]
        if group != "caption":
            lines.sort(key=lambda at: at[1].adapter_prompt in seen)  # those unasked first
        for place, line in lines[:size]:
            first = FRESH_SEED + place
            kept.append(line._replace(seeds=tuple(range(first, first + seeds[group]))))
    return tuple(kept)


def _plan(
    recipe: Recipe, look: Look, pictures: ImageSet, first_seed: int, *, pocket: bool
) -> tuple[PlannedPrompt, ...]:
    return prompt_plan(
        recipe.class_noun,
        recipe.trigger,
        preset=look,  # type: ignore[arg-type]
        pocket=pocket,
        captions=[caption_of(p, recipe, pocket=pocket) for p in pictures],
        first_seed=first_seed,
    )


# --- scouting -----------------------------------------------------------------------------------


def probe_score(probes: Sequence[dict[str, Any]]) -> float:
    """What one look of the probes says of learnt and kept at once, from 0.

    The share of the base's loss that is gone (of pictures held out, else of those learnt, at low
    and middle noise) times the share of the base's one-step variety that is left, and less by how
    near first guesses are to a picture learnt where none is held out: a product, so that neither
    can be bought with the whole of the other.
    """
    found = {probe["name"]: float(probe["value"]) for probe in probes}
    losses = [
        [found[n] for band in LEARNING if (n := f"loss_vs_base.{of}.{band}") in found]
        for of in ("held_out", "train")
    ]
    chosen = losses[0] or losses[1]
    learnt = max(0.0, 1 - sum(chosen) / len(chosen)) if chosen else 0.0
    varieties = [min(1.0, v) for n, v in found.items() if n.startswith("one_step_variety.")]
    kept = sum(varieties) / len(varieties) if varieties else 1.0
    copied = 0.0 if losses[0] else max(0.0, found.get("one_step_copying.trigger", 0.0))
    return learnt * kept * (1 - min(1.0, copied))


def bars_of(others: Sequence[Sequence[float]], *, least: int = 3) -> tuple[float | None, ...]:
    """What a scout must not fall below at the end of each rung: the median of what the others had
    there (Golovin et al., Google Vizier, 2017, section 3.2.1, the median stopping rule); None with
    fewer than `least` of them.
    """
    found = list[float | None]()
    for rung in range(RUNGS):
        had = [scores[rung] for scores in others if len(scores) > rung]
        found.append(median(had) if len(had) >= least else None)
    return tuple(found)


class _Scouting:
    """Reads what a run's journal gains, and gives the run up where it falls behind."""

    def __init__(self, piece: Piece) -> None:
        self._bars = piece.bars
        self.rungs = list[float]()

    def follow(self, folder: Path, recipe: Recipe) -> Say:
        run, steps = Run(folder, recipe), recipe.optimizer.steps

        def say(phase: str, done: int, total: int, note: str) -> None:
            if phase == "train" and self._heed(run, done, steps):
                raise _GivenUp

        return say

    def end(self, folder: Path, recipe: Recipe) -> None:
        """A run that has ended, maybe before, is past giving up."""
        self._heed(Run(folder, recipe), recipe.optimizer.steps, recipe.optimizer.steps)

    def _heed(self, run: Run, done: int, steps: int) -> bool:
        """Whether it ends a rung below its bar. The first is nobody's last: little is learnt by
        then."""
        while len(self.rungs) < RUNGS * done // steps:
            rung = len(self.rungs)
            end = steps * (rung + 1) // RUNGS
            looks = [p for p in run.read_journal("probe") if p["step"] <= end]
            self.rungs.append(probe_score(looks[-1]["measurements"]) if looks else 0.0)
            bar = self._bars[rung]
            if 0 < rung < RUNGS - 1 and bar is not None and self.rungs[rung] < bar:
                return True
        return False
