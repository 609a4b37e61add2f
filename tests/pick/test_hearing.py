"""What layers hear: moments of their inputs, and no trace of the listening."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd

from variegate import seeds
from variegate.adapter import Adapter, LayerUpdate
from variegate.measure import PlannedPrompt
from variegate.models import load
from variegate.pick.hearing import heard
from variegate.recipe import SamplingPlan

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
PLAN = (
    PlannedPrompt("class", "a dog", "a dog", (0,)),
    PlannedPrompt("trigger", "a zqx", "a dog", (1,)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")))


def learnt(model: Any) -> Adapter:
    layers = {}
    for end in ("attn1.to_q", "attn1.to_k", "attn2.to_k", "attn2.to_v"):
        module = model.unet.get_submodule(f"{BLOCK}.{end}".removeprefix("unet."))
        layers[f"{BLOCK}.{end}"] = LayerUpdate(
            torch.randn(2, module.in_features, generator=seeds.at(0, end, "down")),
            torch.randn(module.out_features, 2, generator=seeds.at(0, end, "up")),
            alpha=2.0,
        )
    return Adapter("sd1", layers)


def test_moments_are_those_of_the_inputs(model: Any) -> None:
    adapter, steps = learnt(model), 2
    own, without = heard(model, adapter, PLAN, SamplingPlan(steps=steps, guidance_scale=1.0))
    words = model.embed(["a dog"]).embeddings[0].double()
    want = (words.T @ words / len(words)).float()
    torch.testing.assert_close(without[f"{BLOCK}.attn2.to_k"], want, atol=1e-4, rtol=1e-3)
    for moments in (own, without):
        assert set(moments) == set(adapter.layers)
        for pair in (("attn1.to_q", "attn1.to_k"), ("attn2.to_k", "attn2.to_v")):
            one, other = (moments[f"{BLOCK}.{end}"] for end in pair)
            torch.testing.assert_close(one, other)
        for moment in moments.values():
            torch.testing.assert_close(moment, moment.mT)
            assert float(torch.linalg.eigvalsh(moment.double()).min()) > -1e-4
    assert not torch.allclose(own[f"{BLOCK}.attn2.to_k"], without[f"{BLOCK}.attn2.to_k"])


def test_under_the_trigger_only_places_of_the_subject_count(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, plan, sampling = learnt(model), PLAN, SamplingPlan(steps=2, guidance_scale=1.0)

    def left_half(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        masks = torch.zeros(len(images), *images.shape[2:])
        masks[..., : masks.shape[-1] // 2] = 1
        return masks, torch.ones(len(images))

    name, inputs = f"{BLOCK}.attn1.to_q", list[torch.Tensor]()
    layer = model.unet.get_submodule(name.removeprefix("unet."))
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    whole, without = heard(model, adapter, plan, sampling)
    handle.remove()
    under_trigger = torch.cat(inputs[-sampling.steps :])
    side = math.isqrt(under_trigger.shape[1])
    own = under_trigger.unflatten(1, (side, side))[:, :, : side // 2].flatten(0, 2).double()
    monkeypatch.setattr("variegate.pick.hearing.find_masks", left_half)
    masked, still = heard(model, adapter, plan, sampling)
    torch.testing.assert_close(masked[name], (own.T @ own / len(own)).float(), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(masked[name], whole[name], rtol=1e-2)
    words = f"{BLOCK}.attn2.to_k"
    torch.testing.assert_close(masked[words], whole[words])
    torch.testing.assert_close(still[name], without[name])


def test_listening_leaves_no_trace(model: Any) -> None:
    heard(model, learnt(model), PLAN, SamplingPlan(steps=1, guidance_scale=1.0))
    assert not any(module._forward_pre_hooks for module in model.unet.modules())
