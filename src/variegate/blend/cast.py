"""The file that describes an ensemble: who its members are, their weights, and its way.

    way = "member"                      # or "switch", "average"

    [[member]]
    file = "first.safetensors"          # beside this file, or an absolute path
    weight = 2.0                        # 1 where nothing is said

A folder that holds an `ensemble.toml` may be named in the file's place. Wherever an adapter is
given, `open_learnt` reads either.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from variegate.adapter import Adapter, Ensemble, Way
from variegate.blend.notes import shared_notes
from variegate.errors import AdapterError, NoSpace
from variegate.formats import read, reading_of
from variegate.run import write_atomically

NAME = "ensemble.toml"
MOST_BYTES = 1 << 20


class _Member(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    file: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class _Cast(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    way: Way = "member"
    member: Annotated[tuple[_Member, ...], Field(min_length=1)]


def open_learnt(path: Path | str) -> Adapter | Ensemble:
    """What a path names: an adapter's file or folder, or an ensemble of such.

    Raises: AdapterError when there is neither, or it is damaged.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if file.suffix == ".toml" and file.is_file():
        return read_ensemble(file)
    return read(path)


def read_ensemble(file: Path) -> Ensemble:
    """The ensemble that a file describes, its members read.

    Raises: AdapterError for all that is wrong with the file at once, or with a member.
    """
    if file.stat().st_size > MOST_BYTES:
        raise AdapterError(f"{file} has {file.stat().st_size} bytes; no ensemble's file is so long")
    try:
        told = _Cast.model_validate(tomllib.loads(file.read_text(encoding="utf8")))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} describes no ensemble:\n{_faults(error)}") from error
    places = [file.parent / Path(member.file).expanduser() for member in told.member]
    members = [_read_member(place, file) for place in places]
    readings = [reading_of(member.metadata) for member in members]
    for name, found in (
        ("clip_skip", {r["clip_skip"] for r in readings}),
        ("zero_terminal_snr", {r["zero_terminal_snr"] for r in readings}),
    ):
        if len(found) > 1:
            raise AdapterError(
                f"{file}: its members were trained at {name} {sorted(found)}; one base is read in "
                "one way; take members of one"
            )
    weights = tuple(member.weight for member in told.member)
    return Ensemble(tuple(members), weights, told.way, shared_notes(members))


def write_ensemble(file: Path, members: Sequence[Path], weights: Sequence[float], way: Way) -> Path:
    """Describe an ensemble of adapter files, named relative to `file` where they lie below it.

    Raises: AdapterError when they make no ensemble, NoSpace when the file cannot be written.
    """
    file = file / NAME if file.is_dir() else file
    if file.suffix != ".toml":
        raise AdapterError(f"{file}: an ensemble is described in a .toml file; name one")
    Ensemble(tuple(read(member) for member in members), tuple(weights), way)
    document = tomlkit.document()
    document["way"] = way
    tables = tomlkit.aot()
    for member, weight in zip(members, weights, strict=True):
        table = tomlkit.table()
        table["file"] = _named(member, file.parent)
        table["weight"] = float(weight)
        tables.append(table)
    document["member"] = tables
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, tomlkit.dumps(document).encode())
    except OSError as error:
        raise NoSpace(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def _read_member(place: Path, file: Path) -> Adapter:
    if place.suffix == ".toml" or (place / NAME).is_file():
        raise AdapterError(f"{file}: its member {place} is an ensemble itself; name its members")
    return read(place)


def _named(member: Path, home: Path) -> str:
    member, home = member.resolve(), home.resolve()
    near = member.is_relative_to(home)
    return os.path.relpath(member, home) if near else str(member)


def _faults(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"  {error}"
    faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return "\n".join([*faults, '  expected way = "member" and a [[member]] with its file for each'])
