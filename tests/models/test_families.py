"""Every family answers as its diffusers pipeline does, trains, and is sampled with its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl

from variegate import formats
from variegate.adapter import attach, attached
from variegate.errors import AdapterError, BaseError
from variegate.models import Conditioning, DiffusionModel, load
from variegate.recipe import LoraPlan, SamplingPlan
from variegate.sample import denoise, initial_noise

PROMPTS = ["an owl", "a red owl"]
EXACT = {"atol": 1e-5, "rtol": 1e-5}
WRITERS: dict[str, Any] = {
    "sd": write_tiny_sd,
    "sdxl": write_tiny_sdxl,
    "sd3": write_tiny_sd3,
    "sd35": lambda folder: write_tiny_sd3(folder, dual=True),
    "sd3-clip": lambda folder: write_tiny_sd3(folder, t5=False),
}
PIPELINES: dict[str, Any] = {
    "sd": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {kind: write(home / kind) for kind, write in WRITERS.items()}


def pipeline_of(folder: Path) -> Any:
    kind = folder.name[:4].rstrip("5-") if folder.name != "sd35" else "sd3"
    without = {"text_encoder_3": None, "tokenizer_3": None} if "clip" in folder.name else {}
    pipeline = PIPELINES[kind].from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def words_of(pipeline: Any, prompts: list[str], **more: Any) -> Conditioning:
    """What the pipeline hands its network, sizes as for a whole picture."""
    if isinstance(pipeline, StableDiffusionPipeline):
        return Conditioning(pipeline.encode_prompt(prompts, "cpu", 1, False, **more)[0])
    if isinstance(pipeline, StableDiffusionXLPipeline):
        states, _, pooled, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, **more
        )
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(len(prompts), 1)
        return Conditioning(states, pooled, sizes)
    states, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, **more
    )
    return Conditioning(states, pooled)


def agree(ours: Conditioning, theirs: Conditioning) -> None:
    torch.testing.assert_close(ours.embeddings, theirs.embeddings, **EXACT)
    for own, other in ((ours.pooled, theirs.pooled), (ours.sizes, theirs.sizes)):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, **EXACT)


@pytest.mark.parametrize("kind", WRITERS)
@torch.no_grad()
def test_words_and_answers_are_those_of_diffusers(kind: str, folders: dict[str, Path]) -> None:
    model, pipeline = load(str(folders[kind])), pipeline_of(folders[kind])
    theirs = words_of(pipeline, PROMPTS)
    agree(model.embed(PROMPTS), theirs)
    latents, t = torch.ones(2, 4, 8, 8), torch.tensor([7, 700])
    answer = model.predict(latents, t, model.embed(PROMPTS))
    if model.family == "sd3":
        expected = pipeline.transformer(latents, theirs.embeddings, theirs.pooled, t).sample
    else:
        told = {"text_embeds": theirs.pooled, "time_ids": theirs.sizes}
        expected = pipeline.unet(latents, t, theirs.embeddings, added_cond_kwargs=told).sample
    torch.testing.assert_close(answer, expected, **EXACT)


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
@pytest.mark.parametrize("skip", [1, 2])
@torch.no_grad()
def test_clip_skip_is_one_more_than_that_of_diffusers(
    kind: str, skip: int, folders: dict[str, Path]
) -> None:
    model, pipeline = load(str(folders[kind]), clip_skip=skip), pipeline_of(folders[kind])
    agree(model.embed(PROMPTS), words_of(pipeline, PROMPTS, clip_skip=skip - 1))


@torch.no_grad()
def test_clip_skip_of_one_encoder_norms_the_layer_that_is_read(folders: dict[str, Path]) -> None:
    """Diffusers 0.42 cannot with transformers 5, whose text model has no inner one; so by hand."""
    model = load(str(folders["sd"]), clip_skip=2)
    encoder = pipeline_of(folders["sd"]).text_encoder
    ids = model.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    states = encoder(ids.input_ids, output_hidden_states=True).hidden_states
    inner = getattr(encoder, "text_model", encoder)
    agree(model.embed(PROMPTS), Conditioning(inner.final_layer_norm(states[-2])))
    plain = load(str(folders["sd"]))
    assert model.id != plain.id
    assert not torch.allclose(plain.embed(PROMPTS).embeddings, model.embed(PROMPTS).embeddings)
    with pytest.raises(BaseError, match=r"clip_skip 3 is not possible .* to 2"):
        load(str(folders["sd"]), clip_skip=3)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "sd35", "sd3-clip"])
@torch.no_grad()
def test_the_loop_agrees_with_the_pipeline(kind: str, folders: dict[str, Path]) -> None:
    model, pipeline = load(str(folders[kind])), pipeline_of(folders[kind])
    noise = torch.cat([initial_noise(model, seed) for seed in (0, 1)])
    plan = SamplingPlan(steps=4, guidance_scale=5.0)
    asked, empty = model.embed(PROMPTS), model.embed(["", ""])
    latents = denoise(model, noise, asked, empty, plan=plan, picture_seeds=[0, 1])
    asks: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0, "latents": noise}
    theirs = pipeline(PROMPTS, output_type="latent", **asks).images
    torch.testing.assert_close(latents, theirs, atol=1e-4, rtol=1e-4)
    drawn = (model.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(
        drawn, pipeline(PROMPTS, output_type="pt", **asks).images, atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_sdxl_with_zero_terminal_snr_follows_its_scheduler(tmp_path: Path) -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = write_tiny_sdxl(tmp_path / "sdxl", "v_prediction", force_zeros=False, **settings)
    model, pipeline = load(str(folder)), pipeline_of(folder)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert model.schedule.prediction == "v_prediction"
    assert float(model.schedule.alpha_bar[-1]) == 0
    assert not torch.equal(model.embed([""]).embeddings, torch.zeros(1, 16, 40))
    noise, plan = initial_noise(model, 0), SamplingPlan(steps=3, guidance_scale=5.0)
    latents = denoise(
        model, noise, model.embed(["an owl"]), model.embed([""]), plan=plan, picture_seeds=[0]
    )
    theirs = pipeline(
        "an owl", num_inference_steps=3, guidance_scale=5.0, latents=noise, output_type="latent"
    ).images
    torch.testing.assert_close(latents, theirs, atol=1e-4, rtol=1e-4)


def test_sdxl_is_told_the_size_that_is_drawn_or_that_a_picture_had(
    folders: dict[str, Path],
) -> None:
    model = load(str(folders["sdxl"]))
    with torch.no_grad():
        words = model.embed(PROMPTS, pixels=128)
        assert words.sizes is not None
        assert words.sizes.tolist() == [[128, 128, 0, 0, 128, 128]] * 2
        own = words.sized([(300, 200, 0, 10, 128, 128), None])
        assert own.sizes is not None
        assert own.sizes.tolist() == [[300, 200, 0, 10, 128, 128], [128, 128, 0, 0, 128, 128]]
        assert words.sized([None, None]) is words
        latents, t = torch.ones(2, 4, 8, 8), torch.tensor([7, 700])
        one, other = (model.predict(latents, t, w) for w in (words, own))
    assert not torch.allclose(one[0], other[0])
    assert torch.equal(one[1], other[1])
    plain = load(str(folders["sd"])).embed(PROMPTS)
    assert plain.sized([(1, 1, 0, 0, 1, 1)] * 2) is plain


def test_conditioning_is_joined_indexed_and_repeated_by_rows(folders: dict[str, Path]) -> None:
    model = load(str(folders["sdxl"]))
    with torch.no_grad():
        both = model.embed(PROMPTS)
        alone = Conditioning.join([model.embed([prompt]) for prompt in PROMPTS])
    agree(both, alone)
    agree(both[1], both[1:])
    agree(both[[1, 0, 1]], Conditioning.join([both[1], both]))
    agree(both[0].repeat(2), both[[0, 0]])
    assert len(both.repeat(3)) == 6
    half = both.sized([(1367, 2051, 0, 171, 1024, 1024)] * 2).to("cpu", torch.bfloat16)
    assert half.pooled is not None
    assert half.sizes is not None
    assert half.pooled.dtype == half.embeddings.dtype == torch.bfloat16
    assert half.sizes[0].tolist() == [1367, 2051, 0, 171, 1024, 1024]  # bf16 would say 1368, 2048


def test_every_autoencoder_stays_in_single_precision(folders: dict[str, Path]) -> None:
    for name in ("sd", "sdxl", "sd3"):
        model = load(str(folders[name]), dtype=torch.bfloat16)
        assert (model.vae.dtype, model.network.dtype) == (torch.float32, torch.bfloat16)
        assert model.decode(model.encode(torch.zeros(1, 3, 64, 64))).isfinite().all()


@torch.no_grad()
def test_the_shift_of_sd3s_latents_is_undone(folders: dict[str, Path]) -> None:
    model, pipeline = load(str(folders["sd3"])), pipeline_of(folders["sd3"])
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = pipeline.vae.config
    mean = pipeline.vae.encode(images).latent_dist.mean
    latents = model.encode(images)
    torch.testing.assert_close(latents, (mean - 0.06) * config.scaling_factor)
    torch.testing.assert_close(model.decode(latents), pipeline.vae.decode(mean).sample, **EXACT)


def test_a_missing_encoder_of_sd3_says_zeros(folders: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((folders["sd3"] / "model_index.json").read_text())
    whole = load(str(folders["sd3"])).embed(PROMPTS)
    for gone, states, pooled in (
        (("text_encoder",), slice(0, 12), slice(0, 12)),
        (("text_encoder_2",), slice(12, 20), slice(12, 20)),
        (("text_encoder", "text_encoder_2"), slice(0, 20), slice(0, 20)),
    ):
        folder = tmp_path / "-".join(gone)
        folder.mkdir()
        for part in folders["sd3"].iterdir():
            if part.name not in (*gone, "model_index.json"):
                (folder / part.name).symlink_to(part)
        text = json.dumps({**index, **dict.fromkeys(gone, (None, None))})
        (folder / "model_index.json").write_text(text)
        words = load(str(folder)).embed(PROMPTS)
        assert words.pooled is not None
        assert whole.pooled is not None
        assert not words.pooled[:, pooled].any()
        assert words.pooled[:, 20:].equal(whole.pooled[:, 20:])
        clip = 77 if len(gone) == 2 else 16
        assert not words.embeddings[:, :clip, states].any()
        torch.testing.assert_close(words.embeddings[:, clip:], whole.embeddings[:, 16:], **EXACT)
    (folder / "model_index.json").write_text(
        json.dumps({**index, **{f"text_encoder{n}": [None, None] for n in ("", "_2", "_3")}})
    )
    with pytest.raises(BaseError, match="names no text encoder"):
        load(str(folder))


def test_a_flow_takes_eulers_sampler_under_both_its_names(folders: dict[str, Path]) -> None:
    model = load(str(folders["sd3"]))
    assert model.schedule.prediction == "flow"
    assert model.schedule.shift == 3.0
    assert type(model.sampler("ddim")) is type(model.sampler("euler"))
    assert model.sampler("euler").config.shift == 3.0
    for kind in ("euler_a", "dpmpp_2m"):
        with pytest.raises(BaseError, match=f"'{kind}' cannot follow; expected ddim or euler"):
            model.sampler(kind)


def test_each_family_has_its_own_layers(folders: dict[str, Path]) -> None:
    plan = LoraPlan(rank=2, alpha=2, layers="attention+feedforward", text_encoder=True)
    expected = {
        "sdxl": (
            *("unet.mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0",),
            *("text_encoder.text_model.encoder.layers.0.self_attn.q_proj",),
            *("text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj",),
        ),
        "sd35": (
            *("transformer.transformer_blocks.0.attn.to_q",),
            *("transformer.transformer_blocks.0.attn.to_out.0",),
            *("transformer.transformer_blocks.0.attn.to_add_out",),
            *("transformer.transformer_blocks.1.attn.add_v_proj",),
            *("transformer.transformer_blocks.0.attn2.to_k",),
            *("transformer.transformer_blocks.0.ff_context.net.0.proj",),
            *("transformer.transformer_blocks.1.ff.net.2",),
            *("text_encoder_2.text_model.encoder.layers.0.self_attn.v_proj",),
        ),
    }
    for kind, names in expected.items():
        model = load(str(folders[kind]))
        on = attach(model, plan, seed=0)
        layers = set(on.adapter().layers)
        on.detach()
        assert set(names) <= layers
        assert not any(name.startswith("text_encoder_3") for name in layers)
        parts = {name.partition(".")[0] for name in layers}
        assert parts == {model_part(model), "text_encoder", "text_encoder_2"}


def model_part(model: DiffusionModel) -> str:
    return "transformer" if model.family == "sd3" else "unet"


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
@pytest.mark.filterwarnings("default")
def test_the_pipeline_reads_what_is_written_for_its_family(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(str(folders[kind]))
    plan = LoraPlan(rank=2, alpha=3, layers="attention", text_encoder=True)
    on = attach(model, plan, seed=0)
    for i, (name, factor) in enumerate(on.named_parameters()):
        if name.endswith(".up"):
            draw = torch.Generator().manual_seed(i)
            factor.data.copy_(torch.randn(factor.shape, generator=draw) * 0.2)
    adapter = on.adapter()
    on.detach()
    # The tiny XL has one ResNet block to a level, which no original names fit; see tests/formats.
    file = formats.write(adapter, tmp_path / "a.safetensors", "diffusers")
    if kind == "sd3":
        with pytest.raises(AdapterError, match="kohya's names are not written for"):
            formats.write(adapter, tmp_path / "b.safetensors", "kohya")
    back = formats.read(file)
    assert back.family == model.family
    assert back.layers.keys() == adapter.layers.keys()
    assert all(torch.equal(back.layers[n].up, u.up) for n, u in adapter.layers.items())
    folder = formats.read(formats.write(adapter, tmp_path / "peft", "peft"))
    assert {n: u.alpha for n, u in folder.layers.items()} == dict.fromkeys(adapter.layers, 3.0)
    pipeline = pipeline_of(folders[kind])
    bare = words_of(pipeline, PROMPTS)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    latents, t = torch.ones(2, 4, 8, 8), torch.tensor([7, 700])
    with attached(model, back), torch.no_grad():
        words = model.embed(PROMPTS)
        answer = model.predict(latents, t, words)
        theirs = words_of(pipeline, PROMPTS)
        agree(words, theirs)
        assert not torch.allclose(words.embeddings, bare.embeddings, atol=1e-3)
        if kind == "sd3":
            expected = pipeline.transformer(latents, theirs.embeddings, theirs.pooled, t).sample
        else:
            told = {"text_embeds": theirs.pooled, "time_ids": theirs.sizes}
            expected = pipeline.unet(latents, t, theirs.embeddings, added_cond_kwargs=told).sample
    torch.testing.assert_close(answer, expected, **EXACT)
