"""A base's noise schedule and its samplers, from the settings of its diffusers scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.errors import BaseError

SAMPLERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
FLOW = "FlowMatchEulerDiscreteScheduler"
# On a straight line Euler's step and DDIM's are one: x_s = (1 - s) x0 + s noise, with both as the
# prediction at t tells them, is x_t + (s - t) prediction.
FLOW_SAMPLERS = ("ddim", "euler")


class FlowEuler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler's steps along a flow, with the two entries that other schedulers have."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample


def noise_schedule(scheduler_config: dict[str, Any], *, where: str = "model") -> NoiseSchedule:
    """The noise levels of a diffusers scheduler's settings, zero terminal SNR included.

    Raises: BaseError for a prediction other than epsilon, v_prediction and flow, or settings that
    cannot be used.
    """
    if _is_flow(scheduler_config):
        if scheduler_config.get("use_dynamic_shifting"):
            raise BaseError(
                f"{where}: its scheduler says use_dynamic_shifting; expected a fixed shift, as "
                "Stable Diffusion 3 and 3.5 have it"
            )
        shift, levels = (
            scheduler_config.get(key, default)
            for key, default in (("shift", 1.0), ("num_train_timesteps", 1000))
        )
        if not isinstance(shift, int | float) or not shift > 0 or not isinstance(levels, int):
            raise BaseError(
                f"{where}: its scheduler says shift {shift!r} over {levels!r} timesteps; expected "
                "a number above 0 and a whole number"
            )
        return NoiseSchedule.flow(shift=float(shift), timesteps=levels)
    prediction = scheduler_config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseError(
            f"{where}: its scheduler says prediction_type {prediction!r}; "
            "expected 'epsilon' or 'v_prediction'"
        )
    try:
        scheduler = _scheduler(DDIMScheduler, scheduler_config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BaseError(f"{where}: its scheduler settings cannot be used: {error}") from error
    return NoiseSchedule(alpha_bar=scheduler.alphas_cumprod.float(), prediction=prediction)


def to_pure_noise(scheduler_config: dict[str, Any], *, where: str = "model") -> dict[str, Any]:
    """A scheduler's settings with the noise levels rescaled such that the last keeps nothing of
    the picture, and with samplers that start there.

    Source: Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv
    2305.08891, sections 3.1 and 3.3.
    Raises: BaseError for a base that predicts noise, which it would be shown.
    """
    if _is_flow(scheduler_config):
        return scheduler_config  # which begins at pure noise
    if scheduler_config.get("prediction_type", "epsilon") != "v_prediction":
        raise BaseError(
            f"zero_terminal_snr is not possible with {where}: it predicts noise, and of pure noise "
            "it could only repeat what it is shown; take a base that predicts v "
            "(prediction_type v_prediction), or strategies.noise_offset"
        )
    return scheduler_config | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def sampler(kind: str, scheduler_config: dict[str, Any], *, where: str = "model") -> Any:
    """A fresh scheduler of a kind of sampler with the base's own noise schedule.

    Raises: BaseError when a flow is asked for a sampler of the other families.
    """
    # Latents are not pixels: cutting them to -1..1 is a default that no latent model wants.
    settings = {"clip_sample": False, **scheduler_config}
    if _is_flow(scheduler_config):
        if kind not in FLOW_SAMPLERS:
            raise BaseError(
                f"{where} is a flow, which the sampler {kind!r} cannot follow; expected "
                f"{' or '.join(FLOW_SAMPLERS)}, which are one and the same there: set "
                "sampling.sampler"
            )
        return _scheduler(FlowEuler, settings | {"stochastic_sampling": False})
    if kind == "dpmpp_2m":
        settings |= {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "use_karras_sigmas": False,
        }
    return _scheduler(SAMPLERS[kind], settings)


def nearest_sampler(kind: str, scheduler_config: dict[str, Any]) -> str:
    """The kind itself, or "euler" where a flow cannot follow it: for plans that nobody chose."""
    return "euler" if _is_flow(scheduler_config) and kind not in FLOW_SAMPLERS else kind


@contextmanager
def diffusers_warnings_off() -> Iterator[None]:
    """Keep still what diffusers' schedulers do to numpy: their tensors go over in a way that
    numpy 2 deprecates, and no caller can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


def _is_flow(scheduler_config: dict[str, Any]) -> bool:
    return scheduler_config.get("_class_name") == FLOW


def _scheduler(kind: Any, settings: dict[str, Any]) -> Any:
    """A diffusers scheduler from those settings that it knows: the file may be another kind's."""
    with diffusers_warnings_off():
        known = {key for key in kind().config if not key.startswith("_")}
        return kind(**{key: value for key, value in settings.items() if key in known})
