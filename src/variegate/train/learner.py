"""The adapter on its model, the optimizer that moves it, and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import formats, models, seeds
from variegate.adapter import Attached
from variegate.errors import NotFinite
from variegate.recipe import Recipe
from variegate.train.data import Batch, Words, picture_side
from variegate.train.divided import check_even
from variegate.train.examples import TrainingSet
from variegate.train.fit import Means, autocast, checkpointed, layout_of
from variegate.train.objective import (
    answers,
    cost_of,
    row_losses,
    row_means,
    weigh_places,
    weigh_rows,
)
from variegate.train.optimizers import Descent
from variegate.train.parts import cut, piece, within_memory
from variegate.train.ranks import ALONE, Ranks
from variegate.train.strategies import Beside, Control, Dropout, Rows, Strategy

STRATEGY = "strategy/"  # before the names of a strategy's tensors in a checkpoint


@dataclass
class Learner:
    """All that a step changes: the factors, the optimizer's state, the strategies' own."""

    model: Any
    on: Attached
    recipe: Recipe
    strategies: dict[str, Strategy]
    means: Means
    tell: Callable[[str], None]
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        plan, precision = self.means.optimizer, self.means.precision
        self.descent = Descent(plan, self.on, device=self.model.device, precision=precision)
        self.at_once = plan.micro_batch  # rows per pass; None: all
        self.words = Words(
            self.model,
            self.on,
            learns=any(group["name"].startswith("text") for group in self.on.parameters),
            pixels=picture_side(self.recipe, self.model),
        )
        self.control = Control()
        for strategy in self.strategies.values():
            strategy.attached(self.on)

    def learn(self, batch: Batch, step: int) -> tuple[float, dict[str, float]]:
        """One optimizer step: the learning rate it took and its loss terms.

        Raises: NotFinite, naming the pictures, and NoMemory, before anything has moved.
        """
        beside = {n: extra for n, s in self.strategies.items() if (extra := s.beside(step))}
        whole = len(batch.keys) + sum(len(extra.rows.prompts) for extra in beside.values())
        asked = min(self.at_once or whole, whole)
        with self.ranks.as_one():
            (terms, drifts), size = within_memory(
                lambda size: self._gradients(batch, beside, step, size), asked, tell=self.tell
            )
            if size < asked:
                self.at_once = size
        self.descent.share(self.ranks)
        terms, drifts = self.ranks.summed(terms), self.ranks.summed(drifts)
        what = ", ".join(sorted(set(batch.keys)))
        rate = self.descent.take(step, factor=self.control.lr, what=what)
        for strategy in self.strategies.values():
            strategy.moved(self.on, step)
        for name, drift in drifts.items():
            self.strategies[name].heard(drift)
        return rate, terms

    def _gradients(
        self, batch: Batch, beside: dict[str, Beside], step: int, size: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Let every part of this process's rows of a step leave its gradient; their part in the
        loss terms of the whole, and in the unweighed ones of what is held beside the pictures."""
        schedule, strategies = self.model.schedule, self.strategies.values()
        noise = batch.noise
        for strategy in strategies:
            noise = strategy.noise(noise, step)
        added = noise
        for strategy in strategies:
            added = strategy.perturb(added, step)
        noised = schedule.noised(batch.latents, added, batch.timesteps)
        turns: list[tuple[int, int] | None] = [(step, row) for row in range(len(batch.keys))]
        rows = {"pictures": Rows(noised, batch.timesteps, batch.captions, batch.frames, turns)}
        rows |= {name: extra.rows for name, extra in beside.items()}
        target = schedule.target(batch.latents, noise, batch.timesteps)
        places = weigh_places(strategies, schedule, batch)
        weights = weigh_rows(strategies, schedule, batch)
        counts = {name: len(r.prompts) for name, r in rows.items()}
        if divided := self.ranks.network is not None:
            check_even(counts, self.ranks)
        terms, drifts = dict.fromkeys(rows, 0.0), dict.fromkeys(beside, 0.0)
        self.descent.clear()
        with (
            self._dropout(step),
            checkpointed(self.model, self.means.gradient_checkpointing),
        ):
            for part in cut(counts, size, self.ranks.share, alike=divided):
                here = {name: piece(rows[name], where) for name, where in part.items()}
                held = {
                    name: self._wanted(beside[name], here[name], where)
                    for name, where in part.items()
                    if name in beside
                }
                losses = []
                for (name, where), own in zip(
                    part.items(), answers([*here.values()], self.predict), strict=True
                ):
                    share = len(own) / counts[name]
                    if name == "pictures":
                        missed = row_means(
                            cost_of(
                                strategies, own - target[where], schedule, batch.timesteps[where]
                            ),
                            places[where] if places is not None else None,
                        )
                        check_finite(missed, batch.keys[where], step)
                        loss = (missed * weights[where]).mean()
                    else:
                        drift = row_losses(own, held[name]).mean()
                        drifts[name] += share * float(drift.detach())
                        loss = self.strategies[name].beside_weight() * drift
                    losses.append(loss * share)
                    terms[name] += float(losses[-1].detach())
                self.descent.add(torch.stack(losses).sum())
        for name, strategy in self.strategies.items():
            if (penalty := strategy.penalty(self.on)) is not None:
                terms[name] = 0.0
                if self.ranks.first:  # it is of no row, and gradients are added up
                    self.descent.add(penalty)
                    terms[name] = float(penalty.detach())
        return terms, drifts

    def _wanted(self, extra: Beside, rows: Rows, where: slice) -> Float[Tensor, "b c y x"]:
        """What rows beside the pictures are held to."""
        if extra.target is not None:
            return extra.target[where].to(self.model.device)
        with self.on.silenced(), torch.no_grad():
            return self.predict_base(replace(rows, prompts=extra.base_prompts[where]))

    def turn(self, control: Control) -> None:
        """Go on as the guard wants it."""
        self.control = control
        for strategy in self.strategies.values():
            strategy.control = control

    def predict(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The network's answer with the adapter on, in float32."""
        with autocast(self.model, self.means.precision):
            return self._ask(rows, self._stirred(self.words.live(rows.prompts), rows))

    def predict_base(self, rows: Rows) -> Float[Tensor, "b c y x"]:
        """The base's answer; to be asked while the adapter is silenced."""
        with autocast(self.model, self.means.precision):
            return self._ask(rows, self.words.base(rows.prompts))

    def adapter(self, data: TrainingSet, step: int | None = None) -> Any:
        """What has been learnt, with what other tools want to know of it.

        step: None for the finished adapter, which a strategy may have averaged.
        """
        recipe = self.recipe
        finals = [found for s in self.strategies.values() if (found := s.final())]
        described = formats.describe(
            name=recipe.trigger,
            trigger=recipe.trigger,
            base=recipe.base,
            family=self.model.family,
            prediction=self.model.schedule.prediction,
            resolution=picture_side(recipe, self.model),
            pictures=data.count,
            steps=recipe.optimizer.steps if step is None else step,
            seed=recipe.seed,
            lr=recipe.optimizer.lr,
            clip_skip=recipe.clip_skip,
            zero_terminal_snr=recipe.zero_terminal_snr,
            notes={"recipe": recipe.id, "class": recipe.class_noun, "base": self.model.id},
        )
        with self.descent.averaged():
            return self.on.adapter(
                described, factors=finals[-1] if finals and step is None else None
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint keeps beside the factors: the optimizer's and the strategies'."""
        kept = self.descent.tensors()
        for name, strategy in self.strategies.items():
            for key, value in strategy.state().items():
                if isinstance(value, Tensor):
                    kept[f"{STRATEGY}{name}/{key}"] = value.detach().cpu().clone()
        return kept

    def state(self) -> dict[str, Any]:
        """What else a checkpoint keeps, as plain values."""
        plain = {
            name: {k: v for k, v in strategy.state().items() if not isinstance(v, Tensor)}
            for name, strategy in self.strategies.items()
        }
        return {
            "optimizer": self.descent.numbers(),
            "at_once": self.at_once,
            "strategies": {name: values for name, values in plain.items() if values},
        }

    def restore(self, adapter: Any, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Stand where a checkpoint stood."""
        self.on.load(adapter)
        mine = {k: v for k, v in tensors.items() if not k.startswith(STRATEGY)}
        self.descent.restore(mine, state["optimizer"])
        self.at_once = state["at_once"]
        for name, strategy in self.strategies.items():
            prefix = f"{STRATEGY}{name}/"
            own: dict[str, Any] = {
                key.removeprefix(prefix): value.to(self.model.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            own |= state["strategies"].get(name, {})
            if own:
                strategy.restore(own)

    def _stirred(self, words: models.Conditioning, rows: Rows) -> models.Conditioning:
        """As strategies have the rows of training pictures read at their step."""
        stirring = [s for s in self.strategies.values() if s.stirs]
        if not stirring or not any(rows.turns):
            return words
        read = list(words.embeddings)
        for i, turn in enumerate(rows.turns):
            if turn is None:
                continue
            for strategy in stirring:
                read[i] = strategy.stir(read[i], rows.prompts[i], *turn)
        return replace(words, embeddings=torch.stack(read))

    def _ask(self, rows: Rows, words: models.Conditioning) -> Float[Tensor, "b c y x"]:
        device = self.model.device
        words = words.sized([frame.told if frame else None for frame in rows.frames])
        noised = rows.noised.to(device).contiguous(memory_format=layout_of(self.model))
        answer: Tensor = self.model.predict(noised, rows.timesteps.to(device), words)
        return answer.float()

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Dropout inside the updates draws from torch's global generator: give it an address."""
        dropping = any(isinstance(s, Dropout) and s.chance for s in self.strategies.values())
        if not self.recipe.adapter.dropout and not dropping:
            yield
            return
        device = torch.device(self.model.device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            others = [] if self.ranks.first else [self.ranks.rank]
            torch.manual_seed(seeds.number(self.recipe.seed, "dropout", step, *others))
            yield


def check_finite(losses: Float[Tensor, " b"], keys: list[str], step: int) -> None:
    """Raises: NotFinite, naming the pictures whose loss is no number."""
    if bool(losses.isfinite().all()):
        return
    bad = [k for k, ok in zip(keys, losses.isfinite().tolist(), strict=True) if not ok]
    raise NotFinite(
        f"the loss at step {step} is not a number on pictures {', '.join(sorted(set(bad)))}; the "
        "last checkpoint stands: lower optimizer.lr, or use precision float32 or bf16"
    )
