"""Two processes at one run learn what one does at the same batch, and end together."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.tars import write_tars
from tests.tiny import write_tiny_sd, write_tiny_sd3
from tests.train.scenes import tiny_recipe, write_pictures

import variegate
from variegate import formats
from variegate.errors import RecipeError
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.train import train
from variegate.train.divided import divider
from variegate.train.parts import cut
from variegate.train.ranks import ALONE, Ranks

# What differs is the order in which float32 numbers are added. Where gradients are next to nothing
# Adam takes that for a direction, so single numbers may differ by a step or two.
LOSS, WEIGHTS = 1e-5, 1e-3


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("ranks")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


def recipe_of(place: Path, **entries: Any) -> Recipe:
    """Strategies of every stage but those that draw masks within a pass, each process its own."""
    asked: dict[str, Any] = {
        "strategies": {
            **{"min_snr": {}, "caption_dropout": {"p": 0.3}, "flip": {}, "zoom_shift": {}},
            **{"stay_near": {}, "masked_loss": {}, "low_rank": {}, "noise_offset": {}, "ema": {}},
        },
        "adapter": {"text_encoder": True},
        "optimizer": {"batch_size": 3, "schedule": "cosine"},
        "guard": {"mode": "autopilot"},
    }
    return tiny_recipe(place / "base", place / "images", **{**asked, **entries})


def start(
    recipe: Recipe, out: Path, rank: int, port: int, *, resume: bool = False, **env: str
) -> Any:
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".toml")
    file.write_text(recipe.to_toml(), encoding="utf8")
    words = ["--resume", str(out)] if resume else [recipe.images, "--recipe", str(file)]
    words += [] if resume else ["--base", recipe.base, "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "variegate", "train", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(variegate.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            **env,
        },
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def both(recipe: Recipe, out: Path, **more: Any) -> Iterator[list[Any]]:
    """Two processes, which are gone when the block ends."""
    port = free_port()
    started = [start(recipe, out, rank, port, **more) for rank in (0, 1)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ended(processes: list[Any], *, seconds: float = 240) -> list[tuple[int, str, str]]:
    until = time.monotonic() + seconds
    found = []
    for process in processes:
        out, err = process.communicate(timeout=max(1, until - time.monotonic()))
        found.append((process.returncode, out, err))
    return found


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.read_journal("step")]


def apart(one: Path, other: Path) -> float:
    """How far all factors lie from one another, as a share of how large they are."""
    ours, theirs = (
        torch.cat([f.flatten() for u in formats.read(file).layers.values() for f in factors_of(u)])
        for file in (one, other)
    )
    return float((ours - theirs).norm() / theirs.norm())


def factors_of(update: Any) -> list[torch.Tensor]:
    return [factor for _, factor in sorted(update.factors().items())]


def alike(one: Run, other: Run) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=LOSS, abs=LOSS)
    assert apart(one.adapter_file, other.adapter_file) < WEIGHTS


def test_rows_are_dealt_out_whole_and_once() -> None:
    for counts in ({"pictures": 3, "stay_near": 2}, {"pictures": 1}, {"pictures": 8}):
        for of in (1, 2, 3):
            for size in (None, 1, 2):
                seen = [
                    (name, row)
                    for which in range(of)
                    for part in cut(counts, size, (which, of))
                    for name, where in part.items()
                    for row in range(where.start, where.stop)
                ]
                assert sorted(seen) == sorted((n, r) for n, k in counts.items() for r in range(k))


def test_two_processes_learn_what_one_does_at_the_same_batch(place: Path) -> None:
    recipe = recipe_of(place)
    alone = train(recipe, out=place / "alone")
    with both(recipe, place / "two") as started:
        (code, out, err), (other, silent, said) = ended(started)
    assert (code, other) == (0, 0), (err, said)
    assert json.loads(out)["step"] == recipe.optimizer.steps
    assert silent == ""  # one document, of the first
    alike(Run.open(place / "two"), alone)
    # What the guard saw and decided is the same, too.
    names = ("probe", "order", "checkpoint")
    kept = [[line["step"] for line in run.read_journal(n)] for n in names for run in (alone,)]
    assert kept == [
        [line["step"] for line in Run.open(place / "two").read_journal(n)] for n in names
    ]


@pytest.mark.parametrize("family", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_base_in_parts_learns_what_a_whole_one_does(place: Path, family: str) -> None:
    """Looks, panels, base pictures and what is held beside the pictures among it."""
    base, text = place / "base", family == "sd"
    strategies = recipe_of(place).strategies.model_dump(exclude_none=True)
    if family == "sd3":
        write_tiny_sd3(base := place / "base-3")
        strategies = {"flip": {}, "stay_near": {}, "masked_loss": {}}
    recipe = recipe_of(
        place,
        adapter={"text_encoder": text},
        strategies={**strategies, "new_background": {"source": "base", "count": 2}},
        optimizer={"batch_size": 4, "schedule": "cosine"},
        memory={"divided": True, "gradient_checkpointing": True},
        panels={"pictures": 1, "steps": 2},
    ).model_copy(update={"base": str(base)})
    alone = train(recipe, out=place / f"whole-{family}")
    with both(recipe, place / f"parts-{family}", VARIEGATE_RANK_TIMEOUT="60") as started:
        (code, _, err), (other, _, said) = ended(started)
    assert (code, other) == (0, 0), (err, said)
    run = Run.open(place / f"parts-{family}")
    alike(run, alone)
    for name in ("probe", "panel", "order", "checkpoint"):
        kept = [[line["step"] for line in of.read_journal(name)] for of in (run, alone)]
        assert kept[0] == kept[1]
    notes = " ".join(line["text"] for line in run.read_journal("note"))
    share = re.search(r"each of 2 processes holds (\d+)% of the network's weights", notes)
    assert share
    assert 50 <= int(share[1]) <= 55


def test_rows_that_cannot_be_dealt_evenly_are_refused_by_all(place: Path) -> None:
    recipe = recipe_of(place, memory={"divided": True})
    with both(recipe, place / "uneven", VARIEGATE_RANK_TIMEOUT="60") as started:
        found = ended(started)
    for code, _, err in found:
        assert code == 2, err
        assert "Traceback" not in err
        assert "3 rows of pictures in a step; expected a multiple of the 2 processes" in err


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"memory": {"divided": True, "base_bits": 8}}, "divided does not go with base_bits"),
        ({"memory": {"divided": True, "vram": 6.0}}, "divided does not go with vram"),
        ({"memory": {"divided": True}, "adapter": {"kind": "dora"}}, "kind lora alone"),
    ],
)
def test_what_a_base_in_parts_cannot_do_is_refused(
    place: Path, entries: dict[str, Any], word: str
) -> None:
    with pytest.raises(RecipeError, match=word):
        tiny_recipe(place / "base", place / "images", **entries)


def test_a_base_that_was_handed_over_is_not_taken_apart(place: Path) -> None:
    recipe = recipe_of(place, memory={"divided": True})
    assert divider(recipe, ALONE, handed_over=True) is None
    with pytest.raises(RecipeError, match="hand none over"):
        divider(recipe, Ranks(0, 2), handed_over=True)


def wait_for(run: Path, step: int, processes: list[Any]) -> None:
    """Until a checkpoint of that step, or a later one, is there."""
    until = time.monotonic() + 300
    while not any(int(f.name[5:]) >= step for f in (run / "checkpoints").glob("step-*")):
        assert time.monotonic() < until
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]
        time.sleep(0.02)


LONG = {"optimizer": {"steps": 60, "batch_size": 2}, "checkpoints": {"every": 3, "keep": 2}}


@pytest.mark.slow
@pytest.mark.parametrize("divided", [None, True], ids=["whole", "divided"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_when_one_process_dies_or_hangs_all_end_with_a_message(
    place: Path, number: signal.Signals, divided: bool | None
) -> None:
    out = place / f"lost-{number.name}-{divided}"
    recipe = recipe_of(place, strategies={}, memory={"divided": divided}, **LONG)
    with both(recipe, out, VARIEGATE_RANK_TIMEOUT="5") as (first, other):
        wait_for(out, 3, [first, other])
        other.send_signal(number)
        ((code, _, err),) = ended([first])
    assert code == 1, err
    assert "waits for another that died or hangs" in err
    assert "goes on from the last checkpoint" in err
    assert not (out / "adapter.safetensors").exists()
    if number == signal.SIGSTOP:
        return
    # The same command goes on from there, with as many processes as one likes, and ends the same.
    saved = max(int(f.name[5:]) for f in (out / "checkpoints").glob("step-*"))
    run = train(recipe, out=out)
    assert [line["step"] for line in run.read_journal("start")] == [0, saved]
    alike(run, train(recipe, out=place / f"never-lost-{divided}"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_a_step_that_both_can_go_on_from(
    place: Path,
) -> None:
    out, steps = place / "stopped", {"steps": 400, "batch_size": 2}
    recipe = recipe_of(place, strategies={}, optimizer=steps)
    with both(recipe, out) as (first, other):
        wait_for(out, 3, [first, other])
        other.send_signal(signal.SIGTERM)
        found = ended([first, other])
    assert [code for code, _, _ in found] == [143, 143]
    (end,) = Run.open(out).read_journal("finish")
    assert (out / "checkpoints" / f"step-{end['step']:06d}").exists()
    with both(recipe, out, resume=True) as again:
        wait_for(out, 3 * (end["step"] // 3) + 3, list(again))
    assert [x["step"] for x in Run.open(out).read_journal("start")] == [0, end["step"]]


@pytest.mark.slow
def test_a_fault_of_the_first_ends_the_others_with_a_hint(place: Path) -> None:
    out = place / "locked"
    recipe = recipe_of(place, strategies={})
    with Run.create(out, recipe).locked(), both(recipe, out) as started:
        (code, _, err), (other, _, said) = ended(started)
    assert (code, other) == (2, 1)
    assert "is in use by process" in err
    assert "process 0 of 2 stopped at this step, and says why" in said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_launchers_of_the_field_start_it(place: Path, launcher: str) -> None:
    out = place / launcher
    recipe = recipe_of(place)
    file = place / f"{launcher}.toml"
    file.write_text(recipe.to_toml(), encoding="utf8")
    port = str(free_port())
    how = {
        "torchrun": ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", port),
        "accelerate": (
            *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--main_process_port", port),
        ),
    }[launcher]
    words = ["train", recipe.images, "--recipe", str(file), "--base", recipe.base]
    done = subprocess.run(
        [sys.executable, "-m", *how, "-m", "variegate", *words, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(variegate.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        },
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == recipe.optimizer.steps
    alike(Run.open(out), train(recipe, out=place / f"alone-{launcher}"))


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1], ids=["the first", "another"])
def test_torchrun_replaces_a_process_that_dies(place: Path, dies: int) -> None:
    out = place / f"replaced-{dies}"
    recipe = recipe_of(place, strategies={}, **LONG)
    file = place / f"replaced-{dies}.toml"
    file.write_text(recipe.to_toml(), encoding="utf8")
    how = ("--nproc-per-node", "2", "--max-restarts", "2", "--master-port", str(free_port()))
    words = ["train", recipe.images, "--recipe", str(file), "--base", recipe.base]
    command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "variegate", *words]
    started = subprocess.Popen(
        [*command, "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(variegate.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "VARIEGATE_RANK_TIMEOUT": "60",
        },
    )
    try:
        wait_for(out, 3, [started])
        below = psutil.Process(started.pid).children()
        (lost,) = [p for p in below if p.environ().get("RANK") == str(dies)]
        lost.kill()
        told, said = started.communicate(timeout=300)
    finally:
        started.kill()
        started.communicate()
    assert started.returncode == 0, said
    answers = [json.loads(line) for line in told.splitlines()]  # of each start the first one's
    assert answers[-1]["step"] == 60
    assert all("died or hangs" in str(answer) for answer in answers[:-1])
    run = Run.open(out)
    begins = [line["step"] for line in run.read_journal("start")]
    assert begins[0] == 0
    assert len(begins) == 2
    assert begins[1] >= 3
    alike(run, train(recipe, out=place / f"never-replaced-{dies}"))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(place: Path) -> None:
    recipe = recipe_of(place)

    def crash(phase: str, done: int, total: int, note: str) -> None:
        if phase == "train" and done == 5:
            raise RuntimeError("as if killed")

    with pytest.raises(RuntimeError, match="as if killed"):
        train(recipe, out=place / "grown", say=crash)
    with both(recipe, place / "grown", resume=True) as started:
        (code, _, err), (other, _, said) = ended(started)
    assert (code, other) == (0, 0), (err, said)
    run = Run.open(place / "grown")
    begun, gone_on = [line["step"] for line in run.read_journal("start")]
    assert begun == 0 < gone_on <= 5
    alike(run, train(recipe, out=place / "never-grown"))


@pytest.mark.slow
def test_two_processes_learn_from_tars_what_one_does(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(place / "tars", (7, 5, 6))
    monkeypatch.setenv("VARIEGATE_CACHE", str(place / "cache"))
    recipe = recipe_of(place).model_copy(update={"images": str(place / "tars")})
    with both(recipe, place / "two-tars") as started:
        (code, _, err), (other, _, said) = ended(started)
    assert (code, other) == (0, 0), (err, said)
    assert len(list((place / "cache" / "shards").glob("*/*.safetensors"))) == 3
    alike(Run.open(place / "two-tars"), train(recipe, out=place / "alone-tars"))


def test_alone_nothing_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    from variegate.train.ranks import Ranks, joined

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks == Ranks()
        assert ranks.shared({"a": 1}) == {"a": 1}
        assert ranks.most(3) == 3
        assert ranks.summed({"x": 0.5}) == {"x": 0.5}
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("--verzion", 2)])
@pytest.mark.parametrize("several", [False, True])
def test_one_of_several_leaves_without_taking_the_interpreter_down(
    words: str, code: int, several: bool
) -> None:
    """Threads of a process group that are still there then abort what has ended well."""
    program = f"""
import atexit, os, sys
class Last:
    def __del__(self, write=os.write):
        write(2, b"taken down")
sys.last, sys.modules["torch"] = Last(), sys
atexit.register(print, "let go")
sys.argv = ["variegate", {words!r}]
from variegate.cli import main
main()
"""
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    env |= {"PYTHONPATH": str(Path(variegate.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env | ({"RANK": "1"} if several else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stdout.endswith("let go\n")
    assert ("variegate " in done.stdout) == (code == 0)
    assert ("verzion" in done.stderr) == (code == 2)
    assert ("taken down" in done.stderr) is not several
