"""How fast the measures are beside the reference packages, as ratios within one run.

    python scripts/speed_measure.py            # a few minutes: the table against the references
    python scripts/speed_measure.py --growth   # 10^3 to 10^6 rows from disk, with peak memory
    python scripts/speed_measure.py --memory   # the peaks of two searches in memory

References: `pip install vendi-score prdc scikit-learn` (tools for comparison only).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from variegate.measure.distance import Moments, frechet_distance
from variegate.measure.fidelity import fidelity
from variegate.measure.neighbours import nearest
from variegate.measure.vendi import vendi

D = 768


def rows(n: int, seed: int, d: int = D) -> np.ndarray:
    """Unit rows with a spectrum that falls, as features have."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d), dtype=np.float32) / np.sqrt(1 + np.arange(d, dtype=np.float32))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def seconds(*work: Callable[[], object], times: int = 5) -> list[float]:
    """The median of several runs of each, taken in turns so that a slow spell hits all alike."""
    taken: list[list[float]] = [[] for _ in work]
    for _ in range(times):
        for i, one in enumerate(work):
            start = time.perf_counter()
            one()
            taken[i].append(time.perf_counter() - start)
    return [statistics.median(t) for t in taken]


def against_references() -> None:
    from prdc import compute_prdc
    from vendi_score.vendi import score_dual, score_X

    print("| work | ours, s | theirs, s | theirs / ours |\n|---|---|---|---|")

    def line(name: str, ours: float, theirs: float) -> None:
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |", flush=True)

    x = rows(10_000, 0)
    ours, dual = seconds(lambda: vendi(x, order=1), lambda: score_dual(x))
    line("Vendi, order 1, n = 10,000, against score_dual", ours, dual)
    line("Vendi, order 1, n = 10,000, against score_X", ours, *seconds(lambda: score_X(x), times=1))
    ours, dual = seconds(lambda: vendi(x, order=2), lambda: score_dual(x, q=2))
    line("Vendi, order 2, n = 10,000, against score_dual", ours, dual)

    small = rows(5_000, 1), rows(5_000, 2)
    large = rows(20_000, 1), rows(20_000, 2)
    with contextlib.redirect_stdout(io.StringIO()):  # the reference prints
        ours, theirs = seconds(
            lambda: fidelity(*small, k=5), lambda: compute_prdc(*small, 5), times=3
        )
        ours_large, theirs_large = seconds(
            lambda: fidelity(*large, k=5), lambda: compute_prdc(*large, 5), times=1
        )
    line("precision to coverage, n = 5,000, against prdc", ours, theirs)
    line("precision to coverage, n = 20,000, against prdc", ours_large, theirs_large)

    a, b = torch.from_numpy(rows(50_000, 3)), torch.from_numpy(rows(50_000, 4))

    def least() -> None:
        covariances = []
        for part in (a, b):
            away = part.double() - part.double().mean(0)
            covariances.append(away.T @ away / (len(part) - 1))
        torch.linalg.cholesky(covariances[0] + 1e-9 * torch.eye(D))
        torch.linalg.eigvalsh(covariances[1])

    ours, bound = seconds(lambda: frechet_distance(a, b), least, times=3)
    line("FD, n = 50,000, against its least: 2 products, Cholesky, eigvalsh", ours, bound)

    samples, train = torch.from_numpy(rows(10_000, 5)), torch.from_numpy(rows(100_000, 6))

    def product() -> None:
        for start in range(0, len(samples), 2048):
            (samples[start : start + 2048] @ train.T).max(1)

    ours, bound = seconds(lambda: nearest(samples, train), product, times=2)
    line("copy search, 10,000 in 100,000, against the bare products", ours, bound)


def growth() -> None:
    """Each size in a process of its own, for the peak of its memory."""
    print("| n | Vendi, s | FD, s | copy search in 10,000, s | peak memory, GB |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        for n in (1_000, 10_000, 100_000, 1_000_000):
            table = np.lib.format.open_memmap(file, "w+", np.float32, (n, D))
            for start in range(0, n, 50_000):
                table[start : start + 50_000] = rows(min(50_000, n - start), start)
            table.flush()
            del table
            found = _apart("--one", str(file))
            cells = (found[k] for k in ("vendi", "fd", "copies"))
            print(f"| {n:,} | {' | '.join(f'{c:.2f}' for c in cells)} | {found['peak']:.2f} |")
            sys.stdout.flush()


def _apart(*arguments: str) -> dict[str, float]:
    """What this script finds in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def memory() -> None:
    """What a search takes beyond its features, each in a process of its own."""
    print("| work | features, GB | peak beyond them, GB |\n|---|---|---|")
    for name, what in (
        ("precision to coverage, n = 20,000", "fidelity"),
        ("copy search, 10,000 in 100,000", "copies"),
    ):
        found = _apart("--search", what)
        print(f"| {name} | {found['features']:.2f} | {found['peak']:.2f} |", flush=True)


def search(what: str) -> None:
    sizes = (20_000, 20_000) if what == "fidelity" else (10_000, 100_000)
    a, b = rows(sizes[0], 1), rows(sizes[1], 2)
    held = _held_gigabytes()
    with Peak() as peak:
        if what == "fidelity":
            fidelity(a, b, k=5)
        else:
            nearest(a, b)
    print(json.dumps({"features": (a.nbytes + b.nbytes) / 2**30, "peak": peak.most - held}))


class Peak:
    """The most memory that this process holds while it is open, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        self.most, self.done = _held_gigabytes(), threading.Event()
        self.watch = threading.Thread(target=self._look)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, _held_gigabytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watch.join()


def _held_gigabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30


def one(file: str) -> None:
    table = np.load(file, mmap_mode="r")
    known = rows(10_000, 99)
    start = time.perf_counter()
    vendi(table, order=1)
    after_vendi = time.perf_counter()
    frechet_distance(Moments.of(table), Moments.of(known))
    after_fd = time.perf_counter()
    nearest(table, known)
    after_copies = time.perf_counter()
    found = {
        "vendi": after_vendi - start,
        "fd": after_fd - after_vendi,
        "copies": after_copies - after_fd,
        "peak": _peak_gigabytes(),
    }
    print(json.dumps(found))


def _peak_gigabytes() -> float:
    """The most that the process held, pages of the mapped file among it, though the system may
    drop those at any time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--search", metavar="WHAT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one)
    elif args.search:
        search(args.search)
    elif args.memory:
        memory()
    elif args.growth:
        growth()
    else:
        against_references()
