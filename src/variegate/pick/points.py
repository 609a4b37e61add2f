"""What can be picked: the checkpoints of a run, or of a folder that any trainer wrote, each at
several strengths and guidance scales."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from variegate.adapter import Adapter
from variegate.errors import AdapterError, RequestError
from variegate.formats import read
from variegate.formats.reading import DIFFUSERS_WEIGHTS, PEFT_WEIGHTS
from variegate.report.pictures import spread
from variegate.run import Run
from variegate.train import result
from variegate.train.checkpoint import ADAPTER, checkpoint_folders, step_of

MOST = 12  # checkpoints of a folder that are looked at, evenly spread
# How trainers name a checkpoint: kohya's -step00000500 and -000004 (an epoch), diffusers'
# checkpoint-500, ai-toolkit's _000000500, OneTrainer's -save-500-5-0.
_STEP = re.compile(r"(?:[-_.]step[-_]?|^step[-_]|[-_]save[-_]|^checkpoint[-_])(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-_.]e?(\d{2,12})$", re.IGNORECASE)
_AI_TOOLKIT = 9  # digits of its steps, where kohya's epochs have six


@dataclass(frozen=True)
class Checkpoint:
    """One adapter on the way, read when it is asked for: a dozen may not fit into memory. digest:
    of all that shapes an answer. step: None where nobody says. order: its place on the way."""

    name: str
    file: Path
    family: str
    metadata: dict[str, str]
    digest: str
    step: int | None = None
    order: float = math.inf

    @property
    def adapter(self) -> Adapter:
        return _read(self.file)


@lru_cache(maxsize=2)
def _read(file: Path) -> Adapter:
    return read(file)


@dataclass(frozen=True)
class Point:
    """One way to use what was learnt: which checkpoint, how strongly, at which guidance scale."""

    checkpoint: str
    step: int | None
    strength: float
    guidance_scale: float

    @property
    def name(self) -> str:
        """What votes call it.

        >>> Point("step-000100", 100, 0.8, 1.4).name
        'step-000100@0.8@1.4'
        """
        return f"{self.checkpoint}@{self.strength:g}@{self.guidance_scale:g}"

    @property
    def words(self) -> str:
        """For people.

        >>> Point("owl-000004", 4, 0.8, 7.5).words
        'owl-000004 at strength 0.8, guidance scale 7.5'
        """
        return f"{self.checkpoint} at strength {self.strength:g}, guidance scale " + (
            f"{self.guidance_scale:g}"
        )

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **vars(self)}


def grid(
    checkpoints: Sequence[Checkpoint], strengths: Sequence[float], guidance: Sequence[float]
) -> tuple[Point, ...]:
    """Every point, checkpoint by checkpoint.

    Raises: RequestError for strengths and scales that make no sense.
    """
    for strength in strengths:
        if not 0 < strength <= 2:
            raise RequestError(f"strength {strength:g}; expected more than 0 and at most 2")
    for scale in guidance:
        if not 1 <= scale <= 100:
            raise RequestError(f"guidance scale {scale:g}; expected 1 to 100")
    if not strengths or not guidance:
        raise RequestError("name one strength and one guidance scale at least")
    return tuple(
        Point(c.name, c.step, float(strength), float(scale))
        for c, strength, scale in product(
            checkpoints, dict.fromkeys(strengths), dict.fromkeys(guidance)
        )
    )


def checkpoints_of(folder: Path, *, most: int = MOST) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints in a run or in a folder of LoRA files, in order, and what was left out.

    Of a run: those that it kept, and the adapter that it handed over where that is another. Of any
    other folder: every safetensors file in it that is an adapter, and every folder in it that holds
    one as diffusers or PEFT write it. Steps are taken from the name, else from the file's header.
    Of more than `most`, as many are taken evenly, the first and the last among them.

    Raises: RequestError when there is none, or when they are of different families.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder; expected a run or a folder of LoRA files")
    told = list[str]()
    if (folder / "recipe.toml").is_file():
        found = list(_of_run(Run.open(folder), told))
    else:
        found = list(_of_folder(folder, told))
    if not found:
        why = "".join(f"\n  {line}" for line in told[:5])
        raise RequestError(
            f"{folder} holds no checkpoint that can be picked: expected a run with checkpoints, or "
            f"LoRA files (.safetensors){why}"
        )
    families = {c.family for c in found}
    if len(families) > 1:
        raise RequestError(
            f"{folder} holds adapters of {' and '.join(sorted(families))}; "
            "put those of one base into a folder of their own"
        )
    found.sort(key=lambda c: (c.order, c.name))
    taken = spread(found, max(1, most))
    if len(taken) < len(found):
        told.append(f"{len(taken)} of {len(found)} checkpoints are looked at, evenly spread")
    return taken, told


def _of_run(run: Run, told: list[str]) -> Iterator[Checkpoint]:
    seen = set[str]()
    for folder in sorted(checkpoint_folders(run.checkpoints), key=step_of):
        try:
            adapter = read(folder / ADAPTER)
        except AdapterError as error:
            told.append(f"left out: {error}")
            continue
        digest, step = adapter.digest(), step_of(folder)
        seen.add(digest)
        told_of = adapter.family, adapter.metadata, digest
        yield Checkpoint(folder.name, folder / ADAPTER, *told_of, step, float(step))
    if run.adapter_file.is_file():
        adapter = read(run.adapter_file)
        digest = adapter.digest()
        if digest not in seen:  # averaged, or chosen by the guard and let go since
            step = int(result(run)["step"])
            told_of = adapter.family, adapter.metadata, digest
            yield Checkpoint("adapter", run.adapter_file, *told_of, step, step + 0.5)


def _of_folder(folder: Path, told: list[str]) -> Iterator[Checkpoint]:
    seen = dict[str, str]()
    for file, stem in _candidates(folder):
        try:
            adapter = read(file)
        except AdapterError as error:
            told.append(f"left out: {error}")
            continue
        digest = adapter.digest()
        if digest in seen:
            told.append(f"left out: {file.name} holds what {seen[digest]} holds")
            continue
        seen[digest] = stem
        step, order = place_of(stem, adapter.metadata)
        yield Checkpoint(stem, file, adapter.family, adapter.metadata, digest, step, order)


def _candidates(folder: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and entry.suffix == ".safetensors":
            yield entry, entry.stem
        elif entry.is_dir():
            inside = (
                entry / DIFFUSERS_WEIGHTS,
                entry / PEFT_WEIGHTS,
                entry / "unet" / PEFT_WEIGHTS,
            )
            if any(file.is_file() for file in inside):
                yield entry, entry.name


def place_of(name: str, metadata: dict[str, str]) -> tuple[int | None, float]:
    """The optimizer step of a checkpoint, None where nobody says, and its place in the order.

    >>> place_of("owl-step00000500", {}), place_of("owl-000004", {"ss_steps": "800"})
    ((500, 500.0), (800, 800.0))
    >>> place_of("owl-000004", {}), place_of("owl", {})
    ((None, 4.0), (None, inf))
    """
    if said := _STEP.search(name):
        return int(said[1]), float(said[1])
    number = _NUMBER.search(name)
    if number and len(number[1]) == _AI_TOOLKIT:
        return int(number[1]), float(number[1])
    noted = metadata.get("ss_steps", "")
    if noted.isascii() and noted.isdigit() and len(noted) < 13:
        return int(noted), float(noted)
    return None, float(number[1]) if number else math.inf
