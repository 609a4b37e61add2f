"""What there is to share: an adapter, its verdict, some of its pictures, its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variegate.adapter import Adapter
from variegate.errors import RequestError, RunError
from variegate.formats import own_notes, read, trigger_of
from variegate.formats.metadata import recommended_of
from variegate.measurement import Verdict
from variegate.recipe import Recipe
from variegate.report.pictures import spread
from variegate.report.record import inside
from variegate.run import Run

PICKED = "picked"  # the folder of a run that `pick` writes
PICK = "pick.json"
PICTURES = 6
FEWEST, MOST_BYTES = 4, 64 * 2**20


@dataclass(frozen=True)
class Drawn:
    """A sample picture and what was asked."""

    file: Path
    prompt: str
    seed: int | None


@dataclass(frozen=True)
class Source:
    """What is shared. recipe: None for adapters of others. reason: why this point was picked, or
    "". strength, guidance_scale: as recommended; None where nobody said."""

    adapter: Adapter
    verdict: Verdict | None
    pictures: tuple[Drawn, ...]
    recipe: Recipe | None
    base: str
    trigger: str
    class_noun: str
    reason: str = ""
    strength: float | None = None
    guidance_scale: float | None = None
    warnings: tuple[str, ...] = ()


def source_of(folder: Path) -> Source:
    """A run (what `pick` chose of it, where it did), or a folder that `pick` wrote.

    Raises: RequestError when it is neither, or holds no adapter.
    """
    folder = Path(folder)
    if (folder / PICK).is_file():
        return _of_pick(folder, None)
    if not (folder / "recipe.toml").is_file():
        found = (
            "no such folder" if not folder.is_dir() else f"it holds no recipe.toml and no {PICK}"
        )
        raise RequestError(f"{folder} cannot be shared: {found}; name a run, or what pick wrote")
    run = Run.open(folder)
    if (folder / PICKED / PICK).is_file():
        return _of_pick(folder / PICKED, run)
    return _of_run(run)


def _of_run(run: Run) -> Source:
    if not run.adapter_file.is_file():
        raise RunError(
            f"{run.folder} has no adapter yet; go on with `variegate train --resume {run.folder}`"
        )
    adapter, recipe, warned = read(run.adapter_file), run.recipe, list[str]()
    verdict = _verdict(run.verdict_file, warned)
    advised = recommended_of(adapter.metadata)
    return Source(
        adapter=adapter,
        verdict=verdict,
        pictures=_pictures(run.samples / "adapter", warned),
        recipe=recipe,
        base=recipe.base,
        trigger=recipe.trigger or trigger_of(adapter.metadata),
        class_noun=recipe.class_noun,
        warnings=tuple(warned),
        strength=advised.get("strength"),
        guidance_scale=advised.get("guidance_scale"),
    )


def _of_pick(folder: Path, run: Run | None) -> Source:
    told, warned = _table(folder / PICK), list[str]()
    files = told.get("files")
    name = Path(str(files.get("a1111", ""))).name if isinstance(files, dict) else ""
    file = folder / name  # the folder may have been moved since
    if not name or not file.is_file():
        raise RequestError(f"{folder / PICK} names no adapter that lies beside it; pick once more")
    adapter = read(file)
    notes = own_notes(adapter.metadata)
    advised = recommended_of(adapter.metadata)
    recipe = run.recipe if run else _recipe_beside(folder)
    try:
        verdict = Verdict.from_json(told["verdict"])
    except (KeyError, TypeError, ValueError, AttributeError):
        verdict = None
        warned.append(f"{folder / PICK} holds no verdict, so the card has no figures")
    return Source(
        adapter=adapter,
        verdict=verdict,
        pictures=_pictures(folder / "pictures", warned),
        recipe=recipe,
        base=str(told.get("base") or (recipe.base if recipe else "")),
        trigger=trigger_of(adapter.metadata),
        class_noun=str(notes.get("class", "")),
        reason=str(told.get("reason", "")),
        warnings=tuple(warned),
        strength=advised.get("strength"),
        guidance_scale=advised.get("guidance_scale"),
    )


def _recipe_beside(folder: Path) -> Recipe | None:
    """Of the run that a picked folder lies in."""
    if not (folder.parent / "recipe.toml").is_file():
        return None
    return Run.open(folder.parent).recipe


def _table(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise RequestError(f"{file} is larger than {MOST_BYTES >> 20} MB; it was not read")
        found = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{file} holds {type(found).__name__}; expected a table")
    return found


def _verdict(file: Path, warned: list[str]) -> Verdict | None:
    if not file.is_file():
        warned.append(
            "the run was never judged, so the card has no figures: `variegate trial` or `variegate "
            "pick` judges it"
        )
        return None
    try:
        return Verdict.from_json(dict(_table(file)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        warned.append(f"{file.name} holds no verdict ({error!r}), so the card has no figures")
        return None


def _pictures(folder: Path, warned: list[str]) -> tuple[Drawn, ...]:
    """Some of the pictures under the trigger, of different prompts, else of any."""
    lines = list[dict[str, Any]]()
    if (folder / "metadata.jsonl").is_file():
        for text in (folder / "metadata.jsonl").read_text(encoding="utf8").splitlines():
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                lines.append(found)
    lines = [line for line in lines if line.get("group") == "trigger"] or lines
    by_prompt: dict[str, dict[str, Any]] = {}
    for line in lines:
        by_prompt.setdefault(str(line.get("prompt", "")), line)
    some = list(by_prompt.values()) if len(by_prompt) >= FEWEST else lines
    home, kept = folder.resolve(), list[Drawn]()
    for line in spread(some, PICTURES):
        file = inside(home, str(line.get("file_name", "")))
        if file is not None and file.is_file():
            seed = line.get("seed")
            kept.append(
                Drawn(file, str(line.get("prompt", "")), seed if isinstance(seed, int) else None)
            )
    if not kept:
        warned.append("there are no pictures of it to show: `variegate trial` or `pick` draws some")
    return tuple(kept)
