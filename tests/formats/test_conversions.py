"""Out and back between all forms leaves every update what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from variegate import formats
from variegate.adapter import Adapter, LayerUpdate
from variegate.adapter.updates import DoraUpdate, FullUpdate, LohaUpdate
from variegate.errors import AdapterError, ImagesError, RequestError
from variegate.formats.metadata import filed_as
from variegate.formats.privacy import without_folders
from variegate.measurement import Measurement, Verdict

FORMS = ("kohya", "diffusers", "peft")
BLOCK = "transformer_blocks.0"
LAYERS = {
    "sd1": (
        f"unet.down_blocks.0.attentions.0.{BLOCK}.attn2.to_k",
        f"unet.up_blocks.3.attentions.2.{BLOCK}.attn1.to_out.0",
        "unet.up_blocks.1.upsamplers.0.conv",
        "text_encoder.text_model.encoder.layers.11.mlp.fc1",
    ),
    "sdxl": (
        f"unet.down_blocks.1.attentions.0.{BLOCK}.attn2.to_k",
        f"unet.mid_block.attentions.0.{BLOCK}.ff.net.0.proj",
        "unet.up_blocks.0.resnets.2.conv_shortcut",
        "unet.add_embedding.linear_1",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
    ),
    "sd3": (
        f"transformer.{BLOCK}.attn.add_k_proj",
        f"transformer.{BLOCK}.attn.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc2",
    ),
}
WIDTHS = {"sd1": 768, "sdxl": 2048, "sd3": 1536}


@st.composite
def adapters(draw: Any) -> tuple[Adapter, torch.dtype]:
    """Any plain adapter: per-layer ranks and alphas, in any precision; and that precision."""
    family = draw(st.sampled_from(sorted(LAYERS)))
    dtype = draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    layers = {}
    for name in LAYERS[family]:
        rank, out = draw(st.integers(1, 5)), draw(st.integers(1, 6))
        inputs = WIDTHS[family] if name.endswith(("attn2.to_k", "attn.to_q")) else 7
        kernel = (3, 3) if "samplers" in name else (1, 1) if "shortcut" in name else ()
        down = torch.randn(rank, inputs, *kernel, generator=generator).to(dtype).float()
        up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator).to(dtype).float()
        alpha = draw(st.floats(0.125, 64.0, width=32) | st.sampled_from((0.0, 1.0, float(rank))))
        layers[name] = LayerUpdate(down, up, alpha)
    return Adapter(family, layers), dtype


@given(case=adapters(), path=st.lists(st.sampled_from(FORMS), min_size=2, max_size=4))
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_any_way_through_the_forms_leaves_every_update(
    case: tuple[Adapter, torch.dtype], path: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapter, dtype = case
    if adapter.family == "sd3":
        path = [form if form != "kohya" else "diffusers" for form in path]
    folder = tmp_path_factory.mktemp("forms")
    file = formats.write(adapter, folder / "first.safetensors", path[0], dtype=dtype)
    first = formats.read(file)
    for i, form in enumerate(path):
        name = f"{i}" if form == "peft" else f"{i}.safetensors"
        file, _ = formats.convert(file, folder / name, form)
    back = formats.read(file)
    assert back.family == adapter.family
    assert set(back.layers) == set(adapter.layers)
    for name in adapter.layers:
        expected = first.delta(name)
        scale = float(expected.abs().max()) or 1.0
        assert float((back.delta(name) - expected).abs().max()) <= 1e-6 * scale
        # The first writing itself may round, to the precision that was asked for.
        rough = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        wanted = adapter.delta(name)
        size = float(adapter.layers[name].spectrum().max()) or 1.0
        assert float((expected - wanted).abs().max()) <= rough * size


NAME = "unet.down_blocks.0.attentions.0.proj_in"
OTHER = "unet.down_blocks.0.attentions.1.proj_in"


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loha() -> Adapter:
    update = LohaUpdate(some(6, 2), some(2, 5, seed=1), some(6, 2, seed=2), some(2, 5, seed=3), 3.0)
    return Adapter("sd1", {NAME: update, OTHER: LayerUpdate(some(2, 5), some(6, 2), 1.0)})


def test_other_kinds_become_whole_differences_only_when_asked(tmp_path: Path) -> None:
    source = formats.write(loha(), tmp_path / "loha.safetensors")
    with pytest.raises(AdapterError, match="hold LoRA and DoRA"):
        formats.convert(source, tmp_path / "x.safetensors", "diffusers")
    file, kept = formats.convert(source, tmp_path / "d.safetensors", "kohya", dense=True)
    assert kept is None
    back = formats.read(file)
    assert {n: u.kind for n, u in back.layers.items()} == {NAME: "full", OTHER: "lora"}
    torch.testing.assert_close(back.delta(NAME), loha().delta(NAME))
    with pytest.raises(RequestError, match="ask for one of them"):
        formats.convert(source, tmp_path / "x.safetensors", "kohya", dense=True, rank=2)


def test_a_lora_of_enough_rank_loses_nothing_and_of_less_tells_what(tmp_path: Path) -> None:
    source = formats.write(loha(), tmp_path / "loha.safetensors")
    file, kept = formats.convert(source, tmp_path / "r4.safetensors", "diffusers", rank=4)
    assert kept is not None
    assert kept.layers == 1
    assert kept.least == pytest.approx(1.0)
    back = formats.read(file)
    assert back.kind == "lora"
    torch.testing.assert_close(back.delta(NAME), loha().delta(NAME), atol=1e-5, rtol=1e-4)
    file, kept = formats.convert(source, tmp_path / "r1.safetensors", "peft", rank=1)
    assert kept is not None
    values = loha().spectrum(NAME).square()
    assert kept.least == pytest.approx(float(values[0] / values.sum()), rel=1e-4)


def test_what_stands_on_the_bases_weight_is_not_made_dense(tmp_path: Path) -> None:
    dora = DoraUpdate(some(2, 5), some(6, 2), 1.0, some(6).abs())
    source = formats.write(Adapter("sd1", {NAME: dora}), tmp_path / "dora.safetensors")
    for change in ({"dense": True}, {"rank": 2}):
        with pytest.raises(AdapterError, match="depends on the base's weight"):
            formats.convert(source, tmp_path / "x.safetensors", "kohya", **change)
    norm = Adapter("sd1", {"unet.conv_norm_out": FullUpdate(some(4))})
    source = formats.write(norm, tmp_path / "norm.safetensors")
    with pytest.raises(AdapterError, match="changes a vector"):
        formats.convert(source, tmp_path / "x.safetensors", "diffusers", rank=2)


@pytest.mark.parametrize("to", ["diffusers", "peft", "kohya"])
def test_a_dora_is_held_by_every_form(to: Any, tmp_path: Path) -> None:
    dora = DoraUpdate(some(2, 5), some(6, 2), 1.5, some(6).abs())
    conv = DoraUpdate(some(2, 5, 3, 3), some(6, 2, 1, 1), 1.5, some(6, seed=4).abs())
    adapter = Adapter("sd1", {NAME: dora, "unet.conv_in": conv})
    back = formats.read(formats.write(adapter, tmp_path / "out", to))
    assert back.kind == "dora"
    for name, shape in ((NAME, (6, 5)), ("unet.conv_in", (6, 5, 3, 3))):
        base = some(*shape, seed=9)
        torch.testing.assert_close(back.delta(name, base), adapter.delta(name, base))


def test_forms_that_cannot_name_a_layer_say_so(tmp_path: Path) -> None:
    update = LayerUpdate(some(2, 5), some(6, 2), 1.0)
    odd = Adapter("sdxl", {"unet.down_blocks.0.resnets.7.conv1": update, NAME: update})
    with pytest.raises(AdapterError, match=r"no name for 1 of 2 layers .*resnets\.7\.conv1"):
        formats.write(odd, tmp_path / "x.safetensors", "kohya")
    dora = DoraUpdate(some(2, 5), some(6, 2), 1.5, some(6).abs())
    mixed = Adapter("sd1", {NAME: dora, OTHER: update})
    with pytest.raises(AdapterError, match="some layers of the unet are LoRA and some DoRA"):
        formats.write(mixed, tmp_path / "x.safetensors", "diffusers")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("claimed", ["sd_v1", "sdxl_", "sd_v2", ""])
def test_a1111_files_what_is_written_under_its_family(
    family: str, claimed: str, tmp_path: Path
) -> None:
    """Its rule is in `extensions-builtin/Lora/network.py`: `sdxl_...`, then `ss_v2`, else SD 1."""
    metadata = {"ss_base_model_version": claimed, "ss_v2": str(claimed == "sd_v2")}
    adapter = Adapter(family, {NAME: LayerUpdate(some(2, 5), some(6, 2), 1.0)}, metadata)
    with safe_open(formats.write(adapter, tmp_path / "a.safetensors"), "pt") as opened:
        assert filed_as(opened.metadata()) == family


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/ann/models/sd.safetensors", "sd.safetensors"),
        (r"C:\Users\Ann Lee\loras\owl", "owl"),
        (r"\\server\ann\owls\30_owl", "30_owl"),
        ("~/pictures/owls/", "owls"),
        ("/home/ann", "~"),
        (r"in C:\Users\Ann Lee", "in ~"),
        ("from file:///pictures/ann/owl.png", "from owl.png"),
        ("trained in /home/ann/owls", "trained in owls"),
        ('{"dirs": ["/data/ann/owls"], "n": 3}', '{"dirs": ["owls"], "n": 3}'),
        ('{"/data/ann/owls": {"img_count": 3}}', '{"owls": {"img_count": 3}}'),
        ('{"a":  1}', '{"a":  1}'),
        ("black and/or white, 1/2, 2024/01/02", "black and/or white, 1/2, 2024/01/02"),
        ("https://example.com/ann/owl", "https://example.com/ann/owl"),
        ("stable-diffusion-v1/lora", "stable-diffusion-v1/lora"),
        (r"smileys :/ \m/ ^/^", r"smileys :/ \m/ ^/^"),
        ("data:image/png;base64,/9j/4AAQ", "data:image/png;base64,/9j/4AAQ"),
    ],
)
def test_folders_of_a_machine_do_not_get_out(text: str, left: str, tmp_path: Path) -> None:
    assert without_folders(text) == left
    adapter = Adapter("sd1", {NAME: LayerUpdate(some(2, 5), some(6, 2), 1.0)}, {"ss_note": text})
    with safe_open(formats.write(adapter, tmp_path / "a.safetensors"), "pt") as opened:
        assert opened.metadata()["ss_note"] == left


def verdict() -> Verdict:
    number = Measurement("variety_vs_base", 0.42, low=0.3, high=0.5, n=8, better="higher")
    return Verdict(("narrowed",), "Less varied.", (), (), (number,), rules="5")


def test_a_verdict_is_stamped_without_touching_tensors_or_hashes(tmp_path: Path) -> None:
    file = formats.write(loha(), tmp_path / "a.safetensors")
    before, facts = load_file(file), formats.inspect(file)
    formats.stamp(file, verdict())
    after = formats.inspect(file)
    assert after["verdict"]["labels"] == ["narrowed"]
    assert after["verdict"]["measured"] == {"variety_vs_base": [0.42, 0.3, 0.5]}
    assert after["hashes"]["after_header"] == facts["hashes"]["after_header"]
    assert after["hashes"]["stated"] == facts["hashes"]["stated"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(file).items())
    kept, _ = formats.convert(file, tmp_path / "b.safetensors", "kohya")
    assert formats.inspect(kept)["verdict"] == after["verdict"]
    # Another update is another thing to judge.
    cut, _ = formats.convert(file, tmp_path / "c.safetensors", "kohya", rank=1)
    assert formats.inspect(cut)["verdict"] is None


def test_a1111_gets_its_sidecar_and_a_preview_without_text(tmp_path: Path) -> None:
    adapter = Adapter("sd1", loha().layers, formats.describe(name="owl", trigger="zqx"))
    file = formats.write(adapter, tmp_path / "owl.safetensors")
    formats.stamp(file, verdict())
    note = PngImagePlugin.PngInfo()
    note.add_text("parameters", "a zqx, /home/ann/secret")
    Image.new("RGB", (900, 600), "red").save(tmp_path / "sample.png", pnginfo=note)
    sidecar, preview = formats.write_sidecar(file, preview=tmp_path / "sample.png")
    document = json.loads(sidecar.read_text())
    assert sidecar.name == "owl.json"
    assert document["activation text"] == "zqx"
    assert document["sd version"] == "SD1"
    assert document["notes"] == "Less varied."
    with Image.open(preview) as picture:
        assert (picture.size, picture.info) == ((512, 341), {})
    assert b"secret" not in preview.read_bytes()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImagesError, match=r"broken\.png"):
        formats.write_sidecar(file, preview=tmp_path / "broken.png")


def test_inspect_tells_norms_and_spectra_of_what_is_stored(tmp_path: Path) -> None:
    lora = LayerUpdate(some(3, 5), some(6, 3), 2.0)
    adapter = Adapter("sd1", {**loha().layers, OTHER: lora})
    facts = formats.inspect(formats.write(adapter, tmp_path / "a.safetensors"))
    told = {layer["name"]: layer for layer in facts["layer_facts"]}
    for name in (NAME, OTHER):
        values = torch.linalg.svdvals(adapter.delta(name))
        assert told[name]["norm"] == pytest.approx(float(values.norm()), rel=1e-5)
        known = told[name]["singular_values"]
        assert known[: len(values)] == pytest.approx(values.tolist()[: len(known)], abs=1e-4)
    assert told[OTHER]["rank"] == 3
    assert told[OTHER]["alpha"] == 2.0
    assert 1 <= told[OTHER]["effective_rank"] <= 3
    assert facts["kinds"] == {"loha": 1, "lora": 1}


def test_alphas_stand_to_the_letter_where_they_are_alike(tmp_path: Path) -> None:
    alpha = torch.tensor(0.1).item()
    layers = {n: LayerUpdate(some(r, 5), some(6, r), alpha) for n, r in ((NAME, 2), (OTHER, 3))}
    for form in FORMS:
        file = formats.write(Adapter("sd1", layers), tmp_path / form, form)  # type: ignore[arg-type]
        assert {u.alpha for u in formats.read(file).layers.values()} == {alpha}  # type: ignore[attr-defined]


def test_a_folder_of_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match=r"a \.bin is a pickle"):
        formats.read(tmp_path)
