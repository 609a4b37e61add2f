from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from variegate.encoders import Encoder, hub, load
from variegate.errors import EncoderError

RNG = np.random.default_rng(0)
PICTURES = [Image.fromarray(RNG.integers(0, 256, (40, 56, 3), np.uint8)) for _ in range(3)]


def write_preprocessor(folder: Path, **changed: object) -> None:
    config = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    text = json.dumps({k: v for k, v in (config | changed).items() if v is not None})
    (folder / "preprocessor_config.json").write_text(text)


@pytest.fixture
def dinov2(tmp_path: Path) -> Path:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    write_preprocessor(tmp_path)
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"intermediate_size": 32}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1},
        vision_config=tower | {"image_size": 28, "patch_size": 14},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    words = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", "a", "red", "owl", "car"])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(tmp_path)
    write_preprocessor(tmp_path)
    return tmp_path


def test_a_dinov2_folder_gives_unit_rows_and_no_text(dinov2: Path) -> None:
    encoder = load(str(dinov2), device="cpu")
    rows = encoder.images(PICTURES)
    assert isinstance(encoder, Encoder)
    assert rows.shape == (3, 16)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not encoder.has_text
    assert not encoder.unfamiliar(rows)
    with pytest.raises(EncoderError, match="no text tower; name a CLIP"):
        encoder.texts(["a red owl"])


def test_a_picture_alone_and_in_a_batch_give_the_same_row(dinov2: Path) -> None:
    encoder = load(str(dinov2), device="cpu")
    alone = torch.cat([encoder.images([p]) for p in PICTURES])
    assert torch.allclose(alone, encoder.images(PICTURES), atol=1e-5)


def test_a_clip_folder_reads_pictures_and_texts_into_one_space(clip: Path) -> None:
    encoder = load(str(clip), device="cpu")
    texts = encoder.texts(["a red owl", "a car", "a red owl a red owl a red owl"])
    assert encoder.has_text
    assert encoder.images(PICTURES).shape == texts.shape == (3, 12)
    assert torch.allclose(texts.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(encoder.texts(["a car"])[0], texts[1], atol=1e-5)


def test_the_id_changes_with_the_weights(dinov2: Path) -> None:
    before = load(str(dinov2), device="cpu").id
    torch.manual_seed(1)
    config = Dinov2Config.from_pretrained(dinov2)
    Dinov2Model(config).save_pretrained(dinov2)
    assert load(str(dinov2), device="cpu").id != before


def test_pictures_are_prepared_as_the_model_says(dinov2: Path) -> None:
    plan = {
        "shortest_edge": 4,
        "crop": (4, 4),
        "resample": 0,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    white = Image.new("RGB", (8, 16), "white")
    out = hub.prepare(white, plan)
    assert out.shape == (3, 4, 4)
    assert torch.allclose(out, torch.full((3, 4, 4), 2.0))


def test_without_a_crop_sides_agree(dinov2: Path) -> None:
    write_preprocessor(dinov2, do_center_crop=False, size={"shortest_edge": 28})
    assert load(str(dinov2), device="cpu").images(PICTURES).shape == (3, 16)


def test_a_missing_preprocessor_is_told(dinov2: Path) -> None:
    (dinov2 / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="preprocessor_config"):
        load(str(dinov2), device="cpu")


def test_a_pickle_is_refused(dinov2: Path) -> None:
    (dinov2 / "model.safetensors").unlink()
    torch.save({}, dinov2 / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="Only safetensors"):
        load(str(dinov2), device="cpu")


def test_a_model_of_another_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(EncoderError, match=r"kind 'bert'.*dinov2"):
        load(str(tmp_path))


def test_an_unknown_name_is_told_with_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderError, match="facebook/dinov2-base"):
        load(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(EncoderError, match="no encoder was named"):
        load("  ")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"is a file; expected a folder"):
        load(str(file))


def test_only_the_published_sscd_file_is_run(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no SSCD file"):
        load(f"sscd={tmp_path / 'none.pt'}")
    file = tmp_path / "sscd.pt"
    file.write_bytes(b"another program")
    with pytest.raises(EncoderError, match=r"sha256 is [0-9a-f]{64}, expected 9f26bd4c"):
        load(f"sscd={file}")


class Pooled(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return x.float().mean((2, 3)) if return_features else x.float()


def test_inception_is_run_only_when_its_sha256_was_named(tmp_path: Path) -> None:
    file = tmp_path / "inception.pt"
    with pytest.raises(EncoderError, match="no Inception file"):
        load(f"inception={file}")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Pooled()).save(str(file))
    found = hub._sha256(file)
    with pytest.raises(EncoderError, match=f"is {found}, and none was named"):
        load(f"inception={file}")
    with pytest.raises(EncoderError, match="expected 00ff"):
        load(f"inception={file}#00ff")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        encoder = load(f"inception={file}#{found}", device="cpu")
    assert encoder.images(PICTURES).shape == (3, 3)
    assert encoder.images(PICTURES).norm(dim=1).numpy() == pytest.approx(1)
    assert encoder.id.startswith("inception-")


def test_the_published_sscd_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    file = tmp_path / "sscd.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Flat()).save(str(file))
    monkeypatch.setattr(hub, "SSCD_SHA256", hub._sha256(file))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        encoder = load(f"sscd={file}", device="cpu")
    assert encoder.images(PICTURES).shape == (3, 3)
    assert encoder.id.startswith("sscd-")
