"""What an audit proposes mends what it found, and is proposed for nothing else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from images import crafted
from variegate.audit import AuditReport, audit
from variegate.audit.chart import chart
from variegate.audit.descriptors import look
from variegate.audit.effective import FARTHEST
from variegate.audit.frames import picture_inside
from variegate.audit.sides import is_handed, measure_sides

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photos"


def ground(rng: np.random.Generator, side: int = 256) -> Image.Image:
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def plain(rng: np.random.Generator, side: int = 256) -> Image.Image:
    return Image.new("RGB", (side, side), tuple(int(c) for c in rng.integers(150, 256, 3)))


def arrow(picture: Image.Image, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """A thing that faces right: a dark body with a light head."""
    side = picture.width
    x, y = (round(v * side) for v in at)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x - side // 4, y - side // 8, x, y + side // 8), fill=(10, 10, 30))
    draw.rectangle((x, y - side // 6, x + side // 4, y + side // 6), fill=(250, 240, 40))
    return picture


def write(folder: Path, pictures: list[Image.Image]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:02d}.png")
    return folder


def fixed(report: AuditReport, kind: str, into: Path) -> Path:
    """The set with one fix done to it."""
    found: list[list[Any]] = []
    for fix in report.fixes:
        if fix["fix"] == kind:
            found = fix["pictures"]
    boxes = {Path(file).name: box for file, *box in found}
    into.mkdir()
    for file in sorted(Path(report.folder).glob("*.png")):
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        if file.name in boxes:
            left, top, right, bottom = boxes[file.name]
            width, height = picture.size
            picture = picture.crop(
                (
                    *(round(left * width), round(top * height)),
                    *(round(right * width), round(bottom * height)),
                )
            )
            picture = ImageOps.mirror(picture) if kind == "mirror" else picture
        picture.save(into / file.name)
    return into


def kinds(report: AuditReport) -> set[str]:
    return {fix["fix"] for fix in report.fixes}


def titles(report: AuditReport) -> set[str]:
    return {f.what for f in report.findings}


ONE_WAY = "The pictures all face one way"
FRAMED = "Some pictures have bars or a frame"
ONE_PLACE = "The subject is always in the same place"


def test_what_all_faces_one_way_is_mirrored_until_it_does_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    report = audit(write(tmp_path / "in", [arrow(plain(rng)) for _ in range(12)]), resolution=64)
    assert ONE_WAY in titles(report)
    after = audit(fixed(report, "mirror", tmp_path / "out"), resolution=64)
    assert ONE_WAY not in titles(after)
    assert "mirror" not in kinds(after)


def test_a_set_that_faces_either_way_is_left_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [arrow(plain(rng)) for _ in range(16)]
    either = [p if i % 2 else ImageOps.mirror(p) for i, p in enumerate(pictures)]
    assert "mirror" not in kinds(audit(write(tmp_path / "either", either), resolution=64))


def test_pictures_that_are_their_own_mirror_image_have_no_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pictures = []
    for _ in range(12):
        half = np.asarray(ground(rng), np.float64)
        even = (half + half[:, ::-1]) / 2 + rng.normal(0, 1, half.shape)
        even[:, :128] += 2  # a light from the left, the same in all
        pictures.append(Image.fromarray(np.clip(even, 0, 255).astype(np.uint8)))
    assert ONE_WAY not in titles(audit(write(tmp_path / "in", pictures), resolution=64))


def test_chance_seldom_makes_a_side() -> None:
    """On unrelated pictures the test is right as often as it says."""
    alarms = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        looks = [look(ground(rng, 64)) for _ in range(10)]
        sides = measure_sides(looks, [str(i) for i in range(10)])
        assert abs(sides.share) < 0.6
        alarms += sides.one_sided
    assert alarms <= 3


def test_sides_do_not_hang_on_the_order_and_turn_with_the_pictures() -> None:
    rng = np.random.default_rng(3)
    pictures = [arrow(ground(rng, 64)) for _ in range(9)]
    hashes = [str(i) for i in range(9)]
    looks = [look(p) for p in pictures]
    one = measure_sides(looks, hashes)
    back = measure_sides(looks[::-1], hashes[::-1])
    assert one.p == back.p
    assert one.share == pytest.approx(back.share)
    assert one.lean == pytest.approx(back.lean[::-1])
    mirrored = measure_sides([look(ImageOps.mirror(p)) for p in pictures], hashes)
    assert mirrored.share == pytest.approx(one.share, abs=0.02)


@pytest.mark.parametrize("caption", ["a zqx on the left", "a zqx with the logo", "zqx, text"])
def test_what_captions_say_of_sides_or_lettering_is_never_mirrored(
    caption: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    folder = write(tmp_path / "in", [arrow(plain(rng)) for _ in range(12)])
    (folder / "03.txt").write_text(caption)
    report = audit(folder, resolution=64)
    assert ONE_WAY in titles(report)
    assert "mirror" not in kinds(report)
    assert not is_handed(["a zqx toy on a stone", None, ""])


def test_a_subject_in_one_place_is_cropped_to_several_and_stays_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pictures = []
    for number in range(12):
        picture = plain(rng)
        draw = ImageDraw.Draw(picture)
        r = 34 + number % 3
        draw.ellipse((128 - r, 128 - r, 128 + r, 128 + r), fill=(20, 30, 120))
        pictures.append(picture)
    report = audit(write(tmp_path / "in", pictures), resolution=64)
    assert ONE_PLACE in titles(report)
    (fix,) = (f for f in report.fixes if f["fix"] == "crop")
    assert 6 <= len(fix["pictures"]) < 12
    for _, left, top, right, bottom in fix["pictures"]:
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        for low, high in ((left, right), (top, bottom)):
            assert low <= (128 - 36) / 256
            assert high >= (128 + 36) / 256
    after = audit(fixed(report, "crop", tmp_path / "out"), resolution=64)
    assert ONE_PLACE not in titles(after)


def test_nothing_is_cropped_below_what_the_base_is_trained_at(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pictures = []
    for _ in range(8):
        picture = plain(rng)
        ImageDraw.Draw(picture).ellipse((94, 94, 162, 162), fill=(20, 30, 120))
        pictures.append(picture)
    write(tmp_path / "in", pictures)
    assert "crop" in kinds(audit(tmp_path / "in", resolution=64))
    assert "crop" not in kinds(audit(tmp_path / "in", resolution=256))


@pytest.mark.parametrize("bars", ["letterbox", "pillars", "frame", "unlike"])
def test_bars_are_found_and_cropped_off_exactly(bars: str) -> None:
    rng = np.random.default_rng(6)
    inner = ground(rng, 200)
    edges = {"letterbox": (0, 20), "pillars": (15, 0), "frame": (10, 10), "unlike": (0, 20)}
    across, upright = edges[bars]
    whole = Image.new("RGB", (200 + 2 * across, 200 + 2 * upright), (0, 0, 0))
    if bars == "unlike":
        ImageDraw.Draw(whole).rectangle((0, 0, 200, 20), fill=(255, 255, 255))
    whole.paste(inner, (across, upright))
    for kind, most in (("PNG", 2.0), ("JPEG", 2.0)):
        stream = io.BytesIO()
        whole.save(stream, kind)
        with Image.open(stream) as again:
            box = picture_inside(again.convert("RGB"))
        assert box is not None
        found = np.array(box) * ([whole.width, whole.height] * 2)
        wanted = np.array([across, upright, whole.width - across, whole.height - upright])
        assert np.abs(found - wanted).max() <= most
        assert ((found - wanted)[:2] >= -0.5).all()  # none of the bar is left


def test_nothing_else_is_taken_for_a_frame(tmp_path: Path) -> None:
    photographs = [Image.open(f).convert("RGB") for f in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    rng = np.random.default_rng(7)
    stripes = Image.new("RGB", (200, 200), (240, 240, 240))
    for start in range(0, 200, 40):
        ImageDraw.Draw(stripes).rectangle((0, start, 200, start + 19), fill=(30, 120, 60))
    grounds = [plain(rng), arrow(plain(rng)), stripes, stripes.rotate(90)]
    ImageDraw.Draw(stripes).ellipse((60, 60, 140, 140), fill=(200, 30, 30))
    others = [*photographs, *grounds, *(ground(rng) for _ in range(20)), *crafted.scenes(60)]
    assert [i for i, picture in enumerate(others) if picture_inside(picture)] == []


def test_a_chart_keeps_the_distances_of_what_lies_on_a_plane() -> None:
    rng = np.random.default_rng(8)
    at = rng.normal(size=(30, 2)) * [2, 1]
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1)
    found = chart(apart)
    again = np.linalg.norm(found.places[:, None] - found.places[None], axis=-1)
    assert again == pytest.approx(apart, abs=1e-8)
    assert found.share == pytest.approx(1)
    assert found.places.mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert found.alone == pytest.approx(np.sort(apart, 1)[:, 1])
    order = rng.permutation(30)
    moved = chart(apart[order][:, order])
    assert moved.places == pytest.approx(found.places[order], abs=1e-7)


def test_a_chart_of_next_to_nothing_is_a_point() -> None:
    assert chart(np.zeros((0, 0))).places.shape == (0, 2)
    assert chart(np.zeros((1, 1))).alone.tolist() == [FARTHEST]
    two = chart(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert sorted(two.places[:, 0].tolist()) == pytest.approx([-0.5, 0.5])


def test_the_map_has_every_picture_and_copies_in_one_place(tmp_path: Path) -> None:
    files = crafted.write_scenes(tmp_path, 8)
    (tmp_path / "copy.png").write_bytes(files[3].read_bytes())
    told = audit(tmp_path, resolution=64).to_json()["map"]
    points = {Path(file).name: (x, y, alone) for file, x, y, alone in told["points"]}
    assert set(points) == {f.name for f in files} | {"copy.png"}
    assert points["copy.png"] == points["03.png"]
    assert points["copy.png"][2] == 0
    assert all(
        alone > 0 for name, (_, _, alone) in points.items() if name not in ("copy.png", "03.png")
    )
    assert 0 < told["share"] <= 1
