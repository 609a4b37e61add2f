"""Blending against the papers' own formulas on dense updates, against PEFT, and as laws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from tests.blend.random_adapters import LAYERS, random_adapter
from torch import Tensor, nn

from variegate import seeds
from variegate.adapter import Adapter, LayerUpdate, Masking
from variegate.adapter.updates import DoraUpdate, FullUpdate, SparseUpdate
from variegate.blend.methods import METHODS
from variegate.blend.together import blend, resize
from variegate.errors import AdapterError, NotFinite, RequestError

MEMBERS = tuple(random_adapter(i, rank=2 + i) for i in range(3))
WEIGHTS = (0.5, -0.3, 1.2)
FULL = 36  # no layer has a larger rank
EXACT = {"atol": 2e-5, "rtol": 1e-5}  # float32 factors, entries of up to 20
NORM = "unet.mid_block.resnets.0.norm1"
BIAS = "unet.mid_block.resnets.0.conv1.bias"
NO_TRIM = ("ties", "dare", "dare_ties", "knots")


def dense(adapter: Adapter, name: str) -> Tensor:
    """An update as a matrix, a vector's as one row."""
    delta = adapter.delta(name).double()
    return delta.flatten(1) if delta.ndim > 1 else delta[None]


def ties_of_the_paper(updates: Sequence[Tensor], weights: Sequence[float], keep: float) -> Tensor:
    """Yadav et al. 2023, section 4, entry by entry."""
    trimmed = []
    for update in updates:
        flat = update.flatten().tolist()
        ranked = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))
        kept = set(ranked[: round(keep * len(flat))])
        trimmed.append([x if i in kept else 0.0 for i, x in enumerate(flat)])
    merged = []
    for entry in zip(*trimmed, strict=True):
        weighed = [w * x for w, x in zip(weights, entry, strict=True)]
        positive = sum(weighed) >= 0
        agree = [x for x in weighed if (x > 0 if positive else x < 0)]
        merged.append(sum(agree) / len(agree) if agree else 0.0)
    return torch.tensor(merged, dtype=torch.float64).view_as(updates[0])


def dropped(member: Adapter, name: str, keep: float) -> Tensor:
    """Yu et al. 2023, section 3, with the blend's own addresses for the draws."""
    update = dense(member, name)
    draw = torch.rand(update.shape, generator=seeds.at(0, "dare", member.digest(), name))
    return update * (draw < keep) / keep


def knots_of_the_paper(updates: Sequence[Tensor], weights: Sequence[float], keep: float) -> Tensor:
    """Stoica et al. 2024, section 4, by an SVD of the dense updates side by side."""
    u, s, v = torch.linalg.svd(torch.cat(list(updates), 1), full_matrices=False)
    real = s > 1e-5  # as in its authors' code
    parts = (s[real, None] * v[real]).split(updates[0].shape[1], 1)
    return u[:, real] @ ties_of_the_paper(parts, weights, keep)


def expected(method: str, members: Sequence[Adapter], name: str, keep: float) -> Tensor:
    updates = [dense(m, name) for m in members]
    if method in ("sum", "svd"):
        return torch.stack([w * u for w, u in zip(WEIGHTS, updates, strict=True)]).sum(0)
    if method == "ties":
        return ties_of_the_paper(updates, WEIGHTS, keep)
    if method == "knots":
        return knots_of_the_paper(updates, WEIGHTS, keep)
    updates = [dropped(m, name, keep) for m in members]
    if method == "dare":
        return torch.stack([w * u for w, u in zip(WEIGHTS, updates, strict=True)]).sum(0)
    return ties_of_the_paper(updates, WEIGHTS, 1.0)


@pytest.mark.parametrize("method", ["sum", "svd", "ties", "dare", "dare_ties", "knots"])
def test_each_method_is_its_papers_formula_on_dense_updates(method: Any) -> None:
    density = None if method in ("sum", "svd") else 0.5
    found = blend(MEMBERS, WEIGHTS, method=method, density=density, energy=1.0)
    for name in LAYERS:
        want = expected(method, MEMBERS, name, 0.5)
        torch.testing.assert_close(dense(found.adapter, name), want, **EXACT)
    assert found.energy == pytest.approx(1.0)


def with_vectors(i: int) -> Adapter:
    """A member that changes a norm and a bias too."""
    vectors = {n: FullUpdate(torch.randn(11, generator=seeds.at(i, n))) for n in (NORM, BIAS)}
    return Adapter("sd1", {**MEMBERS[i].layers, **vectors})


@pytest.mark.parametrize("method", ["sum", "svd", "ties", "dare", "dare_ties", "knots"])
def test_norms_and_biases_are_blended_by_the_same_formulas_and_stay_whole(method: Any) -> None:
    members = [with_vectors(i) for i in range(3)]
    density = None if method in ("sum", "svd") else 0.5
    found = blend(members, WEIGHTS, method=method, density=density, rank=2)
    assert found.vectors == (NORM, BIAS)
    assert found.to_json()["vectors"] == [NORM, BIAS]
    for name in found.vectors:
        assert isinstance(found.adapter.layers[name], FullUpdate)
        assert (found.layers[name].rank, found.layers[name].energy) == (0, 1.0)
        want = expected(method, members, name, 0.5)
        torch.testing.assert_close(dense(found.adapter, name), want, **EXACT)


def test_a_smaller_rank_leaves_norms_and_biases_as_they_are() -> None:
    member = with_vectors(0)
    small = resize(member, rank=1)
    assert small.adapter.rank == 1
    alone = resize(Adapter("sd1", {n: member.layers[n] for n in (NORM, BIAS)}), rank=1)
    for found in (small, alone):
        for name in (NORM, BIAS):
            assert torch.equal(found.adapter.delta(name), member.delta(name))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "soup"])
def test_recompressed_a_blend_is_the_nearest_matrix_of_its_rank(method: Any) -> None:
    """Eckart and Young: the truncated SVD; and the energy told is the energy kept."""
    whole = blend(MEMBERS, WEIGHTS, method=method, energy=1.0)
    small = blend(MEMBERS, WEIGHTS, method=method, rank=2)
    kept, total = 0.0, 0.0
    for name in LAYERS:
        u, s, v = torch.linalg.svd(dense(whole.adapter, name), full_matrices=False)
        want = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
        torch.testing.assert_close(dense(small.adapter, name), want, atol=1e-4, rtol=1e-4)
        share = float(s[:2].square().sum() / s.square().sum())
        assert small.layers[name].energy == pytest.approx(share, abs=1e-5)
        kept, total = kept + float(s[:2].square().sum()), total + float(s.square().sum())
    assert small.energy == pytest.approx(kept / total, abs=1e-5)
    assert small.adapter.rank == 2


def test_a_soup_is_the_mean_with_weights_brought_to_one() -> None:
    found = blend(MEMBERS, (1.0, 2.0, 5.0))
    for name in LAYERS:
        want = sum(w / 8 * dense(m, name) for w, m in zip((1, 2, 5), MEMBERS, strict=True))
        torch.testing.assert_close(dense(found.adapter, name), want, **EXACT)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("svd", "svd"), ("ties", "ties_svd"), ("dare", "dare_linear_svd"), ("dare_ties",) * 2],
)
def test_blends_are_those_of_peft(ours: Any, theirs: str, monkeypatch: Any) -> None:
    """Of PEFT 0.21: `add_weighted_adapter`, its random masks replaced by ours. Weights are alike,
    since PEFT elects signs before it weighs and we after."""
    theirs = "dare_ties_svd" if theirs == "dare_ties" else theirs
    members = [random_adapter(i, rank=3, layers=_NAMES) for i in range(3)]
    model, members = _with_peft(members)
    masks = iter([_drawn(m, name) for name in _NAMES for m in members])

    def pruned(tensor: Tensor, density: float, rescale: bool) -> Tensor:
        assert rescale
        return tensor * (next(masks) < density).view_as(tensor) / density

    monkeypatch.setattr(merge_utils, "random_pruning", pruned)
    density = None if ours == "svd" else 0.5
    model.add_weighted_adapter(
        ["0", "1", "2"], [0.7] * 3, "both", theirs, svd_rank=2, density=density
    )
    found = blend(members, [0.7] * 3, method=ours, rank=2, density=density)
    for name in _NAMES:
        layer = model.base_model.model.get_submodule(name.partition(".")[2])
        want = layer.get_delta_weight("both").detach().flatten(1).double()
        torch.testing.assert_close(dense(found.adapter, name), want, atol=1e-4, rtol=1e-4)


_NAMES = (
    "unet.mid_block.resnets.0.conv1",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
)


def _drawn(member: Adapter, name: str) -> Tensor:
    shape = dense(member, name).shape
    return torch.rand(shape, generator=seeds.at(0, "dare", member.digest(), name))


def _with_peft(members: Sequence[Adapter]) -> tuple[Any, list[Adapter]]:
    """A model of PEFT's that carries the members under the names 0, 1, 2."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in _NAMES:
                home: nn.Module = self
                *path, last = name.split(".")[1:]
                for step in path:
                    if not hasattr(home, step):
                        home.add_module(step, nn.Module())
                    home = home.get_submodule(step)
                out, *inputs = LAYERS[name]
                kind = (
                    nn.Conv2d(inputs[0], out, 3) if len(inputs) > 1 else nn.Linear(inputs[0], out)
                )
                home.add_module(last, kind)

    with torch.random.fork_rng():
        config = LoraConfig(r=3, lora_alpha=1.5, target_modules=["conv1", "to_q"])
        model = get_peft_model(Net(), config, adapter_name="0")
        for other in ("1", "2"):
            model.add_adapter(other, config)
    for i, member in enumerate(members):
        for name, update in member.layers.items():
            layer = model.base_model.model.get_submodule(name.partition(".")[2])
            layer.lora_A[str(i)].weight.data = update.factors()["down"].clone()
            layer.lora_B[str(i)].weight.data = update.factors()["up"].clone()
    return model, list(members)


@pytest.mark.parametrize("method", METHODS)
def test_a_blend_of_one_member_is_that_member(method: Any) -> None:
    density = 1.0 if method in NO_TRIM else None
    found = blend(MEMBERS[:1], [1.0], method=method, density=density)
    for name in LAYERS:
        torch.testing.assert_close(dense(found.adapter, name), dense(MEMBERS[0], name), **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_members_does_not_matter(method: Any) -> None:
    found = []
    for order in permutations(range(3)):
        weights = [(0.5, 0.3, 1.2)[i] for i in order]
        blended = blend([MEMBERS[i] for i in order], weights, method=method, energy=1.0)
        found.append([dense(blended.adapter, name) for name in LAYERS])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, **EXACT)


def test_drops_hang_on_the_seed_alone() -> None:
    one, same, other = (blend(MEMBERS, method="dare", seed=seed) for seed in (0, 0, 1))
    name = next(iter(LAYERS))
    assert torch.equal(dense(one.adapter, name), dense(same.adapter, name))
    assert not torch.allclose(dense(one.adapter, name), dense(other.adapter, name))


def test_a_sum_is_linear() -> None:
    a, b, _ = MEMBERS
    found = blend([a, b], [2.0, -1.0], method="sum")
    half = blend([found.adapter], [0.5], method="sum")
    for name in LAYERS:
        want = a.scaled(1.0).delta(name) - 0.5 * b.delta(name)
        torch.testing.assert_close(half.adapter.delta(name), want, **EXACT)


def test_factors_are_never_added() -> None:
    """PEFT's `linear`, which adds them, is wrong by as much as two adapters weigh."""
    a, b, _ = MEMBERS
    found = blend([a, b], [0.5, 0.5], method="sum")
    assert found.adapter.rank == a.rank + b.rank
    gone = blend([a, a], [1.0, -1.0], method="sum")
    assert all(float(dense(gone.adapter, name).norm()) < 1e-5 for name in LAYERS)


@pytest.mark.parametrize("size", [{"rank": 4}, {"energy": 1.0}])
def test_resized_to_its_own_rank_an_adapter_is_the_same(size: Any) -> None:
    found = resize(MEMBERS[2], **size)
    for name in LAYERS:
        torch.testing.assert_close(dense(found.adapter, name), dense(MEMBERS[2], name), **EXACT)
        assert found.layers[name].rank == 4
        update = found.adapter.layers[name]
        assert isinstance(update, LayerUpdate)
        # Balanced: neither factor is larger than the other.
        assert float(update.up.norm()) == pytest.approx(float(update.down.norm()), rel=1e-4)


def test_a_share_of_energy_gives_the_smallest_rank_that_keeps_it() -> None:
    found = resize(MEMBERS[2], energy=0.8)
    for name, kept in found.layers.items():
        squares = torch.linalg.svdvals(dense(MEMBERS[2], name)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert kept.rank == int((shares < 0.8).sum()) + 1
        assert kept.energy >= 0.8


def test_layers_of_some_members_count_as_unchanged_by_the_others() -> None:
    first, *_, text = LAYERS
    some = random_adapter(7, layers=(first,))
    found = blend([MEMBERS[0], some])
    assert set(found.partial) == set(LAYERS) - {first}
    torch.testing.assert_close(dense(found.adapter, text), 0.5 * dense(MEMBERS[0], text), **EXACT)


def test_both_spellings_of_a_text_layer_are_one_layer() -> None:
    *_, text = LAYERS
    short = Adapter("sd1", {text.replace("text_model.", ""): MEMBERS[0].layers[text]})
    found = blend([short, random_adapter(1, layers=(text,))])
    assert list(found.adapter.layers) == [text]
    assert not found.partial


def test_other_kinds_are_blended_by_their_update_on_the_base() -> None:
    first = next(iter(LAYERS))
    weight = torch.randn(LAYERS[first], generator=seeds.at(0, "base"))
    lora = MEMBERS[0].layers[first]
    assert isinstance(lora, LayerUpdate)
    dora = DoraUpdate(lora.down, lora.up, 1.5, magnitude=torch.full((10,), 2.0))
    sparse = SparseUpdate(
        torch.tensor([3.0, -1.0]), torch.tensor([[0, 9], [7, 2]]), torch.tensor([10, 8])
    )
    found = blend(
        [Adapter("sd1", {first: dora}), Adapter("sd1", {first: sparse})],
        method="sum",
        base={first: weight},
    )
    want = dora.delta(weight) + sparse.delta(weight)
    torch.testing.assert_close(found.adapter.delta(first), want, **EXACT)
    with pytest.raises(AdapterError, match="name the base with --base"):
        blend([Adapter("sd1", {first: dora})])


def test_an_update_that_is_nothing_stays_nothing() -> None:
    nothing = MEMBERS[0].scaled(0.0)
    found = resize(nothing, rank=1)
    assert all(float(dense(found.adapter, name).abs().max()) == 0 for name in LAYERS)
    assert found.energy == 1.0


def test_what_members_say_alike_is_kept() -> None:
    a = Adapter("sd1", MEMBERS[0].layers, {"modelspec.trigger_phrase": "zqx", "ss_steps": "9"})
    b = Adapter("sd1", MEMBERS[1].layers, {"modelspec.trigger_phrase": "zqx", "ss_steps": "5"})
    told = blend([a, b]).adapter.metadata
    assert told["modelspec.trigger_phrase"] == "zqx"
    assert "ss_steps" not in told
    assert '"method": "soup"' in told["variegate"]


def _nan() -> Adapter:
    first = next(iter(LAYERS))
    update = MEMBERS[0].layers[first]
    assert isinstance(update, LayerUpdate)
    return Adapter("sd1", {first: LayerUpdate(update.down * torch.nan, update.up, 1.0)})


def _column() -> Adapter:
    return Adapter("sd1", {NORM: LayerUpdate(torch.zeros(1, 1), torch.zeros(11, 1), 1.0)})


def _wider() -> Adapter:
    first = next(iter(LAYERS))
    return Adapter("sd1", {first: LayerUpdate(torch.zeros(2, 9), torch.zeros(10, 2), 1.0)})


@pytest.mark.parametrize(
    ("members", "settings", "error", "told"),
    [
        ([], {}, RequestError, "no adapter to blend"),
        (MEMBERS, {"weights": [1.0]}, RequestError, "1 weights for 3 adapters"),
        (MEMBERS[:1], {"weights": [float("nan")]}, RequestError, "finite numbers"),
        (MEMBERS[:2], {"weights": [1.0, -1.0]}, RequestError, "a mean; expected none below 0"),
        (MEMBERS, {"rank": 0}, RequestError, "rank 0; expected 1 or more"),
        (MEMBERS, {"energy": 1.1}, RequestError, "energy 1.1"),
        (MEMBERS, {"density": 0.5}, RequestError, "soup keeps every entry"),
        (MEMBERS, {"method": "ties", "density": 0.0}, RequestError, "density 0.0"),
        (MEMBERS, {"rank": 40}, AdapterError, "rank 40 is above what is there: 8 at most"),
        ([MEMBERS[0], Adapter("sdxl", MEMBERS[1].layers)], {}, AdapterError, "sd1, sdxl"),
        ([MEMBERS[0], Adapter("sd1", {})], {}, AdapterError, "adapter 2 of 2 has no layers"),
        ([MEMBERS[0], _nan()], {}, NotFinite, "adapter 2 of 2: unet.mid_block"),
        ([MEMBERS[0], _wider()], {}, AdapterError, r"\(10, 9\) in adapter 2, \(10, 8\) before"),
        ([with_vectors(0), _column()], {}, AdapterError, r"\(11, 1\) in adapter 2, \(11,\) before"),
        (
            [Adapter("sd1", random_adapter(0, rank=2).layers, masking=Masking(None, 1000))],
            {},
            AdapterError,
            "is a T-LoRA, whose rank falls",
        ),
    ],
)
def test_what_cannot_be_blended_is_refused_with_facts(
    members: Any, settings: Any, error: Any, told: str
) -> None:
    with pytest.raises(error, match=told):
        blend(members, **settings)


def test_a_size_is_wanted_to_resize() -> None:
    with pytest.raises(RequestError, match="give --rank, --energy or both"):
        resize(MEMBERS[0])
