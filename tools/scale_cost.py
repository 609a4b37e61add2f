"""What so many samples cost to draw, to encode and to measure: measured here, then carried over.

    python tools/scale_cost.py measure cost.json        # some minutes; small on purpose
    python tools/scale_cost.py table cost.json          # the tables of docs/scale.md
    python tools/scale_cost.py table cost.json --draw 1.5 --encode 0.02   # with figures of your own

Times are CPU seconds of one core, so that other work on the machine does not count; medians of
several rounds. What is carried over, and by which rule, is told beside each table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from variegate import encoders, recipes  # noqa: E402
from variegate.images import ImageSet, Shards  # noqa: E402
from variegate.images.tars import read_index  # noqa: E402
from variegate.measure.distance import Moments, frechet_distance  # noqa: E402
from variegate.measure.neighbours import nearest  # noqa: E402
from variegate.measure.vendi import vendi  # noqa: E402
from variegate.models import load  # noqa: E402
from variegate.recipe import Recipe  # noqa: E402
from variegate.sample import Request, grid, sample  # noqa: E402
from variegate.train.stream import Streamed  # noqa: E402

SIZES = (1_000, 10_000, 30_000)  # rows that are measured
WIDTH = 768  # of features, as CLIP's and DINOv2's are
KNOWN = 1_000  # pictures that copies are looked for among
ASKED = (10**3, 10**5, 10**7)
ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one core that a piece of work takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(out: Path, *, base: str, encoder: str, pictures: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["VARIEGATE_CACHE"] = f"{place}/cache"
        found: dict[str, Any] = {"base": base, "encoder": encoder, "pictures": pictures}
        found |= drawn(Path(place) / "drawn", base, pictures)
        found |= seen(Path(place) / "drawn", encoder)
        found |= packed(Path(place))
    found["rows"] = {str(n): measured(n) for n in SIZES}
    out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def drawn(folder: Path, base: str, pictures: int) -> dict[str, Any]:
    """Seconds and bytes of a picture, in rounds of one batch each; the first warms up."""
    model = load(base)
    plan = recipes.read(recipes.default_for(base)).sampling
    plan = plan.model_copy(update={"sampler": model.nearest_sampler(plan.sampler)})
    each = max(1, pictures // ROUNDS)
    sample(model, None, grid(["a toy"], range(2)), plan=plan, out=folder / "warm")
    taken = []
    for i in range(ROUNDS):
        asked = [Request("a toy", i * each + j) for j in range(each)]
        out = folder / str(i)
        taken.append(
            seconds(lambda a=asked, o=out: sample(model, None, a, plan=plan, out=o)) / each
        )  # type: ignore[misc]
    sizes = [file.stat().st_size for file in folder.glob("?/*.png")]
    return {"draw": statistics.median(taken), "png": statistics.mean(sizes), "steps": plan.steps}


def seen(folder: Path, name: str) -> dict[str, float]:
    """Seconds of a picture for an encoder, and when its features are found in the cache; bytes of
    memory that a picture of a set takes."""
    eye = encoders.load(name)
    first, again = [], []
    for i in range(ROUNDS):
        tracemalloc.start()
        pictures = ImageSet.read(folder / str(i))
        record = tracemalloc.get_traced_memory()[0] / len(pictures)
        tracemalloc.stop()
        first.append(seconds(lambda p=pictures: p.features(eye)) / len(pictures))  # type: ignore[misc]
        again.append(seconds(lambda p=pictures: p.features(eye)) / len(pictures))  # type: ignore[misc]
    return {
        "encode": statistics.median(first),
        "encode_again": statistics.median(again),
        "record": record,
    }


def packed(place: Path, count: int = 2_000) -> dict[str, float]:
    """Seconds and bytes of a picture's place in a tar's index; and of its reading for training."""
    files = sorted((place / "drawn").glob("?/*.png"))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(count):
            for suffix, data in ((".png", files[i % len(files)].read_bytes()), (".txt", b"a toy")):
                told = tarfile.TarInfo(f"{i:06d}{suffix}")
                told.size = len(data)
                tar.addfile(told, io.BytesIO(data))
    (place / "set.tar").write_bytes(stream.getvalue())
    size = len(stream.getvalue())
    index = [seconds(lambda: read_index(stream, size, "set.tar")) / count for _ in range(3)]
    shards = Shards.open(str(place / "set.tar"))
    opened = [seconds(lambda: Shards.open(str(place / "set.tar"))) / count for _ in range(3)]
    asked = Recipe.build({"optimizer": {"batch_size": 10, "steps": 200}})
    learnt = Streamed(shards, asked, side=64, pocket=True, needs_masks=False)
    with contextlib.closing(learnt):
        stepped = seconds(lambda: [learnt.at(step) for step in range(1, 101)]) / 1000
    return {
        "index": statistics.median(index),
        "index_again": statistics.median(opened),
        "index_bytes": shards.tars[0].index.stat().st_size / count,
        "stream": stepped,
        "in_tar": size / count,
    }


def measured(n: int) -> dict[str, float]:
    """Seconds that features of so many pictures take: variety, distance, copies among `KNOWN`."""
    draw = np.random.default_rng(n)
    spectrum = np.arange(1, WIDTH + 1) ** -0.5  # falls as those of encoders do
    table = (draw.normal(size=(n, WIDTH)) * spectrum).astype(np.float32)
    known = (draw.normal(size=(KNOWN, WIDTH)) * spectrum).astype(np.float32)
    return {
        "vendi": seconds(lambda: vendi(table, order=1)),
        "fd": seconds(lambda: frechet_distance(Moments.of(table), Moments.of(known))),
        "copies": seconds(lambda: nearest(table, known)),
    }


def table(found: dict[str, Any]) -> None:
    """The tables, in Markdown."""
    print(
        f"Base {found['base']!r} ({found['steps']} denoising steps), encoder {found['encoder']!r}, "
        f"{found['pictures']} pictures; CPU milliseconds of one core, or bytes, for each picture:\n"
    )
    print("| what, for each picture | measured |\n|---|---|")
    for name, key, unit in (
        ("drawing", "draw", "ms"),
        ("encoding, reading and decoding included", "encode", "ms"),
        ("finding its features again", "encode_again", "ms"),
        ("its place in the index of a tar, made", "index", "ms"),
        ("... and found again", "index_again", "ms"),
        ("reading, decoding and cutting out of a tar for training", "stream", "ms"),
        ("PNG", "png", "bytes"),
        ("its part of an index", "index_bytes", "bytes"),
        ("memory while its set is judged, beside features", "record", "bytes"),
    ):
        value = found[key] * (1000 if unit == "ms" else 1)
        print(f"| {name} | {value:.3g} {unit} |")
    print(f"\n| rows of width {WIDTH} | " + " | ".join(f"{int(n):,}" for n in found["rows"]) + " |")
    print("|---|" + "---|" * len(found["rows"]))
    for key in ("vendi", "fd", "copies"):
        cells = [f"{row[key]:.2f} s" for row in found["rows"].values()]
        print(f"| {key} | {' | '.join(cells)} |")
    print(
        "\n| samples | drawing | encoding | measuring | memory | disk |\n|---|---|---|---|---|---|"
    )
    for n in ASKED:
        cells = [spelt(n * found["draw"]), spelt(n * found["encode"]), spelt(judging(found, n))]
        cells += [sized(n * (found["record"] + 4 * WIDTH)), sized(n * (found["png"] + 4 * WIDTH))]
        print(f"| {n:,} | {' | '.join(cells)} |")
    print("\n| samples | 1 core | 8 cores | 64 cores | 512 cores |\n|---|---|---|---|---|")
    for n in ASKED:
        alone = n * found["encode"] + judging(found, n)
        cells = [spelt(n * found["draw"] / cores + alone) for cores in (1, 8, 64, 512)]
        print(f"| {n:,} | {' | '.join(cells)} |")


def judging(found: dict[str, Any], n: int) -> float:
    """Seconds that all measures of n rows take; beyond those measured they grow with n."""
    sizes = sorted(map(int, found["rows"]))
    near = min((size for size in sizes if size >= n), default=sizes[-1])
    return sum(found["rows"][str(near)].values()) * n / near


def spelt(taken: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if taken >= 2 * length:
            return f"{taken / length:.1f} {unit}"
    return f"{taken:.2g} s"


def sized(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("measure", "table"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--encoder", default="pocket")
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--draw", type=float, help="seconds a picture takes to draw, on yours")
    parser.add_argument("--encode", type=float, help="seconds a picture takes to encode, on yours")
    args = parser.parse_args()
    if args.what == "measure":
        measure(args.file, base=args.base, encoder=args.encoder, pictures=args.pictures)
    else:
        known = json.loads(args.file.read_text())
        known |= {k: v for k in ("draw", "encode") if (v := getattr(args, k)) is not None}
        table(known)
