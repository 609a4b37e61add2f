"""`variegate tune` on the pocket, with a worker that is killed while it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import variegate

PICTURES = Path(variegate.__file__).parent / "demo" / "pictures"
TINY = (
    *("optimizer.steps=16", "checkpoints.every=2", "probes.every=2", "probes.triples=4"),
    *("probes.noises=2", "sampling.steps=2", "optimizer.batch_size=2"),
)


def tune(out: Path, cache: Path) -> subprocess.Popen[str]:
    words = ["tune", str(PICTURES), "--recipe", "pocket-plain", "--trigger", "zqx", "--class"]
    words += ["face", "--range", "adapter.rank=2,8", "--range", "optimizer.lr=5e-4..5e-3:log"]
    words += ["--trials", "4", "--scouts", "2", "--replicates", "1", "--limit", "likeness=-9"]
    words += ["--limit", "class_retention=-9", "--limit", "adherence_vs_base=-9"]
    words += ["--limit", "copy_rate=1", "--out", str(out), "--json"]
    for told in TINY:
        words += ["--set", told]
    return subprocess.Popen(
        [sys.executable, "-m", "variegate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(variegate.__file__).parents[1]),
            "VARIEGATE_CACHE": str(cache),
        },
        text=True,
    )


def document(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=560)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
def test_a_search_on_the_pocket_outlives_a_killed_worker(tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    process = tune(out, cache)
    until = time.monotonic() + 240
    while not list(out.glob("runs/*/checkpoints/step-*")):
        assert time.monotonic() < until, "nothing was trained"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = [
        p
        for p in psutil.Process(process.pid).children(recursive=True)
        if any("spawn_main" in word for word in p.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    first = document(process)
    assert first["left"] == 0
    ended = first["trials"]["measured"] + first["trials"]["given_up"]
    assert ended == 4
    assert first["measured_anew"]
    taken = first["recommended"]
    assert Path(taken["adapter"]).is_file()
    # The run that was killed went on from a checkpoint.
    starts = [
        [json.loads(line)["step"] for line in file.read_text().splitlines() if '"start"' in line]
        for file in out.glob("runs/*/journal.jsonl")
    ]
    assert any(len(steps) > 1 and steps[1] > 0 for steps in starts), starts
    page = Path(first["page"]).read_text(encoding="utf8")
    assert page.count("data:image/webp") >= 4
    for run in taken["runs"]:
        assert (Path(run) / "report.html").is_file()
        assert (Path(run) / "fresh" / "report.html").is_file()
    # Asked again, it is done already and says the same.
    began = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/adapter.safetensors")}
    second = document(tune(out, cache))
    assert {file: file.stat().st_mtime_ns for file in began} == began
    assert second["recommended"] == taken
    assert second["points"] == first["points"]
