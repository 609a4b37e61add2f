"""Features as files: computed here and read elsewhere, or the other way round.

`.npy` holds the rows `[n, d]`, and a `.txt` of the same name beside it one prompt per line.
`.parquet` holds both: a column `features` of lists and a column `prompt`; it wants pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import FeaturesError, NoSpace

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows `[n, d]`, those of `.npy` mapped from disk, and one prompt per row if they are known."""

    rows: np.ndarray
    prompts: tuple[str, ...] | None


def read_features(file: Path) -> Table:
    """Raises: FeaturesError when there is no such file, or it is no table of numbers."""
    if file.suffix == ".npy":
        return _read_npy(file)
    if file.suffix == ".parquet":
        return _read_parquet(file)
    raise FeaturesError(f"features in {file} are of no known kind; expected .npy or .parquet")


def write_features(
    file: Path, features: ArrayLike | Tensor, prompts: Sequence[str] | None = None
) -> None:
    """Write rows, and prompts where there are some, in the form that the file's name asks for.

    Raises: FeaturesError for another form or prompts that do not fit, NoSpace.
    """
    rows = np.asarray(features, np.float32)
    told = None if prompts is None else [" ".join(p.split()) for p in prompts]
    if told is not None and len(told) != len(rows):
        raise FeaturesError(f"{len(told)} prompts for {len(rows)} rows; expected one per row")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, rows, allow_pickle=False)
            beside = file.with_suffix(".txt")
            if told is None:
                beside.unlink(missing_ok=True)
            else:
                beside.write_text("".join(f"{prompt}\n" for prompt in told), encoding="utf8")
            return
        if file.suffix == ".parquet":
            arrow = _pyarrow()
            columns = {"features": list(rows)} | ({} if told is None else {"prompt": told})
            arrow.parquet.write_table(arrow.table(columns), file)
            return
    except OSError as error:
        raise NoSpace(f"{file} cannot be written: {error.strerror or error}") from error
    raise FeaturesError(f"features cannot be written to {file}; expected .npy or .parquet")


def _read_npy(file: Path) -> Table:
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FeaturesError(f"no features at {file}") from error
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesError(
            f"{file} is no table of numbers ({_first_line(error)}); write it with numpy.save from"
            " a float array of one row per picture"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "fiub":
        raise FeaturesError(
            f"{file} is no table of numbers; expected a float array of one row per picture"
        )
    beside = file.with_suffix(".txt")
    if not beside.exists():
        return Table(rows, None)
    try:
        lines = beside.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FeaturesError(f"the prompts in {beside} cannot be read: {error}") from error
    if len(lines) != len(rows):
        raise FeaturesError(
            f"{beside} has {len(lines)} lines and {file.name} {len(rows)} rows; expected the prompt"
            " of each row on a line of its own"
        )
    return Table(rows, tuple(lines))


def _read_parquet(file: Path) -> Table:
    arrow = _pyarrow()
    try:
        table = arrow.parquet.read_table(file)
    except FileNotFoundError as error:
        raise FeaturesError(f"no features at {file}") from error
    except (OSError, arrow.ArrowException) as error:
        raise FeaturesError(f"{file} is no Parquet to be read: {_first_line(error)}") from error
    if "features" not in table.column_names:
        named = ", ".join(table.column_names)
        raise FeaturesError(f"{file} has no column `features`; it has {named or 'no column'}")
    listed = table["features"].to_pylist()
    try:
        widths = {len(row) for row in listed}
        rows = np.asarray(listed, np.float32) if len(widths) == 1 else np.zeros((0, 0))
    except (TypeError, ValueError) as error:
        raise FeaturesError(
            f"{file}: `features` holds what is no list of numbers; expected one list per picture"
        ) from error
    if len(widths) != 1:
        raise FeaturesError(f"{file}: the rows of `features` differ in length")
    if "prompt" not in table.column_names:
        return Table(rows, None)
    return Table(rows, tuple(str(p or "") for p in table["prompt"].to_pylist()))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FeaturesError(
            "Parquet wants pyarrow, which is not installed: pip install pyarrow, or use .npy"
        ) from error
    return pyarrow


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
