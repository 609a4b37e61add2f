"""Methods of sampling: the formulas of their papers, and the laws that any of them keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from PIL import Image
from tests.sample.test_strength import learnt
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl
from torch import Tensor

from variegate import seeds
from variegate.adapter import Adapter, Ensemble, attached
from variegate.errors import RequestError
from variegate.formats import write
from variegate.images import ImageSet
from variegate.models import Conditioning, DiffusionModel, load
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingMethods, SamplingPlan
from variegate.sample import Request, denoise, grid, initial_noise, sample
from variegate.sample.methods import noise_choice, shield, spell
from variegate.sample.methods.autoguidance import autoguided
from variegate.sample.methods.cads import annealed
from variegate.sample.methods.delayed import Basin
from variegate.sample.methods.moment import Moment
from variegate.sample.methods.particle import pushed
from variegate.sample.methods.rescale import rescaled

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
BASES: dict[str, Any] = {
    "epsilon": lambda folder: write_tiny_sd(folder),
    "v to pure noise": lambda folder: write_tiny_sd(folder, "v_prediction", **ZERO_SNR),
    "sdxl": write_tiny_sdxl,
    "sd3": write_tiny_sd3,
}
# Each such that it does something in three steps of networks of random weights.
METHODS: dict[str, dict[str, Any]] = {
    "late_adapter": {"boundary": 0.5},
    "cads": {"strength": 0.5, "full": 0.1, "none": 0.9},
    "interval": {"low": 1.0, "high": 1e9},
    "delayed": {"way": "fixed", "until": 0.5},
    "rescale": {"share": 1.0},
    "cfg_pp": {"scale": 0.6},
    "autoguidance": {"weaker": "base", "weight": 1.0},
    "particle": {"weight": 200.0, "least_noise": 0.0},
    "spell": {"radius": 60.0},
    "shield": {"radius": 60.0},
    "noise_choice": {"way": "select", "candidates": 3},
    "noise_choice optimise": {"way": "optimise", "rounds": 1},
    "noise_choice balanced": {"way": "balanced"},
    "noise_choice antithetic": {"way": "antithetic"},
}
COUPLED = [name for name in METHODS if name.startswith(("particle", "spell", "noise"))]
PLAN = SamplingPlan(steps=3, guidance_scale=3.0)


@pytest.fixture(scope="module", params=BASES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load(str(BASES[request.param](tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (80, 64), colour).save(folder / f"{i}.png")
    return folder


def plan_of(name: str, photos: Path, plan: SamplingPlan = PLAN) -> SamplingPlan:
    table = dict(METHODS[name])
    if name == "shield":
        table["images"] = str(photos)
    tables = plan.model_dump() | {"methods": {name.split()[0]: table}}
    return SamplingPlan.model_validate(tables)


def pixels(pictures: ImageSet) -> dict[tuple[Any, ...], np.ndarray]:
    return {(p.prompt, p.seed): np.asarray(p.open(), int) for p in pictures}


def alike(one: np.ndarray, two: np.ndarray) -> bool:
    return int(np.abs(one - two).max()) <= 2  # of 255


# --- laws of all --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_does_something_on_every_family_and_hangs_on_its_group_alone(
    name: str, model: DiffusionModel, photos: Path, tmp_path: Path
) -> None:
    adapter, plan = learnt(model), plan_of(name, photos)
    requests = grid(["an owl", "a red fox"], range(3))
    together = pixels(sample(model, adapter, requests, plan=plan, out=tmp_path / "a"))
    owls = requests[:3]
    alone = pixels(sample(model, adapter, owls[::-1], plan=plan, out=tmp_path / "b", batch_size=2))
    for look, picture in alone.items():
        assert alike(picture, together[look])
    plain = pixels(sample(model, adapter, requests, plan=PLAN, out=tmp_path / "c"))
    assert any(not np.array_equal(plain[look], together[look]) for look in plain)
    if name not in COUPLED:
        (one,) = sample(model, adapter, requests[4:5], plan=plan, out=tmp_path / "d")
        assert alike(together["a red fox", 1], np.asarray(one.open(), int))


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_with_every_sampler(
    name: str, sampler: Any, sd: DiffusionModel, photos: Path, tmp_path: Path
) -> None:
    if name == "cfg_pp" and sampler in ("euler_a", "dpmpp_2m"):
        with pytest.raises(ValueError, match="cfg_pp noises again by itself"):
            plan_of(name, photos, PLAN.model_copy(update={"sampler": sampler}))
        return
    plan = plan_of(name, photos, PLAN.model_copy(update={"sampler": sampler}))
    drawn = sample(sd, learnt(sd), grid(["an owl"], range(2)), plan=plan, out=tmp_path)
    assert all(np.asarray(picture.open()).std() > 0 for picture in drawn)


NEUTRAL: dict[str, dict[str, Any]] = {
    "late_adapter": {"early": 1.0},
    "interval": {"low": 0.0, "high": 1e9},
    "delayed": {"before": 1.0, "until": 0.999},
    "spell": {"radius": 1e-9},
    "particle": {"least_noise": 1e9},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_method_that_never_acts_leaves_the_plain_loop_to_the_bit(
    name: str, sd: DiffusionModel
) -> None:
    plan = SamplingPlan(steps=3, guidance_scale=3.0, methods={name: NEUTRAL[name]})
    noise = torch.cat([initial_noise(sd, seed) for seed in range(2)])
    with torch.no_grad():
        asked, empty = sd.embed(["an owl", "a fox"]), sd.embed(["", ""])
    ours, plain = (
        denoise(sd, noise, asked, empty, plan=p, picture_seeds=[0, 1]) for p in (plan, PLAN)
    )
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", METHODS)
def test_names_tell_what_drew_them_and_plain_ones_are_as_they_were(
    name: str, sd: DiffusionModel, photos: Path, tmp_path: Path
) -> None:
    adapter, plan = learnt(sd), plan_of(name, photos)
    (plain,) = sample(sd, adapter, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    off = PLAN.model_copy(update={"variety": "off", "methods": SamplingMethods()})
    off = SamplingPlan.model_validate(off.model_dump())
    (still,) = sample(sd, adapter, [Request("an owl", 0)], plan=off, out=tmp_path)
    assert still.file == plain.file
    (other,) = sample(sd, adapter, [Request("an owl", 0)], plan=plan, out=tmp_path)
    assert other.file is not None
    assert other.file != plain.file
    with Image.open(other.file) as image:
        assert f"Methods: {name.split()[0]}" in image.text["parameters"]


@pytest.mark.parametrize("name", COUPLED)
def test_a_group_that_is_partly_there_goes_on_to_the_same_pictures(
    name: str, sd: DiffusionModel, photos: Path, tmp_path: Path
) -> None:
    plan, requests = plan_of(name, photos), grid(["an owl"], range(3))
    drawn = sample(sd, learnt(sd), requests, plan=plan, out=tmp_path)
    files = [picture.file for picture in drawn if picture.file]
    before = [file.read_bytes() for file in files]
    stamps = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    assert sample(sd, learnt(sd), requests, plan=plan, out=tmp_path) == drawn
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns == s for file, s in zip(files, stamps, strict=True)] == [
        True,
        False,
        True,
    ]
    fewer = sample(sd, learnt(sd), requests[:2], plan=plan, out=tmp_path)
    assert not {p.file for p in fewer} & set(files)  # another company, other pictures


def test_a_group_larger_than_a_batch_is_still_one_group(
    sd: DiffusionModel, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, requests = plan_of("spell", photos), grid(["an owl"], range(5))
    whole = pixels(sample(sd, None, requests, plan=plan, out=tmp_path / "whole"))
    predict, most = sd.predict, []

    def counted(latents: Tensor, *rest: Any) -> Tensor:
        most.append(len(latents))
        if len(latents) > 4:
            raise torch.OutOfMemoryError("too much")
        return predict(latents, *rest)

    monkeypatch.setattr(sd, "predict", counted)
    parts = pixels(sample(sd, None, requests, plan=plan, out=tmp_path / "parts"))
    assert max(most) > 4
    for look, picture in whole.items():
        assert alike(picture, parts[look])


def test_methods_about_adapters_leave_a_base_as_it_is(sd: DiffusionModel, tmp_path: Path) -> None:
    methods = {"late_adapter": {}, "autoguidance": {}}
    plan = SamplingPlan(steps=3, guidance_scale=3.0, methods=methods)
    (with_them,) = sample(sd, None, [Request("an owl", 0)], plan=plan, out=tmp_path)
    (without,) = sample(sd, None, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    assert with_them.file == without.file
    with pytest.raises(RequestError, match="dial an adapter that is given"):
        sample(sd, None, [Request("an owl", 0)], plan=plan, out=tmp_path, worn="x")


def test_what_a_method_lacks_is_told(sd: DiffusionModel, tmp_path: Path, photos: Path) -> None:
    asks: dict[str, Any] = {"out": tmp_path}
    nowhere = SamplingPlan(methods={"shield": {}})
    with pytest.raises(RequestError, match=r"methods\.shield\.images=DIR"):
        sample(sd, None, [Request("a", 0)], plan=nowhere, **asks)
    file = SamplingPlan(methods={"autoguidance": {"weaker": "file", "file": "x.safetensors"}})
    cast = Ensemble((learnt(sd, 0), learnt(sd, 1)), (1.0, 1.0))
    with pytest.raises(RequestError, match="an ensemble has no earlier checkpoint"):
        sample(sd, cast, [Request("a", 0)], plan=file, **asks)
    with pytest.raises(ValueError, match="belong together"):
        SamplingPlan(methods={"autoguidance": {"weaker": "file"}})


# --- each as its paper has it -------------------------------------------------------------------


def randn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=seeds.at(0, name))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_shift_of_the_prediction_is_one_of_the_clean_estimate(prediction: Any) -> None:
    x, p, by = (randn(2, 4, 3, 3, name=name) for name in "xpb")
    sigma = 0.6
    moment = Moment(0, 0.5, 0.4 if prediction == "flow" else 0.8, sigma, prediction, x)
    moved = moment.clean(moment.shifted(p, by))
    torch.testing.assert_close(moved, moment.clean(p) + by, atol=1e-5, rtol=1e-5)
    # x is what it was: its noise is less by what x0 is more.
    noises = [(x - moment.alpha * moment.clean(q)) / sigma for q in (p, moment.shifted(p, by))]
    between = moment.noise_between(p, moment.shifted(p, by))
    torch.testing.assert_close(noises[0] - noises[1], between, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_clean_estimates_are_those_of_the_sampler(sampler: Any, model: DiffusionModel) -> None:
    if model.nearest_sampler(sampler) != sampler:
        return
    scheduler = model.sampler(sampler)
    with diffusers_warnings_off():
        scheduler.set_timesteps(4)
    latents, p = randn(2, model.latent_channels, 3, 3), 0.3 * randn(2, model.latent_channels, 3, 3)
    shown = scheduler.scale_model_input(latents, scheduler.timesteps[0])
    moment = Moment.of(model.schedule, scheduler, 0, shown)
    if sampler == "dpmpp_2m":
        scheduler.set_begin_index(0)
        scheduler._step_index = 0
        theirs = scheduler.convert_model_output(p, sample=latents)
    elif model.schedule.prediction == "flow":
        theirs = latents - scheduler.sigmas[0] * p
    else:
        theirs = scheduler.step(p, scheduler.timesteps[0], latents).pred_original_sample
    torch.testing.assert_close(moment.clean(p), theirs, atol=1e-4, rtol=1e-4)


def test_rescale_is_that_of_diffusers() -> None:
    guided, asked = 3 * randn(2, 4, 5, 5), randn(2, 4, 5, 5, name="y")
    theirs = rescale_noise_cfg(guided, asked, guidance_rescale=0.7)
    torch.testing.assert_close(rescaled(guided, asked, share=0.7), theirs)


def by_hand(model: DiffusionModel, step: Any, plan: SamplingPlan = PLAN) -> Tensor:
    """DDIM's loop with a step of the test's own: (index, x, empty's and asked's predictions, alpha
    and sigma now and next) -> x."""
    scheduler = model.sampler("ddim")
    scheduler.set_timesteps(plan.steps)
    x = torch.cat([initial_noise(model, seed) for seed in (0, 1)])
    with torch.no_grad():
        asked, empty = model.embed(["an owl", "a fox"]), model.embed(["", ""])
        for i, t in enumerate(scheduler.timesteps):
            before = t - 1000 // plan.steps
            bars = [
                scheduler.alphas_cumprod[t],
                scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod,
            ]
            levels = [(float(bar) ** 0.5, float(1 - bar) ** 0.5) for bar in bars]
            both = [model.predict(x, t.expand(2), words) for words in (empty, asked)]
            x = step(i, x, *both, levels)
    return x


def ours(model: DiffusionModel, **methods: Any) -> Tensor:
    plan = SamplingPlan.model_validate(PLAN.model_dump() | {"methods": methods})
    noise = torch.cat([initial_noise(model, seed) for seed in (0, 1)])
    with torch.no_grad():
        asked, empty = model.embed(["an owl", "a fox"]), model.embed(["", ""])
    return denoise(model, noise, asked, empty, plan=plan, picture_seeds=[0, 1])


def ddim(x: Tensor, noise: Tensor, levels: Any, put_back: Tensor | None = None) -> Tensor:
    (alpha, sigma), (alpha_next, sigma_next) = levels
    x0 = (x - sigma * noise) / alpha
    return alpha_next * x0 + sigma_next * (noise if put_back is None else put_back)


def test_cfg_pp_is_the_papers_algorithm(sd: DiffusionModel) -> None:
    def step(i: int, x: Tensor, empty: Tensor, asked: Tensor, levels: Any) -> Tensor:
        return ddim(x, empty + 0.6 * (asked - empty), levels, put_back=empty)

    torch.testing.assert_close(ours(sd, cfg_pp={"scale": 0.6}), by_hand(sd, step))


def test_cfg_pp_of_euler_is_that_of_ddim(sd: DiffusionModel) -> None:
    """Both follow the same line; over many steps Euler's rounding apart they end in one place."""
    noise = initial_noise(sd, 0)
    with torch.no_grad():
        asked, empty = sd.embed(["an owl"]), sd.embed([""])
    ends = []
    for sampler in ("ddim", "euler"):
        settings = sd.scheduler_config | {"timestep_spacing": "trailing"}
        plan = SamplingPlan(
            steps=200, guidance_scale=3.0, sampler=sampler, methods={"cfg_pp": {"scale": 0.5}}
        )
        base = replace(sd, scheduler_config=settings)  # type: ignore[type-var]
        ends.append(denoise(base, noise, asked, empty, plan=plan, picture_seeds=[0]))
    assert float((ends[0] - ends[1]).abs().mean() / ends[0].abs().mean()) < 0.05


def test_the_interval_guides_within_it_alone(sd: DiffusionModel) -> None:
    seen = []

    def step(i: int, x: Tensor, empty: Tensor, asked: Tensor, levels: Any) -> Tensor:
        ratio = levels[0][1] / levels[0][0]
        seen.append(0.2 < ratio <= 3.0)
        return ddim(x, empty + 3.0 * (asked - empty) if seen[-1] else asked, levels)

    wanted = by_hand(sd, step)
    assert set(seen) == {True, False}
    torch.testing.assert_close(ours(sd, interval={"low": 0.2, "high": 3.0}), wanted)


def test_delayed_guidance_begins_where_it_is_told(sd: DiffusionModel) -> None:
    def step(i: int, x: Tensor, empty: Tensor, asked: Tensor, levels: Any) -> Tensor:
        return ddim(x, empty + (-2.0 if i == 0 else 3.0) * (asked - empty), levels)

    found = ours(sd, delayed={"way": "fixed", "until": 0.5, "before": -2.0})
    torch.testing.assert_close(found, by_hand(sd, step))


def test_a_picture_leaves_its_basin_after_the_first_least_distance() -> None:
    told = torch.tensor([[5.0, 3.0], [4.0, 3.5], [4.5, 3.0], [6.0, 4.0], [1.0, 2.0]])
    basin = Basin()
    left = torch.stack([basin.left(distance) for distance in told])
    assert left[:, 0].tolist() == [False, False, True, True, True]
    assert left[:, 1].tolist() == [False, False, False, True, True]


def test_autoguidance_without_other_guidance_is_karras_formula(sd: DiffusionModel) -> None:
    weak, strong = randn(1, 4, 3, 3), randn(1, 4, 3, 3, name="y")
    found = autoguided(strong, strong, weak, weight=0.8)
    torch.testing.assert_close(found, weak + 1.8 * (strong - weak))


@pytest.mark.parametrize("weaker", ["base", "scaled", "file"])
def test_the_weaker_one_is_who_was_named(weaker: str, sd: DiffusionModel, tmp_path: Path) -> None:
    """One step, by hand: each model asked on its own, with its own reading of the prompt."""
    adapter, early = learnt(sd, 0), learnt(sd, 1)
    file = write(early, tmp_path / "early.safetensors")
    table: dict[str, Any] = {"weaker": weaker, "weight": 0.7, "strength": 0.4}
    table |= {"file": str(file)} if weaker == "file" else {}
    plan = SamplingPlan(steps=1, guidance_scale=1.0, methods={"autoguidance": table})
    (picture,) = sample(sd, adapter, [Request("an owl", 0)], plan=plan, out=tmp_path / "out")
    lesser: dict[str, Adapter | None] = {
        "base": None,
        "scaled": adapter.scaled(0.4),
        "file": early,
    }
    x, answers = initial_noise(sd, 0), []
    scheduler = sd.sampler("ddim")
    scheduler.set_timesteps(1)
    for learnt_by in (adapter, lesser[weaker]):
        with attached(sd, learnt_by), torch.no_grad():
            answers.append(sd.predict(x, scheduler.timesteps, sd.embed(["an owl"])))
    guided = answers[0] + 0.7 * (answers[0] - answers[1])
    with torch.no_grad():
        end = sd.decode(scheduler.step(guided, scheduler.timesteps[0], x).prev_sample)
    wanted = ((end / 2 + 0.5).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy().astype(int)
    assert alike(np.asarray(picture.open(), int), wanted)


def test_late_adapter_is_the_base_first_and_then_the_adapter(
    sd: DiffusionModel, tmp_path: Path
) -> None:
    """Both halves by hand, each with its own reading of the prompt."""
    adapter = learnt(sd)
    plan = SamplingPlan(steps=2, guidance_scale=1.0, methods={"late_adapter": {"boundary": 0.3}})
    (picture,) = sample(sd, adapter, [Request("an owl", 0)], plan=plan, out=tmp_path)
    scheduler = sd.sampler("ddim")
    scheduler.set_timesteps(2)
    assert [float(t) / 1000 > 0.3 for t in scheduler.timesteps] == [True, False]
    x = initial_noise(sd, 0)
    for t, on in zip(scheduler.timesteps, (None, adapter), strict=True):
        with attached(sd, on), torch.no_grad():
            x = scheduler.step(sd.predict(x, t.expand(1), sd.embed(["an owl"])), t, x).prev_sample
    with torch.no_grad():
        end = sd.decode(x)
    wanted = ((end / 2 + 0.5).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy().astype(int)
    assert alike(np.asarray(picture.open(), int), wanted)


def test_cads_is_the_papers_formula() -> None:
    y = randn(2, 5, 6) + 0.5
    words = Conditioning(y, randn(2, 7))
    asks: dict[str, Any] = {"picture_seeds": [3, 4], "index": 1}
    found = annealed(words, gamma=0.3, strength=0.2, rescaled=0.75, **asks)
    for row, seed in enumerate((3, 4)):
        n = torch.randn(5, 6, generator=seeds.at(seed, "cads", "words", 1))
        ragged = 0.3**0.5 * y[row] + 0.2 * 0.7**0.5 * n
        back = (ragged - ragged.mean()) / ragged.std() * y[row].std() + y[row].mean()
        torch.testing.assert_close(found.embeddings[row], 0.75 * back + 0.25 * ragged)
    assert found.pooled is not None
    whole = annealed(words, gamma=0.3, strength=0.2, rescaled=1.0, **asks)
    torch.testing.assert_close(whole.embeddings.flatten(1).std(1), y.flatten(1).std(1))
    assert annealed(words, gamma=1.0, strength=0.2, rescaled=1.0, **asks) is words


def test_particles_push_as_in_the_reference() -> None:
    """Pair by pair, on pictures of full strength, with noise changed instead of clean estimates."""
    alpha, sigma, n = 0.3, 0.9, 4
    x = randn(n, 4, 3, 3)
    found = pushed(x, torch.zeros(n, dtype=torch.long), alpha=alpha, sigma=sigma, weight=5.0)
    full, s = (x / alpha).flatten(1), sigma / alpha
    for i in range(n):
        others = [j for j in range(n) if j != i]
        distances = torch.stack([(full[i] - full[j]).norm() for j in others])
        h = distances.median() ** 2 / np.log(n - 1)
        noise = torch.zeros(full.shape[1])
        for j, d in zip(others, distances, strict=True):
            noise -= 5.0 * s * 2 * torch.exp(-(d**2) / h) * (full[i] - full[j]) / h
        torch.testing.assert_close(found[i].flatten(), -s * noise, atol=1e-4, rtol=1e-4)


def test_groups_do_not_feel_each_other() -> None:
    x, groups = randn(5, 4, 3, 3), torch.tensor([0, 1, 0, 1, 2])
    whole = pushed(x, groups, alpha=0.5, sigma=0.8, weight=3.0)
    own = pushed(x[groups == 0], groups[[0, 2]], alpha=0.5, sigma=0.8, weight=3.0)
    torch.testing.assert_close(whole[groups == 0], own)
    assert not bool(whole[4].any())
    felt = spell.neighbours(groups)
    pushes = spell.repelled(x, x, felt, radius=3.0, over=1.6)
    alone = spell.repelled(x[[0, 2]], x[[2]], torch.tensor([[True], [False]]), radius=3.0, over=1.6)
    torch.testing.assert_close(pushes[0], alone[0])
    assert not bool(pushes[4].any())


def test_spell_pushes_beyond_the_radius_and_only_within_it() -> None:
    """Of one neighbour: at distance d < r it is moved by 1.6 (r - d) along the line between."""
    x = torch.zeros(1, 1, 2, 2)
    near, far = torch.full((1, 1, 2, 2), 0.3), torch.full((1, 1, 2, 2), 0.7)
    felt = torch.ones(1, 1, dtype=torch.bool)
    moved = spell.repelled(x, near, felt, radius=0.5, over=1.6)
    torch.testing.assert_close(moved, torch.full_like(x, -1.6 * 0.2))
    assert not bool(spell.repelled(x, far, felt, radius=0.5, over=1.6).any())
    assert not bool(spell.repelled(x, near, ~felt, radius=0.5, over=1.6).any())


def test_a_shield_keeps_pictures_away_from_those_it_is_shown(tmp_path: Path) -> None:
    """Shown the very pictures that plain sampling draws, the pocket draws others."""
    pocket, requests = load("pocket"), grid(["a red apple"], range(3))
    plain = SamplingPlan(steps=8, guidance_scale=3.0)
    copies = sample(pocket, None, requests, plan=plain, out=tmp_path / "copies")
    asked = {"shield": {"images": str(tmp_path / "copies"), "radius": 0.8}}
    plan = SamplingPlan.model_validate(plain.model_dump() | {"methods": asked})
    kept_off = sample(pocket, None, requests, plan=plan, out=tmp_path / "shielded")
    shown, drawn = (shield.encoded(pocket, pictures).flatten(1) for pictures in (copies, kept_off))
    nearest = (torch.cdist(drawn, shown) / shown.shape[1] ** 0.5).min(1).values
    assert float(nearest.min()) > 0.5


def test_noises_are_chosen_apart_in_turn() -> None:
    unit = torch.eye(3)
    found = torch.stack(
        [
            torch.stack([unit[0], unit[2]]),
            torch.stack([unit[0], unit[1]]),  # its own is like the first's
            torch.stack([unit[2], unit[1]]),
        ]
    )
    assert noise_choice.farthest(found) == [0, 1, 0]


def test_optimised_noises_lead_farther_apart_and_are_as_long(sd: DiffusionModel) -> None:
    noise = torch.cat([initial_noise(sd, seed) for seed in range(3)])
    matrix = torch.randn(4, 4, generator=seeds.at(0, "matrix"))

    def estimate(noise: Tensor) -> Tensor:
        return torch.einsum("cd,ndyx->ncyx", matrix, noise) + 1.0

    start = noise_choice.looks(estimate(noise))
    moved = noise_choice.optimised(noise, estimate, rounds=5, step=0.1)
    now = noise_choice.looks(estimate(moved))
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
    others = ~torch.eye(3, dtype=torch.bool)
    assert float((now @ now.T)[others].mean()) < float((start @ start.T)[others].mean())
    assert float((now * start).sum(1).min()) > 0


def test_balanced_noises_add_up_to_nothing_and_are_standard_normal() -> None:
    noise = torch.randn(4000, 4, 1, 8, 8, generator=seeds.at(0, "many"))
    each = torch.stack([noise_choice.balanced(group) for group in noise])
    assert float(each.sum(1).abs().max()) < 1e-4
    flat = each.flatten(2)
    assert abs(float(flat.std()) - 1) < 0.01
    product = float((flat[:, 0] * flat[:, 1]).mean())
    assert product == pytest.approx(-1 / 3, abs=0.01)
    pair = noise_choice.antithetic(noise[0])
    assert torch.equal(pair[1], -pair[0])
    assert torch.equal(pair[0], noise[0, 0])
