"""The guard: reads what is watched, and orders to go on, to ease, to go back, or to stop.

A pure function from (plan, where it stands, one look) to where it stands next and an order, so a
run that goes on after a crash decides the same. Its lines between well, warning and alarm were
drawn from runs whose collapse is known (`tools/probe_table.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from variegate.measurement import Measurement
from variegate.recipe import Guard
from variegate.train.strategies import Control

Do = Literal["continue", "ease", "rewind", "stop"]
MOST_HOLD = 8.0
MOST_DROPOUT = 0.3
UNTURNED = Control()
BETTER = 0.002  # of the loss ratio: less is chance
LEARNT = ("low", "middle")  # noise at which a subject is learnt; high noise learns its layout


@dataclass(frozen=True)
class Look:
    """What the guard reads of one look: variety of class and trigger relative to the base (None:
    not asked), the loss relative to the base at low and middle noise, on pictures held out, else on
    those learnt, and how near to a picture learnt the trigger's first guesses are (None: pictures
    are held out, whose loss tells)."""

    step: int
    class_variety: float | None
    trigger_variety: float | None
    loss: float
    copying: float | None = None

    def room(self, plan: Guard) -> float:
        """How far what is nearest to its lines is from them: 0 at its warning, -1 at its alarm."""
        found = [1.0]
        for value, warning, alarm in (
            (self.class_variety, plan.class_warning, plan.class_alarm),
            (self.trigger_variety, plan.trigger_warning, plan.trigger_alarm),
            (self.copying, plan.copying_warning, plan.copying_alarm),
        ):
            if value is not None:
                found.append((value - warning) / (warning - alarm))
        return min(found)

    def alarmed(self, plan: Guard) -> bool:
        return self.room(plan) < -1

    @staticmethod
    def of(step: int, measurements: Sequence[Measurement]) -> Look:
        found = {m.name: m.value for m in measurements}
        losses = [
            [found[n] for band in LEARNT if (n := f"loss_vs_base.{of}.{band}") in found]
            for of in ("held_out", "train")
        ]
        chosen = losses[0] or losses[1]
        return Look(
            step,
            found.get("one_step_variety.class"),
            found.get("one_step_variety.trigger"),
            sum(chosen) / max(1, len(chosen)),
            None if losses[0] else found.get("one_step_copying.trigger"),
        )


@dataclass(frozen=True)
class Stand:
    """Where the guard stands: what it has turned, how often it eased and went back, the best look
    so far that was above its alarms and the looks since, and the last step that was well."""

    control: Control = UNTURNED
    eased: int = 0
    rewinds: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    since: int = 0
    well: int = 0
    rest: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Stand:
        return Stand(**{**data, "control": Control(**data["control"])})


@dataclass(frozen=True)
class Order:
    """What to do, why in one plain sentence, and for `rewind` to which step."""

    do: Do
    reason: str = ""
    to: int | None = None


def decide(plan: Guard, stand: Stand, look: Look) -> tuple[Stand, Order]:
    """The next stand and the order. The caller sees to it that a checkpoint of the best and of the
    last step that was well is kept.

    Well: nothing is past its warning. The best is the one with the least loss above the
    alarms. Between warning and alarm it eases: what holds to the base counts more, dropouts grow,
    the learning rate halves; then it waits one look. Below an alarm it goes back to the last step
    that was well and eases there. It stops when a collapse comes again after its last way back, or
    when the loss has not fallen for `patience` looks.
    """
    alarmed, warned = look.alarmed(plan), look.room(plan) < 0
    well = not warned
    if not alarmed and (stand.best_loss is None or look.loss < stand.best_loss - BETTER):
        stand = replace(stand, best_step=look.step, best_loss=look.loss, since=0)
    elif stand.best_loss is not None:
        stand = replace(stand, since=stand.since + 1)
    if well:
        stand = replace(stand, well=look.step, rest=max(0, stand.rest - 1))
    told = _told(plan, look)
    if alarmed and plan.mode == "stop":
        return stand, Order("stop", f"{told}: stopped before more is lost.")
    if alarmed and stand.rewinds >= plan.rewinds:
        return stand, Order("stop", f"{told}, and easing did not help: stopped.")
    if alarmed:
        eased = replace(_ease(stand), rewinds=stand.rewinds + 1, since=0, rest=1)
        if eased.best_step is not None and eased.best_step > eased.well:  # which is forgotten
            eased = replace(eased, best_step=None, best_loss=None)
        reason = f"{told}: back to step {stand.well}, more gently."
        return eased, Order("rewind", reason, to=stand.well)
    if stand.since >= plan.patience:
        reason = f"Nothing better has come for {stand.since} looks: stopped."
        return stand, Order("stop", reason)
    if warned and plan.mode == "autopilot" and stand.rest == 0:
        return replace(_ease(stand), rest=2), Order("ease", f"{told}: going on more gently.")
    if warned:
        stand = replace(stand, rest=max(0, stand.rest - 1))
    return stand, Order("continue")


def _told(plan: Guard, look: Look) -> str:
    """What is past its warning, as words."""
    parts = []
    if look.copying is not None and look.copying > plan.copying_warning:
        parts.append("Pictures with the trigger are growing into copies of those learnt from")
    for value, warning, what in (
        (look.class_variety, plan.class_warning, "Pictures without the trigger"),
        (look.trigger_variety, plan.trigger_warning, "Pictures with the trigger"),
    ):
        if value is not None and value < warning:
            parts.append(
                f"{what} are growing alike ({100 * value:.0f} % of the base's first guesses)"
            )
    return " and ".join([parts[0], *(p[0].lower() + p[1:] for p in parts[1:])]) if parts else ""


def _ease(stand: Stand) -> Stand:
    now = stand.control
    control = Control(
        lr=now.lr / 2,
        hold=min(MOST_HOLD, max(1.0, 2 * now.hold)),
        dropout=min(MOST_DROPOUT, now.dropout + 0.1),
    )
    return replace(stand, control=control, eased=stand.eased + 1)
