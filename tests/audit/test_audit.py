"""Each ailment of a set is found, with its numbers and what to do; a healthy set is quiet."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from images import crafted
from variegate.audit import audit, inspect_file
from variegate.errors import ImagesError
from variegate.images import ImageSet

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photos"


def titles(folder: Path, **options: object) -> set[str]:
    return {f.what for f in audit(folder, resolution=64, **options).findings}  # type: ignore[arg-type]


def write_captions(files: list[Path], captions: list[str]) -> None:
    for file, text in zip(files, captions, strict=True):
        file.with_suffix(".txt").write_text(text, encoding="utf8")


def test_a_varied_and_described_set_gives_no_finding(tmp_path: Path) -> None:
    places = ["on grass", "in a kitchen", "at the beach", "near a wall"]
    files = crafted.write_scenes(tmp_path, 16)
    write_captions(files, [f"a zqx toy {places[i % 4]}, view {i}" for i in range(16)])
    report = audit(tmp_path, trigger="zqx", resolution=64)
    assert report.findings == ()
    assert report.faults == ()
    assert (report.images, report.usable) == (16, 16)
    assert report.limited_by == ()
    assert report.effective_images > 10


def test_json_has_the_stable_names_and_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted.write_scenes(tmp_path / "in", 3)
    crafted.scene(0).save(tmp_path / "in" / "copy.png")
    (tmp_path / "in" / "cut.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    data = json.loads(json.dumps(audit("in").to_json()))
    stable = {
        "images",
        "usable",
        "effective_images",
        "faults",
        "duplicates",
        "captions",
        "findings",
    }
    assert stable <= set(data)
    inside = tmp_path / "in"
    assert data["duplicates"] == [[str(inside / "00.png"), str(inside / "copy.png"), 1.0]]
    assert [f["file"] for f in data["faults"]] == [str(inside / "cut.png")]
    assert {"what", "evidence", "advice"} == set(data["findings"][0])
    assert (data["images"], data["usable"]) == (5, 4)


def test_faulty_files_are_counted_and_told_and_the_rest_is_used(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 6)
    sound = crafted.encoded(crafted.scene(50), "JPEG", quality=95)
    files = {
        "cut.jpg": sound[:-300],
        "bomb.png": crafted.png_header(20_000, 20_000),
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "scan.tiff": b"II*\0",
        "cmyk.jpg": crafted.encoded(crafted.scene(51).convert("CMYK"), "JPEG"),
        "deep.png": crafted.encoded(crafted.sixteen_bit_gray(), "PNG"),
        "turned.jpg": crafted.rotated_by_exif(crafted.scene(52)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")
    report = audit(tmp_path)
    assert (report.images, report.usable) == (14, 9)
    assert {(f.file.name, f.kind, f.usable) for f in report.faults} == {
        ("cut.jpg", "truncated", False),
        ("bomb.png", "bomb", False),
        ("eps.png", "unsupported", False),
        ("scan.tiff", "unsupported", False),
        ("pipe.png", "special", False),
        ("cmyk.jpg", "cmyk", True),
        ("deep.png", "16-bit", True),
        ("turned.jpg", "rotated", True),
    }
    assert inspect_file(tmp_path / "cmyk.jpg")[0].kind == "cmyk"


def test_a_folder_without_a_usable_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    report = audit(tmp_path)
    assert (report.images, report.usable, report.effective_images) == (1, 0, 0.0)
    assert report.findings[0].what == "No picture can be used"


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImagesError):
        audit(tmp_path)


def test_n_copies_count_as_one(tmp_path: Path) -> None:
    for i in range(8):
        crafted.scene().save(tmp_path / f"{i}.png")
    report = audit(tmp_path)
    assert report.effective_images == 1.0
    assert report.limited_by[0] == "duplicates"
    assert len(report.duplicates) == 28
    assert any("more than once" in f.what for f in report.findings)


def test_another_copy_changes_nothing(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 7)
    before = audit(tmp_path).effective_images
    for i in range(5):
        (tmp_path / f"copy {i}.png").write_bytes((tmp_path / "03.png").read_bytes())
    assert audit(tmp_path).effective_images == before


def test_six_copies_and_six_others_count_as_about_seven(tmp_path: Path) -> None:
    pictures = [noise_photograph(i) for i in range(7)]
    for i in range(12):
        pictures[max(0, i - 5)].save(tmp_path / f"{i:02d}.png", compress_level=i % 9)
    assert audit(tmp_path).effective_images == pytest.approx(7, abs=1)


def photographs() -> list[Image.Image]:
    return [p.open() for p in ImageSet.read(PHOTOGRAPHS)]


def noise_photograph(seed: int) -> Image.Image:
    """Smooth coloured noise: no two are related."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def test_unrelated_pictures_count_nearly_all(tmp_path: Path) -> None:
    for i in range(12):
        noise_photograph(i).save(tmp_path / f"{i}.png")
    assert audit(tmp_path).effective_images > 9


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    files = crafted.write_scenes(tmp_path / "a", 9)
    (tmp_path / "b").mkdir()
    names = [f"{i}.png" for i in range(9)]
    random.Random(0).shuffle(names)
    for file, name in zip(files, names, strict=True):
        (tmp_path / "b" / name).write_bytes(file.read_bytes())
    first, second = audit(tmp_path / "a"), audit(tmp_path / "b")
    assert first.effective_images == second.effective_images
    assert first.findings == second.findings


@pytest.mark.parametrize("edit", ["re-saved", "smaller", "mirrored", "brighter", "cropped"])
def test_an_edited_copy_is_a_near_duplicate(edit: str, tmp_path: Path) -> None:
    picture, other = photographs()[:2]
    width, height = picture.size
    edited = {
        "re-saved": lambda: picture,
        "smaller": lambda: picture.resize((100, 100)),
        "mirrored": lambda: ImageOps.mirror(picture),
        "brighter": lambda: ImageEnhance.Brightness(picture).enhance(1.1),
        "cropped": lambda: picture.crop((4, 4, width - 4, height - 4)),
    }[edit]()
    picture.save(tmp_path / "a.png")
    edited.save(tmp_path / "b.jpg", quality=80)
    other.save(tmp_path / "c.png")
    report = audit(tmp_path)
    assert [(Path(d.first).name, Path(d.second).name) for d in report.duplicates] == [
        ("a.png", "b.jpg")
    ]
    assert 0.8 < report.duplicates[0].similarity < 1.0
    assert report.effective_images < 2.3


def test_different_scenes_are_no_duplicates(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 60, seed=3)
    assert audit(tmp_path).duplicates == ()


def test_one_background_is_found_and_limits_the_number(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path / "one", 12, subject="robot", colour="blue", pattern="dotted")
    crafted.write_scenes(tmp_path / "many", 12, subject="robot")
    one, many = audit(tmp_path / "one"), audit(tmp_path / "many")
    assert "background" in one.limited_by
    assert "background" not in many.limited_by
    assert {"One background", "The pictures are much alike"} <= titles(tmp_path / "one")
    assert "One background" not in titles(tmp_path / "many")
    assert one.effective_images < 6 < many.effective_images


def test_one_place_is_found(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path / "one", 12, subject="robot", size="large", position="center")
    crafted.write_scenes(tmp_path / "many", 12, subject="robot", size="large")
    title = "The subject is always in the same place"
    assert title in titles(tmp_path / "one")
    assert title not in titles(tmp_path / "many")
    assert "place" in audit(tmp_path / "one").limited_by


@pytest.mark.parametrize(("n", "title"), [(3, "Very few pictures"), (7, "Few pictures")])
def test_few_pictures_are_told(n: int, title: str, tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, n)
    assert title in titles(tmp_path)


def test_pictures_below_the_base_and_very_long_ones_are_told(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 10)
    crafted.scene(99).resize((300, 100)).save(tmp_path / "long.png")
    found = {f.what: f.evidence for f in audit(tmp_path).findings}
    assert found["Some pictures are very long"].endswith("300 x 100")
    small = found["Some pictures are smaller than what the base is trained at"]
    assert small.startswith("11 of 11 have a side below 512 pixels")
    assert "Some pictures are smaller than what the base is trained at" not in titles(tmp_path)


def test_masks_that_do_not_fit_are_told(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 4)
    Image.new("L", (64, 64), 255).save(tmp_path / "00-masklabel.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "01-masklabel.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "02-masklabel.png")
    (tmp_path / "03-masklabel.png").write_bytes(b"\x89PNG")
    report = audit(tmp_path)
    assert report.images == report.usable == 4
    assert [(f.file.name, f.kind) for f in report.faults] == [
        ("01-masklabel.png", "mask"),
        ("02-masklabel.png", "mask"),
        ("03-masklabel.png", "mask"),
    ]


def test_hostile_captions_are_kept_as_text(tmp_path: Path) -> None:
    files = crafted.write_scenes(tmp_path, 2)
    write_captions(files, ["<script>alert(1)</script> \x1b[31mred", "y" * 1_000_000])
    report = audit(tmp_path)
    assert ImageSet.read(tmp_path).pictures[0].prompt == "<script>alert(1)</script> red"
    assert [f.kind for f in report.faults] == ["caption"]
    assert "\x1b" not in json.dumps(report.to_json())


def test_repeating_an_audit_gives_the_same_answer(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 6)
    assert audit(tmp_path).to_json() == audit(tmp_path).to_json()


def test_stages_are_told_to_whoever_listens(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 3)
    lines: list[str] = []
    audit(tmp_path, say=lines.append)
    assert len(lines) == 2


def test_six_photographs_in_six_places_are_few_but_different() -> None:
    report = audit(PHOTOGRAPHS)
    assert (report.images, report.usable, report.faults) == (6, 6, ())
    assert report.duplicates == ()
    assert report.limited_by == ()
    assert report.effective_images > 4.5
    assert [f.what for f in report.findings] == [
        "Few pictures",
        "No picture has a caption",
        "Some pictures are smaller than what the base is trained at",
    ]
