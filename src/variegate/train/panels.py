"""Pictures drawn while training, for the eye.

Prompts, seeds, steps and guidance are the same at every look, and a picture's noise hangs on its
seed alone: so what differs between two looks is what was learnt between them. Drawing changes
nothing in what is drawn: its randomness has addresses of its own, and it leaves no gradient.
"""

from __future__ import annotations

import math
from typing import Any

from variegate.errors import NoSpace, WorkError
from variegate.recipe import Panels, Recipe
from variegate.run import Run
from variegate.sample import Request, grid, sample
from variegate.train.fit import autocast
from variegate.train.learner import Learner
from variegate.train.watch import probe_prompts, rows_of_a_step

SHARE = 0.1  # of a run's time that may be spent on panels, the first and the last not counted


class Panel:
    """Draws the same pictures with whatever has been learnt; says in the journal where they are.

    looks: steps between two looks of the probes. asked: draw only when `draw` is called.
    """

    def __init__(
        self, run: Run, learner: Learner, plan: Panels, *, looks: int, asked: bool = False
    ) -> None:
        self._run, self._learner, self._asked = run, learner, asked
        self._requests = requests(run.recipe, plan, pocket=learner.model.pocket)
        given = {"steps": plan.steps, "guidance_scale": plan.guidance_scale}
        plain = {"variety": None, "methods": None}  # which draw finished adapters
        self._plan = run.recipe.sampling.model_copy(
            update={key: value for key, value in given.items() if value is not None} | plain
        )
        self._every = cadence(run.recipe, plan, len(self._requests), looks=looks)

    def begin(self) -> None:
        """Draw the base's pictures, or see that they are there."""
        with self._learner.on.silenced():
            self._draw(None, worn="")

    def look(self, step: int) -> None:
        """Draw if it is time to; a picture that these very weights drew before is kept."""
        due = step % self._every == 0 or step == self._run.recipe.optimizer.steps
        if step and due and not self._asked:
            self.draw(step)

    def draw(self, step: int) -> None:
        """Draw now."""
        with self._learner.descent.averaged():
            self._draw(step, worn=self._learner.on.adapter().digest())

    def _draw(self, step: int | None, *, worn: str) -> None:
        model: Any = self._learner.model
        out = self._run.panel(step)
        try:
            with self._learner.on.watched(), autocast(model, self._learner.means.precision):
                drawn = sample(model, None, self._requests, plan=self._plan, out=out, worn=worn)
        except NoSpace:
            raise
        except WorkError as error:  # the run need not end with a picture
            told = "the base's panel" if step is None else f"the panel of step {step}"
            self._run.journal("note", text=f"{told} could not be drawn: {error}")
            return
        path = out.relative_to(self._run.folder).as_posix()
        if path not in [line["path"] for line in self._run.read_journal("panel")]:
            self._run.journal("panel", step=step or 0, path=path, pictures=len(drawn))


def requests(recipe: Recipe, plan: Panels, *, pocket: bool) -> list[Request]:
    """Every prompt with the same seeds; the empty prompt where there is nothing else to ask."""
    plain = probe_prompts(recipe, pocket=pocket)
    asked = {name: plain[name] for name in ("trigger", "class") if name in plain}
    seeds = range(recipe.seed, recipe.seed + plan.pictures)
    found = [r for name, prompt in asked.items() for r in grid([prompt], seeds, group=name)]
    return [*found, *grid(plan.prompts, seeds)] or grid([""], seeds)


def cadence(recipe: Recipe, plan: Panels, pictures: int, *, looks: int) -> int:
    """Steps between two panels: as many as keep drawing within a tenth of a run's time, in whole
    looks of the probes.

    Counted in rows through the network, guidance asking for each picture twice.
    """
    if plan.every is not None:
        return plan.every
    guided = (plan.guidance_scale or recipe.sampling.guidance_scale) > 1
    asked = pictures * plan.steps * (2 if guided else 1)
    return looks * max(1, math.ceil(asked / (SHARE * rows_of_a_step(recipe) * looks)))
