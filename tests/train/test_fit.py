"""Fitting into memory: what is counted is what is kept, and what is given up costs no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate import formats, seeds
from variegate.adapter import Attached, attach
from variegate.errors import RecipeError
from variegate.models import load
from variegate.recipe import AdamW, LoraPlan, Recipe
from variegate.train import fit, resume, train
from variegate.train.fit import GIB, Needs, checkpointed, count, imitated, load_base, settle

SIDE = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("fit")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images", 3)
    return folder


@pytest.fixture
def model(place: Path) -> Any:
    return load(str(place / "base"))


@pytest.fixture
def on(model: Any) -> Any:
    on = attach(model, LoraPlan(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in on.named_parameters():
            noise = torch.randn(parameter.shape, generator=seeds.at(0, name))
            parameter.add_(noise, alpha=0.05)
    yield on
    on.detach()


def gradients(model: Any, on: Attached, wanted: bool) -> list[torch.Tensor]:
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=seeds.at(0, "latents"))
    with checkpointed(model, wanted):
        answer = model.predict(latents, torch.tensor([10, 900]), model.embed(["a", "b"]).detach())
        answer.square().mean().backward()
    found = [p.grad.clone() for _, p in on.named_parameters() if p.grad is not None]
    for _, parameter in on.named_parameters():
        parameter.grad = None
    return found


def test_checkpointing_works_activations_out_again_and_changes_no_gradient(
    model: Any, on: Attached
) -> None:
    calls = []
    block = model.unet.up_blocks[-1].resnets[-1]
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, on, False)
    assert len(calls) == 1
    again = gradients(model, on, True)
    handle.remove()
    assert len(calls) == 3
    assert len(plain) == len(list(on.named_parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert len(gradients(model, on, False)) == len(plain)
    assert not model.unet.is_gradient_checkpointing


def test_a_run_with_checkpointing_ends_with_the_same_bits(
    place: Path, model: Any, tmp_path: Path
) -> None:
    """With dropout: the second time a block is worked out, the same numbers are dropped."""
    ends = []
    for wanted in (False, True):
        recipe = tiny(place, {"gradient_checkpointing": wanted}, adapter={"dropout": 0.3})
        run = train(recipe, out=tmp_path / str(wanted), model=model)
        ends.append(formats.read(run.adapter_file).layers)
    assert all(torch.equal(ends[0][n].up, ends[1][n].up) for n in ends[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_run_learns_what_the_other_learns_and_leaves_the_model_as_it_was(
    place: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracer alone: the code it would make takes a compiler minutes."""
    traced = []

    def tracer(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(fit, "BACKEND", tracer)
    ends = []
    for wanted in (False, True):
        run = train(tiny(place, {"compile": wanted}), out=tmp_path / str(wanted), model=model)
        ends.append(formats.read(run.adapter_file).layers)
        assert bool(traced) == wanted
    assert all(torch.allclose(ends[0][n].up, ends[1][n].up, atol=1e-6) for n in ends[0])
    assert not any(part._compiled_call_impl for part in model.unet.modules())


def test_what_cannot_be_compiled_is_said(
    place: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(fit, "BACKEND", broken)
    with pytest.raises(RecipeError, match=r"memory.compile.*no compiler here"):
        train(tiny(place, {"compile": True}), out=tmp_path / "run", model=model)


def tiny(place: Path, memory: dict[str, Any], **entries: Any) -> Recipe:
    return tiny_recipe(
        place / "base",
        place / "images",
        memory=memory,
        optimizer={"steps": 2, "batch_size": 4},
        probes={"every": 50, "triples": 1},
        **entries,
    )


def test_what_is_counted_small_is_what_is_kept_large(model: Any, on: Attached) -> None:
    needs = count(model, on, precision="float32", side=SIDE)
    plain, checkpointed = fit._kept(model, "float32", SIDE // 8, 3)
    assert needs.fixed + 3 * needs.per_row == pytest.approx(plain, rel=0.05)
    assert needs.fixed_checkpointed + 3 * needs.per_row_checkpointed == pytest.approx(
        checkpointed, rel=0.1
    )
    assert checkpointed < plain / 2
    parts = (model.unet, model.vae, model.text_encoder)
    everything = sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))
    assert needs.weights + needs.factors == everything


def test_more_is_given_up_as_memory_shrinks(place: Path, model: Any, on: Attached) -> None:
    needs = count(model, on, precision="float32", side=SIDE)

    def chosen(size: int, checkpointing: bool) -> tuple[int | None, bool]:
        """What is chosen when exactly this much is there."""
        total = needs.total(size, kind="adamw", checkpointing=checkpointing, context=0.0)
        recipe = tiny(place, {"vram": total / GIB * 1.0001})
        means = settle(recipe, model, on, rows=4, side=SIDE)
        assert f"{total / GIB:.2f} GiB" in means.why
        return means.optimizer.micro_batch, means.gradient_checkpointing

    assert chosen(4, False) == (None, False)
    assert chosen(2, False) == (2, False)
    assert chosen(1, False) == (1, False)
    assert chosen(1, True) == (1, True)
    with pytest.raises(RecipeError, match=r"0\.001 GiB do not hold this run, .* at the least"):
        settle(tiny(place, {"vram": 0.001}), model, on, rows=4, side=SIDE)


def test_what_was_set_by_hand_stays(place: Path, model: Any, on: Attached) -> None:
    by_hand = tiny(place, {"vram": 8.0, "gradient_checkpointing": True})
    means = settle(by_hand, model, on, rows=4, side=SIDE)
    assert means.gradient_checkpointing
    assert means.optimizer.micro_batch is None


def test_8_bit_state_is_taken_where_bitsandbytes_is_there(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    plan = AdamW(lr=3e-4, steps=7)
    assert [k.kind for k in fit._kinds(plan, True)] == ["adamw", "adamw8bit"]
    assert fit._kinds(plan, True)[1].steps == 7
    assert [k.kind for k in fit._kinds(plan, False)] == ["adamw"]
    needs = Needs(0, 1000, 0.0, 0.0, 0.0, 0.0)
    saved = [
        needs.total(1, kind=k, checkpointing=False, context=0.0) for k in ("adamw", "adamw8bit")
    ]
    assert saved[1] < saved[0]


def test_what_was_chosen_is_told_and_a_resumed_run_keeps_it(
    place: Path, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def say(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(place, {"vram": 8.0}), out=tmp_path / "run", model=model, say=say)
    monkeypatch.setattr(fit, "count", lambda *_, **__: pytest.fail("it was counted before"))
    run = resume(tmp_path / "run", model=model)
    told = run.read_journal("fit")
    assert len(told) == 1
    assert told[0]["text"].startswith("to fit 8 GiB: float32 weights, adamw, 4 of 4 rows at a time")


def test_a_half_precision_base_is_half_the_size_and_learns_float32_factors(
    place: Path, tmp_path: Path
) -> None:
    recipe = tiny(place, {}, precision="bf16")
    base = load_base(recipe)
    assert {p.dtype for p in base.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in base.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in base.vae.parameters()} == {torch.float32}
    run = train(recipe, out=tmp_path / "run")
    layers = formats.read(run.adapter_file).layers
    assert {u.up.dtype for u in layers.values()} == {torch.float32}
    assert all(bool(u.up.isfinite().all()) and bool(u.up.any()) for u in layers.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_processor_imitates_is_told(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"_is_mkldnn_{precision}_supported"
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: False)
    assert f"no {precision} of its own" in imitated(precision, "cpu")
    assert imitated(precision, "cuda") == imitated("float32", "cpu") == ""
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: True)
    assert imitated(precision, "cpu") == ""
