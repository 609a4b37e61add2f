"""A grid that several processes draw is the grid that one draws, to the byte."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.tiny import write_tiny_sd
from typer.testing import CliRunner

from variegate import formats
from variegate.adapter import Adapter, LayerUpdate
from variegate.cli import app
from variegate.errors import RequestError
from variegate.models import DiffusionModel, load
from variegate.recipe import SamplingPlan
from variegate.sample import Hands, Source, grid, sample, sample_apart
from variegate.sample.apart import PARTS, Part, draw_part
from variegate.sample.draw import left_over

PLAN = SamplingPlan(steps=2, guidance_scale=3.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("apart")
    write_tiny_sd(folder / "base")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> DiffusionModel:
    return load(str(place / "base"))


@pytest.fixture(scope="module")
def adapter(place: Path, model: DiffusionModel) -> Path:
    draw = torch.Generator().manual_seed(0)
    layers = {
        f"unet.{path}": LayerUpdate(
            down=torch.randn(2, module.in_features, generator=draw),
            up=torch.randn(module.out_features, 2, generator=draw),
            alpha=2.0,
        )
        for path, module in model.unet.named_modules()
        if path.endswith("to_q")
    }
    file = place / "lora.safetensors"
    formats.write(Adapter("sd1", layers), file)
    return file


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three, so that a small grid has several; and one thread here as in workers, since
    the order in which numbers are added may hang on their count."""
    monkeypatch.setattr("variegate.sample.draw.MAX_BATCH", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def held(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.usefixtures("few_at_once")
def test_two_processes_draw_the_grid_of_one(
    place: Path, tmp_path: Path, model: DiffusionModel, adapter: Path
) -> None:
    asked = grid(["an owl", "a fox"], range(4), strengths=(1.0,)) + grid(["an owl"], [1])
    learnt = formats.read(adapter)
    sample(model, learnt, asked, plan=PLAN, out=tmp_path / "one")
    hands = Hands(Source.of(str(place / "base"), adapter, t5_tokenizer=None), 2)
    told: list[tuple[int, int]] = []
    found = sample_apart(
        *(model, learnt, asked),
        hands=hands,
        plan=PLAN,
        out=tmp_path / "two",
        say=lambda phase, done, total, note: told.append((done, total)),
    )
    assert held(tmp_path / "two") == held(tmp_path / "one")
    assert not (tmp_path / "two" / PARTS).exists()
    assert [(p.prompt, p.seed) for p in found] == [(r.prompt, r.seed) for r in asked]
    assert told[0] == (0, 9)
    assert told[-1] == (9, 9)


@pytest.mark.usefixtures("few_at_once")
def test_what_a_worker_had_drawn_when_all_died_is_not_drawn_again(
    place: Path, tmp_path: Path, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = grid(["an owl", "a fox"], range(3))
    sample(model, None, asked, plan=PLAN, out=tmp_path / "one")
    left = left_over(model, None, asked, plan=PLAN, out=tmp_path / "two")
    assert [len(batch) for batch in left.batches] == [3, 3]
    source = Source.of(str(place / "base"), None, t5_tokenizer=None)
    first = tuple(left.batches[1])
    draw_part(Part("x", source, first, PLAN, left.out / PARTS / "any", "", "png", None))
    torn = left.out / PARTS / "any" / "p009-s0000-0123456789abcdef01234567.png"
    torn.write_bytes(b"torn")

    done: list[Part] = []

    def here(part: Part) -> int:
        done.append(part)
        return draw_part(part)

    def no_pool(pool: Any, work: Any, *, more: Any, note: Any, jobs: int) -> None:
        while (part := more()) is not None:
            note(part, here(part))

    monkeypatch.setattr("variegate.sample.apart.spread", no_pool)
    sample_apart(*(model, None, asked), hands=Hands(source, 2), plan=PLAN, out=tmp_path / "two")
    assert [part.requests for part in done] == [tuple(left.batches[0])]
    assert held(tmp_path / "two") == held(tmp_path / "one")


def test_a_pool_that_is_not_there_is_said_before_anything_is_drawn(
    place: Path, tmp_path: Path, model: DiffusionModel
) -> None:
    hands = Hands(Source.of(str(place / "base"), None, t5_tokenizer=None), 1, "moon")
    with pytest.raises(RequestError, match="there is 'ray'"):
        sample_apart(
            *(model, None, grid(["an owl"], [0])), hands=hands, plan=PLAN, out=tmp_path / "x"
        )
    assert not list((tmp_path / "x").glob("*.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("few_at_once")
def test_a_worker_that_is_killed_costs_no_picture(
    place: Path, tmp_path: Path, model: DiffusionModel
) -> None:
    plan = PLAN.model_copy(update={"steps": 20})
    asked = grid(["an owl", "a fox"], range(12))
    sample(model, None, asked, plan=plan, out=tmp_path / "one")
    hands = Hands(Source.of(str(place / "base"), None, t5_tokenizer=None), 2)
    killed = list[int]()

    def kill() -> None:
        until = time.monotonic() + 120
        while not list((tmp_path / "two" / PARTS).glob("*/*.png")):
            assert time.monotonic() < until
            time.sleep(0.01)
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                killed.append(child.pid)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    sample_apart(*(model, None, asked), hands=hands, plan=plan, out=tmp_path / "two")
    killer.join()
    assert killed
    assert held(tmp_path / "two") == held(tmp_path / "one")


def said(*words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.usefixtures("few_at_once")
def test_the_verbs_say_the_same_by_two_processes(
    place: Path, tmp_path: Path, adapter: Path
) -> None:
    drawing = ["--base", str(place / "base"), "--adapter", str(adapter), "--prompt", "an owl"]
    drawing += ["--seeds", "5", "--steps", "2"]
    one = said("sample", *drawing, "--out", str(tmp_path / "one"))
    two = said("sample", *drawing, "--out", str(tmp_path / "two"), "--workers", "2")
    assert len(one["images"]) == len(two["images"]) == 5
    assert held(tmp_path / "two") == held(tmp_path / "one")

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("an owl\na fox\n")
    judging = [str(adapter), "--base", str(place / "base"), "--prompts", str(prompts)]
    verdicts = []
    for name, more in (("a", []), ("b", ["--workers", "2"])):
        out = tmp_path / name
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("VARIEGATE_CACHE", str(tmp_path / f"cache-{name}"))
            found = said("measure", *judging, *more, "--out", str(out))
        del found["report"]
        verdicts.append(found)
    assert verdicts[0] == verdicts[1]
