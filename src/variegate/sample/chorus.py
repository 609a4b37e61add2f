"""An adapter or an ensemble on a base, as models to ask: one face, whoever answers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from variegate.adapter import Adapter, Ensemble, attached, attached_in_turn
from variegate.models import Conditioning, DiffusionModel
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingPlan


@contextmanager
def voices(
    model: DiffusionModel, learnt: Adapter | Ensemble | None, plan: SamplingPlan
) -> Iterator[Callable[[int], DiffusionModel]]:
    """While the block runs, what to ask for the pictures of `voice_of` a number.

    Ask for one number at a time: the model it gives is another's once the next is called.
    """
    if not isinstance(learnt, Ensemble):
        with attached(model, learnt):
            yield lambda number: model
        return
    with attached_in_turn(model, learnt.members) as turn:
        if learnt.way != "member":
            chorus = Chorus.of(model, learnt, turn, plan)
            yield lambda number: chorus
            return

        def alone(number: int) -> DiffusionModel:
            turn(number)
            return model

        yield alone


def voice_of(learnt: Adapter | Ensemble | None, prompt: str, seed: int) -> int:
    """Who draws a picture: the chosen member's number, 0 where there is no choice."""
    choosing = isinstance(learnt, Ensemble) and learnt.way == "member"
    return learnt.chosen(prompt, seed) if choosing else 0  # type: ignore[union-attr]


@dataclass(eq=False, kw_only=True)
class Chorus(DiffusionModel):
    """A base whose answers are an ensemble's: the mean of its members', or of one in turn.

    Members may read a prompt differently (their text encoders learnt too), so a conditioning here
    holds what each of them reads, side by side.
    """

    inner: DiffusionModel
    ensemble: Ensemble
    turn: Callable[[int], None]
    turns: dict[float, int]

    @staticmethod
    def of(
        model: DiffusionModel, ensemble: Ensemble, turn: Callable[[int], None], plan: SamplingPlan
    ) -> Chorus:
        scheduler = model.sampler(plan.sampler)
        with diffusers_warnings_off():
            scheduler.set_timesteps(plan.steps, device=model.device)
        timesteps = [float(t) for t in scheduler.timesteps]
        turns = dict(zip(timesteps, ensemble.turns(len(timesteps)), strict=True))
        known = {f.name: getattr(model, f.name) for f in fields(DiffusionModel) if f.init}
        return Chorus(inner=model, ensemble=ensemble, turn=turn, turns=turns, **known)

    @property
    def network(self) -> Any:
        return self.inner.network

    def sampler(self, kind: str) -> Any:
        return self.inner.sampler(kind)

    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        read = []
        for number in range(len(self.ensemble.members)):
            self.turn(number)
            read.append(self.inner.embed(prompts, pixels=pixels))
        pooled = [r.pooled for r in read if r.pooled is not None]
        return Conditioning(
            torch.cat([r.embeddings for r in read], 1),
            torch.cat(pooled, 1) if pooled else None,
            read[0].sizes,
        )

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        if self.ensemble.way == "switch":
            return self._ask(self.turns[float(timesteps[0])], latents, timesteps, words)
        answers = [
            share * self._ask(number, latents, timesteps, words)
            for number, share in enumerate(self.ensemble.shares)
        ]
        return torch.stack(answers).sum(0)

    def _ask(
        self,
        number: int,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        self.turn(number)
        count = len(self.ensemble.members)
        own = Conditioning(
            words.embeddings.chunk(count, 1)[number],
            None if words.pooled is None else words.pooled.chunk(count, 1)[number],
            words.sizes,
        )
        return self.inner.predict(latents, timesteps, own)
