"""`cfg_pp`: the clean estimate is guided, the noise that is put back is not.

    x0 = clean(p_empty + scale (p_asked - p_empty))
    x_next = alpha_next x0 + sigma_next noise_empty

with scale in 0..1. After a step that put the guided noise back, as DDIM's and Euler's do, that is
sigma_next (noise_empty - noise_guided) more.

Source: Chung et al., CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models,
2024, arXiv 2406.08070, algorithm 2; of a flow the same two lines are taken.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.sample.methods.moment import Moment, levels


def noised_unguided(
    latents: Float[Tensor, "b c y x"],
    moment: Moment,
    *,
    guided: Float[Tensor, "b c y x"],
    unguided: Float[Tensor, "b c y x"],
    schedule: NoiseSchedule,
    scheduler: Any,
) -> Float[Tensor, "b c y x"]:
    """What a step with the guided prediction gave, with the other's noise in it instead."""
    if schedule.prediction != "flow" and getattr(scheduler, "sigmas", None) is not None:
        sigma = float(scheduler.sigmas[moment.index + 1])  # such latents are x / alpha
    else:
        sigma = levels(schedule, scheduler, moment.index + 1)[1]
    return latents + sigma * moment.noise_between(unguided, guided)
