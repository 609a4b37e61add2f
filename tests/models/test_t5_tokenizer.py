"""T5's tokenizer is read from where it is told to lie, in each of its forms."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.ldm import shrink_blueprints, write_single_file
from tests.tiny import T5_PIECES, t5_tokenizer, write_tiny_sd, write_tiny_sd3
from tests.train.scenes import tiny_recipe, write_pictures
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import BaseError
from variegate.models import load
from variegate.models.t5 import read_t5_tokenizer
from variegate.run import Run
from variegate.train import result, train

PROMPTS = ["an owl at night", "a  red owl!", ""]


def spiece(pieces: list[tuple[str, float]] = T5_PIECES) -> bytes:
    """A SentencePiece model with what its own trainer writes beside the pieces."""

    def varint(value: int) -> bytes:
        more = value >> 7
        return bytes([value & 0x7F | (0x80 if more else 0)]) + (varint(more) if more else b"")

    def message(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    whole = b""
    for i, (piece, score) in enumerate(pieces):
        kind = b"\x18" + varint(3 if i < 2 else 2 if i == 2 else 1)
        body = message(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + kind
        whole += message(1, body)
    return whole + message(2, b"\x18\x01" + message(1, b"x" * 300)) + message(3, message(1, b"nmt"))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("tokenizers")
    t5_tokenizer().save_pretrained(home / "folder")
    (home / "pieces").mkdir()
    (home / "pieces" / "spiece.model").write_bytes(spiece())
    return {
        "folder": home / "folder",
        "tokenizer.json": home / "folder" / "tokenizer.json",
        "spiece folder": home / "pieces",
        "spiece.model": home / "pieces" / "spiece.model",
    }


@pytest.mark.parametrize("form", ["folder", "tokenizer.json", "spiece folder", "spiece.model"])
def test_every_form_gives_the_same_tokens(form: str, forms: dict[str, Path]) -> None:
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    own, true = read_t5_tokenizer(forms[form]), t5_tokenizer()
    assert own(PROMPTS, **options).input_ids == true(PROMPTS, **options).input_ids
    assert own("an owl").input_ids[-1] == 1


def test_what_is_no_tokenizer_of_t5_is_told(forms: dict[str, Path], tmp_path: Path) -> None:
    whole = forms["spiece.model"].read_bytes()
    for name, data, told in (
        ("cut.model", whole[:-3], "cut off"),
        ("text.model", b"no model at all", "wire type|cut off|expected"),
        ("llama.model", spiece([("<unk>", 0.0), ("<s>", 0.0)]), "it begins with"),
        ("bad.json", b"{}", "cannot be read from"),
        ("a.txt", b"", "a file of another kind"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BaseError, match=told):
            read_t5_tokenizer(tmp_path / name)
    with pytest.raises(BaseError, match="nothing at"):
        read_t5_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseError, match=r"holds nothing; expected tokenizer\.json or spiece"):
        read_t5_tokenizer(tmp_path / "empty")


def test_a_checkpoint_with_t5_reads_with_a_tokenizer_from_elsewhere(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_sd3(tmp_path / "sd3")
    shrink_blueprints({"sd3": folder}, monkeypatch)
    file = write_single_file(folder, tmp_path / "sd3.safetensors", "sd3")
    with pytest.raises(BaseError, match=r"say where it is \(--t5-tokenizer PATH"):
        load(str(file))
    whole: Any = load(str(folder))
    model: Any = load(str(file), t5_tokenizer=forms["spiece.model"])
    ids = model.tokenizer_3(PROMPTS, padding=True, return_tensors="pt").input_ids
    assert ids.equal(whole.tokenizer_3(PROMPTS, padding=True, return_tensors="pt").input_ids)
    with torch.no_grad():
        states = [m.text_encoder_3(ids)[0] for m in (model, whole)]
    torch.testing.assert_close(*states)
    plain = load(str(folder), t5_tokenizer=forms["folder"])
    assert whole.id != plain.id
    assert model.notes == whole.notes == ()


def test_a_tokenizer_without_an_encoder_or_for_another_is_refused(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    for base in (write_tiny_sd(tmp_path / "sd"), write_tiny_sd3(tmp_path / "sd3", t5=False)):
        with pytest.raises(BaseError, match="has no T5 text encoder to read with it"):
            load(str(base), t5_tokenizer=forms["folder"])
    large = tmp_path / "large.model"
    large.write_bytes(spiece([*T5_PIECES, *((f"w{i}", -3.0) for i in range(200))]))
    with pytest.raises(BaseError, match="T5 knows 200 tokens, its tokenizer gives"):
        load(str(write_tiny_sd3(tmp_path / "t5")), t5_tokenizer=large)


def test_a_base_without_t5_says_so_and_so_does_its_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_tiny_sd3(tmp_path / "base", t5=False)
    with caplog.at_level(logging.WARNING):
        model = load(str(base))
    assert "is read without T5: what it would have said is zeros" in caplog.text
    recipe = tiny_recipe(
        base,
        write_pictures(tmp_path / "pictures"),
        optimizer={"steps": 1},
        probes={"every": 9, "triples": 3},
    )
    run = train(recipe, out=tmp_path / "run", model=model)
    assert any("is read without T5" in note["text"] for note in run.read_journal("note"))


def test_the_recipe_names_the_tokenizer_a_run_reads_with(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    base = write_tiny_sd3(tmp_path / "base")
    for file in (base / "tokenizer_3").iterdir():
        file.unlink()
    asked = {"optimizer": {"steps": 1}, "probes": {"every": 9, "triples": 3}}
    pictures = write_pictures(tmp_path / "pictures")
    with pytest.raises(BaseError, match=r"tokenizer_3: expected tokenizer\.json"):
        train(tiny_recipe(base, pictures, **asked), out=tmp_path / "none")
    recipe = tiny_recipe(base, pictures, t5_tokenizer=str(forms["spiece folder"]), **asked)
    run = train(recipe, out=tmp_path / "run")
    assert result(run)["step"] == 1


def test_the_command_line_says_where_the_tokenizer_lies(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_tiny_sd3(tmp_path / "base")
    for file in (base / "tokenizer_3").iterdir():
        file.unlink()
    monkeypatch.chdir(forms["folder"].parent)
    learn = ["train", str(write_pictures(tmp_path / "pictures")), "--base", str(base), "--quiet"]
    learn += ["--t5-tokenizer", "folder", "--out", str(tmp_path / "run"), "--recipe", "subject"]
    settings = ("optimizer.steps=1", "sampling.sampler=ddim", "probes.every=9", "probes.triples=3")
    learn += [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(app, learn)
    assert done.exit_code == 0, done.stderr
    assert Run.open(tmp_path / "run").recipe.t5_tokenizer == str(forms["folder"])
