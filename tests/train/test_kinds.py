"""Laws of every kind of adapter: it starts as nothing, learns, leaves no trace, and is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from variegate import formats, seeds
from variegate.adapter import Adapter, Attached, Dial, LayerUpdate, Masking, attach, attached
from variegate.adapter.updates import DoraUpdate, LohaUpdate, LokrUpdate
from variegate.errors import AdapterError
from variegate.recipe import AdapterPlan, Recipe

EVERYWHERE = "attention+feedforward+convolution"
PLANS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 2.0, "layers": EVERYWHERE, "convolution_rank": 2},
    "lora rslora": {"rank": 4, "scale": "rslora", "init": "orthogonal"},
    "lora mixed": {"rank": 4, "ranks": {"attn2": 2}, "alphas": {"attn1": 7.0}},
    "dora": {"rank": 3, "alpha": 2.0, "layers": EVERYWHERE},
    "loha": {"rank": 2, "alpha": 1.5, "layers": EVERYWHERE},
    "lokr": {"rank": 2, "alpha": 1.5, "layers": EVERYWHERE},
    "lokr both": {"rank": 1, "factor": 4, "decompose_both": True, "layers": EVERYWHERE},
    "lokr whole": {"rank": 64, "alpha": 3.0},
    "oft": {"block_size": 4, "layers": "attention+feedforward"},
    "boft": {"block_size": 4, "factors": 2, "layers": "attention+feedforward"},
    "sparse": {"rank": 2, "layers": "attention+feedforward"},
    "tlora": {"rank": 4, "layers": EVERYWHERE},
}
# Kinds that take something off that was put on, or take biases off to put them on again.
NEARLY = {"tlora": 1e-5, "boft": 1e-5}
TEXTLESS = ("tlora",)


def plan_of(name: str, **more: Any) -> AdapterPlan:
    kind = name.split()[0]
    text = {} if kind in TEXTLESS else {"text_encoder": True}
    return Recipe.build({"adapter": {"kind": kind, **text, **PLANS[name], **more}}).adapter


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
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
    schedule = SimpleNamespace(timesteps=1000)
    return SimpleNamespace(
        name="tiny", family="sd1", unet=unet, text_encoder=text, schedule=schedule
    )


def answer(model: Any, times: tuple[int, ...] = (3, 700)) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=seeds.at(0, "x"))
    tokens = torch.arange(16).view(2, 8)
    words = model.text_encoder(tokens).last_hidden_state
    out: Tensor = model.unet(x, torch.tensor(times), words).sample
    return out


def learn(model: Any, on: Attached, steps: int = 2) -> list[str]:
    """A few steps towards another answer; the factors that never got a gradient."""
    named = dict(on.named_parameters())
    optimizer = torch.optim.Adam(named.values(), lr=0.02)
    moved: set[str] = set()
    goal = torch.randn(2, 4, 8, 8, generator=seeds.at(0, "goal"))
    for _ in range(steps):
        optimizer.zero_grad()
        (answer(model) - goal).square().mean().backward()
        moved |= {n for n, p in named.items() if p.grad is not None and bool(p.grad.any())}
        optimizer.step()
    return sorted(set(named) - moved)


KEPT: dict[str, Adapter] = {}


def learnt(model: Any, name: str, **more: Any) -> Adapter:
    """What a plan learns; made once, since it is always the same."""
    if not more and name in KEPT:
        return KEPT[name]
    on = attach(model, plan_of(name, **more), seed=1)
    learn(model, on)
    found = on.adapter()
    on.detach()
    return found if more else KEPT.setdefault(name, found)


def layer_of(model: Any, name: str) -> Any:
    part, _, path = name.partition(".")
    return getattr(model, part).get_submodule(path.removeprefix("text_model."))


def dense(model: Any, adapter: Adapter, strength: float = 1.0) -> Tensor:
    """The answer of the bare model whose weights have the dense updates added."""
    weights = {name: layer_of(model, name).weight for name in adapter.layers}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data += strength * adapter.delta(name, before[name])
    try:
        with torch.no_grad():
            return answer(model)
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


@pytest.mark.parametrize("name", PLANS)
def test_a_fresh_adapter_changes_nothing_then_learns_with_every_factor_and_leaves_no_trace(
    name: str, model: Any
) -> None:
    before = answer(model)
    modules = {n: id(m) for n, m in model.unet.named_modules()}
    modes = [m.training for m in model.unet.modules()]
    on = attach(model, plan_of(name), seed=1)
    torch.testing.assert_close(answer(model), before, atol=NEARLY.get(name, 0.0), rtol=0)
    if name != "boft":
        assert torch.equal(answer(model), before)
    idle = learn(model, on)
    assert idle == []
    changed = answer(model).detach()
    assert float((changed - before).abs().max()) > 1e-3
    with on.silenced():
        assert torch.equal(answer(model), before)
        with on.silenced():
            assert torch.equal(answer(model), before)
        assert torch.equal(answer(model), before)
    assert torch.equal(answer(model), changed)
    assert all(p.requires_grad for _, p in on.named_parameters())
    on.detach()
    assert torch.equal(answer(model), before)
    assert {n: id(m) for n, m in model.unet.named_modules()} == modules
    assert [m.training for m in model.unet.modules()] == modes
    assert not hasattr(model.unet, "peft_config")
    assert not model.unet._forward_pre_hooks
    assert not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.parametrize("name", PLANS)
def test_what_was_learnt_is_kept_in_a_file_and_adds_its_dense_deltas(
    name: str, model: Any, tmp_path: Path
) -> None:
    on = attach(model, plan_of(name), seed=1)
    learn(model, on)
    with torch.no_grad():
        trained, full = answer(model), answer(model, (0, 0))
    found = on.adapter(formats.describe(trigger="zqx"))
    on.detach()
    file = formats.write(found, tmp_path / "a.safetensors")
    back = formats.read(file)
    assert back.kind == found.kind == name.split()[0]
    assert back.masking == found.masking
    on = attach(model, plan_of(name), seed=2)
    on.load(found if found.factors else back)
    assert on.adapter().digest() == found.digest()
    on.detach()
    for adapter in (found, back):
        with attached(model, adapter), torch.no_grad():
            torch.testing.assert_close(answer(model), trained, atol=1e-5, rtol=1e-5)
    if name == "tlora":
        trained = full  # at t = 0 all ranks act
        with attached(model, found), torch.no_grad():
            torch.testing.assert_close(answer(model, (0, 0)), full, atol=1e-5, rtol=1e-5)
        plain = Adapter("sd1", found.layers)
        with attached(model, plain), torch.no_grad():
            torch.testing.assert_close(answer(model, (0, 0)), full, atol=1e-5, rtol=1e-5)
            unmasked = answer(model)
        torch.testing.assert_close(dense(model, found), unmasked, atol=1e-4, rtol=1e-4)
        return
    torch.testing.assert_close(dense(model, back), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["lora", "dora", "loha", "lokr", "lokr whole", "oft", "boft", "sparse"]
)
def test_half_the_strength_adds_half_the_delta_and_none_the_base(name: str, model: Any) -> None:
    before, found = answer(model), learnt(model, name)
    with attached(model, found, strength=0.5), torch.no_grad():
        half = answer(model)
    torch.testing.assert_close(half, dense(model, found, 0.5), atol=1e-4, rtol=1e-4)
    layer = next(iter(found.layers))
    weight = layer_of(model, layer).weight
    torch.testing.assert_close(
        found.scaled(0.5).delta(layer, weight), 0.5 * found.delta(layer, weight)
    )
    with attached(model, found, strength=0.0), torch.no_grad():
        assert torch.equal(answer(model), before)


@pytest.mark.parametrize("name", PLANS)
def test_rows_of_one_call_have_strengths_of_their_own(name: str, model: Any) -> None:
    """Each as if the whole adapter were scaled for it alone; none and all to the bit."""
    before, found = answer(model), learnt(model, name)
    with attached(model, found), torch.no_grad():
        full = answer(model)
    with attached(model, found, strength=0.5), torch.no_grad():
        half = answer(model)
    dial = Dial()
    with attached(model, found, dial=dial), torch.no_grad():
        assert torch.equal(answer(model), full)
        dial.turn([0.5])
        torch.testing.assert_close(answer(model), half, atol=1e-5, rtol=1e-5)
        for rows, wanted in (([0.0, 0.5], (before, half)), ([0.5, 1.0], (half, full))):
            dial.turn(rows)
            mixed = answer(model)
            torch.testing.assert_close(mixed[0], wanted[0][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mixed[1], wanted[1][1], atol=1e-5, rtol=1e-5)
        assert float((half - full).abs().max()) > 1e-4
        dial.turn([0.0, 0.0])
        assert torch.equal(answer(model), before)
        dial.turn([1.0, 1.0])
        assert torch.equal(answer(model), full)
        dial.turn([0.5] * 3)
        with pytest.raises(AdapterError, match=r"2 rows and 3 strengths|1 rows and 3"):
            answer(model)
    assert torch.equal(answer(model), before)


@pytest.mark.parametrize("name", PLANS)
def test_the_spectrum_is_that_of_the_dense_update(name: str, model: Any) -> None:
    found = learnt(model, name)
    for layer in found.layers:
        weight = layer_of(model, layer).weight
        exact = torch.linalg.svdvals(found.delta(layer, weight).flatten(1).double()).float()
        cheap = found.spectrum(layer, weight)
        count = min(len(exact), len(cheap))
        torch.testing.assert_close(cheap[:count], exact[:count], atol=1e-4, rtol=1e-4)
        assert not bool((torch.cat([exact[count:], cheap[count:]]) > 1e-4).any())


def test_kinds_that_turn_the_weight_say_that_they_need_it(model: Any) -> None:
    found = learnt(model, "oft")
    with pytest.raises(AdapterError, match="depends on the base's weight"):
        found.delta(next(iter(found.layers)))


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "lokr", "boft", "tlora"])
def test_dropout_is_done_again_bit_for_bit_and_is_off_while_watched(name: str, model: Any) -> None:
    # LyCORIS's kinds drop rows, and layers as small as these might lose all of theirs.
    on = attach(model, plan_of(name, dropout=0.1 if name in ("loha", "lokr") else 0.5), seed=1)
    learn(model, on)
    answers = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            answers.append(answer(model))
    with on.watched():
        calm = [answer(model) for _ in range(2)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        again = answer(model)
    on.detach()
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], again)
    assert not torch.equal(answers[0], answers[2])
    assert torch.equal(*calm)


@pytest.mark.parametrize("name", PLANS)
def test_without_dropout_nothing_is_drawn_and_first_weights_depend_on_the_seed(
    name: str, model: Any
) -> None:
    states = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        with torch.random.fork_rng():
            torch.manual_seed(noise)
            state = torch.random.get_rng_state()
            on = attach(model, plan_of(name), seed=seed)
            answer(model)
            assert torch.equal(torch.random.get_rng_state(), state)
        found = on.adapter().layers
        states.append([t for u in found.values() for t in u.factors().values()])
        on.detach()
    assert all(map(torch.equal, states[0], states[1]))
    if name not in ("oft", "boft"):  # these start from no rotation at all
        assert not all(map(torch.equal, states[0], states[2]))


def test_a_tlora_masks_more_the_noisier_each_row_is(model: Any) -> None:
    masking = Masking(min_rank=None, timesteps=1000)
    times = torch.tensor([0, 1, 499, 500, 501, 999, 1000])
    assert masking.ranks(times, 64).tolist() == [64, 63, 48, 48, 47, 32, 32]
    assert Masking(1, 1000).ranks(torch.tensor([999.5]), 4).tolist() == [1]
    found = learnt(model, "tlora", min_rank=1)
    assert found.masking == Masking(1, 1000)
    with attached(model, found), torch.no_grad():
        rows = answer(model, (3, 700))
        alone = [answer(model, (t, t)) for t in (3, 700)]
    torch.testing.assert_close(rows[0], alone[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[1], alone[1][1], atol=1e-5, rtol=1e-5)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    update = found.layers[layer]
    assert isinstance(update, LayerUpdate)
    kept = [i for i in range(8) if i in (0, 1, 4, 5)]  # two of four ranks, twice over
    cut = LayerUpdate(update.down[kept], update.up[:, kept], update.alpha / 2)
    x = torch.randn(2, 5, 16, generator=seeds.at(0, "x"))
    with attached(model, Adapter("sd1", {layer: update}, {}, found.masking)), torch.no_grad():
        answer(model, (400, 400))  # floor(3 * 600 / 1000) + 1 = 2
        masked = layer_of(model, layer)(x)
    base = layer_of(model, layer)
    torch.testing.assert_close(masked, base(x) + x @ cut.delta().T, atol=1e-5, rtol=1e-5)


def test_a_tloras_layer_outside_of_its_network_is_refused(model: Any) -> None:
    found = learnt(model, "tlora")
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    with attached(model, found), pytest.raises(AdapterError, match="5 rows and none timesteps"):
        layer_of(model, layer)(torch.zeros(5, 2, 16))


def test_a_tloras_file_is_a_lora_of_twice_the_rank_for_every_tool(
    model: Any, tmp_path: Path
) -> None:
    found = learnt(model, "tlora")
    file = formats.write(found, tmp_path / "a.safetensors")
    assert {key.partition(".")[2] for key in load_file(file)} == {
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
    }
    assert formats.inspect(file)["rank"] == 8
    assert formats.inspect(file)["kind"] == "tlora"
    assert {u.rank for u in found.layers.values()} == {8}
    target, _ = formats.convert(file, tmp_path / "d.safetensors", "diffusers")
    assert formats.read(target).masking == found.masking
    on = attach(model, plan_of("tlora"), seed=1)
    with pytest.raises(AdapterError, match="from a checkpoint"):
        on.load(formats.read(file))
    on.detach()


def test_ortho_lora_starts_from_the_last_components_and_takes_them_off(model: Any) -> None:
    on = attach(model, plan_of("tlora"), seed=1)
    for name, parameter in on.named_parameters():
        if name.endswith(".down"):
            rows = parameter.detach().flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
        elif name.endswith(".scale"):
            assert bool((parameter.diff() <= 0).all())
    for update in on.adapter().layers.values():
        assert float(update.delta().abs().max()) < 1e-6
    on.detach()


def test_rank_stabilised_and_orthogonal_is_what_it_says(model: Any, tmp_path: Path) -> None:
    on = attach(model, plan_of("lora rslora", alpha=3.0), seed=1)
    found = on.adapter()
    on.detach()
    back = formats.read(formats.write(found, tmp_path / "a.safetensors"))
    for update in back.layers.values():
        assert isinstance(update, LayerUpdate)
        assert update.scale == pytest.approx(3.0 / 4**0.5, rel=1e-6)
        gram = update.down @ update.down.T
        torch.testing.assert_close(gram, torch.eye(4) / 3, atol=1e-5, rtol=0)


def test_ranks_and_alphas_go_by_the_parts_of_names(model: Any) -> None:
    plan = plan_of(
        "lora",
        alpha=6.0,
        text_encoder_rank=1,
        ranks={"attn2": 2, "attn2.to_k": 5},
        alphas={"attn1": 9.0},
    )
    on = attach(model, plan, seed=1)
    found = on.adapter().layers
    on.detach()
    for name, update in found.items():
        assert isinstance(update, LayerUpdate)
        if name.endswith("attn2.to_k"):
            assert (update.rank, update.scale) == (5, 2.0)
        elif "attn2" in name:
            assert (update.rank, update.scale) == (2, 2.0)
        elif "attn1" in name:
            assert (update.rank, update.scale) == (3, 3.0)
        elif name.startswith("text_encoder"):
            assert (update.rank, update.scale) == (1, 2.0)
        else:
            assert update.scale == 2.0
    with pytest.raises(AdapterError, match=r"adapter\.ranks: 'atn2' names none"):
        attach(model, plan_of("lora", ranks={"atn2": 1}), seed=1)


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("sparse", {"rank": 40}, "adapter.rank is at most"),
        ("tlora", {"rank": 20}, "adapter.rank is at most"),
        ("boft", {"factors": 6}, "do not fall into blocks"),
    ],
)
def test_a_plan_too_large_for_a_layer_is_refused(
    name: str, more: dict[str, Any], told: str, model: Any
) -> None:
    with pytest.raises(AdapterError, match=told):
        attach(model, plan_of(name, **more), seed=1)
    assert not any("lora" in n for n, _ in model.unet.named_modules())


def test_an_oft_is_not_put_on_a_convolution(model: Any) -> None:
    found = learnt(model, "oft")
    update = next(iter(found.layers.values()))
    with (
        pytest.raises(AdapterError, match="have another shape"),
        attached(model, Adapter("sd1", {"unet.conv_out": update})),
    ):
        pass


def test_a_second_adapter_of_any_kind_is_refused(model: Any) -> None:
    kinds = [learnt(model, name) for name in ("lora", "loha", "tlora")]
    for first in kinds:
        for second in kinds:
            with (
                attached(model, first),
                pytest.raises(AdapterError, match="already carries an adapter"),
                attached(model, second),
            ):
                pass


def test_layers_of_several_kinds_may_meet_in_one_adapter(model: Any, tmp_path: Path) -> None:
    layers = {
        name: update
        for kind in ("lora", "loha", "dora")
        for name, update in learnt(model, kind).layers.items()
        if {"lora": "attn1", "loha": "attn2", "dora": ".ff."}[kind] in name
    }
    mixed = Adapter("sd1", layers)
    back = formats.read(formats.write(mixed, tmp_path / "a.safetensors"))
    assert back.kind == "mixed"
    with attached(model, back), torch.no_grad():
        together = answer(model)
    torch.testing.assert_close(dense(model, mixed), together, atol=1e-4, rtol=1e-4)


def test_the_keys_are_lycoriss_where_it_has_them(model: Any, tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    expected = {
        "dora": {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"},
        "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
        "lokr": {"lokr_w1", "lokr_w2", "alpha"},
        "lokr both": {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "alpha"},
        "oft": {"oft_input_blocks"},
        "boft": {"boft_rotations", "boft_scale"},
        "sparse": {"sparse_values", "sparse_indices", "sparse_shape"},
    }
    for name, keys in expected.items():
        file = formats.write(learnt(model, name), tmp_path / f"{name}.safetensors")
        stored = load_file(file)
        assert {k.removeprefix(f"{stem}.") for k in stored if k.startswith(stem)} == keys
        facts = formats.inspect(file)
        assert facts["kind"] == name.split()[0]
        assert facts["problem"] is None
        own = name in ("oft", "boft", "sparse")
        assert ("keys" in facts["notes"]) == own
        module = "variegate" if own else "lycoris.kohya"
        assert facts["metadata"]["ss_network_module"] == module


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_a_form_that_cannot_hold_a_kind_says_so(to: Any, model: Any, tmp_path: Path) -> None:
    file = formats.write(learnt(model, "loha"), tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="is a loha layer; the forms of diffusers and PEFT"):
        formats.convert(file, tmp_path / "b.safetensors", to)
    weak = learnt(model, "dora").scaled(0.5)
    with pytest.raises(AdapterError, match="a strength that no file can hold"):
        formats.write(weak, tmp_path / "c.safetensors")


@pytest.mark.parametrize("width", [4, 1])
def test_lycoriss_updates_are_what_its_formulas_say(width: int) -> None:
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    a, b, c, d = some(6, 2), some(2, 9 * width), some(6, 2), some(2, 9 * width)
    loha = LohaUpdate(a, b, c, d, alpha=3.0)
    for i in range(6):
        for j in range(9 * width):
            by_hand = float((a[i] * b[:, j]).sum() * (c[i] * d[:, j]).sum()) * 1.5
            assert float(loha.delta()[i, j]) == pytest.approx(by_hand, abs=1e-5)
    small, left, right = some(2, 3), some(3, 2), some(2, 4)
    lokr = LokrUpdate(1.0, w1=small, w2_a=left, w2_b=right)
    for i in range(6):
        for j in range(12):
            by_hand = float(small[i // 3, j // 4] * (left[i % 3] @ right[:, j % 4])) / 2
            assert float(lokr.delta()[i, j]) == pytest.approx(by_hand, abs=1e-5)
    weight = some(6, 5)
    dora = DoraUpdate(some(2, 5), torch.zeros(6, 2), 2.0, weight.norm(dim=1))
    torch.testing.assert_close(dora.delta(weight), torch.zeros(6, 5), atol=1e-6, rtol=0)
    longer = DoraUpdate(some(2, 5), torch.zeros(6, 2), 2.0, 3 * weight.norm(dim=1))
    torch.testing.assert_close(longer.delta(weight), 2 * weight)


def test_sampling_sees_a_tloras_masks_through_the_digest(model: Any) -> None:
    found = learnt(model, "tlora")
    assert found.digest() != Adapter("sd1", found.layers).digest()
    assert found.digest() == Adapter("sd1", found.layers, {}, found.masking).digest()


def test_half_precision_bases_carry_every_kind(model: Any) -> None:
    del model  # a linear layer is enough, and half precision is slow on a CPU
    unet = nn.Module()
    unet.mid_block = nn.ModuleDict({"to_q": nn.Linear(16, 16).bfloat16()})
    small = SimpleNamespace(name="half", family="sd1", unet=unet)
    layer = "unet.mid_block.to_q"
    x = torch.randn(2, 16, generator=seeds.at(0, "x"))
    for kind in ("lora", "dora", "loha", "lokr", "oft", "boft", "sparse"):
        update = _random_update(kind)
        weight = unet.mid_block["to_q"].weight
        expected = x @ (weight.float() + update.delta(weight)).T + unet.mid_block["to_q"].bias
        with attached(small, Adapter("sd1", {layer: update})), torch.no_grad():
            found = unet.mid_block["to_q"](x.bfloat16())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def _random_update(kind: str) -> Any:
    plain = nn.Module()
    plain.mid_block = nn.ModuleDict(
        {"transformer_blocks": nn.ModuleDict({"to_q": nn.Linear(16, 16)})}
    )
    small = SimpleNamespace(name="one", family="sd1", unet=plain)
    plan = Recipe.build({"adapter": {"kind": kind, **PLANS[kind]}}).adapter
    on = attach(small, plan, seed=0)
    for name, parameter in on.named_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=seeds.at(0, name))
    found = next(iter(on.adapter().layers.values()))
    on.detach()
    return found
