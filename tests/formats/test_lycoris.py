"""LyCORIS's kinds: each update is what its formula says, and a model with it answers so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_sd
from torch import Tensor

from variegate import formats
from variegate.adapter import Adapter, attached
from variegate.adapter.updates import LohaUpdate
from variegate.errors import AdapterError
from variegate.formats.names import kohya_name
from variegate.models import load

CONV = "unet.down_blocks.0.resnets.0.conv1"  # 16 x 16 x 3 x 3
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"  # 32 x 16
NORM = "unet.mid_block.resnets.0.norm1"  # 32
SHAPES = {CONV: (16, 16, 3, 3), LINEAR: (32, 16), NORM: (32,)}
EPSILON = torch.finfo(torch.float32).eps


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def base_of(layer: str) -> Tensor:
    return some(*SHAPES[layer], seed=99)


def tucker(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """LyCORIS's `rebuild_tucker`: sum over i, j of core[i, j] first[i, p] second[j, r]."""
    return torch.einsum("ijhw,ip,jr->prhw", core, first, second).contiguous()


def rotation(blocks: Tensor, most: float) -> Tensor:
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.norm() + 1e-8
    if most > 0 and norm > most:
        skew = skew * most / norm
    one = torch.eye(blocks.shape[-1])
    return (one + skew) @ (one - skew).inverse()


def turned(weight: Tensor, blocks: Tensor, constraint: float) -> Tensor:
    turns = rotation(blocks, constraint * len(weight))
    parts = weight.view(len(blocks), blocks.shape[-1], *weight.shape[1:])
    return torch.einsum("knm,kn...->km...", turns, parts).reshape(weight.shape)


def butterfly(weight: Tensor, blocks: Tensor) -> Tensor:
    turns, b = rotation(blocks, 0.0), blocks.shape[-1]
    for i, turn in enumerate(turns):
        apart = 2**i * (b // 2)
        pairs = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2)
        pairs = torch.einsum("bij,bj...->bi...", turn, pairs.unflatten(0, (-1, b)))
        weight = pairs.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def decomposed(weight: Tensor, lengths: Tensor, axis: int) -> Tensor:
    others = [i for i in range(weight.ndim) if i != axis]
    return weight * (lengths / (weight.square().sum(others, keepdim=True).sqrt() + EPSILON))


def cases() -> dict[str, tuple[str, dict[str, Tensor], Tensor]]:
    """By name: the layer, its factors as LyCORIS stores them, and the weight they make."""
    found: dict[str, tuple[str, dict[str, Tensor], Tensor]] = {}
    conv, linear, norm = base_of(CONV), base_of(LINEAR), base_of(NORM)
    alpha = torch.tensor(3.0)

    down, core, up = some(4, 16, 1, 1), some(4, 4, 3, 3), some(16, 4, 1, 1)
    made = tucker(core, up.flatten(1).T, down.flatten(1)) * 3 / 4
    factors = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up}
    found["locon with a core"] = (CONV, {**factors, "alpha": alpha}, conv + made)

    a, b, c, d = some(2, 16), some(2, 16, seed=1), some(2, 16, seed=2), some(2, 16, seed=3)
    t, u = some(2, 2, 3, 3), some(2, 2, 3, 3, seed=1)
    made = tucker(t, a, b) * tucker(u, c, d) * 3 / 2
    factors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    factors |= {"hada_t1": t, "hada_t2": u, "alpha": alpha}
    found["loha with cores"] = (CONV, factors, conv + made)

    small, e, f, core = some(4, 4), some(2, 4), some(2, 4, seed=1), some(2, 2, 3, 3)
    large = tucker(core, e, f)
    made = torch.kron(small[:, :, None, None], large) * 3 / 2
    factors = {"lokr_w1": small, "lokr_w2_a": e, "lokr_w2_b": f, "lokr_t2": core}
    found["lokr with a core"] = (CONV, {**factors, "alpha": alpha}, conv + made)

    down, up = some(4, 16), some(32, 4)
    plain = {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}
    tuned = linear + up @ down * 3 / 4
    rows, columns = some(32, 1).abs() + 1, some(1, 16).abs() + 1
    found["dora of rows"] = (LINEAR, {**plain, "dora_scale": rows}, decomposed(tuned, rows, 0))
    found["dora of columns"] = (
        *(LINEAR, {**plain, "dora_scale": columns}),
        decomposed(tuned, columns, 1),
    )
    down, up = some(2, 16, 3, 3), some(16, 2, 1, 1)
    tuned = conv + (up.flatten(1) @ down.flatten(1) * 3 / 2).view(conv.shape)
    columns = some(1, 16, 1, 1).abs() + 1
    factors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}
    found["dora of a kernel's columns"] = (
        *(CONV, {**factors, "dora_scale": columns}),
        decomposed(tuned, columns, 1),
    )
    factors = {"hada_w1_a": some(32, 2), "hada_w1_b": some(2, 16)}
    factors |= {"hada_w2_a": some(32, 2, seed=5), "hada_w2_b": some(2, 16, seed=5)}
    made = (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (
        factors["hada_w2_a"] @ factors["hada_w2_b"]
    )
    tuned = linear + made * 3 / 2
    found["loha of learnt lengths"] = (
        *(LINEAR, {**factors, "alpha": alpha, "dora_scale": rows}),
        decomposed(tuned, rows, 0),
    )

    blocks = some(8, 4, 4)
    none = torch.tensor(0)  # LyCORIS's constraint of none is a whole number
    found["oft"] = (LINEAR, {"oft_blocks": blocks, "alpha": none}, turned(linear, blocks, 0.0))
    found["oft under a constraint"] = (
        *(LINEAR, {"oft_blocks": blocks, "alpha": torch.tensor(0.01)}),
        turned(linear, blocks, 0.01),
    )
    blocks, scale = some(4, 4, 4), some(16, 1, 1, 1) + 1
    found["oft of a kernel, rescaled"] = (
        *(CONV, {"oft_blocks": blocks, "rescale": scale}),
        turned(conv, blocks, 0.0) * scale,
    )
    blocks = some(3, 8, 4, 4)
    found["boft"] = (LINEAR, {"oft_blocks": blocks}, butterfly(linear, blocks))
    found["full"] = (CONV, {"diff": some(16, 16, 3, 3)}, conv + some(16, 16, 3, 3))
    found["norm"] = (NORM, {"w_norm": some(32)}, norm + some(32))
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_what_its_formula_says(name: str, tmp_path: Path) -> None:
    layer, factors, expected = CASES[name]
    adapter = read_back(layer, factors, tmp_path)
    base = base_of(layer)
    update = adapter.layers[layer]
    assert update.fits(tuple(base.shape))
    torch.testing.assert_close(base + update.delta(base), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_its_size_is_told_without_its_delta_and_only_a_difference_fits_a_vector(
    name: str, tmp_path: Path
) -> None:
    layer, factors, _ = CASES[name]
    update = read_back(layer, factors, tmp_path).layers[layer]
    out, *inputs = SHAPES[layer]
    if update.kind != "turned":
        assert update.size == (out, math.prod(inputs))
    assert update.of_vector == update.fits((out,)) == (name == "norm")
    column = LohaUpdate(some(out, 1), some(1, 1), some(out, 1), some(1, 1), 1.0)
    assert column.fits((out, 1))
    assert not column.fits((out,))


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_after_it_was_written(name: str, tmp_path: Path) -> None:
    layer, factors, _ = CASES[name]
    adapter = read_back(layer, factors, tmp_path)
    file = formats.write(adapter, tmp_path / "again.safetensors", "kohya")
    again = formats.read(file)
    assert again.digest() == adapter.digest()
    stem = kohya_name(layer)
    foldable = {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"}
    expected = {f"{stem}.{slot}" for slot in factors if slot not in foldable}
    assert expected <= set(load_file(file))
    facts = formats.inspect(file)
    assert facts["problem"] is None
    known = name in ("full", "norm") or name.startswith(("locon", "lokr", "loha with"))
    assert (facts["layer_facts"][0]["norm"] is not None) == known


def read_back(layer: str, factors: dict[str, Tensor], folder: Path) -> Adapter:
    file = folder / "theirs.safetensors"
    stem = kohya_name(layer)
    save_file({f"{stem}.{slot}": t.contiguous() for slot, t in factors.items()}, file)
    return formats.read(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")))


def answer(model: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, t = torch.randn(1, 4, 8, 8, generator=draw), torch.tensor([500])
    with torch.no_grad():
        result: Tensor = model.predict(latents, t, model.embed(["a zqx"]))
    return result


@pytest.mark.parametrize("name", [n for n in CASES if "dora of rows" not in n])
def test_a_model_answers_with_the_weights_it_makes_and_then_as_before(
    name: str, model: Any, tmp_path: Path
) -> None:
    layer, factors, _ = CASES[name]
    factors = {**factors, **({"b_norm": some(32, seed=7)} if name == "norm" else {})}
    adapter = read_back(layer, factors, tmp_path)
    before = answer(model)
    module = model.unet.get_submodule(layer.removeprefix("unet."))
    with attached(model, adapter):
        on = answer(model)
    assert torch.equal(answer(model), before)
    own = {k: v.detach().clone() for k, v in module.named_parameters()}
    with torch.no_grad():
        for full_name, update in adapter.layers.items():
            entry = "bias" if full_name.endswith(".bias") else "weight"
            getattr(module, entry).add_(update.delta(own[entry]))
        dense = answer(model)
        for entry, tensor in own.items():
            getattr(module, entry).copy_(tensor)
    torch.testing.assert_close(on, dense, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(on, before, atol=1e-5)
    with attached(model, adapter, strength=0.0):
        torch.testing.assert_close(answer(model), before)


def test_an_update_that_does_not_fit_is_told_and_leaves_nothing_behind(
    model: Any, tmp_path: Path
) -> None:
    before = answer(model)
    for factors in ({"oft_blocks": some(3, 4, 4)}, {"diff": some(31, 16)}, {"diff_b": some(32)}):
        adapter = read_back(LINEAR, factors, tmp_path)
        with pytest.raises(AdapterError, match="does not fit"), attached(model, adapter):
            pass
    assert torch.equal(answer(model), before)


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ({"hada_t1": torch.ones(2, 2, 3, 3)}, "expected four matrices"),
        ({"oft_blocks": torch.ones(2, 3, 3, 3)}, "blocks of an odd size"),
        ({"rescale": torch.ones(4)}, "expected square blocks"),
        ({"oft_blocks": torch.ones(2, 2, 2), "rescale": torch.ones(3)}, "each of 4 outputs"),
        ({"dora_scale": torch.ones(3, 1)}, "its down factor is missing"),
        ({"diff": torch.ones(0)}, "a factor is empty"),
        ({"w_norm": torch.ones(32), "dora_scale": torch.ones(32)}, "the difference of a vector"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_told(
    factors: dict[str, Tensor], told: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=told):
        read_back(LINEAR, factors, tmp_path)
