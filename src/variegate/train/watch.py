"""What is watched while training: the same few questions, asked again and again.

All relative to the silenced adapter, none with sampling, all at fixed draws:

* the loss on (picture, timestep, noise) triples in three noise bands, for pictures that are trained
  on and pictures held out, and how many bits per dimension it tells them better than the base;
* from pure noise, for the class noun, the trigger and the empty prompt: the variety of one-step
  clean estimates (1 as varied as the base, 0 all alike), how far a prompt moves the answer from
  that to the empty one, how much of what the trigger learnt leaks into the class noun, and how much
  nearer than the base's the trigger's estimates are to a picture learnt (1 all are one).

Watching changes nothing: its draws have addresses of their own, and it leaves no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from variegate import seeds
from variegate.diffusion import NoiseSchedule
from variegate.measurement import Better, Measurement
from variegate.recipe import Recipe
from variegate.train.data import Latents, stack_common
from variegate.train.examples import Example
from variegate.train.objective import row_losses
from variegate.train.parts import piece
from variegate.train.strategies import Rows

BANDS = ("low", "middle", "high")  # noise: thirds of the schedule
EARLY = 0.9  # share of the schedule at which the one-step estimate is taken
ROWS_PER_CALL = 16
CONTENT = (-4.0, 2.0)  # log SNR between which a picture's content is decided
SHARE = 0.05  # of a run's time that may be spent on watching
LOOKS = 8  # at least, in a run
MOST = 64  # pictures that a copy is looked for among
EXACT = "donot_use_mm_for_euclid_dist"  # what is near nought stays exact

Predict = Callable[[Rows], Float[Tensor, "b c y x"]]


@dataclass(frozen=True)
class Triples:
    """Fixed pictures, timesteps and noises, with the base's loss and noise error on each."""

    rows: Rows
    clean: Float[Tensor, "b c y x"]
    target: Float[Tensor, "b c y x"]
    bands: Int[Tensor, " b"]
    base: Float[Tensor, " b"]
    base_error: Float[Tensor, " b"]


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
        self._noises = recipe.probes.noises
        self._sets = {
            name: self._triples(name, examples, latents, recipe.probes.triples, predict)
            for name, examples in (("train", train), ("held_out", held_out))
            if examples
        }
        shape = next(iter(self._sets.values())).rows.noised.shape[1:]
        self._starts = {
            name: self._start(prompt, tuple(shape))
            for name, prompt in probe_prompts(recipe, pocket=pocket).items()
        }
        self._base = {name: _in_parts(rows, predict) for name, rows in self._starts.items()}
        self._learnt = _of_shape(tuple(shape), [latents.encoded(x).latent for x in train[:MOST]])

    def look(self, predict: Predict, step: int) -> list[Measurement]:
        """All probes at this step; the caller sees to it that no gradient or dropout is on."""
        found: dict[str, tuple[float, int]] = {}
        for name, triples in self._sets.items():
            found |= self._on_pictures(name, triples, predict)
        for band in BANDS:
            if f"loss_vs_base.held_out.{band}" in found:
                theirs, n = found[f"loss_vs_base.held_out.{band}"]
                found[f"held_out_gap.{band}"] = theirs - found[f"loss_vs_base.train.{band}"][0], n
        if "bits.held_out" in found and "bits.train" in found:
            told, n = found["bits.held_out"]
            found["bits_gap"] = found["bits.train"][0] - told, n
        found |= self._from_noise(predict)
        return [
            Measurement(name, value, n=n, better=_better(name), step=step, source=_source(name))
            for name, (value, n) in found.items()
        ]

    def _on_pictures(
        self, name: str, triples: Triples, predict: Predict
    ) -> dict[str, tuple[float, int]]:
        answer = _in_parts(triples.rows, predict)
        losses = row_losses(answer, triples.target)
        found = {}
        for i, band in enumerate(BANDS):
            chosen = triples.bands == i
            ratio = float(losses[chosen].mean() / triples.base[chosen].mean().clamp_min(1e-12))
            found[f"loss_vs_base.{name}.{band}"] = ratio, int(chosen.sum())
        content = self._content(triples.rows.timesteps)
        if bool(content.any()):
            gained = triples.base_error - self._noise_error(triples, answer)
            width = (CONTENT[1] - CONTENT[0]) / (2 * math.log(2))
            found[f"bits.{name}"] = width * float(gained[content].mean()), int(content.sum())
        return found

    def _from_noise(self, predict: Predict) -> dict[str, tuple[float, int]]:
        said = {name: _in_parts(rows, predict) for name, rows in self._starts.items()}
        moved = {name: float((said[name] - self._base[name]).square().mean()) for name in said}
        found = {}
        for name in said:
            if name == "empty":
                continue
            variety = self._variety(name, said[name]) / max(
                self._variety(name, self._base[name]), 1e-12
            )
            found[f"one_step_variety.{name}"] = variety, self._noises
            by_prompt = float((said[name] - said["empty"]).square().mean())
            by_base = float((self._base[name] - self._base["empty"]).square().mean())
            found[f"guidance.{name}"] = math.sqrt(by_prompt / max(by_base, 1e-12)), self._noises
        if "class" in moved and moved.get("trigger", 0) > 0:
            found["leak"] = math.sqrt(moved["class"] / moved["trigger"]), self._noises
        if "trigger" in said and len(self._learnt):
            left = self._to_nearest(said["trigger"]) / max(
                self._to_nearest(self._base["trigger"]), 1e-12
            )
            found["one_step_copying.trigger"] = 1 - left, self._noises
        return found

    def _to_nearest(self, answer: Float[Tensor, "b c y x"]) -> float:
        """How far the trigger's clean estimates are from the nearest picture learnt: mean squared
        distance in latents."""
        rows = self._starts["trigger"]
        estimates = self._schedule.clean_estimate(rows.noised, answer, rows.timesteps).flatten(1)
        apart = torch.cdist(estimates, self._learnt.flatten(1), compute_mode=EXACT)
        return float(apart.min(1).values.square().mean())

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
        clean, frames = stack_common([latents.encoded(example) for example in picked])
        noise = torch.randn(clean.shape, generator=seeds.at(self._seed, "probe noise", name))
        rows = Rows(
            self._schedule.noised(clean, noise, timesteps),
            timesteps,
            [example.caption for example in picked],
            frames,
        )
        target = self._schedule.target(clean, noise, timesteps)
        bands = (timesteps * len(BANDS) // levels).clamp(max=len(BANDS) - 1)
        answer = _in_parts(rows, predict)
        losses = row_losses(answer, target)
        triples = Triples(rows, clean, target, bands, losses, torch.zeros_like(losses))
        return replace(triples, base_error=self._noise_error(triples, answer))

    def _noise_error(
        self, triples: Triples, answer: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, " b"]:
        """The mean squared error of the noise that an answer stands for: SNR times that of the
        clean estimate. Half its fall, over log SNR, is the gain in log likelihood (Kong et al.
        2023, Information-Theoretic Diffusion, arXiv 2302.03792)."""
        rows = triples.rows
        estimate = self._schedule.clean_estimate(rows.noised, answer, rows.timesteps)
        error = (estimate - triples.clean).square().mean((1, 2, 3))
        return torch.where(
            self._content(rows.timesteps), error * self._schedule.snr(rows.timesteps), 0.0
        )

    def _content(self, timesteps: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
        told = self._schedule.snr(timesteps).log()
        return (told >= CONTENT[0]) & (told <= CONTENT[1])

    def _start(self, prompt: str, shape: tuple[int, ...]) -> Rows:
        level = int(EARLY * self._schedule.timesteps)
        noise = torch.randn(self._noises, *shape, generator=seeds.at(self._seed, "probe start"))
        timesteps = torch.full((self._noises,), level)
        starts = self._schedule.unseen(noise, timesteps)
        return Rows(starts, timesteps, [prompt] * self._noises)

    def _variety(self, name: str, answer: Float[Tensor, "b c y x"]) -> float:
        rows = self._starts[name]
        estimates = self._schedule.clean_estimate(rows.noised, answer, rows.timesteps)
        return float(estimates.var(0).mean())


def cadence(recipe: Recipe, *, held_out: bool) -> int:
    """Steps between two looks: as many as keep watching within a twentieth of a run's time, but no
    fewer than eight looks in a run.

    Counted in rows through the network, one backward being two forwards: a look asks each triple
    and each start once, a step the pictures, and what is held beside them twice, once without
    gradient. The autoencoder and the optimizer are left out, so the true share is less.
    """
    plan, probes = recipe.optimizer, recipe.probes
    if probes.every is not None:
        return probes.every
    asked = probes.triples * (1 + held_out) + probes.noises * len(
        probe_prompts(recipe, pocket=False)
    )
    return max(1, min(math.ceil(asked / (SHARE * rows_of_a_step(recipe))), plan.steps // LOOKS))


def rows_of_a_step(recipe: Recipe) -> int:
    """What a step costs, in rows through the network."""
    rows = 3 * recipe.optimizer.batch_size
    for held, forward in ((recipe.strategies.stay_near, 4), (recipe.strategies.layout_prior, 4)):
        if held is not None:
            rows += forward * (held.batch_size or recipe.optimizer.batch_size)
    return rows


def probe_prompts(recipe: Recipe, *, pocket: bool) -> dict[str, str]:
    """The class noun and the trigger in the plainest prompt; those that the recipe names; and the
    empty one."""
    opening = "a" if pocket else "a photo of a"
    words = {"class": recipe.class_noun, "trigger": recipe.trigger}
    return {name: f"{opening} {word}" for name, word in words.items() if word} | {"empty": ""}


def _better(name: str) -> Better:
    if name.startswith("guidance"):
        return "neither"
    return "higher" if name.startswith(("one_step_variety", "bits.")) else "lower"


def _source(name: str) -> str:
    return SOURCES[name.split(".")[0]]


SOURCES = {
    "loss_vs_base": "loss on fixed triples over the silenced adapter's",
    "held_out_gap": "loss_vs_base of held-out less that of trained pictures",
    "bits": "bits per dimension gained over the base, log SNR from -4 to 2",
    "bits_gap": "bits of trained pictures less those of held-out ones",
    "one_step_variety": "variance of one-step clean estimates over the base's",
    "guidance": "distance of the answer to a prompt from that to none, over the base's",
    "one_step_copying": "how much nearer one-step clean estimates are to a picture learnt than the "
    "base's",
    "leak": "how far the class noun's answer moved over how far the trigger's did",
}


def _of_shape(
    shape: tuple[int, ...], latents: Sequence[Float[Tensor, "c _ _"]]
) -> Float[Tensor, "n c y x"]:
    alike = [rows for rows in latents if tuple(rows.shape) == shape]
    return torch.stack(alike) if alike else torch.empty(0, *shape)


def _in_parts(rows: Rows, predict: Predict) -> Float[Tensor, "b c y x"]:
    """The answer to many rows, a few at a time: memory stays that of a training step."""
    answers = []
    for i in range(0, len(rows.prompts), ROWS_PER_CALL):
        answers.append(predict(piece(rows, slice(i, i + ROWS_PER_CALL))).cpu())
    return torch.cat(answers)
