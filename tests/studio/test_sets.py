"""Pictures come in by our names, captions stay where they were put, all can be taken back."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from tests.studio.house import PHOTOS, House, copied

from variegate.audit.captions import count_captions
from variegate.errors import ImagesError, NoSpace
from variegate.images import ImageSet
from variegate.studio import zips
from variegate.studio.sets import PictureSet, families, holds
from variegate.studio.views.pictures import MOST_PICTURE

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "a\x1b[31m red\x07 owl",
    "\u202ecod.exe",
)


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture
def pictures(tmp_path: Path) -> PictureSet:
    made = PictureSet(tmp_path / "set")
    made.folder.mkdir()
    return made


def photo(tmp_path: Path, name: str = "monster_1.jpg") -> Path:
    return copied(PHOTOS / name, tmp_path)


def state(pictures: PictureSet) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes()
        for p in sorted(pictures.folder.iterdir())
        if p.is_file() and not p.name.startswith(".")
    }


def test_what_was_said_is_what_a_reader_of_the_folder_finds(
    pictures: PictureSet, tmp_path: Path
) -> None:
    shot = pictures.take_in(photo(tmp_path))
    assert shot.name == "0001.jpg"
    pictures.say({"0001.jpg": "a zqx on a stone"})
    assert [p.prompt for p in ImageSet.read(pictures.folder)] == ["a zqx on a stone"]
    assert (pictures.folder / "0001.txt").read_text() == "a zqx on a stone"


def test_every_change_can_be_taken_back_in_turn(pictures: PictureSet, tmp_path: Path) -> None:
    states = [state(pictures)]
    for name in ("monster_1.jpg", "duck_1.jpg"):
        pictures.take_in(photo(tmp_path, name), caption=name, drop="both")
    states.append(state(pictures))
    pictures.say({"0001.jpg": "one", "0002.jpg": "two"})
    states.append(state(pictures))
    pictures.set_aside(["0001.jpg"])
    assert [s.name for s in pictures.shots()] == ["0002.jpg"]
    for before in reversed(states):
        assert pictures.undo()
        assert state(pictures) == before
    assert pictures.undo() == ""


def test_what_was_dropped_together_is_taken_back_together_and_nothing_else(
    house: House, tmp_path: Path
) -> None:
    visitor, at = house.visitor(), f"/pictures/{house.ids()['set']}"
    archive = packed(tmp_path / "a.zip", {"a.jpg": PICTURE, "b.jpg": PICTURE}).read_bytes()
    counts = [house.set.count()]
    for drop in ({"x_drop": "one"}, {"x_drop": "two"}, {}, {}):
        for _ in range(2 if drop else 1):
            assert visitor.post(f"{at}/upload", PICTURE, **drop).status == 200
        counts.append(house.set.count())
    assert visitor.post(f"{at}/upload", archive, content_type="application/zip").status == 200
    for before in reversed(counts):
        assert visitor.post(f"{at}/undo").status == 200
        assert house.set.count() == before


@pytest.mark.parametrize("trigger", ["zqx", "ZQX", "my zqx", "z-q", "o'zqx", "zq_x", "zqx2"])
def test_the_trigger_is_found_where_the_audit_finds_it(trigger: str) -> None:
    for text in (trigger, f"({trigger}), red", f"a {trigger}es", f"{trigger}-like", "my old zqx"):
        for caption in (text, text.upper(), text.replace(" ", ", ")):
            facts = count_captions([caption], ["0001"], trigger=trigger)
            assert holds(caption, trigger) == bool(facts.trigger), (caption, trigger)


def test_a_caption_that_holds_the_trigger_however_it_is_written_gets_no_second_one(
    house: House,
) -> None:
    visitor, at = house.visitor(), f"/pictures/{house.ids()['set']}"
    house.set.say({"0001.jpg": "Zqx, on a shelf", "0002.jpg": "a (zqx)", "0003.jpg": "a zqxes"})
    assert "1 caption lacks" in visitor.get(f"{at}/findings").text.replace("\n", " ")
    for _ in range(2):
        assert visitor.post(f"{at}/captions", {"do": "trigger"}).status == 200
        told = [s.caption for s in house.set.shots()]
        assert told == ["Zqx, on a shelf", "a (zqx)", "zqx, a zqxes"]
    house.set.tell(trigger="ZQX")
    assert visitor.post(f"{at}/captions", {"do": "trigger"}).status == 200
    assert [s.caption for s in house.set.shots()] == told
    house.set.tell(trigger="my zqx")
    for _ in range(2):
        assert visitor.post(f"{at}/captions", {"do": "trigger"}).status == 200
    assert house.set.shots()[0].caption == "my zqx, Zqx, on a shelf"


def test_pictures_are_cropped_and_mirrored_with_their_masks_and_put_back(
    pictures: PictureSet, tmp_path: Path
) -> None:
    for name in ("monster_1.jpg", "duck_1.jpg"):
        pictures.take_in(photo(tmp_path, name), caption=name)
    mask = Image.new("L", (320, 320))
    mask.paste(255, (0, 0, 160, 320))
    mask.save(pictures.folder / "0001-masklabel.png")
    before = state(pictures)
    with Image.open(pictures.folder / "0001.jpg") as opened:
        whole = opened.convert("RGB")
    assert (
        pictures.change("crop", {"0001.jpg": (0.25, 0.0, 1.0, 0.75), "none.jpg": (0, 0, 1, 1)}) == 1
    )
    with Image.open(pictures.folder / "0001.png") as opened:
        assert opened.tobytes() == whole.crop((80, 0, 320, 240)).tobytes()
    with Image.open(pictures.folder / "0001-masklabel.png") as opened:
        assert opened.size == (240, 240)
        assert opened.convert("L").getpixel((79, 5)) == 255
        assert opened.convert("L").getpixel((81, 5)) == 0
    assert [(s.name, s.caption) for s in pictures.shots()] == [
        ("0001.png", "monster_1.jpg"),
        ("0002.jpg", "duck_1.jpg"),
    ]
    cropped = state(pictures)
    whole_box = (0.0, 0.0, 1.0, 1.0)
    assert (
        pictures.change("mirror", {"0001.png": whole_box, "0002.jpg": whole_box}, mirrored=True)
        == 2
    )
    with Image.open(pictures.folder / "0001.png") as opened:
        assert opened.tobytes() == ImageOps.mirror(whole.crop((80, 0, 320, 240))).tobytes()
    assert pictures.undo() == "mirror"
    assert state(pictures) == cropped
    assert pictures.undo() == "crop"
    assert state(pictures) == before


def test_a_change_that_cannot_be_kept_changes_nothing(
    pictures: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("monster_1.jpg", "duck_1.jpg"):
        pictures.take_in(photo(tmp_path, name))
    before, written = state(pictures), list[str]()

    def full(file: Path, data: bytes) -> None:
        if written and file.suffix == ".png":
            raise OSError(28, "No space left on device")
        written.append(file.name)
        file.write_bytes(data)

    monkeypatch.setattr("variegate.studio.sets.write_atomically", full)
    boxes = dict.fromkeys(("0001.jpg", "0002.jpg"), (0.0, 0.0, 0.5, 0.5))
    with pytest.raises(NoSpace, match="cannot be changed"):
        pictures.change("crop", boxes)
    assert written == ["0001.png"]
    assert state(pictures) == before


def test_files_that_arrive_together_get_names_of_their_own(
    pictures: PictureSet, tmp_path: Path
) -> None:
    files = []
    for number in range(12):
        file = tmp_path / f"in-{number}"
        Image.new("RGB", (32, 32), (number * 20, 0, 0)).save(file, "PNG")
        files.append(file)
    with ThreadPoolExecutor(6) as side_by_side:
        list(side_by_side.map(pictures.take_in, files))
    assert pictures.count() == 12
    assert len({s.file.read_bytes() for s in pictures.shots()}) == 12
    pictures.set_aside(["0012.png"])
    Image.new("RGB", (32, 32)).save(tmp_path / "late", "PNG")
    assert pictures.take_in(tmp_path / "late").name == "0013.png"  # not over the one set aside


@pytest.mark.parametrize(
    "content", [b"", b"GIF8", b"<svg onload=alert(1)>", b"%PDF-1.4", b"\x89PNG"]
)
def test_what_is_no_picture_is_refused_and_leaves_nothing(
    pictures: PictureSet, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "arriving"
    file.write_bytes(content)
    with pytest.raises(ImagesError):
        pictures.take_in(file)
    assert not file.exists()
    assert state(pictures) == {}


def test_an_upload_is_named_by_us_whatever_it_is_called(house: House) -> None:
    visitor, data = house.visitor(), (PHOTOS / "duck_1.jpg").read_bytes()
    at = f"/pictures/{house.ids()['set']}/upload"
    for name in ("..%2f..%2fevil.jpg", "%5c%5chost%5cshare", "CON.jpg", "%00", "a" * 3000):
        answer = visitor.post(at, data, x_file_name=name, x_caption="a%20duck%1b%5b31m")
        assert answer.status == 200, answer.text
    names = sorted(os.listdir(house.set.folder))
    assert [n for n in names if n.endswith(".jpg")] == [f"{i:04d}.jpg" for i in range(1, 9)]
    assert house.set.shots()[-1].caption == "a duck"
    assert not list((house.desk.home / ".incoming").iterdir())


def test_an_upload_that_is_too_large_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor, at = house.visitor(), f"/pictures/{house.ids()['set']}/upload"
    claimed = visitor.post(at, b"x", content_length=str(MOST_PICTURE + 1))
    assert claimed.status == 413
    monkeypatch.setattr("variegate.studio.views.pictures.MOST_PICTURE", 10_000)
    assert visitor.post(at, [b"x" * 4_000] * 5).status == 413
    assert not list((house.desk.home / ".incoming").iterdir())


@pytest.mark.parametrize("text", HOSTILE)
def test_words_from_outside_are_shown_as_words(house: House, text: str) -> None:
    house.set.tell(name=text, noun=text)
    house.set.say({"0001.jpg": text, "0002.jpg": text})
    visitor, ids = house.visitor(), house.ids()
    for path in ("/pictures", f"/pictures/{ids['set']}", f"/pictures/{ids['set']}/plan", "/tune"):
        page = visitor.get(path)
        assert page.status == 200
        elements = Elements()
        elements.feed(page.text)
        assert all(facts.get("src", "/").startswith("/") for _, facts in elements.seen)
        assert not [facts for _, facts in elements.seen if any(n.startswith("on") for n in facts)]
        scripts = [facts for tag, facts in elements.seen if tag == "script"]
        assert all("src" in facts for facts in scripts)
        assert "7 * 7" in page.text or "7 * 7" not in text
        assert "\x1b" not in page.text
        assert "\u202e" not in page.text


def packed(file: Path, entries: dict[str, bytes], **how: int) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


PICTURE = (PHOTOS / "duck_1.jpg").read_bytes()


def test_an_archive_gives_pictures_and_the_captions_beside_them(tmp_path: Path) -> None:
    entries = {
        "in/a.jpg": PICTURE,
        "in/a.txt": b"a duck \x1b[31m",
        "in\\b.jpg": PICTURE,
        "b.txt": b"not beside b",
        "__MACOSX/a.jpg": PICTURE,
        "in/.hidden.jpg": PICTURE,
        "readme.md": b"no",
    }
    found = list(zips.pictures_in(packed(tmp_path / "a.zip", entries), tmp_path))
    assert [(f.told, f.caption) for f in found] == [("a.jpg", "a duck"), ("b.jpg", None)]
    assert all(f.file.parent == tmp_path for f in found)


@pytest.mark.parametrize("name", ["../../evil.jpg", "/etc/evil.jpg", "C:\\evil.jpg", "NUL.jpg"])
def test_no_entry_says_where_it_is_unpacked(tmp_path: Path, name: str) -> None:
    into = tmp_path / "in"
    into.mkdir()
    before = set(tmp_path.rglob("*"))
    (found,) = zips.pictures_in(packed(tmp_path / "a.zip", {name: PICTURE}), into)
    assert found.file.parent == into
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "a.zip", found.file}


def test_bombs_links_and_floods_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = packed(tmp_path / "bomb.zip", {"a.png": b"\0" * 30_000_000})
    with pytest.raises(ImagesError, match="far more than it is packed"):
        list(zips.pictures_in(bomb, tmp_path))
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert list(zips.pictures_in(tmp_path / "link.zip", tmp_path)) == []
    monkeypatch.setattr(zips, "MOST_ENTRIES", 10)
    many = packed(tmp_path / "many.zip", {f"{i}.txt": b"" for i in range(11)})
    with pytest.raises(ImagesError, match="11 entries; at most 10"):
        list(zips.pictures_in(many, tmp_path))
    monkeypatch.setattr(zips, "MOST_TOTAL", len(PICTURE) + 1)
    two = packed(tmp_path / "two.zip", {"a.jpg": PICTURE, "b.jpg": PICTURE})
    with pytest.raises(ImagesError, match="bring it in parts"):
        list(zips.pictures_in(two, tmp_path))
    for broken in (b"", b"PK\x03\x04", bomb.read_bytes()[:-30]):
        (tmp_path / "broken.zip").write_bytes(broken)
        with pytest.raises(ImagesError, match="cannot be unpacked"):
            list(zips.pictures_in(tmp_path / "broken.zip", tmp_path))


def test_an_archive_comes_in_through_the_same_door(house: House, tmp_path: Path) -> None:
    entries = {"a.jpg": PICTURE, "b.jpg": b"no picture", "a.txt": b"a duck"}
    data = packed(tmp_path / "a.zip", entries).read_bytes()
    at = f"/pictures/{house.ids()['set']}/upload"
    answer = house.visitor().post(at, data, content_type="application/zip")
    told = json.loads(answer.text)
    assert (told["taken"], [name for name, _ in told["refused"]]) == (1, ["b.jpg"])
    assert house.set.shots()[-1].caption == "a duck"


def test_look_alikes_are_one_group_however_they_are_paired() -> None:
    pairs = [("a", "b", 1.0), ("c", "d", 0.9), ("b", "c", 0.8), ("x", "y", 0.9)]
    assert families(pairs) == [["a", "b", "c", "d"], ["x", "y"]]


def test_one_press_mends_what_was_noticed_and_undo_takes_it_back(house: House) -> None:
    visitor, at = house.visitor(), f"/pictures/{house.ids()['set']}"
    names = [str(s.file) for s in house.set.shots()]
    crop = {"fix": "crop", "pictures": [[names[0], 0.0, 0.0, 0.75, 0.75]]}
    mirror = {"fix": "mirror", "pictures": [[names[1], 0, 0, 1, 1], ["/etc/passwd", 0, 0, 1, 1]]}
    house.looked(fixes=[crop, mirror, {"fix": "format", "pictures": [[names[0], 0, 0, 1, 1]]}])
    page = visitor.get(f"{at}/findings").text
    assert "Crop 1 of them" in page
    assert "format" not in page
    before = state(house.set)
    assert visitor.post(f"{at}/fix", {"do": "format"}).status == 404
    assert visitor.post(f"{at}/fix", {"do": "trim"}).status == 422
    answer = visitor.post(f"{at}/fix", {"do": "crop"})
    assert answer.status == 200
    assert 'data-testid="undo"' in answer.text
    with Image.open(house.set.folder / "0001.png") as cropped:
        assert cropped.size == (240, 240)
    # It was looked at before: nothing more is offered until it is looked at again.
    assert visitor.post(f"{at}/fix", {"do": "mirror"}).status == 422
    assert visitor.post(f"{at}/undo").status == 200
    assert state(house.set) == before


def test_people_are_not_mirrored(house: House) -> None:
    names = [str(s.file) for s in house.set.shots()]
    at = f"/pictures/{house.ids()['set']}"
    for noun, offered in (("young woman", False), ("toy", True)):
        house.set.tell(noun=noun)
        house.looked(fixes=[{"fix": "mirror", "pictures": [[names[1], 0, 0, 1, 1]]}])
        page = house.visitor().get(f"{at}/findings").text
        assert ("Mirror 1 of them" in page) == offered, noun


def test_the_map_shows_every_picture_once_and_joins_look_alikes(house: House) -> None:
    shots, at = house.set.shots(), f"/pictures/{house.ids()['set']}/map"
    visitor = house.visitor()
    assert "The map comes once" in visitor.get(at).text
    points = [[str(s.file), 0.4 * i, 0.1 * i, 0.2 + i / 2] for i, s in enumerate(shots)]
    twins = [[str(shots[0].file), str(shots[1].file), 0.9]]
    gone = [str(house.set.folder / "0099.jpg"), 5.0, 5.0, 1.0]
    house.looked(map={"share": 0.61, "points": [*points, gone]}, duplicates=twins)
    page = visitor.get(at).text
    elements = Elements()
    elements.feed(page)
    drawn = [facts for _, facts in elements.seen if "point" in facts.get("class", "").split()]
    ids = [house.desk.id_of(s.file) for s in shots]
    assert sorted(f["data-id"] for f in drawn) == sorted(ids)
    assert [f["tabindex"] for f in drawn].count("0") == 1
    assert len([tag for tag, facts in elements.seen if facts.get("class") == "join"]) == 1
    assert "61 %" in page
    one = visitor.get(f"{at}/{ids[0]}").text
    assert "Almost the same as another picture." in one
    assert visitor.get(f"{at}/{'0' * 20}").status == 404
    house.set.set_aside([shots[2].name])
    assert "A map needs three pictures" in visitor.get(at).text


def test_keeping_one_of_a_group_sets_the_others_aside(house: House) -> None:
    from dataclasses import replace

    visitor, ids = house.visitor(), house.ids()
    shots = house.set.shots()
    visitor.post(f"/pictures/{ids['set']}/look")
    (job,) = house.desk.jobs.of(house.set.folder, "audit")
    names = [str(s.file) for s in shots]
    answer = {
        "usable": 3,
        "effective_images": 1.5,
        "limited_by": ["duplicates"],
        "duplicates": [[names[0], names[1], 0.9]],
        "faults": [],
        "findings": [],
    }
    (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
    house.desk.jobs._write(replace(job, state="done"))
    page = visitor.get(f"/pictures/{ids['set']}/findings").text
    assert "2 pictures are almost the same" in page
    group = house.desk.id_of(shots[0].file, "group")
    form = {"do": "keep one", "group": group, "picture": house.desk.id_of(shots[1].file)}
    assert visitor.post(f"/pictures/{ids['set']}/aside", form).status == 200
    assert [s.name for s in house.set.shots()] == [shots[1].name, shots[2].name]
    assert visitor.post(f"/pictures/{ids['set']}/undo").status == 200
    assert len(house.set.shots()) == 3


def test_pictures_are_read_anew_only_when_they_changed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = ImageSet.read, list[Path]()

    def counted(folder: Path) -> ImageSet:
        asked.append(folder)
        return read(folder)

    monkeypatch.setattr(ImageSet, "read", staticmethod(counted))
    first = house.set.shots()
    asked.clear()
    assert PictureSet(house.set.folder).shots() == first
    assert asked == []
    for caption in ("a cat", "a dog"):  # of one size, and maybe of one tick of the clock
        house.set.say({first[0].name: caption})
        assert house.set.shots()[0].caption == caption
    (house.set.folder / f"{first[1].name.split('.')[0]}.txt").write_text("by somebody else's hand")
    assert house.set.shots()[1].caption == "by somebody else's hand"
