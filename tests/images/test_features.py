"""Features are computed once per content and encoder, and a bad cache is never believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from images import crafted
from variegate.errors import EmptyImageSet, EncoderError
from variegate.images import ImageSet, Picture, cache_dir


class Thumbnails:
    """An encoder that counts its work."""

    def __init__(self, name: str = "thumbnails", side: int = 4) -> None:
        self.id = name
        self.side = side
        self.seen = 0

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        self.seen += len(pictures)
        small = [np.asarray(p.resize((self.side, self.side)), np.float32) for p in pictures]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(small)).flatten(1))


def read(folder: Path, n: int = 5) -> ImageSet:
    crafted.write_scenes(folder, n)
    return ImageSet.read(folder)


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    images, encoder = read(tmp_path), Thumbnails()
    first = images.features(encoder, batch=2)
    assert torch.equal(images.features(encoder), first)
    assert encoder.seen == 5
    assert torch.equal(images.select(["03.png", "01.png"]).features(encoder), first[[3, 1]])


def test_copies_are_encoded_once_whatever_their_name(tmp_path: Path) -> None:
    read(tmp_path, 2)
    (tmp_path / "copy.png").write_bytes((tmp_path / "00.png").read_bytes())
    encoder = Thumbnails()
    rows = ImageSet.read(tmp_path).features(encoder)
    assert encoder.seen == 2
    assert torch.equal(rows[0], rows[2])


def test_encoders_do_not_share_rows(tmp_path: Path) -> None:
    images = read(tmp_path)
    assert images.features(Thumbnails("a", 4)).shape == (5, 48)
    assert images.features(Thumbnails("b", 3)).shape == (5, 27)


@pytest.mark.parametrize("harm", ["cut", "noise", "empty"])
def test_a_corrupt_entry_is_computed_again(harm: str, tmp_path: Path) -> None:
    images, encoder = read(tmp_path), Thumbnails()
    first = images.features(encoder)
    for file in (cache_dir() / "features").rglob("*.safetensors"):
        data = file.read_bytes()
        file.write_bytes({"cut": data[:-5], "noise": b"\xff" * 40, "empty": b""}[harm])
    assert torch.equal(images.features(encoder), first)
    assert encoder.seen == 10


def test_rows_of_another_width_are_not_believed(tmp_path: Path) -> None:
    images = read(tmp_path)
    images.select(["00.png"]).features(Thumbnails("a", 3))
    assert images.features(Thumbnails("a", 4)).shape == (5, 48)


def test_a_cache_that_cannot_be_written_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "file"))
    assert read(tmp_path / "in").features(Thumbnails()).shape == (5, 48)


def test_pictures_in_memory_have_features_too() -> None:
    picture = Picture("a", None, tensor=torch.full((3, 8, 6), 200, dtype=torch.uint8))
    assert picture.open().size == (6, 8)
    assert ImageSet((picture,), "memory").features(Thumbnails()).shape == (1, 48)


def test_pixels_of_another_shape_have_another_hash() -> None:
    flat = torch.zeros(3, 2, 8, dtype=torch.uint8)
    tall = torch.zeros(3, 8, 2, dtype=torch.uint8)
    hashes = [Picture("a", None, tensor=t).content_hash() for t in (flat, tall)]
    assert hashes[0] != hashes[1]


def test_no_pictures_and_bad_rows_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EmptyImageSet):
        ImageSet((), "nowhere").features(Thumbnails())

    class Broken(Thumbnails):
        def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
            return torch.full((len(pictures), 4), torch.nan)

    with pytest.raises(EncoderError, match="NaN"):
        read(tmp_path).features(Broken("broken"))


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VARIEGATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "variegate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "variegate"
