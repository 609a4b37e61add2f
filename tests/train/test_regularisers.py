"""What is asked of the weights, of the noise and of the rows beside the pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate import formats
from variegate.adapter import Attached, attach
from variegate.diffusion import NoiseSchedule
from variegate.errors import AdapterError, RecipeError
from variegate.lowrank import grams, nuclear_norm, singular_values, squared_norm
from variegate.models import load
from variegate.recipe import LohaPlan, LoraPlan, Recipe
from variegate.run import Run
from variegate.train import train
from variegate.train.spectra import norms, spectra
from variegate.train.strategies import Control, Setting, Strategy, cook

SCHEDULE = NoiseSchedule(torch.linspace(0.999, 0.005, 1000), "epsilon")


def one(name: str, **settings: Any) -> Strategy:
    tables = {"strategies": {name: settings}, "class_noun": "face", "trigger": "zqx"}
    return cook(Recipe.build(tables))[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("regularisers")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    return load(str(place / "base"))


def randomly_attached(model: Any, rank: int) -> Attached:
    found = attach(model, LoraPlan(rank=rank, alpha=4), seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, factor in found.named_parameters():
            if name.endswith(".up"):
                factor.copy_(torch.randn(factor.shape, generator=rng))
    return found


@pytest.fixture
def on(model: Any) -> Any:
    """An adapter whose updates are not zero."""
    found = randomly_attached(model, 4)
    yield found
    found.detach()


def learnt(run: Run) -> dict[str, torch.Tensor]:
    layers = formats.read(run.adapter_file).layers
    return {f"{n}.{k}": getattr(u, k) for n, u in layers.items() for k in ("up", "down")}


@pytest.mark.parametrize(
    "strategies",
    [
        {
            **{"low_rank": {}, "spectral_cap": {"share": 1e-3}, "max_norm": {"limit": 1e-3}},
            **{"neuron_dropout": {}, "rank_dropout": {}, "module_dropout": {}, "ema": {}},
        },
        {
            **{"layout_prior": {}, "prior_pictures": {"count": 3}, "stay_near": {"adaptive": 0.01}},
            **{"debiased": {}, "soft_high_noise": {}, "noise_offset": {}, "huber": {}},
            **{"input_perturbation": {}, "swa": {"last": 0.8, "every": 2}},
        },
    ],
    ids=["on the weights", "on the pictures"],
)
def test_a_run_that_crashed_ends_as_an_undisturbed_one(
    place: Path, model: Any, tmp_path: Path, strategies: dict[str, Any]
) -> None:
    recipe = tiny_recipe(place / "base", place / "images", strategies=strategies)

    def crash(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 5:
            raise KeyboardInterrupt

    whole = train(recipe, out=tmp_path / "whole", model=model)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "cut", model=model, say=crash)
    again = train(recipe, out=tmp_path / "cut", model=model)
    assert again.read_journal("start")[-1]["step"] == 3
    one, other = learnt(whole), learnt(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(bool(factor.abs().max() > 0) for name, factor in one.items() if "up" in name)


@pytest.mark.parametrize("norm", ["nuclear", "factors", "frobenius"])
def test_a_norm_in_the_loss_keeps_the_update_smaller(
    place: Path, model: Any, tmp_path: Path, norm: str
) -> None:
    sizes = []
    for name, strategies in (
        ("plain", {}),
        ("held", {"low_rank": {"norm": norm, "strength": 30.0}}),
    ):
        recipe = tiny_recipe(place / "base", place / "images", strategies=strategies)
        run = train(recipe, out=tmp_path / name, model=model)
        layers = formats.read(run.adapter_file).layers
        sizes.append(sum(float(update.spectrum().sum()) for update in layers.values()))
    assert sizes[1] < 0.7 * sizes[0]
    steps = Run.open(tmp_path / "held").read_journal("step")
    assert steps[-1]["terms"]["low_rank"] > 0


def test_the_penalty_is_the_sum_over_layers_times_its_strength(on: Attached) -> None:
    found = one("low_rank", strength=0.5).penalty(on)
    exact = sum(nuclear_norm(of).sum() for _, of in grams(on.low_rank()).values())
    assert found is not None
    torch.testing.assert_close(found, 0.5 * exact.float())


def test_no_update_stands_above_its_caps(on: Attached) -> None:
    cap = one("spectral_cap", share=0.05)
    cap.attached(on)
    cap.moved(on, 1)
    weights = dict(on.base_weights())
    for names, of in grams(on.low_rank()).values():
        for name, values in zip(names, singular_values(of), strict=True):
            own = torch.linalg.matrix_norm(weights[name].flatten(1), 2)
            assert float(values[0]) <= 0.05 * float(own) * 1.0001
    one("max_norm", limit=0.01).moved(on, 1)
    for _, of in grams(on.low_rank()).values():
        norms = squared_norm(of).detach().sqrt()
        assert float(norms.max()) <= 0.010001
    small = {n: p.detach().clone() for n, p in on.named_parameters()}
    one("max_norm", limit=1.0).moved(on, 1)
    assert all(torch.equal(small[n], p) for n, p in on.named_parameters())


@pytest.mark.parametrize("rank", [4, 48], ids=["slim", "more ranks than some layers are wide"])
def test_a_cap_on_each_direction_leaves_the_others_as_they_are(model: Any, rank: int) -> None:
    on = randomly_attached(model, rank)

    def dense() -> dict[str, Any]:
        return {u.name: (u.scale * u.up @ u.down).detach().double() for u in on.low_rank()}

    before = dense()
    spectra = {name: torch.linalg.svdvals(update) for name, update in before.items()}
    weights = dict(on.base_weights())
    own = {n: float(torch.linalg.matrix_norm(weights[n].flatten(1), 2)) for n in before}
    # A share at which some layers have directions above the cap, and some none.
    shares = sorted(float(spectra[name][0]) / own[name] for name in before)
    cap = one("spectral_cap", share=1.001 * shares[len(shares) // 2], each=True)
    cap.attached(on)
    cap.moved(on, 1)
    for name, after in dense().items():
        u, s, v = torch.linalg.svd(before[name], full_matrices=False)
        wanted = (u * s.clamp_max(cap.limits[name])) @ v
        torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-5 * float(s[0]))
        if float(s[0]) <= cap.limits[name]:
            assert torch.equal(after, before[name])
    on.detach()


def test_a_cap_on_each_direction_leaves_an_update_of_nothing_alone(model: Any) -> None:
    on = attach(model, LoraPlan(rank=4), seed=0)
    cap = one("spectral_cap", share=0.1, each=True)
    cap.attached(on)
    before = {n: p.detach().clone() for n, p in on.named_parameters()}
    cap.moved(on, 1)
    assert all(torch.equal(before[n], p) for n, p in on.named_parameters())
    on.detach()


@pytest.mark.parametrize("name", ["neuron_dropout", "rank_dropout", "module_dropout"])
def test_dropout_changes_answers_in_training_and_never_what_is_watched(
    model: Any, on: Attached, name: str
) -> None:
    strategy = one(name, p=0.5)
    strategy.attached(on)
    layer = next(iter(on._layers.values()))
    x = torch.randn(6, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with on.watched():
            still = layer(x)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            noisy = torch.stack([layer(x) for _ in range(400)])
            torch.manual_seed(3)
            again = layer(x)
        base = layer.get_base_layer()(x)
    assert torch.equal(noisy[0], again)
    assert not torch.equal(noisy[0], still)
    part = (noisy.mean(0) - base).norm() / (still - base).norm()
    kept = 0.5 if name == "module_dropout" else 1.0  # layers that stay are not scaled up
    assert float(part) == pytest.approx(kept, abs=0.12)
    strategy.control = Control(dropout=1.0)
    assert strategy.chance == 0.95  # type: ignore[attr-defined]


def test_ranks_are_dropped_whole_and_anew_for_each_row(on: Attached) -> None:
    drop = one("rank_dropout", p=0.5).drop  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens, pixels = drop(torch.ones(8, 5, 4)), drop(torch.ones(8, 4, 3, 3))
    assert bool((tokens == tokens[:, :1]).all())
    assert bool((pixels == pixels[:, :, :1, :1]).all())
    assert set(tokens.unique().tolist()) == {0.0, 2.0}
    assert not bool((tokens == tokens[:1]).all())


def test_weights_of_noise_levels() -> None:
    t = torch.tensor([0, 500, 800, 999])
    snr = SCHEDULE.snr(t)
    torch.testing.assert_close(one("debiased").weigh_rows(SCHEDULE, t), snr.rsqrt())
    velocity = replace(
        SCHEDULE, prediction="v_prediction", alpha_bar=torch.linspace(0.999, 0, 1000)
    )
    weights = one("debiased").weigh_rows(velocity, t)
    assert weights is not None
    assert bool(weights.isfinite().all())
    soft = one("soft_high_noise", above=0.8, weight=0.2).weigh_rows(SCHEDULE, t)
    torch.testing.assert_close(soft, torch.tensor([1.0, 1.0, 0.9967968, 0.2]), rtol=1e-4, atol=1e-4)


def test_large_errors_cost_lines_and_small_ones_squares() -> None:
    t = torch.tensor([999])
    far, near = torch.full((1, 1, 1, 1), 100.0), torch.full((1, 1, 1, 1), 1e-3)
    for schedule in ("constant", "snr"):
        huber = one("huber", delta=0.1, schedule=schedule)
        large, small = (huber.errors(d, SCHEDULE, t) for d in (far, near))
        assert large is not None
        assert small is not None
        assert float(small) == pytest.approx(1e-6, rel=0.01)
        assert float(large) < 0.02 * 100.0**2
    clean = one("huber", delta=0.1).errors(far, SCHEDULE, torch.tensor([0]))
    assert clean is not None
    assert float(clean) > float(large)


def test_an_offset_moves_whole_channels_and_a_perturbed_input_leaves_the_target() -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = one("noise_offset", amount=0.5).noise(noise, 3) - noise
    assert float(moved.std((2, 3)).max()) < 1e-6
    assert float(moved.mean((2, 3)).std()) > 0.1
    perturb = one("input_perturbation", amount=0.1)
    assert torch.equal(perturb.noise(noise, 3), noise)
    more = perturb.perturb(noise, 3) - noise
    assert float(more.std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(perturb.perturb(noise, 3), perturb.perturb(noise, 3))
    assert not torch.equal(perturb.perturb(noise, 3), perturb.perturb(noise, 4))


def test_averages_are_what_they_say(on: Attached) -> None:
    tables = {"optimizer": {"steps": 4}, "strategies": {"swa": {"last": 0.5, "every": 1}}}
    ema, swa = one("ema", decay=0.9, warmup=False), cook(Recipe.build(tables))["swa"]
    assert ema.final() is None
    name, factor = next(iter(on.named_parameters()))
    seen = []
    for step in range(1, 5):
        with torch.no_grad():
            factor.fill_(float(step))
        seen.append(factor.detach().clone())
        ema.moved(on, step)
        swa.moved(on, step)
    expected = seen[0]
    for point in seen[1:]:
        expected = 0.9 * expected + 0.1 * point
    one_final, other = ema.final(), swa.final()
    assert one_final is not None
    assert other is not None
    torch.testing.assert_close(one_final[name], expected)
    torch.testing.assert_close(other[name], (seen[2] + seen[3]) / 2)
    assert float(on.adapter(factors=other).layers[name.removesuffix(".down")].down.mean()) == 3.5


def test_a_half_life_in_pictures_means_the_same_at_any_batch(on: Attached) -> None:
    """After as many pictures the first state counts half, in one step or in eight."""
    name, factor = next(iter(on.named_parameters()))
    for size in (1, 8):
        tables = {"ema": {"half_life": 8, "warmup": False}}
        recipe = Recipe.build({"strategies": tables, "optimizer": {"batch_size": size}})
        ema = cook(recipe)["ema"]
        with torch.no_grad():
            factor.fill_(1.0)
        ema.moved(on, 1)
        with torch.no_grad():
            factor.zero_()
        for step in range(2, 2 + 8 // size):
            ema.moved(on, step)
        average = ema.final()
        assert average is not None
        assert float(average[name].mean()) == pytest.approx(0.5)


def test_two_averages_cannot_both_be_the_adapter() -> None:
    with pytest.raises(RecipeError, match="ema and swa"):
        Recipe.build({"strategies": {"ema": {}, "swa": {}}})


def setting(model: Any, recipe: Recipe, folder: Path) -> Setting:
    return Setting(recipe, model, folder, lambda *told: None)


def test_layout_is_held_above_the_boundary_and_learnt_below(model: Any, tmp_path: Path) -> None:
    tables = {"trigger": "zqx", "class_noun": "face", "optimizer": {"batch_size": 4}}
    recipe = Recipe.build({**tables, "strategies": {"layout_prior": {"boundary": 0.8}}})
    prior = cook(recipe)["layout_prior"]
    prior.prepare(setting(model, recipe, tmp_path))
    beside = prior.beside(1)
    assert beside is not None
    assert int(beside.rows.timesteps.min()) >= 800
    for asked, plain in zip(beside.rows.prompts, beside.base_prompts, strict=True):
        assert "zqx" in asked
        assert asked.replace("zqx", "face") == plain
    weights = prior.weigh_rows(model.schedule, torch.tensor([0, 799, 999]))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
    hard = one("layout_prior", boundary=0.8, softness=0).weigh_rows(
        model.schedule, torch.tensor([790, 810])
    )
    assert hard is not None
    assert hard.tolist() == [1.0, 0.0]
    alone = Recipe.build({"strategies": {"layout_prior": {}}})
    with pytest.raises(RecipeError, match="class noun"):
        cook(alone)["layout_prior"].prepare(setting(model, alone, tmp_path))


def test_per_batch_a_step_either_learns_or_holds(model: Any, tmp_path: Path) -> None:
    plan = {"boundary": 0.7, "softness": 0, "per": "batch"}
    recipe = Recipe.build(
        {"trigger": "zqx", "class_noun": "face", "strategies": {"layout_prior": plan}}
    )
    prior = cook(recipe)["layout_prior"]
    prior.prepare(setting(model, recipe, tmp_path))
    held = []
    for step in range(200):
        held.append(prior.beside(step) is not None)
        weights = prior.weigh_rows(model.schedule, torch.tensor([100, 900]))
        assert weights is not None
        assert weights.tolist() == ([0, 0] if held[-1] else [1, 0])
    assert 0.2 < sum(held) / len(held) < 0.4


def test_class_pictures_are_those_given_or_drawn_once(
    place: Path, model: Any, tmp_path: Path
) -> None:
    given = {"prior_pictures": {"images": str(place / "images"), "batch_size": 3}}
    recipe = Recipe.build({"class_noun": "face", "strategies": given})
    strategy = cook(recipe)["prior_pictures"]
    strategy.prepare(setting(model, recipe, tmp_path))
    beside = strategy.beside(2)
    assert beside is not None
    assert beside.rows.prompts == ["a photo of a face"] * 3
    assert beside.target is not None
    assert beside.target.shape == beside.rows.noised.shape
    nobody = Recipe.build({"strategies": {"prior_pictures": {}}})
    with pytest.raises(RecipeError, match="no class is named"):
        cook(nobody)["prior_pictures"].prepare(setting(model, nobody, tmp_path))


def test_an_adaptive_weight_follows_the_drift() -> None:
    hold = one("stay_near", weight=2.0, adaptive=0.1)
    for _ in range(3):
        hold.heard(0.5)
    assert hold.beside_weight() > 2.5
    kept = hold.state()
    for _ in range(200):
        hold.heard(0.0)
    assert hold.beside_weight() == pytest.approx(2.0 / 16)
    hold.restore(kept)
    assert hold.beside_weight() == kept["weight"]
    hold.control = Control(hold=3.0)
    assert hold.beside_weight() == pytest.approx(3 * kept["weight"])
    fixed = one("stay_near", weight=2.0)
    fixed.heard(100.0)
    assert fixed.beside_weight() == 2.0


def test_a_silent_hold_asks_for_no_rows() -> None:
    hold = one("stay_near")
    hold.control = Control(hold=0.0)
    hold.prepare(
        Setting(
            Recipe(),
            SimpleNamespace(
                resolution=64, downscale=8, latent_channels=4, schedule=SCHEDULE, pocket=True
            ),
            Path(),
            lambda *told: None,
        )
    )
    assert hold.beside(1) is None


def test_what_is_told_of_each_layer_is_that_of_its_dense_update(on: Attached) -> None:
    told, layers = spectra(on, norms(on), 7)
    weights, updates = dict(on.base_weights()), on.adapter().layers
    assert set(layers) == set(updates)
    for name, update in updates.items():
        values = torch.linalg.svdvals(update.delta(weights[name]).double())[:4]
        assert layers[name]["nuclear_norm"] == pytest.approx(float(values.sum()), rel=1e-4)
        share = values.square().sum().sqrt() / weights[name].norm()
        assert layers[name]["share"] == pytest.approx(float(share), rel=1e-4)
        assert 1 <= layers[name]["stable_rank"] <= layers[name]["effective_rank"] <= 4.0001
    assert {m.name: m.step for m in told} == dict.fromkeys(
        (
            *("update_size.nuclear_norm", "update_size.share"),
            *("update_rank.stable", "update_rank.effective"),
        ),
        7,
    )


def test_kinds_without_two_factors_refuse_what_needs_them(model: Any) -> None:
    other = attach(model, LohaPlan(rank=2, alpha=2), seed=0)
    try:
        assert spectra(other, norms(other), 0) == ([], {})
        with pytest.raises(AdapterError, match="kind lora or dora; found loha"):
            one("rank_dropout").attached(other)
    finally:
        other.detach()
