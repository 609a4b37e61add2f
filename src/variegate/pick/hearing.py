"""What an adapter's layers hear while pictures are drawn: the second moments of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variegate.adapter import Adapter, attached
from variegate.adapter.places import find
from variegate.measure import PlannedPrompt
from variegate.models import DiffusionModel
from variegate.recipe import SamplingPlan
from variegate.sample.denoise import denoise, initial_noise

WIDEST = 2048  # channels of an input, above which a matrix of moments takes too much memory
TOGETHER = 16  # prompts in a batch, on a CPU and of small pictures; one by one elsewhere


def heard(
    model: DiffusionModel,
    adapter: Adapter,
    plan: Sequence[PlannedPrompt],
    sampling: SamplingPlan,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer of the adapter, the second moments `[i, i]` of its input channels: with the adapter
    on under the plan's trigger prompts, and of the base under all that the plan asks without it.

    Means over prompts, denoising steps and places, without guidance. Layers that hear more than
    `WIDEST` channels are left out. Each prompt is drawn once, at the first of its seeds.
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
        own = _moments(model, layers, trigger, sampling)
    return own, without


class _Ear:
    """Sums of products of what layers hear; layers that hear the very same tensor share one."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.same_as: dict[str, str] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def note(self, name: str, heard: Tensor, *, channels_first: bool) -> None:
        if name not in self.same_as:
            tensor, other = self._last
            self.same_as[name] = other if tensor is heard else name
        if self.same_as[name] != name:
            return
        self._last = (heard, name)
        rows = heard.movedim(1, -1) if channels_first else heard
        rows = rows.reshape(-1, rows.shape[-1]).float()
        known = self.sums.get(name)
        product = (rows.T @ rows).double().cpu()
        self.sums[name] = product if known is None else known + product
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def moments(self) -> dict[str, Tensor]:
        means = {name: (self.sums[name] / self.counts[name]).float() for name in self.sums}
        return {name: means[other] for name, other in self.same_as.items()}


@torch.no_grad()
def _moments(
    model: DiffusionModel,
    layers: Mapping[str, nn.Module],
    asked: Sequence[tuple[str, int]],
    sampling: SamplingPlan,
) -> dict[str, Tensor]:
    ear = _Ear()

    def listen(name: str, conv: bool) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            ear.note(name, given[0].detach(), channels_first=conv)

        return hook

    handles = [
        module.register_forward_pre_hook(listen(name, isinstance(module, nn.Conv2d)))
        for name, module in layers.items()
    ]
    size = TOGETHER if model.pocket else 1
    try:
        for first in range(0, len(asked), size):
            batch = asked[first : first + size]
            words = model.embed([prompt for prompt, _ in batch])
            noise = torch.cat([initial_noise(model, seed) for _, seed in batch])
            seeds = [seed for _, seed in batch]
            denoise(model, noise, words, words, plan=sampling, picture_seeds=seeds)
    finally:
        for handle in handles:
            handle.remove()
    return ear.moments()


def _channels(module: nn.Linear | nn.Conv2d) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels
