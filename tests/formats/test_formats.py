from __future__ import annotations

import hashlib
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tests.tiny import write_tiny_sd
from torch import Tensor, nn

from variegate import formats, seeds
from variegate.adapter import Adapter, LayerUpdate
from variegate.errors import AdapterError, NoSpace, NotFinite
from variegate.formats.names import canonical, kohya_name, module_path, spelled

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def adapter(pipeline: Any) -> Adapter:
    """Every layer of attention, ResNet blocks and resampling; ranks differ, alpha is no rank."""
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for part in ("unet", "text_encoder"):
        for path, module in getattr(pipeline, part).named_modules():
            if not re.search(r"attn|proj_|resnets|samplers", path) or not adaptable(module):
                continue
            shape = module.weight.shape
            rank = 2 + len(layers) % 2
            layers[canonical(f"{part}.{path}")] = LayerUpdate(
                down=torch.randn(rank, *shape[1:], generator=draw),
                up=torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=draw),
                alpha=0.7,
            )
    assert any(update.down.ndim == 4 for update in layers.values())
    return Adapter("sd1", layers, formats.describe(name="owl", trigger="zqx", base="/home/me/b"))


@pytest.fixture(scope="module")
def mixed(adapter: Adapter) -> Adapter:
    """The same, with alphas that differ by layer too."""
    layers = {
        name: replace(update, alpha=0.5 + 0.3 * (i % 3))
        for i, (name, update) in enumerate(adapter.layers.items())
    }
    return replace(adapter, layers=layers)


def adaptable(module: Any) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def assert_same(a: Adapter, b: Adapter) -> None:
    assert set(a.layers) == set(b.layers)
    for name, update in a.layers.items():
        other = b.layers[name]
        assert torch.equal(update.down, other.down)
        assert torch.equal(update.up, other.up)
        assert other.alpha == pytest.approx(update.alpha, rel=1e-7)


def every_layer(pipeline: Any) -> list[str]:
    parts = ("unet", "text_encoder")
    return [
        canonical(f"{part}.{path}")
        for part in parts
        for path, module in getattr(pipeline, part).named_modules()
        if adaptable(module)
    ]


def layer_of_kohya(name: str) -> str | None:
    said = spelled(f"{name}.alpha")
    return said.layers[0] if said else None


def test_every_layer_name_survives_kohyas_underscores(pipeline: Any) -> None:
    for layer in every_layer(pipeline):
        name = kohya_name(layer)
        assert name is not None
        assert layer_of_kohya(name) == layer


def test_the_text_encoders_kohya_names_are_those_of_the_field(adapter: Adapter) -> None:
    short = "text_encoder.encoder.layers.0.self_attn.q_proj"
    long = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert kohya_name(short) == kohya_name(long)
    assert kohya_name(long) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert layer_of_kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1") == (
        "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    )


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_what_is_written_is_read_back(to: Any, adapter: Adapter, tmp_path: Path) -> None:
    back = formats.read(formats.write(adapter, tmp_path / "a.safetensors", to))
    assert_same(adapter, back)
    assert back.family == "sd1"
    assert back.metadata["modelspec.trigger_phrase"] == "zqx"
    again = formats.read(formats.write(back, tmp_path / "b.safetensors", "kohya"))
    assert_same(adapter, again)


def test_unlike_alphas_are_kept_by_the_header_and_made_alike_for_kohya(
    mixed: Adapter, tmp_path: Path
) -> None:
    assert_same(mixed, formats.read(formats.write(mixed, tmp_path / "d.safetensors", "diffusers")))
    kohya = formats.read(formats.write(mixed, tmp_path / "k.safetensors", "kohya"))
    assert len({update.alpha for update in kohya.layers.values()}) == 1
    for name in mixed.layers:
        torch.testing.assert_close(kohya.delta(name), mixed.delta(name))


def test_a_folder_in_pefts_form_is_read_back(adapter: Adapter, tmp_path: Path) -> None:
    folder = formats.write(adapter, tmp_path / "peft", "peft")
    assert_same(adapter, formats.read(folder))
    unet = formats.read(folder / "unet" / "adapter_model.safetensors")
    assert set(unet.layers) == {name for name in adapter.layers if name.startswith("unet.")}
    assert unet.layers[ATTENTION].alpha == adapter.layers[ATTENTION].alpha


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["adapter", "mixed"])
def test_diffusers_computes_the_same_update_from_our_file(
    to: Any, kind: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    adapter = request.getfixturevalue(kind)
    file = formats.write(adapter, tmp_path / "a.safetensors", to)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    before = {
        canonical(f"{p}.{n}"): w for p in ("unet", "text_encoder") for n, w in weights(pipeline, p)
    }
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    changed = 0
    for part in ("unet", "text_encoder"):
        for path, weight in weights(pipeline, part):
            layer = canonical(f"{part}.{path}")
            update = adapter.layers.get(layer)
            delta = update.delta() if update else torch.zeros(())
            torch.testing.assert_close(weight, before[layer] + delta, atol=1e-6, rtol=0)
            changed += update is not None
    assert changed == len(adapter.layers)


def weights(pipeline: Any, part: str) -> list[tuple[str, Tensor]]:
    return [
        (path, module.weight.detach().clone())
        for path, module in getattr(pipeline, part).named_modules()
        if adaptable(module)
    ]


def test_peft_computes_the_same_update_from_our_folder(
    mixed: Adapter, folder: Path, tmp_path: Path
) -> None:
    target = formats.write(mixed, tmp_path / "peft", "peft")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    before = {n: p.detach().clone() for n, p in unet.named_parameters()}
    merged = PeftModel.from_pretrained(unet, target / "unet").merge_and_unload()
    after = dict(merged.named_parameters())
    for name, update in mixed.layers.items():
        if name.startswith("unet."):
            key = f"{module_path(name)}.weight"
            torch.testing.assert_close(after[key], before[key] + update.delta(), atol=1e-6, rtol=0)


class Attention(nn.Module):
    """A network of one layer, under a UNet's name for it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(32, 32, bias=False)})
        self.attn1["to_q"].weight.data = torch.randn(32, 32, generator=seeds.at(0, "base"))


def saved_by_peft(init: Any, home: Path) -> tuple[Any, Any, Tensor]:
    """(PEFT's model after some training, what it started from, the change of the weight)."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=init)
    model = get_peft_model(Attention(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(home / "start")
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=seeds.at(0, name))
    layer = model.base_model.model.attn1["to_q"]
    now = layer.base_layer.weight + layer.get_delta_weight("default")
    return model, home / "start", (now - Attention().attn1["to_q"].weight).detach()


@pytest.mark.filterwarnings("ignore:.*changes the base weights of the model")
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changed_its_base_is_read_only_as_the_lora_that_peft_makes_of_it(
    init: str, tmp_path: Path
) -> None:
    model, start, change = saved_by_peft(init, tmp_path)
    model.save_pretrained(tmp_path / "raw" / "unet")
    told = refusal(tmp_path / "raw")
    assert f"init_lora_weights '{init}'" in told
    assert "path_initial_model_for_weight_conversion" in told
    out = tmp_path / "plain" / "unet"
    model.save_pretrained(out, path_initial_model_for_weight_conversion=str(start))
    (update,) = formats.read(out.parent).layers.values()
    torch.testing.assert_close(update.delta(), change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica"])
def test_an_adapter_that_left_its_base_alone_is_read_as_it_is(init: Any, tmp_path: Path) -> None:
    model, _, change = saved_by_peft(init, tmp_path)
    model.save_pretrained(tmp_path / "raw" / "unet")
    (update,) = formats.read(tmp_path / "raw").layers.values()
    torch.testing.assert_close(update.delta(), change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "OLoRA", 3, ["pissa"]])
def test_a_header_that_tells_of_a_changed_base_is_refused(init: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.init_lora_weights": init})}
    stem = "unet.mid_block.attentions.0.proj_in"
    factors = {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(3, 2)}
    save_file({f"{stem}.{name}": t for name, t in factors.items()}, file, metadata=header)
    assert f"init_lora_weights {init!r}" in refusal(file)


def test_what_diffusers_saves_is_read(adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    formats.write(adapter, tmp_path / "a.safetensors", "kohya")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors", adapter_name="owl")
    from peft.utils import get_peft_model_state_dict

    pipeline.save_lora_weights(
        tmp_path / "saved",
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="owl"),
        text_encoder_lora_layers=get_peft_model_state_dict(
            pipeline.text_encoder, adapter_name="owl"
        ),
        unet_lora_adapter_metadata=settings(pipeline.unet.peft_config["owl"]),
        text_encoder_lora_adapter_metadata=settings(pipeline.text_encoder.peft_config["owl"]),
    )
    assert_same(adapter, formats.read(tmp_path / "saved"))


def settings(config: Any) -> dict[str, Any]:
    known = config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in known.items()}


@pytest.mark.parametrize(
    ("down", "layer"),
    [
        (f"{BLOCK}.processor.to_q_lora.down", "to_q"),
        (f"{BLOCK}.processor.to_out_lora.down", "to_out.0"),
        (f"{BLOCK}.to_k.lora.down", "to_k"),
        (f"{BLOCK}.to_v.lora_A", "to_v"),
        (f"{BLOCK[5:]}.processor.to_v_lora.down", "to_v"),
        (f"base_model.model.{BLOCK[5:]}.to_out.0.lora_A", "to_out.0"),
    ],
)  # fmt: skip
def test_diffusers_older_spellings_are_read(down: str, layer: str, tmp_path: Path) -> None:
    up = down.replace("lora_A", "lora_B").replace(".down", ".up")
    file = tmp_path / "old.safetensors"
    save_file({f"{down}.weight": torch.ones(2, 3), f"{up}.weight": torch.ones(3, 2)}, file)
    (found,) = formats.read(file).layers.items()
    assert found[0] == f"{BLOCK}.{layer}"
    assert found[1].alpha == 2  # nothing is said of alpha: it is the rank


def test_the_oldest_spelling_of_the_text_encoder_is_read(tmp_path: Path) -> None:
    stem = "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"
    file = tmp_path / "old.safetensors"
    save_file(
        {f"{stem}.down.weight": torch.ones(2, 3), f"{stem}.up.weight": torch.ones(3, 2)}, file
    )
    assert list(formats.read(file).layers) == [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    ]


def test_a_missing_alpha_means_a_scale_of_one(adapter: Adapter, tmp_path: Path) -> None:
    file = formats.write(adapter, tmp_path / "a.safetensors")
    stored = {k: v for k, v in load_file(file).items() if not k.endswith(".alpha")}
    save_file(stored, file)
    assert {update.scale for update in formats.read(file).layers.values()} == {1.0}


def test_rank_stabilised_settings_become_our_scale(tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.proj_in"
    header = {"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": True}
    file = tmp_path / "rs.safetensors"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(4, 3), f"{stem}.lora_B.weight": torch.ones(3, 4)},
        file,
        metadata={"lora_adapter_metadata": json.dumps(header)},
    )
    assert formats.read(file).layers[stem].scale == 8 / 4**0.5


def test_the_header_says_what_other_tools_look_for(adapter: Adapter, tmp_path: Path) -> None:
    file = formats.write(adapter, tmp_path / "a.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["ss_v2"] == "False"
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("Dynamic", "0.7")
    assert header["ss_output_name"] == header["modelspec.title"] == "owl"
    assert header["ss_sd_model_name"] == "b"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert not any("/home" in value for value in header.values())
    assert "lora_adapter_metadata" not in header  # diffusers refuses it beside kohya's alphas


def test_the_hash_covers_what_follows_a_header_of_only_kohyas_entries(
    adapter: Adapter, tmp_path: Path
) -> None:
    file = formats.write(adapter, tmp_path / "a.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    bare = save(load_file(file), metadata={k: v for k, v in header.items() if k.startswith("ss_")})
    body = bare[8 + int.from_bytes(bare[:8], "little") :]
    assert header["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert header["sshs_legacy_hash"] == hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8]


def test_sd2_of_velocity_is_filed_as_such() -> None:
    header = formats.describe(family="sd2", prediction="v_prediction", resolution=768, seed=0)
    assert header["ss_v2"] == "True"
    assert header["ss_base_model_version"] == "sd_v2_v"
    assert header["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert header["modelspec.resolution"] == "768x768"
    assert header["ss_seed"] == "0"


def test_convert_keeps_the_numbers_and_their_precision(adapter: Adapter, tmp_path: Path) -> None:
    half = formats.write(adapter, tmp_path / "half.safetensors", dtype=torch.float16)
    target, _ = formats.convert(half, tmp_path / "new" / "d.safetensors", "diffusers")
    assert {t.dtype for t in load_file(target).values()} == {torch.float16}
    assert_same(formats.read(half), formats.read(target))
    back, _ = formats.convert(target, tmp_path / "back.safetensors", "kohya")
    assert {k: v.dtype for k, v in load_file(back).items()} == {
        k: v.dtype for k, v in load_file(half).items()
    }


def test_inspect_tells_what_is_in_a_file(adapter: Adapter, tmp_path: Path) -> None:
    facts = formats.inspect(formats.write(adapter, tmp_path / "a.safetensors"))
    assert facts["family"] == "sd1"
    assert (facts["format"], facts["kind"]) == ("kohya", "lora")
    assert facts["layers"] == len(adapter.layers)
    assert (facts["rank"], facts["ranks"]) == (3, [2, 3])
    assert facts["trigger"] == "zqx"
    assert facts["text_encoder"]
    assert facts["problem"] is None
    json.dumps(facts)
    assert formats.inspect(formats.write(adapter, tmp_path / "p", "peft"))["format"] == "peft"


def test_inspect_tells_of_a_foreign_kind_without_failing(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"lora_unet_mid_block_x.a1.weight": torch.ones(2, 2)}, file, {"a": "<b>" * 9999})
    facts = formats.inspect(file)
    assert facts["kind"] == "GLoRA"
    assert "LoHa, LoKr, OFT and BOFT of LyCORIS" in facts["problem"]
    assert len(facts["metadata"]["a"]) < 2100
    save_file({"lora_unet_double_blocks_0_x.lora_down.weight": torch.ones(2, 2)}, file)
    assert formats.inspect(file)["family"] == "Flux"


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (512, "unknown")])
def test_a_foreign_files_family_is_told_by_the_text_it_reads(
    width: int, family: str, tmp_path: Path
) -> None:
    stem = kohya_name("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    file = tmp_path / "x.safetensors"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, width),
            f"{stem}.lora_up.weight": torch.ones(3, 2),
        },
        file,
        metadata={"ss_base_model_version": "sdxl_base_v1-0"},  # a claim; the width is a fact
    )
    assert formats.read(file).family == family


def test_the_pockets_adapters_are_known_as_such(adapter: Adapter, tmp_path: Path) -> None:
    notes = formats.describe(base="pocket", resolution=64)
    file = formats.write(Adapter("sd1", adapter.layers, notes), tmp_path / "a.safetensors")
    assert formats.inspect(file)["family"] == "pocket"


def refusal(file: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        formats.read(file)
    return str(caught.value)


STEM = "lora_unet_mid_block_attentions_0_proj_in"
OTHER = "lora_unet_mid_block_attentions_0_proj_out"
GOOD = {f"{STEM}.lora_down.weight": torch.ones(2, 3), f"{STEM}.lora_up.weight": torch.ones(3, 2)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({f"{STEM}.lora_up.weight": torch.ones(3, 4)}, "the ranks 2 and 4 differ"),
        ({f"{STEM}.lora_up.weight": torch.ones(3, 2, 1, 1)}, "expected two matrices"),
        ({f"{STEM}.lora_up.weight": torch.full((3, 2), torch.nan)}, "holds NaN or infinity"),
        ({f"{STEM}.lora_up.weight": None}, "its up factor is missing"),
        ({f"{STEM}.lora_up.weight": torch.ones(3, 2).char()}, "numbers of kind torch.int8"),
        ({f"{STEM}.alpha": torch.ones(3)}, "alpha of shape (3,)"),
        ({f"{STEM}.alpha": torch.tensor(torch.inf)}, "holds NaN or infinity"),
        ({"lora_unet_no_such_block.lora_down.weight": torch.ones(1)}, "1 keys spell no layer"),
        ({f"{STEM}.extra": torch.ones(1)}, f'("{STEM}.extra")'),
        ({f"{STEM}.dora_scale": torch.ones(1)}, "expected one length for each of 3 rows"),
        ({f"{STEM}.dora_scale": torch.ones(1, 4)}, "or for each column"),
        ({f"{STEM}.lora_magnitude_vector": torch.ones(4)}, "one length for each of 3 rows"),
        ({f"{STEM}.hada_w1_a": torch.ones(3, 2)}, "factors of several kinds: loha, lora"),
        ({f"{OTHER}.hada_w1_a": torch.ones(3, 2)}, "expected four matrices"),
        ({f"{OTHER}.lokr_w1": torch.ones(3, 2)}, "w2 is neither whole nor a product of two"),
        ({f"{OTHER}.lokr_t2": torch.ones(3, 2)}, "its core has no two matrices beside it"),
        ({f"{OTHER}.oft_blocks": torch.ones(3, 2, 1)}, "expected square blocks"),
        ({f"{OTHER}.diff": torch.ones(())}, "its difference is a single number"),
        ({f"{OTHER}.oft_input_blocks": torch.ones(3, 2)}, "no block has so many numbers"),
        ({f"{OTHER}.boft_rotations": torch.ones(2, 3, 2, 2)}, "expected rotations and a scale"),
        ({f"{OTHER}.sparse_values": torch.ones(3)}, "whole numbers for their places"),
        ({f"{STEM}.lora_mid.weight": torch.ones(1)}, "a kernel between two 1x1 kernels"),
        ({"lora_te3_encoder_block_0.alpha": torch.ones(1)}, "was made for T5"),
        ({"transformer.blocks.0.lora_A.weight": torch.ones(1)}, "another family of transformers"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_what_is_wrong(
    changes: dict[str, Tensor | None], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.safetensors"
    save_file({k: v for k, v in {**GOOD, **changes}.items() if v is not None}, file)
    text = refusal(file)
    assert told in text
    assert str(file) in text


def test_an_empty_file_or_one_of_a_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"conv_in.weight": torch.ones(1)}, file)
    assert "no LoRA layers among 1 tensors" in refusal(file)
    save_file({}, file)
    assert "no LoRA layers among 0 tensors" in refusal(file)


def test_a_truncated_file_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    file = formats.write(adapter, tmp_path / "a.safetensors")
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert f"({size} bytes) is no whole safetensors file" in refusal(file)
    file.write_bytes(b"\xff" * 8 + whole[8:])
    assert "is no whole safetensors file" in refusal(file)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.safetensors"])
def test_a_pickle_is_refused_unopened_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(pickle.dumps({"x": 1}, protocol=2))
    assert "can run code when opened, and is refused" in refusal(file)
    torch.save({"x": torch.ones(1)}, file)
    assert "can run code when opened, and is refused" in refusal(file)


def test_a_header_that_opens_as_a_pickle_does_is_none(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    plain = save(GOOD, metadata={"x": ""})
    length = int.from_bytes(plain[:8], "little")
    save_file(GOOD, file, metadata={"x": "y" * (640 - length)})
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert len(formats.read(file).layers) == 1


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "many.safetensors"
    save_file(GOOD, file)
    monkeypatch.setattr("variegate.formats.container.MAX_TENSORS", 1)
    assert "holds 2 tensors; an adapter has at most 1" in refusal(file)
    monkeypatch.setattr("variegate.formats.container.MAX_BYTES", 10)
    assert "a whole model is not an adapter" in refusal(file)


def test_a_wrong_path_is_refused_with_what_lies_near(tmp_path: Path) -> None:
    (tmp_path / "owl.safetensors").write_bytes(b"")
    assert "near it are: owl.safetensors" in refusal(tmp_path / "owl.safetensor")
    assert "a folder without an adapter" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{", "is no JSON"),
        ("[1]", "expected an object"),
        ('{"unet.lora_alpha": "many"}', "expected a number"),
        ('{"unet.alpha_pattern": {"(a+)+$": 3}}', "is an expression"),
        ('{"unet.peft_type": "LOHA"}', "say peft_type 'LOHA'"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_hostile_header_is_refused(header: str, told: str, tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.proj_in"
    file = tmp_path / "x.safetensors"
    save_file(
        {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(3, 2)},
        file,
        metadata={"lora_adapter_metadata": header},
    )
    assert told in refusal(file)


def test_nothing_that_is_not_finite_is_written(adapter: Adapter, tmp_path: Path) -> None:
    big = {n: LayerUpdate(u.down * 1e6, u.up, u.alpha) for n, u in adapter.layers.items()}
    with pytest.raises(NotFinite, match="wider dtype"):
        formats.write(Adapter("sd1", big), tmp_path / "a.safetensors", dtype=torch.float16)
    with pytest.raises(AdapterError, match="no layers"):
        formats.write(Adapter("sd1", {}), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoSpace, match="name another place"):
        formats.write(adapter, tmp_path / "file" / "a.safetensors")


def test_factors_that_share_memory_can_be_written(adapter: Adapter, tmp_path: Path) -> None:
    update = LayerUpdate(torch.ones(2, 3), torch.ones(3, 2), 1.0)
    twice = {f"unet.mid_block.attentions.{i}.proj_in": update for i in range(2)}
    file = formats.write(Adapter("sd1", twice), tmp_path / "a.safetensors")
    assert len(formats.read(file).layers) == 2


def test_places_outside_of_a_sparse_layer_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    sparse = {
        f"{STEM}.sparse_values": torch.ones(2),
        f"{STEM}.sparse_indices": torch.tensor([[0, 1], [0, 9]], dtype=torch.int32),
        f"{STEM}.sparse_shape": torch.tensor([2, 3], dtype=torch.int32),
    }
    save_file(sparse, file)
    assert "places lie outside of the weight" in refusal(file)


@pytest.mark.parametrize("noted", [{"timesteps": 0}, {"timesteps": True}, {"timesteps": "1"}, 3])
def test_a_hostile_note_on_masks_is_refused(noted: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(GOOD, file, metadata={"variegate": json.dumps({"tlora": noted})})
    assert "expected min_rank and timesteps from 1 on" in refusal(file)


def test_a_tlora_whose_rank_another_tool_changed_is_a_plain_lora(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    noted = {"min_rank": None, "timesteps": 1000, "rank": 8}
    save_file(GOOD, file, metadata={"variegate": json.dumps({"tlora": noted})})
    assert formats.read(file).masking is None
    assert formats.read(file).kind == "lora"
