"""On a Ray cluster of several nodes: the same digits as without it, and nothing lost or doubled
when a worker or a whole node is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.scenes import write_pictures
from tests.tune.pieces import run, search_of

from variegate.models import load
from variegate.recipe import SamplingPlan
from variegate.sample import Hands, Source, grid, sample, sample_apart
from variegate.tune.search import search
from variegate.workers import spread, workers

pytestmark = [
    pytest.mark.slow,
    # Ray opens sockets and files that it leaves to the end of the process.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does no work, and two nodes of one core each, every one a raylet of its own."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'variegate[ray]'")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers import the tests' own modules.
    root = Path(__file__).parents[2]
    paths = [root, root / "src", root / "tests"]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [found.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=found.address, log_to_driver=False)
    try:
        yield found, nodes
    finally:
        ray.shutdown()
        found.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def slow_square(n: int, folder: Path) -> tuple[int, str]:
    """n squared, and the node that it was worked out on; each beginning leaves a line."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    with (folder / "begun").open("a", encoding="utf8") as file:
        file.write(f"{n} {node} {os.getpid()}\n")
    time.sleep(1.0)
    return n * n, node


def begun(folder: Path) -> list[list[str]]:
    file = folder / "begun"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def squares(folder: Path, harm: Any) -> dict[int, int]:
    """The squares of eight numbers, with something that goes wrong on the way."""
    waiting, found = list(range(8)), dict[int, int]()
    done = [False]

    def note(n: int, result: tuple[int, str]) -> None:
        assert n not in found
        found[n] = result[0]

    def beat() -> None:
        lines = begun(folder)
        if not done[0] and len(lines) >= 3:
            done[0] = True
            harm(lines[-1])

    with workers("ray", 2) as pool:
        spread(
            pool,
            partial(slow_square, folder=folder),
            more=lambda: waiting.pop(0) if waiting else None,
            note=note,
            jobs=2,
            beat=beat,
            seconds=0.2,
        )
    assert done[0]
    return found


EVERY = {n: n * n for n in range(8)}


def test_a_killed_worker_costs_no_result(cluster: Any, tmp_path: Path) -> None:
    assert squares(tmp_path, lambda line: os.kill(int(line[2]), signal.SIGKILL)) == EVERY
    counts = Counter(line[0] for line in begun(tmp_path))
    assert sorted(counts.values()) == [1] * 7 + [2]


def test_a_killed_node_costs_no_result(cluster: Any, tmp_path: Path) -> None:
    head, nodes = cluster

    def kill(line: list[str]) -> None:
        node = next(n for n in nodes if n.node_id == line[1])
        head.remove_node(node, allow_graceful=False)

    assert squares(tmp_path, kill) == EVERY
    # What was done there is done again on the node that is left.
    lines = begun(tmp_path)
    assert len({node for _, node, _ in lines}) == 2
    assert max(Counter(n for n, *_ in lines).values()) == 2


def test_a_search_on_ray_has_the_digits_of_one_without(cluster: Any, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", count=3)
    asked = search_of(images, trials=6)
    here = search(asked, out=tmp_path / "here", work=run)
    there = search(asked, out=tmp_path / "there", work=run, on="ray")
    for document in (here, there):
        assert document["left"] == 0
    told = [
        [(p["settings"], p["likeness"], p["variety"]) for p in document["points"]]
        for document in (here, there)
    ]
    assert told[0] == told[1]


def test_a_grid_on_ray_is_the_grid_of_one_process(cluster: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as many as a task on one core has
    model = load("pocket")
    asked, plan = grid(["an owl", "a fox"], range(20)), SamplingPlan(steps=2)
    sample(model, None, asked, plan=plan, out=tmp_path / "one")
    hands = Hands(Source.of("pocket", None, t5_tokenizer=None), 2, "ray")
    sample_apart(model, None, asked, hands=hands, plan=plan, out=tmp_path / "two")
    one, two = (
        {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
