"""Key names of every family and tool: what we write is found by the field, what it writes by us."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats import architectures
from tests.models.ldm import sd3_transformer
from torch import Tensor, nn

from variegate import formats
from variegate.adapter import Adapter, LayerUpdate
from variegate.formats.names import canonical, kohya_name, spelled

FAMILIES = ("sd1", "sd2", "sdxl", "sd3")


def drawn(shape: tuple[int, ...], seed: int, rank: int = 2, alpha: float = 0.7) -> LayerUpdate:
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=draw)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=draw)
    return LayerUpdate(down, up, alpha)


def whole_adapter(family: str) -> Adapter:
    """An update of every layer of a family, of unlike ranks, alpha being none of them."""
    found = {
        canonical(f"{part}.{path}"): drawn(tuple(module.weight.shape), i, rank=1 + i % 3)
        for i, (part, path, module) in enumerate(architectures.layers(family))
    }
    return Adapter(family, found)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layer_has_the_name_that_kohyas_trainers_give_it(family: str) -> None:
    count = 0
    for part, path, _ in architectures.layers(family):
        layer = canonical(f"{part}.{path}")
        assert kohya_name(layer, family) == architectures.of_kohya(family, part, path)
        count += 1
    assert count > 150


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_texts_projection_stands_beside_its_model_in_every_form(
    part: str, tmp_path: Path
) -> None:
    """ComfyUI, `model_lora_keys_clip`: `lora_te1_text_projection`, `lora_te2_text_projection`."""
    layer = f"{part}.text_projection"
    long = f"{part}.text_model.text_projection"
    assert canonical(long) == canonical(layer) == layer
    for family in ("sdxl", "sd3"):
        adapter = Adapter(family, {long: drawn((12, 12), 0)})
        forms: dict[Any, str] = {"diffusers": layer, "peft": "base_model.model.text_projection"}
        if family == "sdxl":
            forms["kohya"] = f"lora_{'te1' if part == 'text_encoder' else 'te2'}_text_projection"
        for form, stem in forms.items():
            out = formats.write(adapter, tmp_path / f"{family}-{form}", form)
            file = out / part / "adapter_model.safetensors" if form == "peft" else out
            assert {key.rsplit(".", 2)[0] for key in load_file(file) if "lora" in key[-15:]} == {
                stem
            }
            assert list(formats.read(out).layers) == [layer]
    for key in ("lora_te2_text_model_text_projection.alpha", "lora_te2_text_projection.alpha"):
        said = spelled(key)
        assert said is not None
        assert said.layers == ("text_encoder_2.text_projection",)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_known_by_every_name_that_comfyui_finds_it_by(family: str) -> None:
    for part, path, _ in architectures.layers(family):
        layer = canonical(f"{part}.{path}")
        for name in architectures.of_comfyui(family, part, path):
            said = spelled(f"{name}.lora_up.weight")
            assert said is not None, name
            assert (said.layers, said.rows) == ((layer,), "whole"), name


@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_finds_every_layer_that_is_written(family: str, tmp_path: Path) -> None:
    accepted = {
        name
        for part, path, _ in architectures.layers(family)
        for name in architectures.of_comfyui(family, part, path)
    }
    file = formats.write(whole_adapter(family), tmp_path / "a.safetensors")
    written = {key.rsplit(".lora_", 1)[0] for key in load_file(file) if ".lora_" in key}
    assert written
    assert written <= accepted


@pytest.mark.parametrize("family", FAMILIES)
def test_onetrainers_mixture_is_read(family: str) -> None:
    """Diffusers' names under kohya's prefixes: `convert_to_mixture` in OneTrainer's
    `modules/util/convert_lora_util.py`."""
    prefixes = {
        "unet": "lora_unet",
        "transformer": "lora_transformer",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    }
    for part, path, _ in architectures.layers(family):
        key = f"{prefixes[part]}_{path.replace('.', '_')}.lora_down.weight"
        said = spelled(key)
        assert said is not None, key
        assert said.layers == (canonical(f"{part}.{path}"),)


def deltas_of(adapter: Adapter, part: str) -> dict[str, Tensor]:
    """What each weight of a network gets, nothing where there is no update."""
    network = architectures.parts(adapter.family)[part]
    return {
        f"{path}.weight": update.delta()
        if (update := adapter.layers.get(canonical(f"{part}.{path}")))
        else torch.zeros_like(module.weight)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def test_kohyas_sd3_is_shared_out_as_the_checkpoints_own_layers_are(tmp_path: Path) -> None:
    network = architectures.transformer()
    weights = {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    originals = {
        key.removesuffix(".weight"): tensor
        for key, tensor in sd3_transformer(weights).items()
        if key.endswith(".weight") and tensor.ndim > 1
    }
    stored, expected = {}, {}
    for i, (name, tensor) in enumerate(originals.items()):
        update = drawn(tuple(tensor.shape), i, rank=3, alpha=1.7)
        stem = f"lora_unet_{name.replace('.', '_')}"
        stored |= {f"{stem}.lora_down.weight": update.down, f"{stem}.lora_up.weight": update.up}
        stored[f"{stem}.alpha"] = torch.tensor(1.7)
        expected[name] = update.delta()
    file = tmp_path / "kohya.safetensors"
    save_file(stored, file)
    adapter = formats.read(file)
    assert formats.inspect(file)["format"] == "kohya"
    back = sd3_transformer(weights | deltas_of(Adapter("sd3", adapter.layers), "transformer"))
    assert len(expected) > 30
    for name, delta in expected.items():
        torch.testing.assert_close(back[f"{name}.weight"], delta, atol=1e-6, rtol=1e-6)
    again = formats.read(
        formats.write(Adapter("sd3", adapter.layers), tmp_path / "d.safetensors", "diffusers")
    )
    assert set(again.layers) == set(adapter.layers)


@pytest.fixture(scope="module")
def xl() -> Adapter:
    return whole_adapter("sdxl")


def test_both_namings_of_xl_are_one_adapter(xl: Adapter, tmp_path: Path) -> None:
    original = formats.write(xl, tmp_path / "original.safetensors", "kohya")
    stored = load_file(original)
    assert any(key.startswith("lora_unet_output_blocks_2_2_conv.") for key in stored)
    names = {
        architectures.of_kohya("sdxl", part, path): f"lora_unet_{path.replace('.', '_')}"
        for part, path, _ in architectures.layers("sdxl")
        if part == "unet"
    }
    renamed = {}
    for key, tensor in stored.items():
        name, _, rest = key.partition(".")
        renamed[f"{names.get(name, name)}.{rest}"] = tensor
    other = tmp_path / "diffusers_names.safetensors"
    save_file(renamed, other)
    assert set(renamed) != set(stored)
    assert formats.read(original).digest() == formats.read(other).digest()


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_diffusers_computes_the_same_update_of_xl(to: Any, xl: Adapter, tmp_path: Path) -> None:
    file = formats.write(xl, tmp_path / "a.safetensors", to)
    pipeline = architectures.xl_pipeline()
    networks = {
        part: copy.deepcopy(getattr(pipeline, part)) for part in architectures.parts("sdxl")
    }
    pipeline.register_modules(**networks)
    before = {part: dict(weights(network)) for part, network in networks.items()}
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    wrong = []
    for part, network in networks.items():
        for path, weight in weights(network):
            update = xl.layers.get(canonical(f"{part}.{path}"))
            expected = before[part][path] + (update.delta() if update else 0)
            if not torch.allclose(weight, expected, atol=2e-6, rtol=1e-5):
                wrong.append(f"{part}.{path}")
    assert wrong == []


def weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (path, module.weight.detach().clone())
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_input_blocks_4_7_proj_in.alpha",  # no such place in a block
        "lora_unet_input_blocks_4_0_in_layers_9.alpha",
        "lora_unet_joint_blocks_0_y_block_attn_qkv.alpha",
        "lora_unet_down_blocks_0_attentions_0_nothing.alpha",
        "lora_te_down_blocks_0_resnets_0_conv1.alpha",  # a UNet's layer in a text encoder
        "lora_unet_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_unet_.alpha",
        "unet..lora_A.weight",
        "unet.a b.lora_A.weight",
        f"lora_unet_{'conv_norm_out_' * 5000}x.alpha",
        f"unet.{'a.' * 5000}lora_A.weight",
    ],
)  # fmt: skip
def test_what_spells_no_layer_is_no_layer(key: str) -> None:
    assert spelled(key) is None
