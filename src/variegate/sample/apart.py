"""A grid drawn by several processes, on this machine or a Ray cluster, as one process draws it.

What one process would draw together stays together, so pictures are those of one process. Each
worker draws whole batches into a folder of its own below the grid's; they are taken over under the
names that one process would give them. A picture is named by all that shapes it: whatever a worker
that died had drawn is kept, and none comes twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from variegate.adapter import Adapter, Ensemble
from variegate.blend.cast import open_learnt
from variegate.device import pick_device
from variegate.errors import Interrupted
from variegate.images import ImageSet
from variegate.models import DiffusionModel, load
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.sample.draw import Left, Request, left_over, sample
from variegate.sample.files import Format, Named, key_of
from variegate.workers import spread, workers

PARTS = ".parts"  # below the grid's folder, while it is drawn
PIECES = 4  # for each worker, so that none is long idle at the end


@dataclass(frozen=True)
class Source:
    """Where a worker finds the base and the adapter that the caller holds.

    adapter: a file, folder or ensemble; None: the base draws. clip_skip and zero_terminal_snr: how
    the base is read. Paths are whole, so that they hold wherever a worker stands.
    """

    base: str
    adapter: Path | None = None
    clip_skip: int = 1
    zero_terminal_snr: bool = False
    t5_tokenizer: str | None = None

    @staticmethod
    def of(
        base: str, adapter: Path | None, *, t5_tokenizer: Path | str | None, **reading: Any
    ) -> Source:
        """What `models.load` and `open_learnt` are given, made whole."""
        return Source(
            str(Path(base).resolve()) if base != "pocket" and Path(base).exists() else base,
            adapter.resolve() if adapter else None,
            t5_tokenizer=str(Path(t5_tokenizer).resolve()) if t5_tokenizer else None,
            **reading,
        )


@dataclass(frozen=True)
class Hands:
    """Who draws: `jobs` processes of this machine, or of the Ray cluster that `on` names, with the
    base and adapter of a source."""

    source: Source
    jobs: int = 1
    on: str = ""

    @property
    def several(self) -> bool:
        return self.jobs > 1 or bool(self.on)


@dataclass(frozen=True)
class Part:
    """Whole batches of a grid, for one worker."""

    name: str
    source: Source
    requests: tuple[Request, ...]
    plan: SamplingPlan
    out: Path
    negative: str
    format: Format
    named: Named | None


def sample_apart(
    model: DiffusionModel,
    adapter: Adapter | Ensemble | None,
    requests: Sequence[Request],
    *,
    hands: Hands,
    plan: SamplingPlan,
    out: Path,
    negative: str = "",
    format: Format = "png",
    named: Named | None = None,
    say: Say | None = None,
) -> ImageSet:
    """As `sample`, by several hands; by one hand it is `sample`.

    Raises: as `sample`, and WorkerLost when workers die at the same pictures twice.
    """
    say = say or silent
    if hands.several:
        left = left_over(
            model, adapter, requests, plan=plan, out=out, negative=negative, format=format
        )
        if _take_over(left, format):  # what an earlier call left behind
            left = left_over(
                model, adapter, requests, plan=plan, out=out, negative=negative, format=format
            )
        source = hands.source if adapter is not None else replace(hands.source, adapter=None)
        parts = [
            Part(
                f"pictures of {batches[0][0].prompt!r:.60} and on",
                source,
                tuple(request for batch in batches for request in batch),
                plan,
                left.out / PARTS / _name(batches),
                negative,
                format,
                named,
            )
            for batches in _dealt(left.batches, hands.jobs)
        ]
        try:
            _draw(parts, left, hands, say)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; what was drawn is kept in {left.out}: the same command goes on from "
                "there",
                getattr(error, "number", signal.SIGINT),
            ) from error
        finally:
            _take_over(left, format)
    return sample(
        *(model, adapter, requests),
        plan=plan,
        out=out,
        negative=negative,
        format=format,
        named=named,
        say=say,
    )


def draw_part(part: Part) -> int:
    """Draw a part, or what is left of it; how many pictures it has."""
    model = _base(
        part.source.base,
        part.source.clip_skip,
        part.source.zero_terminal_snr,
        part.source.t5_tokenizer,
    )
    learnt = None if part.source.adapter is None else open_learnt(part.source.adapter)
    drawn = sample(
        *(model, learnt, part.requests),
        plan=part.plan,
        out=part.out,
        negative=part.negative,
        format=part.format,
        named=part.named,
    )
    return len(drawn)


@lru_cache(maxsize=1)
def _base(
    base: str, clip_skip: int, zero_terminal_snr: bool, t5_tokenizer: str | None
) -> DiffusionModel:
    return load(
        base,
        device=pick_device(),
        clip_skip=clip_skip,
        zero_terminal_snr=zero_terminal_snr,
        t5_tokenizer=t5_tokenizer,
    )


def _draw(parts: list[Part], left: Left, hands: Hands, say: Say) -> None:
    if not parts:
        return
    waiting, done = list(parts), left.done
    say("sample", done, left.whole, "")

    def note(part: Part, count: int) -> None:
        nonlocal done
        done += count
        say("sample", min(done, left.whole), left.whole, part.requests[-1].prompt)

    with workers(hands.on, hands.jobs) as pool:
        spread(
            pool,
            draw_part,
            more=lambda: waiting.pop(0) if waiting else None,
            note=note,
            jobs=hands.jobs,
        )


def _dealt(batches: list[list[Request]], jobs: int) -> list[list[list[Request]]]:
    """Neighbouring batches, a few times as many heaps as workers."""
    each = max(1, len(batches) // (jobs * PIECES))
    return [batches[i : i + each] for i in range(0, len(batches), each)]


def _name(batches: list[list[Request]]) -> str:
    """What a part's folder is called: the same for the same part."""
    told = repr([request.look for batch in batches for request in batch])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _take_over(left: Left, format: Format) -> int:
    """Move pictures that workers drew to where they belong; how many they were."""
    home, moved = left.out / PARTS, 0
    for file in sorted(home.glob(f"*/p*-s*-*.{format}")):
        key = file.stem.rpartition("-")[2]
        if key in left.files and key_of(file) == key:
            os.replace(file, left.out / left.files[key])
            moved += 1
    shutil.rmtree(home, ignore_errors=True)
    return moved
