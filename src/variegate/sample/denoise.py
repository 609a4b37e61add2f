"""The denoising loop: noise in, clean latents out, over the schedulers of diffusers.

The randomness of a picture hangs on its seed alone, so it looks the same with any neighbours in
its batch, and base and adapter start from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from variegate import seeds
from variegate.errors import NotFinite
from variegate.models import Conditioning, DiffusionModel
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingPlan
from variegate.sample.methods import Conductor, Scene, plain_scene


def initial_noise(model: DiffusionModel, seed: int) -> Float[Tensor, "1 c y x"]:
    """The standard normal latents a seed starts from; drawn on the CPU so that devices agree."""
    side = model.resolution // model.downscale
    shape = (1, model.latent_channels, side, side)
    return torch.randn(shape, generator=seeds.at(seed, "sample"))


@torch.no_grad()
def denoise(
    model: DiffusionModel,
    noise: Float[Tensor, "b c y x"],
    asked: Conditioning,
    empty: Conditioning,
    *,
    plan: SamplingPlan,
    picture_seeds: Sequence[int],
    scene: Scene | None = None,
) -> Float[Tensor, "b c y x"]:
    """Clean latents by classifier-free guidance: empty + guidance_scale * (asked - empty).

    empty: what the negative prompt reads as, unread at a guidance scale of 1.
    picture_seeds: where each picture's noise between steps comes from, if the sampler adds any.
    scene: what the plan's methods are told, if it has any; None: one group, no weaker adapter and
    nothing to keep away from.

    Raises: NotFinite with the batch's row and the step where a latent is NaN or infinite.
    """
    scheduler = model.sampler(plan.sampler)
    with diffusers_warnings_off():
        scheduler.set_timesteps(plan.steps, device=model.device)
    methods, conductor = plan.in_force, None
    if methods is not None:
        scene = scene or plain_scene(asked, empty)
        conductor = Conductor(model, plan, methods, scene, picture_seeds)
        noise = conductor.noise(noise)
    latents: Tensor = noise.to(model.device, torch.float32) * scheduler.init_noise_sigma
    guided = plan.guidance_scale > 1
    words = Conditioning.join([empty, asked]) if guided else asked
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        if conductor is not None:
            prediction = conductor.predict(scheduler, index, scaled)
        else:
            rows = torch.cat([scaled, scaled]) if guided else scaled
            prediction = model.predict(rows, _as_rows(timestep, len(rows)), words)
            if guided:
                without, towards = prediction.chunk(2)
                prediction = without + plan.guidance_scale * (towards - without)
        noises = {}
        if plan.sampler == "euler_a":
            noises = {"generator": [seeds.at(s, "ancestral", index) for s in picture_seeds]}
        latents = scheduler.step(prediction, timestep, latents, **noises).prev_sample
        if conductor is not None:
            latents = conductor.after(scheduler, index, scaled, prediction, latents)
        _check_finite(latents, index)
    return latents


def _as_rows(timestep: Tensor, rows: int) -> Tensor:
    """One timestep for every row: Euler's lie between whole numbers, which the UNet can read."""
    return timestep.reshape(1).expand(rows)


def _check_finite(latents: Tensor, index: int) -> None:
    fine = torch.isfinite(latents).flatten(1).all(1)
    if not bool(fine.all()):
        row = int((~fine).nonzero()[0])
        raise NotFiniteLatent(row, index)


class NotFiniteLatent(NotFinite):
    """A latent that is NaN or infinite: `row` in the batch, at denoising step `index`."""

    def __init__(self, row: int, index: int) -> None:
        super().__init__(f"row {row} has a NaN or infinite latent at denoising step {index}")
        self.row = row
        self.index = index
