"""A base in 8 or 4 bits: what is learnt on it is an ordinary adapter, in a part of the memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd, write_tiny_sd3
from tests.train.scenes import tiny_recipe, write_pictures
from torch import nn

from variegate import formats, seeds
from variegate import trial as trial_page
from variegate.adapter import attach, attached
from variegate.errors import Interrupted, RecipeError
from variegate.models import load
from variegate.models.quantised import QuantisedLinear
from variegate.recipe import ADAPTER_KINDS, LoraPlan, Recipe
from variegate.run import Run
from variegate.train import resume, train
from variegate.train.fit import count

BITS = (8, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("quantised")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images", 3)
    return folder


@pytest.fixture(params=BITS)
def model(place: Path, request: Any) -> Any:
    return load(str(place / "base"), bits=request.param)


def tiny(place: Path, bits: int | None, **entries: Any) -> Recipe:
    memory = {"base_bits": bits, **entries.pop("memory", {})}
    return tiny_recipe(place / "base", place / "images", memory=memory, **entries)


def ask(model: Any, words: str = "a") -> torch.Tensor:
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=seeds.at(0, "latents"))
    answer: torch.Tensor = model.predict(latents, torch.tensor([10, 900]), model.embed([words] * 2))
    return answer


def linears(model: Any) -> list[nn.Linear]:
    parts = (model.network, model.text_encoder)
    return [m for part in parts for m in part.modules() if isinstance(m, nn.Linear)]


# --- the layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [128, 64, 96, 50])
def test_eight_bits_err_by_half_a_step_at_most(inputs: int) -> None:
    layer = nn.Linear(33, inputs).requires_grad_(False)
    found = QuantisedLinear(layer, 8).weight
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert bool(((found - layer.weight).abs() <= 0.5001 * step).all())


@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (64, 64), (96, 32), (50, 50)])
@pytest.mark.parametrize("outputs", [33, 8])
def test_four_bits_err_by_half_a_step_of_their_group_at_most(
    inputs: int, group: int, outputs: int
) -> None:
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    found = QuantisedLinear(layer, 4).weight
    groups = layer.weight.view(-1, group)
    step = (groups.amax(1) - groups.amin(1)) / 15
    missed = (found - layer.weight).view(-1, group).abs().amax(1)
    assert bool((missed <= 0.5001 * step).all())


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_one_number_is_kept_to_the_bit(bits: Any) -> None:
    """Its step is nothing in 4 bits, and the scale of zeros is nothing in 8."""
    layer = nn.Linear(64, 2, bias=False).requires_grad_(False)
    layer.weight[0], layer.weight[1] = 0.0, 0.25
    assert torch.equal(QuantisedLinear(layer, bits).weight, layer.weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("half", [False, True])
def test_the_gradient_is_that_of_a_plain_layer_with_the_weight_that_is_read(
    bits: Any, half: bool
) -> None:
    own = QuantisedLinear(nn.Linear(64, 33).requires_grad_(False), bits)
    plain = nn.Linear(64, 33).requires_grad_(False)
    plain.weight.copy_(own.weight)
    plain.bias.copy_(own.bias)
    found = []
    for layer in (own, plain):
        given = torch.randn(2, 5, 64, generator=seeds.at(0, "given")).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(given).square().sum().backward()
        assert given.grad is not None
        found.append(given.grad)
    assert torch.equal(*found) or (half and torch.allclose(*found, rtol=2e-2, atol=1e-2))


def test_only_linear_layers_are_held_in_few_bits_and_take_a_quarter_or_less(place: Path) -> None:
    whole = load(str(place / "base"))
    before = sum(layer.weight.nbytes for layer in linears(whole))
    for bits, share in ((8, 1 / 4), (4, 1 / 8)):
        model = load(str(place / "base"), bits=bits)
        layers = linears(model)
        assert all(isinstance(layer, QuantisedLinear) for layer in layers)
        codes = sum(layer.codes.nbytes for layer in layers)  # type: ignore[union-attr]
        assert codes == pytest.approx(before * share, rel=0.01)
        scales = sum(b.nbytes for layer in layers for b in layer.buffers()) - codes
        assert scales < 0.5 * codes * (8 / bits)  # rows are short here: 16 to 64 numbers
        others = dict(whole.unet.named_parameters())
        assert all(torch.equal(p, others[n]) for n, p in model.unet.named_parameters())
        assert any("conv" in n for n, _ in model.unet.named_parameters())
        assert not any(isinstance(m, QuantisedLinear) for m in model.vae.modules())
        assert model.id == f"{whole.id}-{bits}bit"


def test_a_base_in_few_bits_answers_nearly_as_the_whole_one(place: Path) -> None:
    want = ask(load(str(place / "base")))
    missed = [
        float((ask(load(str(place / "base"), bits=bits)) - want).norm() / want.norm())
        for bits in BITS
    ]
    assert 0 < missed[0] < 0.02
    assert missed[0] < missed[1] < 0.3


def test_stable_diffusion_3_is_held_in_few_bits_with_all_its_text_encoders(tmp_path: Path) -> None:
    base = write_tiny_sd3(tmp_path / "base")
    want, model = ask(load(str(base))), load(str(base), bits=8)
    parts = (model.network, model.text_encoder, model.text_encoder_2, model.text_encoder_3)
    assert all(any(isinstance(m, QuantisedLinear) for m in part.modules()) for part in parts)
    assert float((ask(model) - want).norm() / want.norm()) < 0.05


# --- an adapter on it -------------------------------------------------------------------------


def plans() -> list[Any]:
    return [plan() for plan in ADAPTER_KINDS.values()]


@pytest.mark.parametrize("kind", sorted(ADAPTER_KINDS))
def test_every_kind_begins_at_the_base_in_few_bits_and_is_silent_again(
    place: Path, model: Any, kind: str
) -> None:
    want = ask(model)
    small = {"boft": {"block_size": 4}, "oft": {"block_size": 4}}.get(kind, {"rank": 2})
    plan = Recipe.build({"adapter": {"kind": kind, **small}}).adapter
    on = attach(model, plan, seed=0)
    try:
        first = ask(model)
        tolerance = 0.0 if kind in ("lora", "loha", "lokr", "tlora", "sparse") else 1e-5
        assert torch.allclose(first, want, rtol=0, atol=tolerance)
        first.square().mean().backward()
        assert all(p.grad is not None for _, p in on.named_parameters())
        assert any(bool(p.grad.any()) for _, p in on.named_parameters() if p.grad is not None)
        with torch.no_grad():
            for name, parameter in on.named_parameters():
                parameter.add_(torch.randn(parameter.shape, generator=seeds.at(0, name)), alpha=0.1)
        assert not torch.allclose(ask(model), want, atol=1e-4)
        with on.silenced():
            assert torch.equal(ask(model), want)
    finally:
        on.detach()
    assert torch.equal(ask(model), want)


def test_the_loss_on_one_batch_falls_by_the_factors_alone(model: Any) -> None:
    held = {n: b.clone() for n, b in model.unet.named_buffers() if n.endswith("codes")}
    target = torch.randn(2, 4, 8, 8, generator=seeds.at(0, "target"))
    on = attach(model, LoraPlan(rank=4), seed=0)
    factors = [p for _, p in on.named_parameters()]
    optimizer, losses = torch.optim.Adam(factors, lr=1e-2), []
    for _ in range(15):
        loss = (ask(model) - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    on.detach()
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(b, held[n]) for n, b in model.unet.named_buffers() if n in held)


@pytest.mark.parametrize("bits", BITS)
def test_what_is_learnt_is_an_ordinary_lora_for_the_whole_base(
    place: Path, tmp_path: Path, bits: Any
) -> None:
    """With strategies that read the base's weight and its own answer."""
    strategies: dict[str, Any] = {"stay_near": {}, "spectral_cap": {}, "low_rank": {}}
    recipe = tiny(
        place,
        bits,
        optimizer={"steps": 4, "lr": 1e-2},
        strategies=strategies,
        probes={"triples": 1},
    )
    run = train(recipe, out=tmp_path / "run")
    learnt = formats.read(run.adapter_file)
    assert learnt.kind == "lora"
    whole = load(str(place / "base"))
    want = ask(whole)
    with attached(whole, learnt):
        on_whole = ask(whole)
    assert not torch.allclose(on_whole, want, atol=1e-4)
    few = load(str(place / "base"), bits=bits)
    without = ask(few)
    with attached(few, learnt):
        on_few = ask(few)
    change = on_few - without
    assert float((on_whole - want - change).norm() / change.norm()) < 0.3


@pytest.mark.parametrize("bits", BITS)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    place: Path, tmp_path: Path, bits: int
) -> None:
    recipe = tiny(
        place,
        bits,
        adapter={"dropout": 0.2, "text_encoder": True},
        optimizer={"steps": 4},
        probes={"triples": 1},
    )
    whole = train(recipe, out=tmp_path / "whole")

    def stop(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "stopped", say=stop)
    parted = resume(tmp_path / "stopped")
    one, two = (formats.read(run.adapter_file).layers for run in (whole, parted))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n].up, two[n].up) for n in one)
    assert all(torch.equal(one[n].down, two[n].down) for n in one)


def test_putting_an_adapter_on_and_off_changes_no_code_and_no_scale(place: Path) -> None:
    """In half precision too, which scales would not survive."""
    model = load(str(place / "base"), bits=8, dtype=torch.bfloat16)
    held = {n: b.clone() for n, b in model.unet.named_buffers()}
    assert {b.dtype for n, b in held.items() if n.endswith("scale")} == {torch.float32}
    for kind in ("lora", "tlora", "dora"):
        plan = Recipe.build({"adapter": {"kind": kind, "rank": 2}}).adapter
        on = attach(model, plan, seed=0)
        begun = on.adapter()
        on.detach()
        with attached(model, begun):
            assert ask(model).isfinite().all()
    found = dict(model.unet.named_buffers())
    assert found.keys() == held.keys()
    assert all(torch.equal(b, held[n]) and b.dtype == held[n].dtype for n, b in found.items())


# --- what is told -----------------------------------------------------------------------------


def test_a_model_that_is_handed_over_is_never_rounded(place: Path, tmp_path: Path) -> None:
    whole = load(str(place / "base"))
    before = {n: p.clone() for n, p in whole.unet.named_parameters()}
    with pytest.raises(RecipeError, match=r"base_bits: found 8, .*whole.*bits=8"):
        train(tiny(place, 8), out=tmp_path / "run", model=whole)
    assert all(torch.equal(p, before[n]) for n, p in whole.unet.named_parameters())
    few = load(str(place / "base"), bits=4)
    with pytest.raises(RecipeError, match=r"base_bits: found None, .*in 4 bits"):
        train(tiny(place, None), out=tmp_path / "other", model=few)


def test_a_recipe_without_it_has_the_id_it_had() -> None:
    assert "base_bits" not in Recipe().to_toml()
    assert Recipe.build({"memory": {"base_bits": 8}}).id != Recipe().id


def test_a_stated_memory_counts_the_bytes_that_are_held(place: Path) -> None:
    counted = {}
    for bits in (None, 8, 4):
        model = load(str(place / "base"), bits=bits)  # type: ignore[arg-type]
        on = attach(model, LoraPlan(rank=2), seed=0)
        counted[bits] = count(model, on, precision="float32", side=64)
        on.detach()
    layers = linears(load(str(place / "base")))
    saved = counted[None].weights - counted[8].weights
    scales = sum(4 * layer.out_features for layer in layers)
    assert saved == sum(layer.weight.nbytes * 3 // 4 for layer in layers) - scales
    assert counted[4].weights < counted[8].weights
    # What a pass keeps holds no weight that was worked out on the way.
    assert counted[8].per_row <= counted[None].per_row
    assert counted[8].fixed <= counted[None].fixed


def test_where_memory_is_short_few_bits_are_advised_and_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"memory.base_bits=8"):
        train(tiny(place, None, memory={"vram": 1e-4}), out=tmp_path / "a")
    with pytest.raises(RecipeError, match=r"weights in 8 bits\).*memory.base_bits=4"):
        train(tiny(place, 8, memory={"vram": 1e-4}), out=tmp_path / "b")
    run = train(tiny(place, 8, memory={"vram": 2}, optimizer={"steps": 1}), out=tmp_path / "c")
    assert "weights in 8 bits" in run.read_journal("fit")[0]["text"]


def test_a_trial_learns_in_few_bits_and_judges_on_the_whole_base(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    drawn_with = []

    def draw(model: Any, *_: Any, **__: Any) -> Any:
        drawn_with.append(model)
        raise Enough

    monkeypatch.setattr(trial_page, "draw_both", draw)
    recipe = tiny(place, 8, optimizer={"steps": 1})
    with pytest.raises(Enough):
        trial_page.trial(recipe, out=tmp_path / "run")
    assert drawn_with[0].bits is None
    starts = Run.open(tmp_path / "run").read_journal("start")
    assert starts[0]["base"] == f"{drawn_with[0].id}-8bit"
