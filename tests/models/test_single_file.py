"""Single-file checkpoints: told apart by their keys, read to the last weight, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from tests.models.ldm import original_unet, tiny_blueprint, write_single_file
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from variegate.errors import BaseError
from variegate.models import load, single_file
from variegate.models.blueprints import BLUEPRINTS
from variegate.models.single_file import clip_tokenizer

WRITERS: dict[str, Any] = {
    "sd1": write_tiny_sd,
    "sd2": write_tiny_sd,
    "sdxl": write_tiny_sdxl,
    "sd3": lambda folder: write_tiny_sd3(folder, dual=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {family: write(home / family) for family, write in WRITERS.items()}


@pytest.fixture(autouse=True)
def tiny_blueprints(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for family, folder in folders.items():
        monkeypatch.setitem(BLUEPRINTS, family, tiny_blueprint(family, folder))


@pytest.mark.parametrize("family", WRITERS)
def test_a_checkpoint_is_read_to_the_last_weight(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[family]
    file = write_single_file(folder, tmp_path / "base.safetensors", family)
    if family == "sd3":
        (tmp_path / "tokenizer_3").symlink_to(folder / "tokenizer_3")
    model, expected = load(str(file)), load(str(folder))
    assert model.family == ("sd1" if family == "sd2" else family)  # which its width tells
    assert model.resolution == expected.resolution
    assert type(model) is type(expected)
    parts = [n for n, m in vars(expected).items() if isinstance(m, nn.Module)]
    assert len(parts) == {"sd1": 3, "sd2": 3, "sdxl": 4, "sd3": 5}[family]
    for part in parts:
        read, true = (getattr(m, part).state_dict() for m in (model, expected))
        assert read.keys() == true.keys()
        for key in true:
            assert torch.equal(read[key], true[key]), f"{part}.{key}"
        module = getattr(model, part)
        assert not any(t.is_meta for t in [*module.buffers(), *module.parameters()])
    assert model.schedule.prediction == ("flow" if family == "sd3" else "epsilon")
    torch.testing.assert_close(model.schedule.alpha_bar, expected.schedule.alpha_bar)


MARK = "model.diffusion_model.output_blocks.2.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"metadata": {"modelspec.prediction_type": "v"}}, ("v_prediction", 96)),
        ({"extra": {"v_pred": torch.tensor([])}}, ("v_prediction", 96)),
        ({"extra": {MARK: torch.tensor([-0.2, 0.2] * 8)}}, ("v_prediction", 96)),
        ({"extra": {MARK: torch.tensor([-0.05, 0.05] * 8)}}, ("epsilon", 64)),
    ],
    ids=["header", "key", "wide bias", "narrow bias"],
)
def test_what_a_file_of_sd2_predicts_is_told_from_it(
    more: dict[str, Any],
    expected: tuple[str, int],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_file, "V_MARK", MARK)
    file = write_single_file(folders["sd2"], tmp_path / "b.safetensors", "sd2", **more)
    model = load(str(file))
    assert (model.schedule.prediction, model.resolution) == expected


def test_sdxl_with_v_and_zero_terminal_snr_is_told_by_its_keys(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    file = write_single_file(folders["sdxl"], tmp_path / "b.safetensors", "sdxl", extra=marks)
    model = load(str(file))
    assert model.schedule.prediction == "v_prediction"
    assert float(model.schedule.alpha_bar[-1]) == 0
    assert model.sampler("ddim").config.timestep_spacing == "trailing"


def test_text_encoders_beside_a_file_of_sd3_are_found(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "sd3.safetensors"
    write_single_file(folders["sd3"], bare, "sd3", leave="text_encoders.")
    assert "it holds no text encoder" in refusal(bare)
    for name, part in (("clip_l", "text_encoder"), ("t5xxl_fp16", "text_encoder_3")):
        target = tmp_path / "text_encoders" / f"{name}.safetensors"
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(folders["sd3"] / part / "model.safetensors")
    assert "T5 is there, its tokenizer is not" in refusal(bare)
    (tmp_path / "tokenizer_3").symlink_to(folders["sd3"] / "tokenizer_3")
    model, whole = load(str(bare)), load(str(folders["sd3"]))
    assert model.text_encoder_2 is None  # type: ignore[attr-defined]
    for part in ("text_encoder", "text_encoder_3"):
        read, true = (getattr(m, part).state_dict() for m in (model, whole))
        assert all(torch.equal(read[key], true[key]) for key in true)


def refusal(file: Path) -> str:
    with pytest.raises(BaseError) as caught:
        load(str(file))
    return str(caught.value)


def test_what_is_no_base_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    file, one = tmp_path / "b.safetensors", torch.ones(1)
    for key, told in (
        ("lora_unet_x.lora_down.weight", "is a LoRA adapter; give it as the adapter"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "is Flux; expected Stable"),
        ("conditioner.embedders.0.model.ln_final.bias", "the refiner of Stable Diffusion XL"),
        ("model.diffusion_model.input_blocks.0.0.bias", "a network but no text encoder"),
        ("edm_mean", "is Playground 2.5"),
        ("something.else", "of no family that is known: it holds something.else"),
    ):
        save_file({key: one}, file)
        assert told in refusal(file), key
    file.write_bytes(b"\x09\x00\x00\x00\x00\x00\x00\x00{torn")
    assert "is no whole safetensors file" in refusal(file)
    inpainting = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 9, 3, 3)}
    write_single_file(folders["sd1"], file, "sd1", extra=inpainting, leave="first_stage")
    text = refusal(file)
    assert "takes 9 channels (an inpainting model); expected 4" in text
    assert "it holds no autoencoder" in text


def test_weights_that_are_missing_odd_or_misshapen_are_told(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    file, key = tmp_path / "b.safetensors", "model.diffusion_model.out.2.bias"
    write_single_file(folders["sd1"], file, "sd1", leave=key)
    assert "its UNet is another: 1 weights are missing, such as conv_out.bias" in refusal(file)
    more = "model.diffusion_model.output_blocks.9.1.proj_in.bias"
    write_single_file(folders["sd1"], file, "sd1", extra={more: torch.ones(7)})
    assert f"1 weights of its UNet have no place in it, such as {more}" in refusal(file)
    write_single_file(folders["sd1"], file, "sd1", extra={key: torch.ones(7)})
    assert "such as conv_out.bias is (7,), expected (4,)" in refusal(file)
    write_single_file(folders["sdxl"], file, "sdxl", leave="model.diffusion_model.label_emb")
    assert "(sdxl): 'label_emb.0.0.weight' is missing; the file is incomplete" in refusal(file)
    write_single_file(folders["sd3"], file, "sd3", leave="model.diffusion_model.x_embedder")
    (tmp_path / "tokenizer_3").symlink_to(folders["sd3"] / "tokenizer_3")
    assert "'x_embedder.proj.weight' is missing; the file is incomplete" in refusal(file)
    odd = {"model.diffusion_model.joint_blocks.1.x_block.odd.weight": torch.ones(1)}
    write_single_file(folders["sd3"], file, "sd3", extra=odd)
    assert "1 weights of its transformer have no place in it, such as joint" in refusal(file)


def test_clips_tokenizer_gives_clips_own_ids() -> None:
    """The ids that OpenAI's tokenizer gives, as its tests and its users know them."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = tokenizer("Hello  WORLD!", padding="max_length", truncation=True)
    assert padded.input_ids[:5] == [49406, 3306, 1002, 256, 49407]
    assert padded.input_ids[5:] == [49407] * 72
    filled = clip_tokenizer(pad="!")("a cat", padding="max_length").input_ids
    assert filled[3:] == [49407, *[0] * 73]


# Parameters of the published models; the first three also stand in the SDXL paper's table 1 as
# 860M, 865M and 2.6B, SD 3's in its paper as 2B (and 8B) without position embeddings.
PUBLISHED = {
    ("sd1", "network"): 859_520_964,
    ("sd2", "network"): 865_910_724,
    ("sdxl", "network"): 2_567_463_684,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd3", "text_encoder_3"): 4_762_310_656,
}


@pytest.mark.parametrize(("family", "part"), PUBLISHED)
def test_blueprints_have_the_sizes_of_the_published_models(
    family: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    plan = BLUEPRINTS[family]
    with init_empty_weights():
        if part == "network":
            module: Any = UNet2DConditionModel(**plan.network)
        elif part == "vae":
            module = AutoencoderKL(**plan.vae)
        elif part == "text_encoder_3":
            module = T5EncoderModel(T5Config(**plan.encoders[part]))
        else:
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            module = kind(CLIPTextConfig(**plan.encoders[part]))
    # Bare of weights, T5's two names for its one table of words are not tied yet.
    counted = (p.numel() for n, p in module.named_parameters() if "encoder.embed_tokens" not in n)
    assert sum(counted) == PUBLISHED[family, part]


def test_sd3s_blueprint_fits_the_published_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medium has 24 layers of 24 heads and 2B parameters; its heads are 64 wide."""
    monkeypatch.undo()
    plan = BLUEPRINTS["sd3"]
    with init_empty_weights():
        module = SD3Transformer2DModel(
            **plan.network,
            num_layers=24,
            num_attention_heads=24,
            in_channels=plan.vae["latent_channels"],
            out_channels=plan.vae["latent_channels"],
            joint_attention_dim=plan.encoders["text_encoder_3"]["d_model"],
            caption_projection_dim=64 * 24,
            pooled_projection_dim=sum(
                plan.encoders[part]["projection_dim"] for part in ("text_encoder", "text_encoder_2")
            ),
        )
    found = sum(p.numel() for p in module.parameters())
    assert found == pytest.approx(2.03e9, rel=0.01)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_name_of_a_published_unet_finds_its_place(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the true depth, where block 1 is not block 10; shapes only."""
    monkeypatch.undo()
    with init_empty_weights():
        unet = UNet2DConditionModel(**BLUEPRINTS[family].network)
    settings, known = dict(unet.config), unet.state_dict()
    assert len(known) == {"sd1": 686, "sd2": 686, "sdxl": 1680}[family]
    original = {f"{single_file.NETWORK}{k}": v for k, v in original_unet(known, settings).items()}
    found = single_file.converters.convert_ldm_unet_checkpoint(original, settings)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in known.items()}
