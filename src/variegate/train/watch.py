"""What is watched while training: the same few questions, asked again and again.

Two probes, both relative to the silenced adapter, both without sampling:

* the loss on fixed (picture, timestep, noise) triples in three noise bands, for pictures that are
  trained on and pictures held out: memorising shows as a gap between the two, first where noise
  is high;
* the variety of one-step clean estimates from fixed pure noise, for the class noun and the
  trigger: 1 is as varied as the base, 0 all alike.

Watching changes nothing: its draws have addresses of their own, and it leaves no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate import seeds
from variegate.diffusion import NoiseSchedule
from variegate.measurement import Measurement
from variegate.recipe import Recipe
from variegate.train.data import Example, Latents, stack_common
from variegate.train.objective import row_losses
from variegate.train.strategies import Rows

BANDS = ("low", "middle", "high")  # noise: thirds of the schedule
NOISES = 16  # starts of the one-step variety
EARLY = 0.9  # share of the schedule at which the one-step estimate is taken
ROWS_PER_CALL = 16

Predict = Callable[[Rows], Float[Tensor, "b c y x"]]


@dataclass(frozen=True)
class Triples:
    """Fixed pictures, timesteps and noises, with the base's loss on each."""

    rows: Rows
    target: Float[Tensor, "b c y x"]
    bands: Int[Tensor, " b"]
    base: Float[Tensor, " b"]


class Watch:
    """Asks the same questions at any step. Made while the adapter is silenced.

    predict: the network's answer to rows, whatever state the adapter is in.
    """

    def __init__(
        self,
        recipe: Recipe,
        schedule: NoiseSchedule,
        latents: Latents,
        *,
        train: Sequence[Example],
        held_out: Sequence[Example],
        predict: Predict,
        pocket: bool,
    ) -> None:
        self._schedule = schedule
        self._seed = recipe.seed
        self._sets = {
            name: self._triples(name, examples, latents, recipe.probes.triples, predict)
            for name, examples in (("train", train), ("held_out", held_out))
            if examples
        }
        shape = next(iter(self._sets.values())).rows.noised.shape[1:]
        self._starts = {
            name: self._start(prompt, tuple(shape))
            for name, prompt in _probe_prompts(recipe, pocket=pocket).items()
        }
        self._spread = {name: self._variety(rows, predict) for name, rows in self._starts.items()}

    def look(self, predict: Predict, step: int) -> list[Measurement]:
        """All probes at this step; the caller sees to it that no gradient or dropout is on."""
        found = []
        ratios: dict[tuple[str, str], tuple[float, int]] = {}
        for name, triples in self._sets.items():
            losses = _losses(triples.rows, triples.target, predict)
            for i, band in enumerate(BANDS):
                chosen = triples.bands == i
                ratio = float(losses[chosen].mean() / triples.base[chosen].mean().clamp_min(1e-12))
                n = int(chosen.sum())
                ratios[name, band] = ratio, n
                found.append(
                    Measurement(
                        f"loss_vs_base.{name}.{band}",
                        ratio,
                        n=n,
                        better="lower",
                        step=step,
                        source="loss on fixed triples over the silenced adapter's",
                    )
                )
        for band in BANDS:
            if ("held_out", band) in ratios:
                gap = ratios["held_out", band][0] - ratios["train", band][0]
                found.append(
                    Measurement(
                        f"held_out_gap.{band}",
                        gap,
                        n=ratios["held_out", band][1],
                        better="lower",
                        step=step,
                        source="loss_vs_base of held-out less that of trained pictures",
                    )
                )
        for name, rows in self._starts.items():
            found.append(
                Measurement(
                    f"one_step_variety.{name}",
                    self._variety(rows, predict) / max(self._spread[name], 1e-12),
                    n=len(rows.prompts),
                    better="higher",
                    step=step,
                    source="variance of one-step clean estimates over the base's",
                )
            )
        return found

    def _triples(
        self,
        name: str,
        examples: Sequence[Example],
        latents: Latents,
        count: int,
        predict: Predict,
    ) -> Triples:
        """`count` triples, at least one per band, with the levels spread evenly in each band."""
        count = max(count, len(BANDS))
        levels = self._schedule.timesteps
        order = torch.randperm(count, generator=seeds.at(self._seed, "probe levels", name))
        timesteps = ((order + 0.5) / count * levels).long().clamp(max=levels - 1)
        picked = [examples[i % len(examples)] for i in range(count)]
        clean = stack_common([latents.encoded(example).latent for example in picked])
        noise = torch.randn(clean.shape, generator=seeds.at(self._seed, "probe noise", name))
        rows = Rows(
            self._schedule.noised(clean, noise, timesteps),
            timesteps,
            [example.caption for example in picked],
        )
        target = self._schedule.target(clean, noise, timesteps)
        bands = (timesteps * len(BANDS) // levels).clamp(max=len(BANDS) - 1)
        return Triples(rows, target, bands, _losses(rows, target, predict))

    def _start(self, prompt: str, shape: tuple[int, ...]) -> Rows:
        level = int(EARLY * self._schedule.timesteps)
        noise = torch.randn(NOISES, *shape, generator=seeds.at(self._seed, "probe start"))
        return Rows(noise, torch.full((NOISES,), level), [prompt] * NOISES)

    def _variety(self, rows: Rows, predict: Predict) -> float:
        prediction = _in_parts(rows, predict)
        estimates = self._schedule.clean_estimate(rows.noised, prediction, rows.timesteps)
        return float(estimates.var(0).mean())


def _probe_prompts(recipe: Recipe, *, pocket: bool) -> dict[str, str]:
    """The class noun and the trigger in the plainest prompt; those that the recipe names."""
    opening = "a" if pocket else "a photo of a"
    words = {"class": recipe.class_noun, "trigger": recipe.trigger}
    return {name: f"{opening} {word}" for name, word in words.items() if word}


def _losses(rows: Rows, target: Float[Tensor, "b c y x"], predict: Predict) -> Float[Tensor, " b"]:
    return row_losses(_in_parts(rows, predict), target)


def _in_parts(rows: Rows, predict: Predict) -> Float[Tensor, "b c y x"]:
    """The answer to many rows, a few at a time: memory stays that of a training step."""
    answers = []
    for i in range(0, len(rows.prompts), ROWS_PER_CALL):
        part = slice(i, i + ROWS_PER_CALL)
        asked = Rows(rows.noised[part], rows.timesteps[part], rows.prompts[part])
        answers.append(predict(asked).cpu())
    return torch.cat(answers)
