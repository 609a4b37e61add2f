"""The loss of one step: what each row misses, weighed, and what is asked beside the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.train.data import Batch
from variegate.train.strategies import Rows, Strategy


def row_losses(
    prediction: Float[Tensor, "b c y x"],
    target: Float[Tensor, "b c y x"],
    places: Float[Tensor, "b y x"] | None = None,
) -> Float[Tensor, " b"]:
    """Each row's mean squared error, places weighed by `places` (weights need not sum to one)."""
    return row_means((prediction - target).square(), places)


def row_means(
    costs: Float[Tensor, "b c y x"], places: Float[Tensor, "b y x"] | None = None
) -> Float[Tensor, " b"]:
    """Each row's mean cost, places weighed by `places`."""
    costs = costs.mean(1)
    if places is None:
        return costs.mean((1, 2))
    total = places.sum((1, 2)).clamp_min(1e-6)
    return (costs * places).sum((1, 2)) / total


def cost_of(
    strategies: Iterable[Strategy],
    difference: Float[Tensor, "b c y x"],
    schedule: NoiseSchedule,
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, "b c y x"]:
    """What each difference from the target costs: its square, or what a strategy says."""
    for strategy in strategies:
        if (own := strategy.errors(difference, schedule, timesteps)) is not None:
            return own
    return difference.square()


def weigh_places(
    strategies: Iterable[Strategy], schedule: NoiseSchedule, batch: Batch
) -> Float[Tensor, "b y x"] | None:
    """All strategies' weights of places, multiplied; None when none has any."""
    weights = None
    for strategy in strategies:
        own = strategy.weigh_places(batch.masks, schedule, batch.timesteps)
        if own is not None:
            weights = own if weights is None else weights * own
    return weights


def weigh_rows(
    strategies: Iterable[Strategy], schedule: NoiseSchedule, batch: Batch
) -> Float[Tensor, " b"]:
    """All strategies' weights of rows, multiplied."""
    weights = torch.ones(len(batch.timesteps), device=batch.timesteps.device)
    for strategy in strategies:
        for own in (
            strategy.weigh_rows(schedule, batch.timesteps),
            strategy.weigh_grounds(schedule, batch.timesteps, batch.moved),
        ):
            if own is not None:
                weights = weights * own
    return weights


def answers(
    parts: list[Rows], predict: Callable[[Rows], Float[Tensor, "b c y x"]]
) -> list[Float[Tensor, "_ c _ _"]]:
    """What the network answers to each part; parts of one size are asked in one call."""
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(part.noised.shape[1:] for part in parts):
        alike = [i for i, part in enumerate(parts) if part.noised.shape[1:] == size]
        answer = predict(join([parts[i] for i in alike]))
        counts = [len(parts[i].prompts) for i in alike]
        found |= zip(alike, torch.split(answer, counts), strict=True)
    return [found[i] for i in range(len(parts))]


def join(parts: list[Rows]) -> Rows:
    """Rows of several origins as one call of the network, where the first of them lie."""
    device = parts[0].noised.device
    return Rows(
        noised=torch.cat([part.noised.to(device) for part in parts]),
        timesteps=torch.cat([part.timesteps.to(device) for part in parts]),
        prompts=[prompt for part in parts for prompt in part.prompts],
        frames=[frame for p in parts for frame in p.frames or [None] * len(p.prompts)],
        turns=[turn for p in parts for turn in p.turns or [None] * len(p.prompts)],
    )
