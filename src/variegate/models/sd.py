"""Stable Diffusion 1.x and 2.x (and the pocket, which is one): the frozen base of an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from jaxtyping import Float, Real
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from variegate.diffusion import NoiseSchedule
from variegate.errors import BaseError
from variegate.models.folder import POCKET, ModelFolder, open_folder

SAMPLERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
SD2_WIDTH = 1024


@dataclass(eq=False)
class StableDiffusion:
    """A base model whose parts are frozen and in evaluation mode.

    `name` is what was asked for; `id` tells two models apart by content, wherever they lie.
    `resolution` is the side in pixels the UNet was made for. Latents carry the autoencoder's
    scaling factor, as the UNet sees them. Predictions come back in the dtype of the latents,
    whatever `dtype` the weights have; the autoencoder's are float32 always.
    """

    name: str
    id: str
    family: Literal["sd1", "sd2"]
    pocket: bool
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL | AutoencoderTiny
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    schedule: NoiseSchedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = noise_schedule(self.scheduler_config, where=self.name)

    @staticmethod
    def load(
        name_or_path: str,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableDiffusion:
        """The model behind "pocket", a diffusers folder, or a hub name of the form owner/name.

        Raises: BaseError when it is missing, incomplete, a pickle, or of another family.
        """
        folder = open_folder(str(name_or_path))
        parts = _load_parts(folder, dtype)
        for module in (parts["unet"], parts["vae"], parts["text_encoder"]):
            module.requires_grad_(False).eval().to(device)
        return StableDiffusion(
            name=str(name_or_path),
            id=folder.fingerprint,
            family="sd2" if parts["unet"].config.cross_attention_dim == SD2_WIDTH else "sd1",
            pocket=folder.path == POCKET,
            scheduler_config=folder.scheduler_config,
            device=torch.device(device),
            dtype=dtype,
            **parts,
        )

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        return int(self.unet.config.sample_size) * self.downscale

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b c y x"]:
        """The latents of images in -1..1.

        `AutoencoderKL` gives a distribution: a draw from it with a generator, its mean without.
        """
        encoded = self.vae.encode(images.to(self.device, self.vae.dtype))
        if isinstance(self.vae, AutoencoderTiny):
            latents: Tensor = encoded.latents
        elif generator is None:
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latent_dist.sample(generator)
        return latents.float() * float(self.vae.config.scaling_factor)

    def decode(self, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
        """Images of about -1..1, not clamped."""
        unscaled = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        images: Tensor = self.vae.decode(unscaled, return_dict=False)[0]
        return images.float()

    def embed(self, prompts: list[str]) -> Float[Tensor, "b t d"]:
        """What the UNet reads of each prompt; "" is the empty caption. Long prompts are cut."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        # Only some text encoders were trained with their padding masked out.
        masked = bool(getattr(self.text_encoder.config, "use_attention_mask", False))
        mask = tokens.attention_mask.to(self.device) if masked else None
        answer = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)
        embeddings: Tensor = answer.last_hidden_state
        return embeddings

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        embeddings: Float[Tensor, "b t d"],
    ) -> Float[Tensor, "b c y x"]:
        """The UNet's raw answer: the noise or the velocity, as `schedule.prediction` says."""
        answer: Tensor = self.unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=embeddings.to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return answer.to(latents.dtype)

    def sampler(self, kind: str) -> Any:
        """A fresh diffusers scheduler of `SamplingPlan.sampler`'s kind with the base's schedule."""
        # Latents are not pixels: cutting them to -1..1 is a default that no latent model wants.
        settings = {"clip_sample": False, **self.scheduler_config}
        if kind == "dpmpp_2m":
            settings |= {
                "algorithm_type": "dpmsolver++",
                "solver_order": 2,
                "use_karras_sigmas": False,
            }
        return _scheduler(SAMPLERS[kind], settings)


def load(
    name_or_path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableDiffusion:
    """The base behind a name or path; see `StableDiffusion.load`."""
    return StableDiffusion.load(name_or_path, device=device, dtype=dtype)


def noise_schedule(scheduler_config: dict[str, Any], *, where: str = "model") -> NoiseSchedule:
    """The noise levels of a diffusers scheduler's settings, zero terminal SNR included.

    Raises: BaseError for a prediction other than epsilon and v_prediction, or settings that
    diffusers refuses.
    """
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


def _scheduler(kind: Any, settings: dict[str, Any]) -> Any:
    """A diffusers scheduler from those settings that it knows: the file may be another kind's."""
    with diffusers_warnings_off():
        known = {key for key in kind().config if not key.startswith("_")}
        return kind(**{key: value for key, value in settings.items() if key in known})


@contextmanager
def diffusers_warnings_off() -> Iterator[None]:
    """Keep still what diffusers' schedulers do to numpy: their tensors go over in a way that
    numpy 2 deprecates, and no caller can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield


def _load_parts(folder: ModelFolder, dtype: torch.dtype) -> dict[str, Any]:
    autoencoder = AutoencoderTiny if folder.autoencoder == "AutoencoderTiny" else AutoencoderKL
    parts: dict[str, Any] = {}
    with _QuietBars():
        for part, kind in (
            ("unet", UNet2DConditionModel),
            ("vae", autoencoder),
            ("text_encoder", CLIPTextModel),
        ):
            # Autoencoders overflow or smear in half precision, and are small.
            own = torch.float32 if part == "vae" else dtype
            parts[part] = _load_weights(folder, part, kind, own)
        try:
            parts["tokenizer"] = CLIPTokenizer.from_pretrained(
                str(folder.path / "tokenizer"), local_files_only=True
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BaseError(f"{folder.path}: its tokenizer cannot be read: {error}") from error
    _check_fit(folder, parts)
    return parts


def _load_weights(folder: ModelFolder, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
    home = folder.path / part
    dtype_key = "dtype" if part == "text_encoder" else "torch_dtype"
    try:
        module, notes = kind.from_pretrained(
            str(home),
            use_safetensors=True,
            local_files_only=True,
            variant=folder.variants[part],
            output_loading_info=True,
            **{dtype_key: dtype},
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseError(f"{home}: its weights cannot be read: {error}") from error
    if missing := sorted(notes["missing_keys"]):
        raise BaseError(
            f"{home}: {len(missing)} weights are missing, such as {missing[0]}; "
            "the file is incomplete or belongs to another model"
        )
    assert isinstance(module, nn.Module)
    return module


def _check_fit(folder: ModelFolder, parts: dict[str, Any]) -> None:
    faults = []
    channels = parts["unet"].config.in_channels
    latent = parts["vae"].config.latent_channels
    if channels != latent:
        kind = " (an inpainting model has 9)" if channels == 9 else ""
        faults.append(f"the UNet takes {channels} channels{kind}, the autoencoder gives {latent}")
    width = parts["unet"].config.cross_attention_dim
    text = parts["text_encoder"].config.hidden_size
    if width != text:
        faults.append(f"the UNet reads embeddings of {width}, the text encoder gives {text}")
    if faults:
        raise BaseError(f"base model {folder.path}: its parts do not fit: {'; '.join(faults)}")


class _QuietBars:
    """No progress bars of other libraries while weights load; as before afterwards."""

    def __enter__(self) -> None:
        self.were_on = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.were_on:
            transformers_logging.enable_progress_bar()
