from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tests.tiny import write_tiny_sd

from variegate.errors import BaseError
from variegate.models import load
from variegate.models.samplers import SAMPLERS, noise_schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    return target


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_folder_loads_frozen_with_its_own_sizes(folder: Path) -> None:
    model = load(str(folder))
    assert (model.resolution, model.downscale, model.latent_channels) == (64, 8, 4)
    assert (model.family, model.pocket) == ("sd1", False)
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_the_same_content_has_the_same_id_wherever_it_lies(folder: Path, copy: Path) -> None:
    assert load(str(folder)).id == load(str(copy)).id
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({k: v * 1.001 for k, v in weights.items()}, file, metadata={"format": "pt"})
    assert load(str(folder)).id != load(str(copy)).id


@pytest.mark.parametrize("autoencoder", ["kl", "tiny"])
def test_encode_and_decode_agree_with_diffusers(autoencoder: str, tmp_path: Path) -> None:
    folder = write_tiny_sd(tmp_path, autoencoder=autoencoder)
    model = load(str(folder))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(images)
    with torch.no_grad():
        encoded = pipeline.vae.encode(images)
        mean = encoded.latents if autoencoder == "tiny" else encoded.latent_dist.mean
        torch.testing.assert_close(latents, mean * pipeline.vae.config.scaling_factor)
        unscaled = latents / pipeline.vae.config.scaling_factor
        torch.testing.assert_close(model.decode(latents), pipeline.vae.decode(unscaled).sample)


def test_encode_draws_only_with_a_generator_and_repeatably(folder: Path) -> None:
    model = load(str(folder))
    images = torch.zeros(1, 3, 64, 64)
    draws = [model.encode(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(model.encode(images), model.encode(images))


def test_embed_and_predict_agree_with_diffusers(folder: Path) -> None:
    model = load(str(folder))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        embeddings = model.embed(["an owl", ""])
        owl, empty = pipeline.encode_prompt("an owl", "cpu", 1, True)
        torch.testing.assert_close(embeddings.embeddings, torch.cat([owl, empty]))
        latents, t = torch.ones(2, 4, 8, 8), torch.tensor([7, 700])
        answer = model.predict(latents, t, embeddings)
        expected = pipeline.unet(latents, t, embeddings.embeddings).sample
        torch.testing.assert_close(answer, expected)


def test_a_prompt_longer_than_the_window_is_cut(folder: Path) -> None:
    assert load(str(folder)).embed(["owl " * 500]).embeddings.shape == (1, 16, 16)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [True, False])
def test_the_schedule_is_that_of_diffusers(beta_schedule: str, zero_snr: bool) -> None:
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": beta_schedule,
        "rescale_betas_zero_snr": zero_snr,
        "prediction_type": "v_prediction",
        "skip_prk_steps": True,  # another scheduler's entry, as in SD 1.5's own file
    }
    schedule = noise_schedule(config)
    reference = DDIMScheduler(**{k: v for k, v in config.items() if k != "skip_prk_steps"})
    assert schedule.prediction == "v_prediction"
    assert torch.equal(schedule.alpha_bar, reference.alphas_cumprod)
    assert (float(schedule.alpha_bar[-1]) == 0) is zero_snr


def test_trained_betas_are_taken_as_they_are() -> None:
    schedule = noise_schedule({"trained_betas": [0.5, 0.5]})
    assert schedule.alpha_bar.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_every_sampler_carries_the_bases_schedule(kind: str, folder: Path) -> None:
    scheduler = load(str(folder)).sampler(kind)
    assert scheduler.config.beta_end == 0.012
    assert scheduler.config.prediction_type == "epsilon"
    assert load(str(folder)).sampler(kind) is not scheduler


def test_latents_are_not_clipped_when_the_scheduler_is_silent_about_it(copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["clip_sample"]
    file.write_text(json.dumps(settings))
    assert load(str(copy)).sampler("ddim").config.clip_sample is False


def test_sd2_is_told_by_its_width(tmp_path: Path) -> None:
    assert load(str(write_tiny_sd(tmp_path, width=1024))).family == "sd2"


def test_half_precision_weights_under_their_own_name_are_found(copy: Path) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = copy / part / f"{stem}.safetensors"
        halves = {k: v.half() for k, v in load_file(file).items()}
        save_file(halves, copy / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
        file.unlink()
    assert load(str(copy)).unet.dtype == torch.float32


def refusal(name: str | Path) -> str:
    with pytest.raises(BaseError) as caught:
        load(str(name))
    return str(caught.value)


def test_a_wrong_path_is_refused_with_what_lies_near(copy: Path) -> None:
    text = refusal(copy.parent / "cpoy")
    assert "no base model at" in text
    assert "near it are: copy" in text
    assert "its parent" in refusal(copy.parent / "no" / "such" / "place")


def test_a_folder_around_the_model_is_refused_with_the_model_named(copy: Path) -> None:
    text = refusal(copy.parent)
    assert "model_index.json is missing" in text
    assert str(copy) in text


def test_pickled_weights_are_refused_unopened(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    text = refusal(copy)
    assert "pickle (diffusion_pytorch_model.bin)" in text
    assert "safe_serialization=True" in text
    (copy / "model.ckpt").write_bytes(b"not opened")
    assert "is a pickle, which can run code" in refusal(copy / "model.ckpt")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("FluxPipeline", "Flux; this family comes later"),
        ("KandinskyPipeline", "KandinskyPipeline; expected StableDiffusionPipeline"),
        (None, "pipeline of no stated class"),
    ],
)
def test_another_family_is_refused_by_name(copy: Path, found: str | None, told: str) -> None:
    edit(copy / "model_index.json", _class_name=found)
    assert told in refusal(copy)


def test_all_faults_of_a_folder_are_told_at_once(copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").unlink()
    (copy / "vae" / "config.json").unlink()
    for file in (copy / "tokenizer").iterdir():
        file.unlink()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    edit(copy / "model_index.json", text_encoder=["evil", "Encoder"])
    text = refusal(copy)
    for told in (
        "text_encoder: model_index.json names Encoder; expected CLIPTextModel",
        "vae/config.json is missing",
        "tokenizer: expected",
        "(1000 bytes) is no whole safetensors file",
        "scheduler_config.json is missing",
    ):
        assert told in text


def test_a_file_that_lacks_weights_is_refused_rather_than_filled_with_noise(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("conv_in.bias")
    save_file(weights, file, metadata={"format": "pt"})
    assert "1 weights are missing, such as conv_in.bias" in refusal(copy)


def test_parts_that_do_not_fit_together_are_refused(copy: Path, tmp_path: Path) -> None:
    other = write_tiny_sd(tmp_path / "wide", width=32)
    for name in ("config.json", "model.safetensors"):
        (copy / "text_encoder" / name).write_bytes((other / "text_encoder" / name).read_bytes())
    assert "reads embeddings of 16, the text encoder gives 32" in refusal(copy)


def test_an_unknown_prediction_is_refused(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "prediction_type 'sample'" in refusal(copy)


def test_code_in_a_model_folder_is_never_run(copy: Path) -> None:
    sentinel = copy / "ran"
    (copy / "unet" / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')")
    edit(copy / "unet" / "config.json", auto_map={"AutoModel": "evil.Model"})
    edit(copy / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Model"})
    load(str(copy))
    assert not sentinel.exists()


def test_offline_a_hub_name_is_answered_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refusal("nobody/no-such-model-here")
    assert "hub model nobody/no-such-model-here could not be had" in text
    assert "HF_HUB_OFFLINE is set" in text
