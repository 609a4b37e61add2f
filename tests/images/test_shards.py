"""Tars of pictures: what lies where, read a part at a time; what is wrong with them is told."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tests.tars import MadeUp, png, tar_of, without_end, write_tars

from variegate.audit import audit
from variegate.errors import ImagesError, WorkError
from variegate.images import ImageSet, Shards, is_sharded, open_pictures
from variegate.images import shards as room
from variegate.images.shards import absolute, expand
from variegate.images.tars import blocks_of, entries, load_index, read_index, save_index


def one(tmp_path: Path, data: bytes) -> Shards:
    (tmp_path / "one.tar").write_bytes(data)
    return Shards.open(str(tmp_path / "one.tar"))


# --- what names tars ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "set-{000..011}.tar",
        "set-{8..11}.tar",
        "{a,b}/set-{01..03}.tar",
        "{{1..3},{7..8}}.tar",
        "x{3..1}.tar",
        "plain.tar",
        "{one}.tar",
        "{}x{a,}.tar",
    ],
)
def test_braces_are_spelt_out_as_bash_does(pattern: str) -> None:
    bash = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    )
    assert expand(pattern) == bash.stdout.split("\n")[:-1]


def test_a_pattern_without_end_is_refused() -> None:
    for pattern in ("{0..99999999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(ImagesError, match="more than 1000000 names"):
            expand(pattern)


def test_tars_are_told_from_folders(tmp_path: Path) -> None:
    pattern = write_tars(tmp_path / "tars")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(0))
    for spec in (pattern, str(tmp_path / "tars"), "s3://bucket/x-{0..3}.tar", "memory://set"):
        assert is_sharded(spec)
    for spec in (str(tmp_path / "photos"), str(tmp_path / "nowhere"), "photos", "{a,b}"):
        assert not is_sharded(spec)
    assert isinstance(open_pictures(tmp_path / "photos"), ImageSet)
    with pytest.raises(ImagesError, match="names tars; `train` reads them"):
        ImageSet.read(pattern)


def test_a_password_never_gets_into_a_recipe() -> None:
    with pytest.raises(ImagesError, match="address with a password"):
        absolute("ftp://me:secret@host/set.tar")
    assert absolute("s3://bucket/set.tar") == "s3://bucket/set.tar"


# --- what they give -----------------------------------------------------------------------------


def test_a_pattern_a_folder_and_an_address_give_the_same_pictures(tmp_path: Path) -> None:
    pattern = write_tars(tmp_path / "tars")
    memory = fsspec.filesystem("memory")
    for file in sorted((tmp_path / "tars").iterdir()):
        memory.pipe_file(f"/same/{file.name}", file.read_bytes())
    found = [
        Shards.open(spec)
        for spec in (
            pattern,
            str(tmp_path / "tars"),
            f"file://{tmp_path}/tars/set-{{000..002}}.tar",
            "memory://same/set-{000..002}.tar",
            "memory://same",
            "memory://same/set-*.tar",
        )
    ]
    memory.rm("/same", recursive=True)
    first = found[0]
    assert len(first) == 12
    for other in found[1:]:
        assert other.fingerprint() == first.fingerprint()
    told = [first.member(i) for i in range(12)]
    assert [m.key for m in told][:6] == [
        *(f"set-000.tar/{i:06d}.png" for i in range(5)),
        "set-001.tar/000005.png",
    ]
    assert [m.caption for m in told] == [f"a zqx number {i}" for i in range(12)]
    assert [m.data for m in told] == [png(i) for i in range(12)]
    assert list(first.members([*range(11, -1, -1)])) == told[::-1]
    assert [(k, c) for k, c in first.captions([3, 9])] == [
        (told[3].key, told[3].caption),
        (told[9].key, told[9].caption),
    ]


def test_a_block_holds_what_its_members_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("variegate.images.tars.BLOCK_BYTES", 4096)
    shards = Shards.open(write_tars(tmp_path))
    assert len(shards.ends) > 3
    begin = 0
    for which, end in enumerate(shards.ends.tolist()):
        block = shards.block(which)
        assert len(block) == end - begin
        assert [block[i] for i in range(begin, end)] == [
            shards.member(i) for i in range(begin, end)
        ]
        begin = end
    assert begin == len(shards)


def test_blocks_span_no_more_than_they_may() -> None:
    sizes = np.asarray([10, 10, 50, 5, 5, 5], np.int64)
    offsets = np.cumsum(sizes) - sizes
    assert blocks_of(offsets, sizes, 25).tolist() == [2, 3, 6]
    assert blocks_of(offsets[:0], sizes[:0], 25).tolist() == []


def test_captions_are_text_or_json_and_masks_go_with_their_picture(tmp_path: Path) -> None:
    grey = png(1)
    shards = one(
        tmp_path,
        tar_of(
            [
                ("a/1.json", b'{"prompt": "from json\\u001b[31m"}'),
                ("a/1.jpg.txt", b"of another"),
                ("a/1.png", png(1)),
                ("a/2.png", png(2)),
                ("a/2.masklabel.png", grey),
                ("a/2.json", b'{"text": "json"}'),
                ("a/2.txt", b"text"),
                ("b/2.png", png(3)),
                ("b/2.json", b'{"width": 3}'),
                ("3-masklabel.png", grey),
                ("3.PNG", png(4)),
                ("3.txt", b""),
            ]
        ),
    )
    told = {m.key: (m.caption, m.mask) for m in map(shards.member, range(len(shards)))}
    assert told == {
        "one.tar/a/1.png": ("from json", None),
        "one.tar/a/2.png": ("text", grey),
        "one.tar/b/2.png": (None, None),
        "one.tar/3.PNG": ("", grey),
    }
    assert shards.faults == ()


def test_a_tar_in_any_order_of_names_gives_pictures_in_order_of_place(tmp_path: Path) -> None:
    files = [("2.png", png(2)), ("1.txt", b"one"), ("1.png", png(1)), ("2.txt", b"two")]
    shards = one(tmp_path, tar_of(files))
    assert [(m.key, m.caption) for m in map(shards.member, range(2))] == [
        ("one.tar/2.png", "two"),
        ("one.tar/1.png", "one"),
    ]


# --- the index ----------------------------------------------------------------------------------


def test_an_index_is_made_once_and_anew_when_the_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*given: object) -> object:
        made.append(given)
        return read_index(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "read_index", counted)
    pattern = write_tars(tmp_path)
    first = Shards.open(pattern).fingerprint()
    assert len(made) == 3
    assert Shards.open(pattern).fingerprint() == first
    assert len(made) == 3
    (tmp_path / "set-001.tar").write_bytes(tar_of([("9.png", png(9))]))
    again = Shards.open(pattern).fingerprint()
    assert len(made) == 4
    assert [n for n in first if first[n] != again[n]] == ["set-001.tar"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "empty"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    data = tar_of([("1.png", png(1)), ("1.txt", b"one"), ("2.png", png(2))])
    index, file = read_index(io.BytesIO(data), len(data), "x.tar"), tmp_path / "x.safetensors"
    save_index(index, file)
    kept = load_index(file)
    assert kept is not None
    assert kept.digest == index.digest
    assert [e.caption for e in entries(file, 0, 2)] == ["one", None]
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes({"flipped bit": bytes(whole), "cut": bytes(whole[:-9]), "empty": b""}[damage])
    assert load_index(file) is None


def test_memory_while_indexing_does_not_hold_pictures() -> None:
    class Watched(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.most = max(self.most, len(data))
            return data

    data = tar_of([(f"{i}.png", bytes(100_000)) for i in range(20)])
    stream = Watched(data)
    assert len(read_index(stream, len(data), "x.tar")) == 20
    assert stream.most <= 512


# --- what is wrong ------------------------------------------------------------------------------


def test_every_missing_or_broken_tar_is_told_at_once(tmp_path: Path) -> None:
    whole = tar_of([("1.png", png(1)), ("2.png", png(2))])
    (tmp_path / "x-0.tar").write_bytes(whole)
    (tmp_path / "x-1.tar").write_bytes(whole[: 512 + 300])  # in the first picture
    (tmp_path / "x-2.tar").write_bytes(without_end(whole))
    (tmp_path / "x-3.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "x-4.tar").write_bytes(b"<html>" * 200)
    (tmp_path / "x-5.tar").write_bytes(b"")
    (tmp_path / "x-6.tar").write_bytes(tar_of([("notes.md", b"hello")]))
    with pytest.raises(ImagesError) as wrong:
        Shards.open(str(tmp_path / "x-{0..7}.tar"))
    told = str(wrong.value).splitlines()
    assert [line.split("/")[-1].split(":")[0] for line in told[:-1]] == [
        f"x-{i}.tar" for i in range(1, 8)
    ]
    for line, word in zip(
        told,
        (
            "truncated: '1.png' would end at byte",
            "truncated or damaged after byte",
            "compressed (gzip)",
            "not a tar",
            "is empty (0 bytes)",
            "no picture in it",
            "there is no such tar",
        ),
        strict=False,
    ):
        assert word in line
    assert told[-1] == "7 of 8 tars cannot be used"


class Unanswered(MemoryFileSystem):
    """Says of what it cannot ask for that it is not there, as fsspec's HTTP does."""

    protocol = "unanswered"
    cause: BaseException

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        raise FileNotFoundError(path) from self.cause


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        (ConnectionRefusedError("nobody listens"), "cannot be reached: nobody listens"),
        (TimeoutError("too late"), "cannot be reached: too late"),
        (Refused(503), "cannot be reached: status 503"),
        (Refused(404), "there is no such tar"),
        (FileNotFoundError("no"), "there is no such tar"),
    ],
)
def test_a_server_that_does_not_answer_is_no_missing_tar(cause: BaseException, word: str) -> None:
    fsspec.register_implementation("unanswered", Unanswered, clobber=True)
    Unanswered.cause = cause
    with pytest.raises(ImagesError, match=word):
        Shards.open("unanswered://x-{0..1}.tar")


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../up.png", "a/../../b.png", "a\\b.png"])
def test_hostile_names_are_told_and_never_read(tmp_path: Path, name: str) -> None:
    shards = one(tmp_path, tar_of([(name, png(1)), ("fine.png", png(2))]))
    assert [shards.member(i).key for i in range(len(shards))] == ["one.tar/fine.png"]
    (fault,) = shards.faults
    assert fault.kind == "outside"
    assert not fault.usable


def test_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(5))
    links = {"a.png": str(tmp_path / "secret.png"), "b.png": "fine.png"}
    shards = one(tmp_path, tar_of([("fine.png", png(2))], links=links))
    assert len(shards) == 1
    assert [f.kind for f in shards.faults] == ["special", "special"]
    assert "a link; it was not followed" in shards.faults[0].fault


def test_a_picture_of_no_bytes_or_too_many_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("variegate.images.tars.MOST_PICTURE", 100_000)
    files = [("0.png", b""), ("1.png", bytes(100_001)), ("2.png", png(2))]
    shards = one(tmp_path, tar_of(files))
    assert len(shards) == 1
    assert [f.kind for f in shards.faults] == ["bomb", "bomb"]


def test_captions_that_are_none_are_told(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    shards = one(
        tmp_path,
        tar_of(
            [
                *((f"{i}.png", png(i)) for i in range(5)),
                ("0.txt", b"\xff\xfe"),
                ("1.json", b"[1]"),
                ("2.json", b'{"text": 3}'),
                ("3.txt", b"x" * 70_000),
                ("4.json", deep[:60_000]),
                ("9.txt", b"nobody's"),
            ]
        ),
    )
    assert [shards.member(i).caption for i in range(5)] == [None] * 5
    assert [f.kind for f in shards.faults] == ["caption"] * 6
    assert "without its picture" in shards.faults[-1].fault


def test_a_header_that_claims_gigabytes_reads_none(tmp_path: Path) -> None:
    told = tarfile.TarInfo("x")
    told.type, told.size = tarfile.XHDTYPE, 2**33
    with pytest.raises(ImagesError, match="not a tar"):
        one(tmp_path, told.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    backwards = tarfile.TarInfo("y.png")
    backwards.size = -(2**20)
    fine = tar_of([("a.png", png(1))])
    with pytest.raises(ImagesError, match="after byte"):
        one(tmp_path, without_end(fine) + backwards.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_a_tar_that_changes_under_way_stops_with_a_fact(tmp_path: Path) -> None:
    data = tar_of([("1.png", png(1)), ("2.png", png(2))])
    shards = one(tmp_path, data)
    (tmp_path / "one.tar").write_bytes(data[:1200])
    with pytest.raises(WorkError, match="has changed since it was indexed"):
        shards.member(1)
    (tmp_path / "one.tar").unlink()
    with pytest.raises(WorkError, match="cannot be read any more"):
        shards.member(0)


def test_a_read_that_fails_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = one(tmp_path, tar_of([("1.png", png(1))]))
    read, paused = shards._files.cat_file, list[float]()

    def shaky(*given: object, **named: object) -> bytes:
        if len(paused) < 2:
            raise TimeoutError("slow down")
        found: bytes = read(*given, **named)
        return found

    monkeypatch.setattr(room.time, "sleep", paused.append)
    monkeypatch.setattr(shards._files, "cat_file", shaky)
    assert shards.member(0).data == png(1)
    assert paused == [0.5, 2.0]


def test_a_storage_without_its_package_says_which() -> None:
    with pytest.raises(ImagesError, match="wants a package that is not installed"):
        Shards.open("gcs://bucket/set-{0..3}.tar")
    with pytest.raises(ImagesError, match="cannot be opened"):
        Shards.open("nonsense://bucket/set.tar")


# --- a sample, and the audit --------------------------------------------------------------------


def test_audit_looks_at_a_sample_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_tars(tmp_path, (6, 6))
    broken = tar_of([("bad.png", b"no picture" * 9), ("ok.png", png(40)), ("ok.txt", b"an owl")])
    (tmp_path / "set-002.tar").write_bytes(broken)
    report = audit(pattern.replace("001", "002")).to_json()
    assert (report["images"], report["usable"]) == (14, 13)
    (fault,) = report["faults"]
    assert fault["file"] == f"{tmp_path}/set-002.tar/bad.png"
    monkeypatch.setattr("variegate.audit.MOST_COMPARED", 5)
    report = audit(pattern).to_json()
    assert report["images"] == 5
    assert "5 of 12 pictures, by chance" in json.dumps(report["findings"])


def test_a_made_up_tar_is_a_tar() -> None:
    fsspec.register_implementation("made", MadeUp, clobber=True)
    files = fsspec.filesystem("made")
    whole = files.cat_file("2-30/00001.tar")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert len(tar.getmembers()) == 30
    assert files.cat_file("2-30/00001.tar", 5000, 40_000) == whole[5000:40_000]
    shards = Shards.open("made://2-30/0000{0..1}.tar")
    assert len(shards) == 60
    assert shards.block(0)[7] == shards.member(7)
