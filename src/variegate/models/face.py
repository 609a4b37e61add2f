"""The face that every base model shows: encode, decode, embed, predict, schedule, sampler.

Sampling, training, probes and strategies know this face alone; which family is behind it is asked
nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float, Real
from torch import Tensor

from variegate.diffusion import NoiseSchedule
from variegate.models.quantised import Bits
from variegate.models.samplers import nearest_sampler, noise_schedule, sampler

Family = Literal["sd1", "sd2", "sdxl", "sd3"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network reads beside the latents, one row per prompt.

    pooled: one vector for the whole prompt, where the family has them. sizes: SDXL's size
    conditioning in pixels, each as height and width: the picture before it was cut, the upper left
    corner of the cut, and what is drawn (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    strength: how strongly an adapter acts on each row, which no network reads but whoever holds
    the adapter's dial; None: fully.
    """

    embeddings: Float[Tensor, "b t d"]
    pooled: Float[Tensor, "b p"] | None = None
    sizes: Float[Tensor, "b 6"] | None = None
    strength: Float[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | int | list[int]) -> Conditioning:
        """Some rows; a number gives that row alone, still as a row."""
        picked = [rows] if isinstance(rows, int) else rows
        return self._each(lambda part: part[picked])

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of several, one after another."""

        def joined(name: str) -> Any:
            column = [getattr(part, name) for part in parts]
            return None if column[0] is None else torch.cat(column)

        columns: dict[str, Any] = {f.name: joined(f.name) for f in fields(Conditioning)}
        return Conditioning(**columns)

    def repeat(self, times: int) -> Conditioning:
        """All rows, so many times over."""
        return Conditioning.join([self] * times)

    def detach(self) -> Conditioning:
        return self._each(Tensor.detach)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """There, and in a dtype but for sizes and strength, which half precision would round."""
        moved = self._each(lambda part: part.to(device=device))
        if dtype is None:
            return moved
        cast = moved._each(lambda part: part.to(dtype))
        return replace(cast, sizes=moved.sizes, strength=moved.strength)

    def sized(self, told: Sequence[Sequence[int] | None]) -> Conditioning:
        """The same with sizes of its own for each row that has any (None: as they were); as it is
        where none has or the family reads none."""
        if self.sizes is None or not any(row is not None for row in told):
            return self
        sizes = self.sizes.clone()
        for i, row in enumerate(told):
            if row is not None:
                sizes[i] = torch.tensor(row, dtype=sizes.dtype)
        return replace(self, sizes=sizes)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {n: None if p is None else change(p) for n, p in parts.items()}
        return Conditioning(**changed)


@dataclass(eq=False, kw_only=True)
class DiffusionModel(ABC):
    """A base model whose parts are frozen and in evaluation mode.

    `name` is what was asked for; `id` tells two models apart by content, wherever they lie. `notes`
    is what users should be told, such as which text encoders are not there.
    `clip_skip` counts as A1111 does: at 1 the text encoder's last layer is read, at 2 the one
    before it (diffusers' own `clip_skip` is one less, with None for our 1).
    `zero_terminal_snr` says that noise levels were rescaled at loading. `bits` is what a weight
    of its linear layers takes; None: what `dtype` takes. Latents carry the
    autoencoder's scaling, as the network sees them. Predictions come back in the dtype of the
    latents, whatever `dtype` the weights have. Each part of a family is an attribute under
    diffusers' name for it: unet or transformer, vae, text_encoder, text_encoder_2, text_encoder_3.
    """

    name: str
    id: str
    family: Family
    vae: AutoencoderKL | AutoencoderTiny
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    pocket: bool = False
    clip_skip: int = 1
    zero_terminal_snr: bool = False
    bits: Bits | None = None
    notes: tuple[str, ...] = ()
    schedule: NoiseSchedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = noise_schedule(self.scheduler_config, where=self.name)

    @property
    @abstractmethod
    def network(self) -> Any:
        """What predicts: the UNet or the transformer, one of diffusers' modules."""

    @abstractmethod
    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        """What the network reads of each prompt; "" is the empty caption. Long prompts are cut.

        pixels: the side of the square that is drawn or learnt, for families that are told of it;
        None: the model's own resolution.
        """

    @abstractmethod
    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        """The network's raw answer: noise, velocity or flow, as `schedule.prediction` says."""

    def sampler(self, kind: str) -> Any:
        """A fresh diffusers scheduler of `SamplingPlan.sampler`'s kind with the base's schedule.

        Raises: BaseError when this base cannot be sampled so.
        """
        return sampler(kind, self.scheduler_config, where=self.name)

    def nearest_sampler(self, kind: str) -> str:
        """The kind itself, or "euler" where this base, being a flow, cannot follow it."""
        return nearest_sampler(kind, self.scheduler_config)

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent, along one side."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels that the network was made for."""
        return int(self.network.config.sample_size) * self.downscale

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
        return (latents.float() - self._shift) * float(self.vae.config.scaling_factor)

    def decode(self, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
        """Images of about -1..1, not clamped."""
        scaled = latents.to(self.device, self.vae.dtype)
        unscaled = scaled / self.vae.config.scaling_factor + self._shift
        with torch.autocast(self.device.type, enabled=False):  # whatever the network works in
            images: Tensor = self.vae.decode(unscaled, return_dict=False)[0]
        return images.float()

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)
