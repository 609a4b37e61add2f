"""Folders as the field lays them out become one list of pictures; nothing leads out of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from images import crafted
from variegate.errors import ImagesError
from variegate.images import ImageSet
from variegate.images.captions import MAX_CAPTION_BYTES, clean, parse_parameters

INFOTEXT = (
    "an owl,\non a <b>hill</b>\nNegative prompt: blur\n"
    'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 41, Size: 64x64, Lora hashes: "a: b, c"'
)


def put_lines(folder: Path, *entries: object) -> None:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf8")


def told(images: ImageSet) -> list[tuple[str, str]]:
    return [(f.file.name, f.kind) for f in images.faults]


def test_a_flat_folder_takes_the_captions_beside_its_pictures(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 4)
    (tmp_path / "00.txt").write_text("an owl", encoding="utf8")
    (tmp_path / "01.caption").write_bytes(b"\xef\xbb\xbfa fox\r\nin snow")
    (tmp_path / "02.txt").write_text(" \n", encoding="utf8")
    images = ImageSet.read(tmp_path)
    assert [p.prompt for p in images] == ["an owl", "a fox in snow", "", None]
    assert [p.key for p in images] == ["00.png", "01.png", "02.png", "03.png"]
    assert images.faults == ()
    assert images.origin == str(tmp_path)


def test_masks_belong_to_pictures_and_are_none_themselves(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 2)
    crafted.scene().save(tmp_path / "00-masklabel.png")
    crafted.scene().save(tmp_path / "99-masklabel.png")
    images = ImageSet.read(tmp_path)
    assert [p.mask_file for p in images] == [tmp_path / "00-masklabel.png", None]
    assert told(images) == [("99-masklabel.png", "mask")]


def test_kohya_folders_give_repeats_and_a_caption_beats_the_folder(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path / "10_small owl", 2)
    crafted.write_scenes(tmp_path / "3_zqx_fox", 1)
    crafted.write_scenes(tmp_path / "other", 1)
    (tmp_path / "10_small owl" / "01.txt").write_text("an owl at night", encoding="utf8")
    images = ImageSet.read(tmp_path)
    assert [(p.prompt, p.repeats) for p in images] == [
        ("small owl", 10),
        ("an owl at night", 10),
        ("zqx_fox", 3),
    ]
    assert told(images) == [("other", "ignored")]


def test_sub_folders_name_prompts(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path / "an owl", 2)
    crafted.write_scenes(tmp_path / "a fox", 1)
    images = ImageSet.read(tmp_path)
    assert {p: len(part) for p, part in images.by_prompt().items()} == {"a fox": 1, "an owl": 2}


def test_sub_folders_beside_pictures_are_told_not_read(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    crafted.write_scenes(tmp_path / "old", 3)
    images = ImageSet.read(tmp_path)
    assert len(images) == 1
    assert told(images) == [("old", "ignored")]


def test_metadata_gives_prompt_seed_and_group(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 3)
    crafted.write_scenes(tmp_path / "deep" / "er", 1)
    put_lines(
        tmp_path,
        {"file_name": "01.png", "prompt": "an owl", "seed": 7, "group": "class"},
        {"file_name": "00.png", "text": "a fox", "seed": True},
        {"file_name": "deep/er/00.png", "caption": "a car"},
        '{"file_name": "02.pn',
    )
    images = ImageSet.read(tmp_path)
    assert [(p.key, p.prompt, p.seed, p.group) for p in images] == [
        ("01.png", "an owl", 7, "class"),
        ("00.png", "a fox", None, None),
        ("deep/er/00.png", "a car", None, None),
    ]
    assert sorted(told(images)) == [
        ("02.png", "ignored"),
        ("metadata.jsonl", "metadata"),
        ("metadata.jsonl", "metadata"),
    ]


@pytest.mark.parametrize(
    "name", ["../out.png", "/etc/passwd", "a/../../out.png", "bad\0name.png", "x" * 5000 + ".png"]
)
def test_metadata_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    crafted.write_scenes(inside, 1)
    crafted.scene().save(tmp_path / "out.png")
    put_lines(inside, {"file_name": "00.png"}, {"file_name": name, "text": "secret"})
    images = ImageSet.read(inside)
    assert [p.key for p in images] == ["00.png"]
    assert len(images.faults) == 1


def test_links_that_lead_out_are_refused_and_told(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    crafted.write_scenes(inside, 1)
    crafted.scene(1).save(tmp_path / "out.png")
    (inside / "out.png").symlink_to(tmp_path / "out.png")
    (inside / "same.png").symlink_to(inside / "00.png")
    (inside / "gone.png").symlink_to(inside / "nowhere.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    images = ImageSet.read(inside)
    assert [p.key for p in images] == ["00.png", "same.png"]
    assert sorted((f.file.name, f.usable) for f in images.faults) == [
        ("gone.png", False),
        ("loop.png", False),
        ("out.png", False),
    ]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    for name in ("pipe.png", "00.txt", "00-masklabel.png"):
        os.mkfifo(tmp_path / name)
    images = ImageSet.read(tmp_path)
    assert [(p.key, p.prompt, p.mask_file) for p in images] == [("00.png", None, None)]
    assert sorted(told(images)) == [
        ("00-masklabel.png", "mask"),
        ("00.txt", "caption"),
        ("pipe.png", "special"),
    ]


def test_a_pipe_for_metadata_is_refused(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(ImagesError, match="not a regular file"):
        ImageSet.read(tmp_path)


@pytest.mark.parametrize("name", ["ü ñ 漢.png", "two\nlines.png", " .png", "a'b\"c<d>.png"])
def test_odd_names_are_read(name: str, tmp_path: Path) -> None:
    crafted.scene().save(tmp_path / name)
    (tmp_path / (Path(name).stem + ".txt")).write_text("an owl", encoding="utf8")
    images = ImageSet.read(tmp_path)
    assert [(p.key, p.prompt) for p in images] == [(name, "an owl")]
    assert images.pictures[0].open().size == (64, 64)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"x" * 1_000_000, "977 kB"),
        (b"\xff\xfea\x00b\x00", "not UTF-8"),
        (b"\x80\x81", "not UTF-8"),
    ],
)
def test_a_caption_that_cannot_be_used_is_told(data: bytes, fault: str, tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    (tmp_path / "00.txt").write_bytes(data)
    images = ImageSet.read(tmp_path)
    assert images.pictures[0].prompt is None
    assert fault in images.faults[0].fault


def test_captions_are_kept_as_text_without_terminal_codes() -> None:
    hostile = '<script>alert(1)</script>"><img onerror=x> {{7*7}}'
    assert clean(hostile) == hostile
    assert (
        clean("a\x1b[31m red\x1b]0;title\x07 \u202eowl\x00\x9b2J\t\r\nhere") == "a red owl2J here"
    )
    assert len(clean("x" * MAX_CAPTION_BYTES)) == MAX_CAPTION_BYTES


def test_pictures_carry_their_prompt_when_nothing_else_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(crafted.with_parameters(crafted.scene(), INFOTEXT))
    (tmp_path / "b.txt").write_text("a fox", encoding="utf8")
    images = ImageSet.read(tmp_path)
    assert [(p.prompt, p.seed) for p in images] == [("an owl, on a <b>hill</b>", 41), ("a fox", 41)]


def test_a_generation_log_beside_a_picture_is_read(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    (tmp_path / "00.txt").write_text(INFOTEXT, encoding="utf8")
    picture = ImageSet.read(tmp_path).pictures[0]
    assert (picture.prompt, picture.seed) == ("an owl, on a <b>hill</b>", 41)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("an owl\nSteps: 20, Sampler: Euler, Seed: 3", ("an owl", 3)),
        ("Steps: 20, Sampler: Euler, Seed: -1", ("", None)),
        ("an owl\nSteps: 20, Sampler: Euler, Seed: 99999999999999999999999", ("an owl", None)),
        ("an owl", None),
        ("an owl, Steps: two", None),
        ("", None),
        ("\n" * 100_000, None),
        ("a: " * 100_000, None),
    ],
)
def test_only_a_generation_log_is_taken_for_one(
    text: str, read: tuple[str, int | None] | None
) -> None:
    assert parse_parameters(text) == read


def test_files_that_are_no_pictures_are_told_or_passed_over(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 1)
    for name in ("scan.tiff", "notes.md", ".hidden.png", "README.txt", "lonely.txt", "a.npz"):
        (tmp_path / name).write_bytes(b"x")
    assert told(ImageSet.read(tmp_path)) == [
        ("scan.tiff", "unsupported"),
        ("lonely.txt", "caption"),
    ]


def test_a_missing_empty_or_wrong_folder_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"no folder at .*give a folder"):
        ImageSet.read(tmp_path / "none")
    with pytest.raises(ImagesError, match=r"no pictures in .*PNG"):
        ImageSet.read(tmp_path)
    listed = tmp_path / "listed"
    listed.mkdir()
    crafted.write_scenes(listed, 2)
    (listed / "metadata.jsonl").write_text('{"file": "a.png", "text": "a toy"}\n')
    with pytest.raises(ImagesError, match=r"no pictures in .*what was found: 'metadata.jsonl'"):
        ImageSet.read(listed)
    file = crafted.write_scenes(tmp_path, 1)[0]
    with pytest.raises(ImagesError, match="is a file; give the folder"):
        ImageSet.read(file)
    with pytest.raises(ImagesError, match="no folder"):
        ImageSet.read("bad\0name")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.tiff").write_bytes(b"x")
    with pytest.raises(ImagesError, match=r"refused: 'a\.tiff': unsupported"):
        ImageSet.read(tmp_path / "raw")


def test_selecting_keeps_the_order_of_the_keys_and_names_unknown_ones(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 3)
    images = ImageSet.read(tmp_path)
    assert [p.key for p in images.select(["02.png", "00.png"])] == ["02.png", "00.png"]
    assert {p.group for p in images.with_group("class")} == {"class"}
    with pytest.raises(ImagesError, match="'x'"):
        images.select(["00.png", "x"])


def test_reading_a_folder_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    crafted.write_scenes(tmp_path, 1)
    code = (
        "import sys; from variegate.images import ImageSet; "
        f"ImageSet.read({str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
