"""The way of a run through its steps: what is looked at and saved, and where the guard stands."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from variegate import formats
from variegate.adapter import Adapter
from variegate.errors import NoSpace
from variegate.recipe import Panels
from variegate.run import Ask, Run
from variegate.train.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    read_checkpoint,
    save_checkpoint,
    step_of,
)
from variegate.train.examples import TrainingSet
from variegate.train.guard import BETTER, Look, Order, Stand, decide
from variegate.train.learner import Learner
from variegate.train.panels import Panel
from variegate.train.spectra import Intruders, norms, spectra
from variegate.train.watch import Watch, cadence

MOST_INTRUDERS = 10  # that are looked for in each layer where the recipe does not say


class Course:
    """Looks, saves and heeds the guard; `step` is where the run stands when it begins."""

    def __init__(self, run: Run, learner: Learner, data: TrainingSet, watch: Watch | None) -> None:
        """watch: None in a process that is not the first, which does as the first one says."""
        self.run, self.learner, self.data, self.watch = run, learner, data, watch
        self.ranks = learner.ranks
        self.guard = run.recipe.guard
        self.stand = Stand()
        self.every = cadence(run.recipe, held_out=bool(data.held_out))
        panels = run.recipe.panels
        first = self.ranks.first
        self.panel = Panel(run, learner, panels, looks=self.every) if panels and first else None
        self.norms = norms(learner.on)
        asked = run.recipe.probes.intruders
        alone = first and self.ranks.network is None  # with all weights at hand
        self.intruders = Intruders(
            learner.on.base_weights(),
            most=0 if not alone else MOST_INTRUDERS if asked is None else asked,
            seed=run.recipe.seed,
        )
        self.step = 0
        self.saved = -1
        self.counted = -1  # the last step whose intruders are noted
        self.last: Look | None = None
        self.stopping = ""  # why the guard has stopped the run

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Stand where the checkpoint stood; without one, look at the base itself."""
        with self.ranks.led():
            if self.panel:
                self.panel.begin()
        if checkpoint is None:
            self.look(0)
            if self.guard.mode == "autopilot":  # what it may have to go back to
                self.save(0, due=True)
            return
        self.step = self.saved = checkpoint.step
        self._heed(checkpoint.state["guard"])

    def look(self, step: int) -> Order:
        """Look and draw if it is time to, and heed the guard."""
        with self.ranks.led():
            if self.panel:
                self.panel.look(step)
        if step % self.every and step != self.run.recipe.optimizer.steps:
            return Order("continue")
        with self.ranks.led():
            order = self._decided(step) if self.watch else Order("continue")
        if self.guard.mode == "watch":
            return order
        told = self.ranks.shared({**self._told(), "order": asdict(order)})
        self._heed(told)
        return Order(**told["order"])

    def _decided(self, step: int) -> Order:
        """What the guard orders at this step."""
        assert self.watch is not None
        with self.learner.on.watched(), self.learner.descent.averaged():
            seen = self.watch.look(self.learner.predict, step)
        sizes, layers = spectra(self.learner.on, self.norms, step)
        self.run.journal("probe", step=step, measurements=[m.to_json() for m in (*seen, *sizes)])
        if layers:
            self.run.journal("spectra", step=step, layers=layers)
        if self.guard.mode == "watch":
            return Order("continue")
        self.last, way = Look.of(step, seen), self.stand.rewinds
        self.stand, order = decide(self.guard, self.stand, self.last)
        if order.do != "continue":
            told = {"do": order.do, "reason": order.reason, "way": way}
            told |= {"to": order.to} if order.do == "rewind" else {}
            self.run.journal("order", step=step, **told)
        self.stopping = order.reason if order.do == "stop" else ""
        return order

    def answer(self, step: int) -> list[Ask]:
        """Do what was asked of the run since the last step, and say what it was; to stop is the
        caller's. The first process alone is asked."""
        asked = self.run.asked() if self.ranks.first else []
        with self.ranks.led():
            if "sample" in asked:
                if self.panel is None:
                    panels = Panels()
                    self.panel = Panel(self.run, self.learner, panels, looks=self.every, asked=True)
                    self.panel.begin()
                self.panel.draw(step)
        if "keep" in asked:
            self._keep(step)
        return asked

    def _keep(self, step: int) -> None:
        file = self.run.kept(step)
        try:
            file.parent.mkdir(exist_ok=True)
            formats.write(self.learner.adapter(self.data, step), file)
        except (OSError, NoSpace) as error:  # the run need not end with a copy
            self.run.journal("note", text=f"the adapter of step {step} was not kept: {error}")
            return
        path = file.relative_to(self.run.folder).as_posix()
        self.run.journal("kept", step=step, path=path)

    def _told(self) -> dict[str, Any]:
        """Where the guard stands, as JSON has it."""
        return {
            "stand": self.stand.to_json(),
            "last": self.last and asdict(self.last),
            "stopping": self.stopping,
        }

    def _heed(self, told: Mapping[str, Any]) -> None:
        """Stand where the guard stands."""
        self.stand = Stand.from_json(told["stand"])
        self.last = Look(**told["last"]) if told["last"] else None
        self.stopping = told["stopping"]
        self.learner.turn(self.stand.control)

    def save(self, step: int, *, due: bool = False) -> None:
        """Keep a checkpoint if it is time to, or the guard may want this step again."""
        if not self.ranks.first:
            return
        plan, kept = self.run.recipe, {self.stand.best_step, self.stand.well} - {None}
        due = due or step % plan.checkpoints.every == 0 or step == plan.optimizer.steps
        acts = self.guard.mode != "watch"
        if step == self.saved or not (due or (acts and step in kept)):
            return
        adapter = self.learner.adapter(self.data, step)
        self._count_intruders(adapter, step)
        path = save_checkpoint(
            self.run.checkpoints,
            step=step,
            adapter=adapter,
            optimizer=self.learner.tensors(),
            state={**self.learner.state(), "guard": self._told()},
            keep=plan.checkpoints.keep,
            spare={s for s in kept if s is not None} if acts else set(),
        )
        told = path.relative_to(self.run.folder).as_posix()
        self.run.journal("checkpoint", step=step, path=told)
        self.saved = step

    def _count_intruders(self, adapter: Adapter, step: int) -> None:
        if not (step and self.intruders.most) or step == self.counted:
            return
        told, layers = self.intruders.look(adapter, step)
        self.run.journal("intruders", step=step, measurements=[told.to_json()], layers=layers)
        self.counted = step

    def go_back(self, order: Order) -> int:
        """Stand at an earlier checkpoint as the guard now wants it, and forget the later ones."""
        assert order.to is not None
        self._restore(order.to)
        self.ranks.wait()  # the first writes that checkpoint anew: when all have read it
        self.learner.turn(self.stand.control)
        self.saved, self.counted = -1, order.to
        self.save(order.to, due=True)
        for path in checkpoint_folders(self.run.checkpoints) if self.ranks.first else ():
            if step_of(path) > order.to:
                shutil.rmtree(path, ignore_errors=True)
        return order.to

    def choose(self, step: int) -> int:
        """Stand at the step that is to be the adapter: the last one, unless that is collapsing or
        another had learnt more."""
        stand, last = self.stand, self.last
        if self.guard.mode == "watch" or last is None:
            return step
        best = math.inf if stand.best_loss is None else stand.best_loss
        sound = last.step == step and not last.alarmed(self.guard)
        if sound and last.loss <= best + BETTER:
            return step
        chosen = stand.best_step or stand.well
        if not chosen or chosen == step:
            return step
        self._restore(chosen)
        text = f"step {chosen} is the adapter: what had learnt most and was not collapsing"
        self.run.journal("note", text=text)
        return chosen

    def _restore(self, step: int) -> None:
        found = read_checkpoint(self.run.checkpoints / f"step-{step:06d}")
        self.learner.restore(found.adapter, found.optimizer, found.state)


def way_of(checkpoint: Checkpoint | None) -> int:
    """How often the guard had gone back when this was saved."""
    guard = checkpoint.state.get("guard", {}) if checkpoint else {}
    return int(guard.get("stand", {}).get("rewinds", 0))
