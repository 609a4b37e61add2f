"""Training pictures in tars: read as they come, to the bit the same wherever a run goes on."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageOps
from tests.tars import MadeUp, png, tar_of, write_tars
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe
from tests.train.test_resume import crashed, learnt, same
from typer.testing import CliRunner

from variegate.cli import app
from variegate.errors import ImagesError, RecipeError, RunError
from variegate.images import ImageSet, Shards
from variegate.images import shards as shards_room
from variegate.models import load
from variegate.progress import silent
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import resume, train
from variegate.train.data import Batch, Latents, Words, read_training_set
from variegate.train.examples import TrainingSet
from variegate.train.ranks import Ranks
from variegate.train.strategies import Setting, cook
from variegate.train.stream import Streamed, read_stream
from variegate.train.turns import BlockTurns

# What draws from a picture, its mask or its caption, and can do so one picture at a time.
STRATEGIES: dict[str, Any] = {
    **{"min_snr": {}, "caption_scene": {"p": 0.5}, "caption_dropout": {"p": 0.3}, "flip": {}},
    **{"zoom_shift": {}, "masked_loss": {}, "crop": {}, "colour": {}, "stay_near": {}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load(str(base))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two or three pictures, so that little tars have many."""
    monkeypatch.setattr("variegate.images.tars.BLOCK_BYTES", 6000)
    monkeypatch.setattr("variegate.train.data.read_stream", few_at_once)


def few_at_once(shards: Shards, recipe: Recipe, **given: Any) -> TrainingSet:
    return read_stream(shards, recipe, **given, at_once=2)


def stream_of(spec: str, **entries: Any) -> TrainingSet:
    recipe = Recipe.build({"trigger": "zqx", **entries})
    return few_at_once(Shards.open(spec), recipe, side=64, pocket=True, needs_masks=False)


# --- whose turn it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "size"), [(1, 1), (2, 3), (3, 4), (100, 5)])
def test_each_epoch_shows_each_picture_once_window_by_window(at_once: int, size: int) -> None:
    ends = np.cumsum([3, 1, 4, 1, 5, 9, 2, 6])
    n = int(ends[-1])

    def turns() -> BlockTurns:
        return BlockTurns(ends, at_once=at_once, size=size, seed=7)

    one = turns()
    shown = [number for step in range(1, 3 * n + 1) for number in one.at(step)][: 3 * n]
    orders = [shown[i : i + n] for i in (0, n, 2 * n)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    # A step's pictures are those of its windows' blocks, and depend on nothing that was asked.
    for step in (1, 2, 5, 9, n + 3):
        fresh = turns()
        assert fresh.at(step) == one.at(step)
        blocks = [b for window in fresh.windows(step) for b in fresh.blocks(window)]
        assert {int(np.searchsorted(ends, i, side="right")) for i in fresh.at(step)} <= {*blocks}
        after = fresh.after(fresh.windows(step)[-1])
        assert after in fresh.windows(fresh.begins(after))
        assert after not in fresh.windows(fresh.begins(after) - 1)


def test_another_seed_is_another_order() -> None:
    ends = np.arange(4, 44, 4)
    orders = [
        [BlockTurns(ends, at_once=3, size=4, seed=s).at(i) for i in range(1, 10)] for s in (0, 1)
    ]
    assert orders[0] != orders[1]


# --- what a step gets ---------------------------------------------------------------------------


def test_a_picture_out_of_a_tar_is_what_it_is_in_a_folder(tmp_path: Path) -> None:
    grey = io.BytesIO()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(grey, "PNG")
    files = [("a.png", png(1, side=80)), ("a.txt", b"a zqx"), ("b.png", png(2))]
    files += [("c.png", png(3)), ("c-masklabel.png", grey.getvalue())]
    (tmp_path / "folder").mkdir()
    for name, data in files:
        (tmp_path / "folder" / name).write_bytes(data)
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    recipe = Recipe.build({"trigger": "zqx", "held_out": {"share": 0}})
    given: dict[str, Any] = {"side": 64, "pocket": True, "needs_masks": True}
    whole = read_training_set(ImageSet.read(tmp_path / "folder"), recipe, **given)
    streamed = read_training_set(Shards.open(str(tmp_path / "x.tar")), recipe, **given)
    assert streamed.count == len(streamed.train) == 3
    ours = sorted(streamed.train, key=lambda e: e.key)
    for mine, theirs in zip(ours, sorted(whole.train, key=lambda e: e.key), strict=True):
        assert mine.key == f"x.tar/{theirs.key}"
        assert (mine.caption, mine.repeats) == (theirs.caption, theirs.repeats)
        assert torch.equal(mine.shot.pixels, theirs.shot.pixels)
        assert torch.equal(mine.shot.mask, theirs.shot.mask)
        assert (mine.shot.found, mine.shot.frame) == (theirs.shot.found, theirs.shot.frame)


def keys(data: TrainingSet, steps: range) -> list[list[str]]:
    assert data.stream is not None
    return [[example.key for example in data.stream.at(step)] for step in steps]


def test_a_step_gets_the_same_wherever_reading_begins(tmp_path: Path) -> None:
    spec = write_tars(tmp_path, (7, 6, 5))
    whole = stream_of(spec, optimizer={"batch_size": 4, "steps": 30})
    told = keys(whole, range(1, 20))
    whole.close()
    for begin in (2, 5, 6, 11):
        later = stream_of(spec, optimizer={"batch_size": 4, "steps": 30})
        assert keys(later, range(begin, 20)) == told[begin - 1 :]
        later.close()


def numbered(key: str) -> str:
    return key.split("/")[1].split(".")[0].split("-")[0]


def test_nothing_that_looks_like_a_held_out_picture_is_learnt(tmp_path: Path) -> None:
    mirrored = io.BytesIO()
    files = []
    for i in range(10):
        with Image.open(io.BytesIO(png(i))) as picture:
            mirrored = io.BytesIO()
            ImageOps.mirror(picture).save(mirrored, "PNG")
        files += [(f"{i}.png", png(i)), (f"{i}-again.png", png(i))]
        files += [(f"{i}-mirrored.png", mirrored.getvalue())]
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    plan = {"batch_size": 3, "steps": 40}
    data = stream_of(str(tmp_path / "x.tar"), optimizer=plan, held_out={"share": 0.1})
    assert data.stream is not None
    number = {numbered(key) for key in data.held_out_keys}
    assert len(data.held_out_keys) == len(data.held_out) == 3
    seen = {numbered(key) for row in keys(data, range(1, 41)) for key in row}
    assert seen
    assert not seen & number
    assert not {numbered(e.key) for e in data.train} & number
    assert any("look like one held out are passed over" in note for note in data.stream.notes())
    data.close()


def test_below_the_least_number_none_is_held_out(tmp_path: Path) -> None:
    data = stream_of(write_tars(tmp_path, (4,)))
    assert len(data.held_out) == 0
    assert any("there are 4, and below 5" in note for note in data.notes)


def test_a_picture_that_cannot_be_used_is_told_and_another_takes_its_turn(tmp_path: Path) -> None:
    files = [(f"{i:02d}.png", png(i)) for i in range(30)]
    files[7] = ("07.png", png(7)[:200])
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    plan = {"batch_size": 5, "steps": 12}
    data = stream_of(str(tmp_path / "x.tar"), optimizer=plan, held_out={"share": 0})
    told = keys(data, range(1, 7))
    assert len([k for row in told for k in row]) == 30
    assert "x.tar/07.png" not in {k for row in told for k in row}
    assert data.stream is not None
    (note,) = data.stream.notes()
    assert "Picture 'x.tar/07.png': truncated" in note
    assert "another took its turn" in note
    data.close()
    again = stream_of(str(tmp_path / "x.tar"), optimizer=plan, held_out={"share": 0})
    assert keys(again, range(3, 7)) == told[2:]
    again.close()


def test_many_that_cannot_be_used_stop_the_run_with_facts(tmp_path: Path) -> None:
    files = [(f"{i:02d}.png", png(i) if i % 3 else b"nothing" * 9) for i in range(60)]
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    data = stream_of(
        str(tmp_path / "x.tar"), optimizer={"batch_size": 5, "steps": 12}, held_out={"share": 0}
    )
    with pytest.raises(ImagesError, match=r"11 of the \d+ pictures whose turn it was cannot"):
        keys(data, range(1, 13))
    data.close()


def test_a_set_of_one_picture_many_times_says_that_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([(f"{i}.png", png(0)) for i in range(9)]))
    with pytest.raises(ImagesError, match="none of 8 pictures tried"):
        stream_of(str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"strategies": {"buckets": {}}}, "every picture's shape"),
        ({"strategies": {"even_pictures": {}}}, "compares every two"),
        ({"masks": {"unsure": "attention"}}, "asks the bare base"),
    ],
)
def test_what_wants_all_pictures_beforehand_is_refused(
    tmp_path: Path, entries: dict[str, Any], word: str
) -> None:
    with pytest.raises(RecipeError, match=word):
        stream_of(write_tars(tmp_path), **entries)


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tars(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("tars")
    write_tars(folder, (6, 5, 4))
    return folder


@pytest.fixture
def recipe(base: Path, tars: Path) -> Recipe:
    return tiny_recipe(
        base, tars, strategies=STRATEGIES, adapter={"text_encoder": True, "dropout": 0.1}
    )


@pytest.fixture
def undisturbed(tmp_path_factory: Any, model: Any, recipe: Recipe) -> Run:
    return train(recipe, out=tmp_path_factory.mktemp("undisturbed") / "run", model=model)


def test_a_crash_at_any_step_changes_no_bit_of_the_end(
    tmp_path: Path, model: Any, recipe: Recipe, undisturbed: Run
) -> None:
    whole = [(e["step"], e["loss"]) for e in undisturbed.read_journal("step")]
    for step in (1, 4, 7):
        run = crashed(recipe, tmp_path / f"run-{step}", model, step)
        resume(run.folder, model=model)
        assert same(learnt(run), learnt(undisturbed))
        assert [(e["step"], e["loss"]) for e in run.read_journal("step")] == whole
    (start,) = undisturbed.read_journal("start")
    assert set(start["pictures"]) == {f"set-{i:03d}.tar" for i in range(3)}
    assert len(start["held_out"]) == 2
    notes = [e["text"] for e in undisturbed.read_journal("note")]
    assert any("15 pictures in 3 tars are read as they come" in note for note in notes)


def test_a_changed_tar_is_refused_by_name(tmp_path: Path, model: Any, base: Path) -> None:
    write_tars(tmp_path / "tars", (4, 3))
    run = crashed(tiny_recipe(base, tmp_path / "tars"), tmp_path / "run", model, 3)
    (tmp_path / "tars" / "set-001.tar").write_bytes(tar_of([("1.png", png(1))]))
    with pytest.raises(RunError, match=r"changed: set-001\.tar"):
        resume(run.folder, model=model)


def test_latents_that_the_disk_would_drop_are_not_written(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "cache"))
    data = stream_of(write_tars(tmp_path / "tars"), optimizer={"batch_size": 2, "steps": 9})
    recipe = Recipe.build({"trigger": "zqx", "optimizer": {"batch_size": 2, "steps": 9}})
    assert data.stream is not None
    many = Latents(model, recipe, {})
    monkeypatch.setattr("variegate.train.data.MOST_BYTES", 1000)
    first = many.batch(data.stream, 1)
    assert not list((tmp_path / "cache" / "latents").glob("*/*"))
    assert not many._kept
    monkeypatch.setattr("variegate.train.data.MOST_BYTES", 1 << 30)
    few = Latents(model, recipe, {})
    again = few.batch(data.stream, 1)
    assert len(list((tmp_path / "cache" / "latents").glob("*/*"))) == 2
    assert torch.equal(first.latents, again.latents)
    data.close()


class Meeting:
    """Stands for what lies between processes: each hands something in, and all get all of it."""

    def __init__(self, size: int) -> None:
        self.barrier, self.brought = threading.Barrier(size, timeout=60), [None] * size

    def of(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Threaded(Ranks):
    """A process that is a thread."""

    meeting: Any = None

    def gathered(self, value: Any) -> list[Any]:
        return self.meeting.of(self.rank, json.loads(json.dumps(value)))  # type: ignore[no-any-return]

    def laid_together(self, parts: torch.Tensor) -> torch.Tensor:
        return sum(self.meeting.of(self.rank, parts), torch.zeros_like(parts))

    @contextmanager
    def as_one(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("size", [2, 3])
def test_each_process_makes_its_share_of_the_rows_and_all_have_all(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    files = [(f"{i:02d}.png", png(i)) for i in range(24)]
    files[5] = ("05.png", b"nothing" * 9)
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    recipe = Recipe.build(
        {
            "trigger": "zqx",
            "strategies": {k: v for k, v in STRATEGIES.items() if k != "stay_near"},
            "optimizer": {"batch_size": 5, "steps": 6},
            "held_out": {"share": 0},
        }
    )
    encoded = Counter[int]()
    encode = model.encode

    def counted(*given: Any) -> Any:
        encoded[threading.get_ident()] += 1
        return encode(*given)

    monkeypatch.setattr(model, "encode", counted)

    def batches(ranks: Ranks) -> tuple[list[Batch], list[str], int]:
        shards = Shards.open(str(tmp_path / "x.tar"))
        data = few_at_once(shards, recipe, side=64, pocket=False, needs_masks=True)
        assert data.stream is not None
        strategies = cook(recipe)
        for strategy in strategies.values():
            strategy.prepare(Setting(recipe, model, tmp_path, silent))
        latents = Latents(model, recipe, strategies)
        latents._disk = None
        before = encoded[threading.get_ident()]
        found = [latents.batch(data.stream, step, ranks) for step in range(1, 6)]
        count = encoded[threading.get_ident()] - before
        data.close()
        return found, data.stream.notes(), count

    alone, told, all_of = batches(Ranks())
    assert all_of == 25
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        each = [Threaded(rank, size, meeting=meeting) for rank in range(size)]
        found = list(pool.map(batches, each))
    assert sum(count for _, _, count in found) == 25
    assert max(count for _, _, count in found) <= 5 * -(-5 // size)
    assert len(told) == 1
    assert found[0][1] == told  # the first one notes what any has found
    for theirs, _, _ in found:
        for ours, mine in zip(theirs, alone, strict=True):
            assert (ours.keys, ours.captions) == (mine.keys, mine.captions)
            assert ours.frames == mine.frames
            assert torch.equal(ours.latents, mine.latents)
            assert torch.equal(ours.masks, mine.masks)
            assert torch.equal(ours.noise, mine.noise)


def test_words_kept_are_bounded_and_read_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.adapter import attach

    on = attach(model, Recipe().adapter, seed=0)
    try:
        words = Words(model, on, learns=False, pixels=64)
        first = words.base(["a zqx"])
        monkeypatch.setattr("variegate.train.data.MOST_WORDS", 3 * first.embeddings.nbytes)
        for i in range(9):
            words.base([f"number {i}", f"number {i + 1}"])
        assert len(words._kept) <= 3
        assert torch.equal(words.base(["a zqx"]).embeddings, first.embeddings)
        many = words.base([f"number {i}" for i in range(8)])
        assert len(many) == 8
    finally:
        on.detach()


def told(*words: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else {}, done.stderr


def test_the_command_line_learns_from_tars_and_goes_on(tmp_path: Path) -> None:
    spec = write_tars(tmp_path / "tars", (5, 4))
    words = ["--base", "pocket", "--trigger", "zqx", "--class", "face", "--seed", "1"]
    few = ["--set", "optimizer.steps=3", "--set", "optimizer.batch_size=2"]
    run = tmp_path / "run"
    code, document, _ = told("train", spec, *words, *few, "--out", str(run))
    assert code == 0
    assert document["step"] == 3
    assert json.loads((run / "journal.jsonl").read_text().splitlines()[0])
    code, document, _ = told("train", "--resume", str(run), "--steps", "5")
    assert (code, document["step"]) == (0, 5)
    code, _, said = told("train", spec.replace("001", "002"), *words, *few, "--out", f"{run}2")
    assert code == 2
    assert "set-002.tar: there is no such tar" in said


# --- what cannot be held ------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tars of a thousand pictures that nobody stored; all have one index, so it is made once."""
    monkeypatch.setattr("variegate.images.tars.BLOCK_BYTES", 1 << 20)
    fsspec.register_implementation("made", MadeUp, clobber=True)
    known: dict[int, Any] = {}
    read = shards_room.read_index

    def once(stream: Any, size: int, tar: str) -> Any:
        if size not in known:
            known[size] = read(io.BytesIO(MadeUp().cat_file(tar.split("//")[1])), size, tar)
        return known[size]

    monkeypatch.setattr(shards_room, "read_index", once)
    monkeypatch.setattr(MadeUp, "_open", lambda *given, **named: io.BytesIO())
    return MadeUp


def made_stream(tars: int, *, steps: int, at_once: int = 4) -> Streamed:
    recipe = Recipe.build({"optimizer": {"batch_size": 8, "steps": steps}})
    shards = Shards.open(f"made://{tars}-1000/{{00000..{tars - 1:05d}}}.tar")
    return Streamed(shards, recipe, side=16, pocket=True, needs_masks=False, at_once=at_once)


def test_a_million_pictures_take_the_memory_of_few(made: Any) -> None:
    """The index of a million pictures, and steps at three places of two epochs of them."""

    def grown(tars: int) -> int:
        stream = made_stream(tars, steps=10**9)
        assert stream.count == tars * 1000
        most = 0
        for begin in (1, 124_990, 200_000):
            for step in range(begin, begin + 20):
                assert len(stream.at(step)) == 8
            wait(stream._blocks.values())
            most = max(most, psutil.Process().memory_info().rss)
        stream.close()
        return most

    few = grown(20)
    many = grown(1000)
    assert many - few < 50 * 2**20


@pytest.mark.slow
def test_a_run_on_a_million_pictures_takes_the_memory_of_one_on_few(
    tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("variegate.train.data.read_stream", few_at_once)

    def held(tars: int) -> int:
        recipe = Recipe.build(
            {
                "images": f"made://{tars}-1000/{{00000..{tars - 1:05d}}}.tar",
                "trigger": "zqx",
                "optimizer": {"steps": 6, "batch_size": 2},
                "checkpoints": {"every": 3},
                "probes": {"every": 3, "intruders": 0},
                "held_out": {"share": 0},  # there are but eight looks
            }
        )
        most = [0]

        def say(phase: str, done: int, total: int, note: str) -> None:
            most[0] = max(most[0], psutil.Process().memory_info().rss)

        def crash(phase: str, done: int, total: int, note: str) -> None:
            say(phase, done, total, note)
            if phase == "train" and done == 4:
                raise RuntimeError("as if killed")

        whole = train(recipe, out=tmp_path / f"whole-{tars}", say=say)
        with pytest.raises(RuntimeError, match="as if killed"):
            train(recipe, out=tmp_path / f"again-{tars}", say=crash)
        again = resume(tmp_path / f"again-{tars}", say=say)
        assert same(learnt(again), learnt(whole))
        return most[0]

    few = held(20)
    assert held(1000) - few < 100 * 2**20


def test_reading_stays_ahead_and_nothing_is_read_twice(made: Any) -> None:
    stream = made_stream(2, steps=500, at_once=2)
    files: Any = stream.shards._files
    files.reads.clear()
    turns = stream._turns
    assert len(stream.shards.ends) == 8
    for step in range(1, 251):  # an epoch, as training slower than reading has it
        stream.at(step)
        windows = [*turns.windows(step), *turns.windows(step + 1)]
        after = turns.after(windows[-1])
        wanted = {b for window in (*windows, after) for b in turns.blocks(window)}
        assert set(stream._blocks) == wanted  # those of the next window too, and no others
        wait(stream._blocks.values())
    assert stream.stalls == 0
    read = [turns.blocks((0, w)) for w in range(4)] + [turns.blocks((1, w)) for w in (0, 1)]
    assert len(files.reads) <= sum(map(len, read))  # what two windows share is read once
    assert len(files.reads) >= 8 + 2
    assert not stream.notes()
    stream.close()


def test_storage_that_is_too_slow_is_told(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = made_stream(2, steps=3000, at_once=1)
    read = MadeUp.cat_file

    def slowly(*given: Any, **named: Any) -> bytes:
        time.sleep(0.05)
        return read(*given, **named)

    monkeypatch.setattr(MadeUp, "cat_file", slowly)
    for step in range(1, 2400, 80):  # past the window that is read ahead, every time
        stream.at(step)
    assert stream.stalls > 20
    assert any("storage is slower than training" in note for note in stream.notes())
    stream.close()


def test_of_large_pictures_fewer_are_taken_at_once(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards.open("made://1-1000/{00000..00019}.tar")
    recipe = Recipe.build({"optimizer": {"steps": 1}})
    given: dict[str, Any] = {"side": 16, "pocket": True, "needs_masks": False}
    for window, blocks in ((1 << 30, 32), (20 * shards.block_bytes, 20), (1, 8)):
        monkeypatch.setattr("variegate.train.stream.WINDOW_BYTES", window)
        turns = Streamed(shards, recipe, **given)._turns
        assert len(turns.blocks((0, 0))) == blocks


def test_no_window_is_read_that_the_run_never_reaches(made: Any) -> None:
    stream = made_stream(6, steps=5, at_once=3)
    files: Any = stream.shards._files
    files.reads.clear()
    for step in range(1, 6):
        stream.at(step)
    wait(stream._blocks.values())
    assert len(files.reads) == 3
    stream.close()
