"""What an adapter's layers hear while pictures are drawn: the second moments of their inputs.

Under the trigger only the places count that show the subject. What lies around it in a collapsed
adapter's pictures is what it should forget, and to keep that would keep the collapse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from variegate.adapter import Adapter, attached
from variegate.adapter.places import find
from variegate.measure import PlannedPrompt
from variegate.models import DiffusionModel
from variegate.recipe import SamplingPlan
from variegate.sample.denoise import denoise, initial_noise
from variegate.train.masks import find_masks

WIDEST = 2048  # channels of an input, above which a matrix of moments takes too much memory
TOGETHER = 16  # prompts in a batch, on a CPU and of small pictures; one by one elsewhere
# Layers that hear words and no places.
OF_WORDS = re.compile(
    r"^text_encoder|\.attn2\.to_[kv]$|\.add_[qkv]_proj$|to_add_out|\.ff_context\."
)


def heard(
    model: DiffusionModel,
    adapter: Adapter,
    plan: Sequence[PlannedPrompt],
    sampling: SamplingPlan,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer of the adapter, the second moments `[i, i]` of its input channels: with the adapter
    on under the plan's trigger prompts, and of the base under all that the plan asks without it.

    Means over prompts, denoising steps and places, without guidance. Under the trigger each place
    counts by the share of it that the subject takes in the finished picture, as far as the pixels
    tell (`train.masks`); a picture in which no subject is found counts whole, and so do words.
    Layers that hear more than `WIDEST` channels are left out. Each prompt is drawn once, at the
    first of its seeds.
    """
    trigger = [(p.adapter_prompt, p.seeds[0]) for p in plan if p.group == "trigger"]
    others = [(p.base_prompt, p.seeds[0]) for p in plan if p.group != "trigger"]
    layers = {
        name: module
        for name, module in find(model, adapter).items()
        if isinstance(module, nn.Linear | nn.Conv2d) and _channels(module) <= WIDEST
    }
    sampling = sampling.model_copy(update={"guidance_scale": 1.0})
    without = _moments(model, layers, others, sampling)
    with attached(model, adapter):
        own = _moments(model, layers, trigger, sampling, of_subject=True)
    return own, without


class _Ear:
    """Sums of products of what layers hear; layers that hear the very same tensor share one, as
    long as they hear it of the same places."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.same_as: dict[str, str] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def note(
        self,
        name: str,
        heard: Tensor,
        *,
        channels_first: bool,
        shares: Float[Tensor, "b n"] | None = None,
    ) -> None:
        """shares: how much each place of each picture counts; None: all alike."""
        if name not in self.same_as:
            tensor, other = self._last
            self.same_as[name] = other if tensor is heard else name
        if self.same_as[name] != name:
            return
        self._last = (heard, name)
        rows = heard.movedim(1, -1) if channels_first else heard
        rows = rows.reshape(-1, rows.shape[-1]).float()
        own = rows if shares is None else rows * shares.reshape(-1, 1).to(rows)
        known = self.sums.get(name)
        product = (own.T @ rows).double().cpu()
        self.sums[name] = product if known is None else known + product
        count = len(rows) if shares is None else float(shares.sum())
        self.counts[name] = self.counts.get(name, 0.0) + count

    def moments(self) -> dict[str, Tensor]:
        means = {name: (self.sums[name] / self.counts[name]).float() for name in self.sums}
        return {name: means[other] for name, other in self.same_as.items()}


@torch.no_grad()
def _moments(
    model: DiffusionModel,
    layers: Mapping[str, nn.Module],
    asked: Sequence[tuple[str, int]],
    sampling: SamplingPlan,
    *,
    of_subject: bool = False,
) -> dict[str, Tensor]:
    ear, shown = _Ear(), list[Tensor]()  # the subject's share of each pixel in the batch, if asked

    def listen(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            heard, shares = given[0].detach(), None
            if shown and (places := _places(name, module, heard, model)):
                shares = F.interpolate(shown[0][:, None], places, mode="area").flatten(1)
            conv = isinstance(module, nn.Conv2d)
            ear.note(name, heard, channels_first=conv, shares=shares)

        return hook

    size = TOGETHER if model.pocket else 1
    for first in range(0, len(asked), size):
        batch = asked[first : first + size]
        words = model.embed([prompt for prompt, _ in batch])
        noise = torch.cat([initial_noise(model, seed) for _, seed in batch])
        seeds = [seed for _, seed in batch]
        if of_subject:
            drawn = denoise(model, noise, words, words, plan=sampling, picture_seeds=seeds)
            shown[:] = [_subjects(model, drawn)]
        handles = [m.register_forward_pre_hook(listen(name)) for name, m in layers.items()]
        try:
            words = model.embed([prompt for prompt, _ in batch])  # text encoders are listened to
            denoise(model, noise, words, words, plan=sampling, picture_seeds=seeds)
        finally:
            for handle in handles:
                handle.remove()
    return ear.moments()


def _subjects(model: DiffusionModel, latents: Tensor) -> Float[Tensor, "b h w"]:
    """The subject's share of each pixel; all of a picture in which none is found."""
    pictures = ((model.decode(latents) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    masks, _ = find_masks(pictures.cpu())
    return masks.to(latents.device)


def _places(
    name: str, module: nn.Module, heard: Tensor, model: DiffusionModel
) -> tuple[int, int] | None:
    """Height and width of what a layer hears; None where it hears no places of the picture."""
    if isinstance(module, nn.Conv2d):
        return int(heard.shape[-2]), int(heard.shape[-1])
    if heard.ndim != 3 or OF_WORDS.search(name):
        return None
    side = math.isqrt(heard.shape[1])
    of_latents = model.resolution // model.downscale
    return (side, side) if side**2 == heard.shape[1] and of_latents % side == 0 else None


def _channels(module: nn.Linear | nn.Conv2d) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels
