"""Adapters into models for good, and out of finetuned ones."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.blend.random_adapters import random_adapter
from tests.models.ldm import tiny_blueprint, write_single_file
from tests.tiny import write_tiny_sd, write_tiny_sd3, write_tiny_sdxl
from torch import nn

from variegate import seeds
from variegate.adapter import PARTS, Adapter, LayerUpdate, Masking, attached
from variegate.adapter.updates import DoraUpdate, FullUpdate
from variegate.blend.extract import base_weights, extract
from variegate.blend.merge import merge
from variegate.blend.together import resize
from variegate.errors import AdapterError, NoSpace, NotFinite, RequestError
from variegate.formats import read, write
from variegate.formats.names import canonical
from variegate.models import blueprints, load

WRITERS = {"sd1": write_tiny_sd, "sdxl": write_tiny_sdxl, "sd3": write_tiny_sd3}
FILES = {**WRITERS, "sd2": write_tiny_sd}  # of fused queries, keys and values


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    return {family: make(home / family) for family, make in FILES.items()}


def of_every_layer(model: Any, *, every: int = 3, rank: int = 2) -> Adapter:
    """Random updates of every third matrix and convolution."""
    layers: dict[str, Any] = {}
    for part in PARTS:
        root: Any = getattr(model, part, None)
        found = root.named_modules() if root is not None else ()
        held = [(p, m) for p, m in found if isinstance(m, nn.Linear | nn.Conv2d)]
        for path, module in held[::every]:
            name = canonical(f"{part}.{path}")
            out, *inputs = module.weight.shape
            layers[name] = LayerUpdate(
                0.3 * torch.randn(rank, *inputs, generator=seeds.at(0, name, "down")),
                0.3 * torch.randn(out, rank, *[1] * (len(inputs) - 1), generator=seeds.at(0, name)),
                alpha=1.0,
            )
    return Adapter(model.family, layers)


def vectors_of(model: Any) -> dict[str, torch.Tensor]:
    """Every norm's weight and every bias, by the layer that changes it."""
    return {
        canonical(f"{part}.{path.removesuffix('.weight')}"): parameter.detach().clone()
        for part in PARTS
        if (root := getattr(model, part, None)) is not None
        for path, parameter in root.named_parameters()
        if parameter.ndim == 1
    }


def of_every_vector(model: Any) -> Adapter:
    """Random differences of them all, beside a few matrices."""
    layers: dict[str, Any] = dict(of_every_layer(model, every=9).layers)
    for name, own in vectors_of(model).items():
        layers[name] = FullUpdate(torch.randn(len(own), generator=seeds.at(0, name)))
    return Adapter(model.family, layers)


@pytest.mark.parametrize("family", WRITERS)
def test_a_merged_folder_holds_base_plus_strength_times_update(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load(str(folders[family]))
    learnt = of_every_layer(base)
    before = base_weights(base, [learnt])
    merged = load(str(merge(str(folders[family]), learnt, tmp_path / "out", strength=0.5)))
    after = base_weights(merged, [learnt])
    for name, weight in before.items():
        assert torch.equal(after[name], weight + learnt.scaled(0.5).delta(name, weight)), name
    untouched = [k for k in base.network.state_dict() if k.endswith("bias")]
    for key in untouched:
        assert torch.equal(base.network.state_dict()[key], merged.network.state_dict()[key])


def test_a_merged_model_answers_as_the_base_with_the_adapter_on(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load(str(folders["sd1"]))
    learnt = of_every_layer(base, every=5)
    merged = load(str(merge(str(folders["sd1"]), learnt, tmp_path / "out")))
    latents = torch.randn(1, 4, 8, 8, generator=seeds.at(0, "latents"))
    with attached(base, learnt), torch.no_grad():
        wanted = base.predict(latents, torch.tensor([400]), base.embed(["a cat"]))
    found = merged.predict(latents, torch.tensor([400]), merged.embed(["a cat"]))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", WRITERS)
def test_what_was_merged_is_extracted_again(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load(str(folders[family]))
    learnt = of_every_layer(base)
    tuned = load(str(merge(str(folders[family]), learnt, tmp_path / "out")))
    found = extract(base, tuned, energy=1.0)
    assert set(found.adapter.layers) == set(learnt.layers)
    assert found.adapter.rank == 2  # what rounding adds is not taken for more
    assert not found.left_out
    for name in learnt.layers:
        torch.testing.assert_close(
            found.adapter.delta(name), learnt.delta(name), atol=1e-5, rtol=1e-4
        )


def test_what_no_adapter_holds_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    base = load(str(folders["sd1"]))
    tuned = load(str(folders["sd1"]))
    with pytest.raises(AdapterError, match="nothing to extract"):
        extract(base, tuned, rank=1)
    with torch.no_grad():
        tuned.unet.mid_block.resnets[0].conv1.weight[0] += 1.0
        tuned.unet.mid_block.resnets[0].conv1.bias += 1.0
        next(tuned.vae.parameters()).add_(1.0)
    found = extract(base, tuned, rank=1)
    assert list(found.adapter.layers) == ["unet.mid_block.resnets.0.conv1"]
    told = " ".join(found.left_out)
    assert "1 biases, norms or embeddings changed too" in told
    assert "unet.mid_block.resnets.0.conv1.bias" in told
    assert "vae differs" in told


@pytest.mark.parametrize("family", FILES)
def test_a_single_file_keeps_its_keys_and_gets_the_same_weights(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """As in a folder, fused queries and keys and OpenCLIP's names included."""
    file = _single(family, folders[family], tmp_path, monkeypatch)
    base = load(str(file))
    learnt = of_every_layer(base)
    out = merge(str(file), learnt, tmp_path / "out.safetensors", strength=2.0)
    merged = load(str(out))
    before, after = base_weights(base, [learnt]), base_weights(merged, [learnt])
    for name, weight in before.items():
        assert torch.equal(after[name], weight + learnt.scaled(2.0).delta(name, weight)), name
    old, new = load_file(file), load_file(out)
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    same = [key for key in old if torch.equal(old[key], new[key])]
    assert len(same) < len(old)
    assert all(key in same for key in old if key.startswith("first_stage_model."))


@pytest.mark.parametrize("family", FILES)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_norms_and_biases_are_merged_as_weights_are(
    form: str, family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """Biases of fused queries and keys and of modulations in another order included."""
    source, out = folders[family], tmp_path / "out"
    if form == "file":
        source, out = (
            _single(family, source, tmp_path, monkeypatch),
            out.with_suffix(".safetensors"),
        )
    base = load(str(source))
    learnt = of_every_vector(base)
    before = vectors_of(base)
    assert {name.endswith(".bias") for name in before} == {True, False}
    after = vectors_of(load(str(merge(str(source), learnt, out, strength=2.0))))
    for name, own in before.items():
        update: Any = learnt.layers[name]
        assert torch.equal(after[name], own + 2.0 * update.difference), name


def test_with_the_bases_weights_at_hand_norms_and_biases_stay_what_they_are(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load(str(folders["sd1"]))
    learnt = read(write(of_every_vector(base), tmp_path / "a.safetensors", "kohya"))
    weights = base_weights(base, [learnt])
    own = vectors_of(base)
    assert all(torch.equal(weights[name], vector) for name, vector in own.items())
    small = resize(learnt, rank=1, base=weights)
    assert set(small.vectors) == set(own)
    for name in own:
        kept: Any = small.adapter.layers[name]
        assert torch.equal(kept.difference, learnt.layers[name].delta())


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sdxl", "text_encoder_2.text_projection"),
        ("sd3", "text_encoder.text_projection"),
        ("sd3", "text_encoder_2.text_projection"),
    ],
)
def test_a_texts_projection_is_extracted_under_the_name_that_it_has_in_the_field(
    family: str, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base, tuned = (load(str(folders[family])) for _ in range(2))
    part = name.partition(".")[0]
    with torch.no_grad():
        getattr(tuned, part).text_projection.weight += 1.0
    found = extract(base, tuned, rank=1).adapter
    assert list(found.layers) == [name]
    file = write(found, tmp_path / "a.safetensors")
    stem = name if family == "sd3" else "lora_te2_text_projection"
    assert all(key.startswith(f"{stem}.") for key in load_file(file))
    merged = load(str(merge(str(folders[family]), read(file), tmp_path / "out")))
    torch.testing.assert_close(
        getattr(merged, part).text_projection.weight, getattr(tuned, part).text_projection.weight
    )


def test_stored_precision_is_kept_and_hashes_are_not(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "half"
    shutil.copytree(folders["sd1"], home)
    weights = home / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {k: v.half() for k, v in load_file(weights).items()}
    save_file(halves, weights, {"modelspec.hash_sha256": "0x1", "modelspec.title": "mine"})
    (home / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    learnt = of_every_layer(load(str(folders["sd1"])))
    out = merge(str(home), learnt, tmp_path / "out") / "unet"
    stored = load_file(out / weights.name)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    for name in (n for n in learnt.layers if n.startswith("unet.")):
        key = f"{name.removeprefix('unet.')}.weight"
        want = halves[key].float() + learnt.delta(name)
        assert torch.equal(stored[key], want.half())
    with safe_open(out / weights.name, framework="pt") as opened:
        assert opened.metadata() == {"modelspec.title": "mine", "format": "pt"}
    assert not (out / "diffusion_pytorch_model.bin").exists()


def test_a_kind_that_turns_weights_is_merged_by_the_bases_own(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base: Any = load(str(folders["sd1"]))
    name = next(n for n in of_every_layer(base, every=1).layers if n.endswith("attn1.to_q"))
    lora: Any = of_every_layer(base, every=1).layers[name]
    out = lora.up.shape[0]
    learnt = Adapter(
        "sd1", {name: DoraUpdate(lora.down, lora.up, 1.0, magnitude=torch.full((out,), 0.7))}
    )
    merged = load(str(merge(str(folders["sd1"]), learnt, tmp_path / "out")))
    weight = base_weights(base, [learnt])[name]
    assert torch.equal(base_weights(merged, [learnt])[name], weight + learnt.delta(name, weight))


def test_a_full_disk_leaves_nothing_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = of_every_layer(load(str(folders["sd1"])))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(NoSpace, match="nothing is left there"):
            merge(str(folders["sd1"]), learnt, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1 << 20))
    with pytest.raises(NoSpace, match="1 MiB free and"):
        merge(str(folders["sd1"]), learnt, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base, out = str(folders["sd1"]), tmp_path / "out"
    learnt = of_every_layer(load(base))
    (tmp_path / "taken").mkdir()
    with pytest.raises(RequestError, match="is there already"):
        merge(base, learnt, tmp_path / "taken")
    with pytest.raises(RequestError, match="is a folder; name a folder"):
        merge(base, learnt, tmp_path / "out.safetensors")
    with pytest.raises(AdapterError, match="layers of the adapter"):
        merge(base, Adapter("sd3", {"transformer.a": next(iter(learnt.layers.values()))}), out)
    wrong = {"unet.conv_in": LayerUpdate(torch.zeros(1, 3), torch.zeros(3, 1), 1.0)}
    with pytest.raises(AdapterError, match=r"unet.conv_in.weight is \(16, 4, 3, 3\)"):
        merge(base, Adapter("sd1", wrong), out)
    with pytest.raises(AdapterError, match="T-LoRA"):
        merge(base, Adapter("sd1", learnt.layers, masking=Masking(None, 1000)), out)
    with pytest.raises(NotFinite, match="merge at a lower strength"):
        merge(base, learnt.scaled(1e39), out)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_models_that_are_no_base_and_finetune_are_refused(folders: dict[str, Path]) -> None:
    one, other = load(str(folders["sd1"])), load(str(folders["sdxl"]))
    with pytest.raises(AdapterError, match=r"is of family sd1, .* of sdxl"):
        extract(one, other, rank=1)
    with pytest.raises(RequestError, match="give --rank, --energy or both"):
        extract(one, one)
    with pytest.raises(AdapterError, match="does not fit base"):
        base_weights(other, [random_adapter(0)])


def _single(family: str, folder: Path, home: Path, monkeypatch: Any) -> Path:
    """The folder as one file, and the sizes that no file tells set to the tiny models'."""
    file = write_single_file(folder, home / "base.safetensors", family)
    monkeypatch.setitem(blueprints.BLUEPRINTS, family, tiny_blueprint(family, folder))
    if family == "sd3":
        (home / "tokenizer_3").symlink_to(folder / "tokenizer_3")
    return file
