"""An adapter or an ensemble on a base, as models to ask: one face, whoever answers behind it, at
whatever strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from variegate.adapter import Adapter, Dial, Ensemble, attached, attached_in_turn
from variegate.models import Conditioning, DiffusionModel
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingPlan


@dataclass(frozen=True, eq=False)
class Voice:
    """Who is asked for a picture, and the weaker one that its answers are compared with, if any."""

    model: DiffusionModel
    weaker: DiffusionModel | None = None


@contextmanager
def voices(
    model: DiffusionModel,
    learnt: Adapter | Ensemble | None,
    plan: SamplingPlan,
    *,
    dialled: bool = False,
    weaker: Adapter | None = None,
) -> Iterator[Callable[[int], Voice]]:
    """While the block runs, what to ask for the pictures of `voice_of` a number.

    Ask for one number at a time: the model it gives is another's once the next is called.
    dialled: what is given is `Dialled`, so that rows may have strengths of their own; it is its own
    weaker one too. weaker: an earlier checkpoint of one adapter, to be that.
    """
    dial = Dial() if dialled else None

    def voice(answering: DiffusionModel, less: DiffusionModel | None = None) -> Voice:
        if dial is None:
            return Voice(answering, less)
        whole = Dialled.of(answering, dial)
        return Voice(whole, Dialled.of(less, dial) if less is not None else whole)

    if not isinstance(learnt, Ensemble) and weaker is None:
        with attached(model, learnt, dial=dial):
            alone = voice(model)
            yield lambda number: alone
        return
    if not isinstance(learnt, Ensemble):
        assert learnt is not None
        assert weaker is not None
        with attached_in_turn(model, [learnt, weaker], dial=dial) as turn:
            pair = voice(*(OneOfSeveral.of(model, turn, number) for number in (0, 1)))
            yield lambda number: pair
        return
    with attached_in_turn(model, learnt.members, dial=dial) as turn:
        if learnt.way != "member":
            chorus = voice(Chorus.of(model, learnt, turn, plan))
            yield lambda number: chorus
            return
        one = voice(model)

        def member(number: int) -> Voice:
            turn(number)
            return one

        yield member


def voice_of(learnt: Adapter | Ensemble | None, prompt: str, seed: int) -> int:
    """Who draws a picture: the chosen member's number, 0 where there is no choice."""
    choosing = isinstance(learnt, Ensemble) and learnt.way == "member"
    return learnt.chosen(prompt, seed) if choosing else 0  # type: ignore[union-attr]


@dataclass(eq=False, kw_only=True)
class Dialled(DiffusionModel):
    """A base whose adapter acts on each row as strongly as the row's conditioning says."""

    inner: DiffusionModel
    dial: Dial

    @staticmethod
    def of(model: DiffusionModel, dial: Dial) -> Dialled:
        return Dialled(inner=model, dial=dial, **_known(model))

    @property
    def network(self) -> Any:
        return self.inner.network

    def sampler(self, kind: str) -> Any:
        return self.inner.sampler(kind)

    def embed(
        self, prompts: list[str], *, pixels: int | None = None, strength: float = 1.0
    ) -> Conditioning:
        """Read at this strength by text encoders that learnt too, and to be answered at it."""
        self.dial.turn([strength])
        words = self.inner.embed(prompts, pixels=pixels)
        return replace(words, strength=torch.full((len(prompts),), strength))

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        at = [1.0] if words.strength is None else words.strength.tolist()
        if self.dial.by_row or len(set(at)) == 1:
            self.dial.turn(at)
            return self.inner.predict(latents, timesteps, words)
        answer = torch.empty_like(latents)
        for strength in sorted(set(at)):
            rows = [row for row, own in enumerate(at) if own == strength]
            self.dial.turn([strength])
            answer[rows] = self.inner.predict(latents[rows], timesteps[rows], words[rows])
        return answer


@dataclass(eq=False, kw_only=True)
class OneOfSeveral(DiffusionModel):
    """A base that one of the adapters that take turns on it answers for, whoever was asked last."""

    inner: DiffusionModel
    turn: Callable[[int], None]
    number: int

    @staticmethod
    def of(model: DiffusionModel, turn: Callable[[int], None], number: int) -> OneOfSeveral:
        return OneOfSeveral(inner=model, turn=turn, number=number, **_known(model))

    @property
    def network(self) -> Any:
        return self.inner.network

    def sampler(self, kind: str) -> Any:
        return self.inner.sampler(kind)

    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        self.turn(self.number)
        return self.inner.embed(prompts, pixels=pixels)

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        self.turn(self.number)
        return self.inner.predict(latents, timesteps, words)


def _known(model: DiffusionModel) -> dict[str, Any]:
    """What a model that answers for another says of itself alike."""
    return {f.name: getattr(model, f.name) for f in fields(DiffusionModel) if f.init}


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
        return Chorus(inner=model, ensemble=ensemble, turn=turn, turns=turns, **_known(model))

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
