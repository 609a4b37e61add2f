"""Edits of a finished adapter: what each is, as laws of its dense update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.blend.random_adapters import LAYERS, random_adapter
from tests.tiny import write_tiny_sd

from variegate import formats, seeds
from variegate.adapter import Adapter, LayerUpdate, Masking, attached
from variegate.adapter.noun import halves
from variegate.adapter.updates import DoraUpdate
from variegate.blend.edits import (
    Align,
    Cap,
    Contrast,
    Edit,
    Ground,
    Late,
    ShrinkIntruders,
    Truncate,
    Weaken,
    contrast,
    edited,
    parts_of,
    power,
    through,
    told,
)
from variegate.blend.products import Product
from variegate.errors import AdapterError, RequestError
from variegate.models import DiffusionModel, load

SELF, CONV, TEXT = LAYERS


def normal(*shape: int, at: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=seeds.at(0, *at))


def moments(size: int, *, rank: int, at: str) -> torch.Tensor:
    rows = normal(rank, size, at=("moments", at)).double()
    return rows.T @ rows / rank


@pytest.fixture(scope="module")
def ground() -> Ground:
    weights = {name: 3 * normal(*shape, at=("weight", name)) for name, shape in LAYERS.items()}
    inputs = {name: shape[1] for name, shape in LAYERS.items()}
    return Ground(
        weights,
        {name: moments(n, rank=12, at=f"trigger {name}") for name, n in inputs.items()},
        {name: moments(n, rank=12, at=f"others {name}") for name, n in inputs.items()},
    )


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: adapter.delta(name).flatten(1).double() for name in LAYERS}


def assert_alike(one: Adapter, other: Adapter, atol: float = 1e-6) -> None:
    for name, delta in deltas(one).items():
        torch.testing.assert_close(delta, deltas(other)[name], atol=atol, rtol=1e-5)


@pytest.mark.parametrize(
    "edit",
    [
        Weaken("whole", 1.0),
        Weaken("cross", 0.0),
        Truncate(1.0, "largest"),
        Truncate(1.0, "smallest"),
        Cap(1.0),
        ShrinkIntruders(1.0),
        Contrast(0.0),
    ],
    ids=lambda edit: f"{edit.name} {list(told(edit).values())[1:]}",
)
def test_an_edit_that_changes_nothing_keeps_the_update(edit: Edit, ground: Ground) -> None:
    adapter = random_adapter(0)
    assert_alike(edited(adapter, (edit,), ground), adapter, atol=2e-6)


def test_at_strength_zero_the_adapter_is_the_base(ground: Ground) -> None:
    silent = edited(random_adapter(0), (Weaken("whole", 0.0),), ground)
    assert all(not update.delta().any() for update in silent.layers.values())


def test_a_part_alone_is_weakened(ground: Ground) -> None:
    adapter = random_adapter(0)
    found = edited(adapter, (Weaken("text", 0.5), Weaken("mid", 0.25)), ground)
    torch.testing.assert_close(found.delta(TEXT), 0.5 * adapter.delta(TEXT))
    torch.testing.assert_close(found.delta(SELF), 0.25 * adapter.delta(SELF))
    off = edited(adapter, (Weaken("text", 0.0),), ground)
    assert set(off.layers) == {SELF, CONV}


def test_parts_are_told_by_the_layers_names() -> None:
    attention = "attentions.0.transformer_blocks.0"
    names = [
        f"unet.up_blocks.0.{attention}.attn2.to_k",
        f"unet.down_blocks.0.{attention}.ff.net.2",
        "unet.mid_block.resnets.0.conv1",
        "transformer.transformer_blocks.5.attn.add_q_proj",
        "transformer.transformer_blocks.0.attn.to_q",
        TEXT,
    ]
    update = random_adapter(0).layers[SELF]
    found = parts_of(Adapter("sd1", dict.fromkeys(names, update)))
    assert {part: own for part, own in found.items() if own} == {
        "up": {names[0]},
        "down": {names[1]},
        "mid": {names[2]},
        "early": {names[4]},
        "late": {names[3]},
        "cross": {names[0], names[3]},
        "self": {names[4]},
        "feedforward": {names[1]},
        "convolution": {names[2]},
        "text": {TEXT},
    }


def test_truncation_is_that_of_the_singular_value_decomposition(ground: Ground) -> None:
    adapter = random_adapter(0)
    for name, delta in deltas(adapter).items():
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        largest = edited(adapter, (Truncate(2 / 3, "largest"),), ground)
        torch.testing.assert_close(
            largest.delta(name).flatten(1).double(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5, rtol=0
        )
        smallest = edited(adapter, (Truncate(1 / 3, "smallest"),), ground)
        torch.testing.assert_close(
            smallest.delta(name).flatten(1).double(),
            s[2] * torch.outer(u[:, 2], v[2]),
            atol=1e-5,
            rtol=0,
        )


def test_a_cap_lowers_the_large_singular_values_alone(ground: Ground) -> None:
    adapter = random_adapter(0)
    half, level = (edited(adapter, (Cap(q),), ground) for q in (0.5, 0.0))
    for name in LAYERS:
        values = adapter.spectrum(name)[:3]
        want = values.clamp(max=float(values[1]))
        torch.testing.assert_close(half.spectrum(name)[:3], want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            level.spectrum(name)[:3], values[2].expand(3), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("side", ["within", "outside"])
def test_alignment_is_a_projection(side: Any, ground: Ground) -> None:
    once = edited(random_adapter(0), (Align(0.4, side),), ground)
    assert_alike(edited(once, (Align(0.4, side),), ground), once, atol=1e-5)
    assert any(
        not torch.allclose(a, b)
        for a, b in zip(deltas(once).values(), deltas(random_adapter(0)).values(), strict=True)
    )
    for name, delta in deltas(once).items():
        count = max(1, round(0.4 * min(ground.weights[name].flatten(1).shape)))
        u = torch.linalg.svd(ground.weights[name].flatten(1).double()).U[:, :count]
        inner = u @ (u.T @ delta)
        want = delta if side == "within" else torch.zeros_like(delta)
        torch.testing.assert_close(inner, want, atol=1e-5, rtol=0)


def test_an_intruder_is_taken_off_and_the_bases_own_directions_stay() -> None:
    weight = torch.diag(torch.linspace(4, 1, 8))
    # A direction that is as far from each of the base's own as one can be.
    strange = torch.ones(8, 1) / 8**0.5
    ground = Ground({TEXT: weight})
    loud = Adapter("sd1", {TEXT: LayerUpdate(strange.T.clone(), 40 * strange, 1.0)})
    left = edited(loud, (ShrinkIntruders(0.0),), ground).delta(TEXT)
    grown = torch.linalg.svd(weight + left).U
    assert (
        float(((grown.T @ strange).abs() * torch.linalg.svdvals(weight + left)[:, None]).max()) < 2
    )
    own = Adapter("sd1", {TEXT: LayerUpdate(torch.eye(8)[:1], 2 * torch.eye(8)[:, :1], 1.0)})
    kept = edited(own, (ShrinkIntruders(0.0),), ground)
    torch.testing.assert_close(kept.delta(TEXT), own.delta(TEXT))


def test_contrast_silences_what_is_heard_anyway_and_keeps_what_the_trigger_brings() -> None:
    trigger = torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]))
    others = torch.diag(torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0]))
    adapter = random_adapter(0, layers=(TEXT,))
    ground = Ground(trigger={TEXT: trigger}, others={TEXT: others})
    found = edited(adapter, (Contrast(10.0),), ground).delta(TEXT)
    before = adapter.delta(TEXT)
    torch.testing.assert_close(found[:, :2], before[:, :2], rtol=2e-4, atol=1e-5)
    assert float(found[:, 2:5].abs().max()) < 1e-3 * float(before.abs().max())


def test_contrast_is_the_best_of_all_linear_maps(ground: Ground) -> None:
    trigger, others = ground.trigger[TEXT].double(), ground.others[TEXT].double()
    price, best = 3.0, contrast(ground.trigger[TEXT], ground.others[TEXT], 3.0)
    # Without the ridge the optimum is exact; with it, near.
    delta = random_adapter(0).delta(TEXT).double()

    def loss(turn: torch.Tensor) -> float:
        lost, left = delta - delta @ turn, delta @ turn
        return float(((lost @ trigger) * lost).sum() + price * ((left @ others) * left).sum())

    for i in range(8):
        other = best + 0.05 * normal(8, 8, at=("turn", i)).double()
        assert loss(best) < loss(other)
    assert loss(best) < min(loss(torch.eye(8).double()), loss(torch.zeros(8, 8).double()))


def test_contrast_leaves_the_adapter_as_strong_under_the_trigger(ground: Ground) -> None:
    adapter = random_adapter(0)
    found = edited(adapter, (Contrast(1.0),), ground)
    for name in LAYERS:
        was, now = (
            power(Product.of(name, a.layers[name]), ground.trigger[name]) for a in (adapter, found)
        )
        assert now == pytest.approx(was, rel=1e-4)
        silent = power(Product.of(name, found.layers[name]), ground.others[name])
        assert silent < power(Product.of(name, adapter.layers[name]), ground.others[name])


def test_a_convolution_is_turned_by_its_channels() -> None:
    kernel, turn = normal(5, 4, 3, 3, at=("kernel",)), normal(4, 4, at=("turned",))
    picture = normal(1, 4, 6, 6, at=("picture",))
    turned = through(kernel.flatten(1), turn).view_as(kernel)
    want = torch.nn.functional.conv2d(torch.einsum("ij,bjyx->biyx", turn, picture), kernel)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(picture, turned), want, atol=1e-4, rtol=1e-4
    )


def test_a_late_adapter_is_whole_at_low_noise_and_silent_at_high() -> None:
    adapter = random_adapter(0, layers=(SELF, CONV))
    late = edited(adapter, (Late(0.8, 0.5),), Ground())
    assert late.masking is not None
    sizes = []
    for t in (0, 499, 640, 801, 999):
        for name, update in late.layers.items():
            assert isinstance(update, LayerUpdate)
            learnt, start = halves(update)
            acting = int(late.masking.ranks(torch.tensor([t]), learnt.rank)[0])
            part = (
                learnt.up.flatten(1)[:, :acting] @ learnt.down.flatten(1)[:acting]
            ) * learnt.scale
            assert not start.delta().any()
            want = adapter.delta(name).flatten(1)
            if t < 500:
                torch.testing.assert_close(part, want, atol=1e-5, rtol=1e-5)
            elif t > 800:
                assert not part.any()
            else:
                sizes.append(float(part.norm() / want.norm()))
    assert all(0 < size < 1 for size in sizes)


def test_a_late_adapter_on_a_model_answers_as_it_or_as_the_base(tmp_path: Path) -> None:
    model: DiffusionModel = load(str(write_tiny_sd(tmp_path / "tiny")))
    name = next(
        f"unet.{path}"
        for path, _ in model.unet.named_modules()
        if path.endswith("attn1.to_q")  # type: ignore[attr-defined]
    )
    width = model.unet.get_submodule(name.removeprefix("unet.")).in_features  # type: ignore[attr-defined]
    update = LayerUpdate(normal(2, width, at=("d",)), 3 * normal(width, 2, at=("u",)), 2.0)
    adapter = Adapter("sd1", {name: update, TEXT: random_adapter(0).layers[TEXT]})
    late = edited(adapter, (Late(0.8, 0.5),), Ground())
    assert set(late.layers) == {name}
    again = formats.read(formats.write(late, tmp_path / "late.safetensors"))
    assert again.masking == late.masking
    noise, words = normal(1, 4, 8, 8, at=("noise",)), model.embed(["a dog"])

    def answer(learnt: Adapter | None, t: int) -> torch.Tensor:
        with torch.no_grad(), attached(model, learnt):
            return model.predict(noise, torch.tensor([t]), words)

    alone = Adapter("sd1", {name: update})
    torch.testing.assert_close(answer(again, 100), answer(alone, 100), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer(again, 900), answer(None, 900), atol=1e-6, rtol=0)
    assert not torch.allclose(answer(alone, 900), answer(None, 900), atol=1e-4)


def test_a_kind_whose_strength_no_file_holds_becomes_the_lora_that_it_is(
    ground: Ground, tmp_path: Path
) -> None:
    plain = random_adapter(0).layers[TEXT]
    assert isinstance(plain, LayerUpdate)
    dora = DoraUpdate(plain.down, plain.up, plain.alpha, magnitude=torch.linspace(1, 2, 8))
    adapter = Adapter("sd1", {TEXT: dora})
    found = edited(adapter, (Weaken("whole", 0.5),), ground)
    weight = ground.weights[TEXT]
    torch.testing.assert_close(found.delta(TEXT), 0.5 * dora.delta(weight), atol=1e-5, rtol=1e-5)
    formats.write(found, tmp_path / "half.safetensors")
    with pytest.raises(AdapterError, match=r"dora layer.*--base"):
        edited(adapter, (Weaken("whole", 0.5),), Ground())


def test_only_the_strength_of_a_tlora_can_be_changed(ground: Ground) -> None:
    masked = replace(random_adapter(0, rank=4), masking=Masking(None, 1000))
    assert edited(masked, (Weaken("whole", 0.5),), ground).masking == masked.masking
    with pytest.raises(AdapterError, match="only its strength can be changed"):
        edited(masked, (Cap(0.5),), ground)


def test_noise_levels_out_of_order_are_refused() -> None:
    with pytest.raises(RequestError, match=r"silent above 0\.3 and whole below 0\.5"):
        edited(random_adapter(0), (Late(0.3, 0.5),), Ground())


def test_an_edit_that_needs_the_base_says_so() -> None:
    with pytest.raises(AdapterError, match=r"the base's weight under .* is needed"):
        edited(random_adapter(0), (Align(0.1),), Ground())
