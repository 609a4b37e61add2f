"""Laws of the adapter: it starts as nothing, leaves no trace, and its cheap maths is right."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from variegate import seeds
from variegate.adapter import Adapter, LayerUpdate, attach, attached
from variegate.errors import AdapterError
from variegate.recipe import LoraPlan

EVERY_LAYER = LoraPlan(
    rank=4,
    alpha=2.0,
    layers="attention+feedforward+convolution",
    convolution_rank=2,
    text_encoder=True,
)


@pytest.fixture
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=50,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                bos_token_id=48,
                eos_token_id=49,
                pad_token_id=49,
            )
        )
    unet.eval().requires_grad_(False)
    text.eval().requires_grad_(False)
    return SimpleNamespace(name="tiny", family="sd1", unet=unet, text_encoder=text)


def answer(model: Any) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=seeds.at(0, "x"))
    tokens = torch.arange(16).view(2, 8)
    words = model.text_encoder(tokens).last_hidden_state
    out: torch.Tensor = model.unet(x, torch.tensor([3, 700]), words).sample
    return out


def random_adapter(model: Any, seed: int = 0) -> Adapter:
    on = attach(model, EVERY_LAYER, seed=seed)
    layers = {
        name: LayerUpdate(u.down, torch.randn(u.up.shape, generator=seeds.at(seed, name)), u.alpha)
        for name, u in on.adapter().layers.items()
    }
    on.detach()
    return Adapter("sd1", layers)


def test_a_fresh_adapter_changes_nothing_to_the_bit(model: Any) -> None:
    before = answer(model)
    on = attach(model, EVERY_LAYER, seed=1)
    assert torch.equal(answer(model), before)
    on.detach()


def test_silenced_and_let_go_the_model_answers_as_the_base_to_the_bit(model: Any) -> None:
    before, names = answer(model), [n for n, _ in model.unet.named_modules()]
    learnt = random_adapter(model)
    on = attach(model, EVERY_LAYER, seed=1)
    on.load(learnt)
    changed = answer(model)
    assert not torch.allclose(changed, before)
    with on.silenced():
        assert torch.equal(answer(model), before)
        with on.silenced():
            assert torch.equal(answer(model), before)
        assert torch.equal(answer(model), before)
    assert torch.equal(answer(model), changed)
    on.detach()
    assert torch.equal(answer(model), before)
    assert [n for n, _ in model.unet.named_modules()] == names
    assert not hasattr(model.unet, "peft_config")
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_attached_adds_the_dense_deltas_and_leaves_no_trace(model: Any) -> None:
    before, learnt = answer(model), random_adapter(model)
    with attached(model, learnt, strength=0.5):
        inside = answer(model)
    assert torch.equal(answer(model), before)
    for name in learnt.layers:
        part, _, path = name.partition(".")
        layer = getattr(model, part).get_submodule(path.removeprefix("text_model."))
        layer.weight.data += 0.5 * learnt.delta(name)
    torch.testing.assert_close(inside, answer(model), atol=1e-4, rtol=1e-4)


def test_strength_zero_is_the_base_and_no_adapter_is_the_base(model: Any) -> None:
    before, learnt = answer(model), random_adapter(model)
    with attached(model, learnt, strength=0.0):
        assert torch.equal(answer(model), before)
    with attached(model, None):
        assert torch.equal(answer(model), before)


def test_layers_may_differ_in_rank_and_alpha(model: Any) -> None:
    learnt = random_adapter(model)
    name, update = next(iter(learnt.layers.items()))
    small = LayerUpdate(update.down[:1], update.up[:, :1], 3.0)
    mixed = Adapter("sd1", {**learnt.layers, name: small})
    with attached(model, mixed):
        layer = model.unet.get_submodule(name.removeprefix("unet."))
        assert layer.r["default"] == 1
        assert layer.scaling["default"] == 3.0
    assert mixed.rank == 4


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        ("attention", {"attn"}),
        ("attention+feedforward", {"attn", "ff"}),
        ("attention+feedforward+convolution", {"attn", "ff", "resnet", "resample", "proj"}),
    ],
)
def test_the_plan_says_which_layers_learn(layers: Any, kinds: set[str], model: Any) -> None:
    spelt = {
        "attn": r"\.attn[12]\.to_(q|k|v|out\.0)$",
        "ff": r"\.ff\.net\.(0\.proj|2)$",
        "resnet": r"\.resnets\.\d\.(conv1|conv2|conv_shortcut|time_emb_proj)$",
        "resample": r"\.(down|up)samplers\.0\.conv$",
        "proj": r"\.attentions\.\d\.proj_(in|out)$",
    }
    on = attach(model, LoraPlan(rank=4, alpha=8.0, layers=layers, convolution_rank=2), seed=0)
    updates = on.adapter().layers
    on.detach()
    expected = {
        f"unet.{path}"
        for path, _ in model.unet.named_modules()
        if any(re.search(spelt[kind], path) for kind in kinds)
    }
    assert set(updates) == expected
    for update in updates.values():
        assert update.rank == (2 if update.down.ndim == 4 else 4)
        assert update.scale == 2.0


def test_convolutions_can_carry_updates(model: Any) -> None:
    before = answer(model)
    weight = model.unet.conv_in.weight
    down = torch.randn(2, *weight.shape[1:], generator=seeds.at(0, "down"))
    up = torch.randn(weight.shape[0], 2, 1, 1, generator=seeds.at(0, "up"))
    learnt = Adapter("sd1", {"unet.conv_in": LayerUpdate(down, up, 2.0)})
    with attached(model, learnt):
        inside = answer(model)
    assert torch.equal(answer(model), before)
    weight.data += learnt.delta("unet.conv_in")
    torch.testing.assert_close(inside, answer(model), atol=1e-4, rtol=1e-4)


def test_first_weights_depend_on_the_seed_alone(model: Any) -> None:
    downs = []
    for seed, global_seed in ((1, 5), (1, 6), (2, 5)):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            state = torch.random.get_rng_state()
            on = attach(model, EVERY_LAYER, seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
        downs.append(next(iter(on.adapter().layers.values())).down)
        on.detach()
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])


def test_the_spectrum_is_that_of_the_dense_update(model: Any) -> None:
    learnt = random_adapter(model)
    for name, update in learnt.layers.items():
        dense = torch.linalg.svdvals(update.delta().flatten(1).double())[: update.rank].float()
        torch.testing.assert_close(learnt.spectrum(name), dense, atol=1e-4, rtol=1e-4)


def test_scaling_scales_the_update_and_its_spectrum(model: Any) -> None:
    learnt = random_adapter(model)
    name = next(iter(learnt.layers))
    torch.testing.assert_close(learnt.scaled(-0.5).delta(name), -0.5 * learnt.delta(name))
    torch.testing.assert_close(learnt.scaled(-0.5).spectrum(name), 0.5 * learnt.spectrum(name))


def test_an_adapter_that_does_not_fit_is_refused_with_facts(model: Any) -> None:
    update = LayerUpdate(torch.zeros(2, 8), torch.zeros(8, 2), 2.0)
    with (
        pytest.raises(AdapterError, match="1 of 1 layers are not in it"),
        attached(model, Adapter("sdxl", {"unet.nowhere.to_q": update})),
    ):
        pass
    name = next(iter(random_adapter(model).layers))
    wrong = LayerUpdate(torch.zeros(2, 5), torch.zeros(7, 2), 2.0)
    with (
        pytest.raises(AdapterError, match="another shape"),
        attached(model, Adapter("sd1", {name: wrong})),
    ):
        pass


def test_a_second_adapter_on_top_is_refused(model: Any) -> None:
    learnt = random_adapter(model)
    with (
        attached(model, learnt),
        pytest.raises(AdapterError, match="already carries an adapter"),
        attached(model, learnt),
    ):
        pass


def test_old_and_new_spellings_of_the_text_encoders_path_are_found(model: Any) -> None:
    learnt = random_adapter(model)
    text = {n: u for n, u in learnt.layers.items() if n.startswith("text_encoder.text_model.")}
    assert len(text) == 4
    short = {n.replace("text_model.", ""): u for n, u in text.items()}
    answers = []
    for layers in (text, short):
        with attached(model, Adapter("sd1", layers)):
            answers.append(answer(model))
    assert torch.equal(*answers)


def test_factors_that_share_no_rank_are_refused() -> None:
    with pytest.raises(AdapterError, match="do not share a rank"):
        LayerUpdate(torch.zeros(2, 8), torch.zeros(8, 3), 2.0)
