"""Captions are proposed by a local model, woven, judged, and written only when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.caption.tiny import WORDS, write_blip, write_florence2, write_git, write_vit_gpt2
from typer.testing import CliRunner

from variegate.caption import Captions, check_writable, load_captioner, propose, write
from variegate.caption.weave import says_something, weave
from variegate.cli import app
from variegate.errors import CaptionerError, ImagesError
from variegate.images import ImageSet


class Dictated:
    """Says what it is told to, picture by picture."""

    name = "dictated"

    def __init__(self, *said: str) -> None:
        self.said = list(said)

    def describe(self, picture: Image.Image) -> str:
        return self.said.pop(0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("models") / "blip")


def proposed(folder: Path, *said: str) -> Captions:
    return propose(ImageSet.read(folder), Dictated(*said), trigger="zqx", class_noun="dog")


@pytest.mark.parametrize(
    ("seen", "caption"),
    [
        ("a dog on a lawn.", "a zqx dog on a lawn"),
        ("An old Dog, and a dog", "An old zqx Dog, and a dog"),
        ("two dogs asleep", "a zqx dog, two dogs asleep"),
        ("the zqx runs", "the zqx runs"),
        ("a hotdog", "a zqx dog, a hotdog"),
        ("", ""),
        ("\x1b[31ma dog\n", "a zqx dog"),
    ],
)
def test_the_trigger_stands_where_the_subject_is_named(seen: str, caption: str) -> None:
    assert weave(seen, trigger="zqx", class_noun="dog") == caption


def test_articles_follow_the_word_that_now_comes_first() -> None:
    assert weave("An owl at night", trigger="zqx", class_noun="owl") == "A zqx owl at night"
    assert weave("a dog", trigger="ohwx", class_noun="dog") == "an ohwx dog"
    assert weave("a lamp", trigger="zqx", class_noun="") == "zqx, a lamp"
    assert weave("a lamp", trigger="", class_noun="dog") == "a dog, a lamp"
    assert weave("a dog", trigger="", class_noun="dog") == "a dog"
    assert weave("a dog", trigger="", class_noun="") == "a dog"


def test_a_caption_that_names_only_the_subject_says_nothing() -> None:
    for caption, expected in (
        ("a photo of a zqx dog", False),
        ("a zqx dog on the", False),
        ("a zqx dog asleep", True),
        ("", False),
    ):
        assert says_something(caption, trigger="zqx", class_noun="dog") is expected


def test_proposals_write_nothing_and_writing_spares_what_is_there(photos: Path) -> None:
    (photos / "1.txt").write_text("mine")
    found = proposed(photos, "a dog on a lawn", "a dog at night", "")
    assert [p.state for p in found.proposals] == ["proposed", "kept", "empty"]
    assert found.proposals[1].existing == "mine"
    assert sorted(p.name for p in photos.glob("*.txt")) == ["1.txt"]
    done = write(found)
    assert [p.state for p in done.proposals] == ["written", "kept", "empty"]
    assert (photos / "1.txt").read_text() == "mine"
    prompts = [p.prompt for p in ImageSet.read(photos)]
    assert prompts == ["a zqx dog on a lawn", "mine", None]
    write(found, force=True)
    assert [p.prompt for p in ImageSet.read(photos)][1] == "a zqx dog at night"


def test_a_caption_goes_where_it_is_read(photos: Path) -> None:
    """Over the file that is read first; and not into one that two pictures would share."""
    Image.new("RGB", (40, 30)).save(photos / "0.jpg")
    (photos / "1.png.caption").write_text("mine")
    found = proposed(photos, *(f"a dog number {n}" for n in ("one", "two", "three", "four")))
    write(found, force=True)
    names = sorted(p.name for p in photos.iterdir() if p.suffix in (".txt", ".caption"))
    assert names == ["0.jpg.txt", "0.png.txt", "1.png.caption", "2.txt"]
    assert [p.prompt for p in ImageSet.read(photos)] == [p.caption for p in found.proposals]


def test_the_name_of_a_kohya_folder_is_no_caption_and_a_list_is(tmp_path: Path) -> None:
    home = tmp_path / "set" / "10_dog"
    home.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(home / "0.png")
    assert proposed(tmp_path / "set", "a dog asleep").proposals[0].state == "proposed"
    (home / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "mine"}\n')
    assert proposed(tmp_path / "set", "a dog asleep").proposals[0].existing == "mine"
    with pytest.raises(ImagesError, match=r"in its metadata\.jsonl, so \.txt files"):
        check_writable(ImageSet.read(tmp_path / "set"))


def test_what_is_wrong_with_the_captions_is_found(photos: Path) -> None:
    alike = proposed(photos, *["a photo of a dog"] * 3).findings
    assert {"Some captions say nothing", "All captions are the same"} <= {f.what for f in alike}
    assert "3 of 3" in alike[0].evidence
    whole = proposed(photos, "a dog on a lawn", "a dog in a car", "a dog under a table")
    assert whole.findings == ()


def test_a_picture_that_cannot_be_opened_is_told_and_the_others_go_on(photos: Path) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    found = proposed(photos, "a dog on a lawn", "a dog at night")
    assert [p.file.name for p in found.proposals] == ["0.png", "2.png"]
    assert [Path(file).name for file, _ in found.unread] == ["1.png"]
    for picture in photos.glob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(ImagesError, match=r"0\.png"):
        proposed(photos)


def test_blip_describes_a_picture_in_its_own_words_and_the_same_again(blip: Path) -> None:
    captioner = load_captioner(blip, device="cpu")
    picture = Image.new("RGB", (40, 30), "red")
    said = captioner.describe(picture)
    assert set(said.split()) <= set(WORDS)
    assert said
    assert captioner.describe(picture) == said


@pytest.mark.parametrize("writer", [write_vit_gpt2, write_git, write_florence2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_kinds_describe_too(writer: Any, tmp_path: Path) -> None:
    captioner = load_captioner(writer(tmp_path / "model"), device="cpu")
    said = captioner.describe(Image.new("RGB", (40, 30), "blue"))
    assert said
    if writer is not write_vit_gpt2:  # whose decoder knows bytes
        assert set(said.split()) <= {*WORDS, "[DEC]", "[MASK]"}


def test_what_is_no_captioning_model_is_refused_by_name(blip: Path, tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(CaptionerError) as caught:
            load_captioner(folder)
        return str(caught.value)

    assert "found no folder" in refusal(tmp_path / "Salesforce/blip")
    assert "a folder without config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert', which does not write text from pictures" in refusal(tmp_path)
    own = {"model_type": "moondream1", "auto_map": {"AutoConfig": "code.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "code that a model brings with it is not run" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).symlink_to(file)
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    assert "cannot be read" in refusal(pickled)


def test_the_command_proposes_then_writes(photos: Path, blip: Path) -> None:
    def ask(*words: str) -> tuple[int, str]:
        common = ["caption", str(photos), "--model", str(blip), "--trigger", "zqx", "--class"]
        done = CliRunner().invoke(app, [*common, "dog", *words])
        return done.exit_code, done.stdout

    code, text = ask("--quiet")
    assert code == 0
    assert "0.png  proposed" in text
    assert "Nothing was written" in text
    assert not list(photos.glob("*.txt"))
    code, text = ask("--write", "--json", "--quiet")
    document = json.loads(text)
    assert (code, document["written"], document["model"]) == (0, 3, "blip")
    for row in document["captions"]:
        assert Path(row["sidecar"]).read_text().strip() == row["caption"]
        assert "zqx" in row["caption"]
    assert json.loads(ask("--write", "--json", "--quiet")[1])["written"] == 0
    assert ask("--force")[0] == 2
