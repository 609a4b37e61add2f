"""A step's rows in parts that the memory can hold: the same gradient, one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from variegate.errors import NoMemory
from variegate.train.strategies import Rows

Work = TypeVar("Work")


def cut(
    rows: Mapping[str, int],
    size: int | None,
    share: tuple[int, int] = (0, 1),
    *,
    alike: bool = False,
) -> Iterator[dict[str, slice]]:
    """Which rows of each origin go together, `size` at a time; None: all of them.

    share: of all rows, only part so many of how many, evenly. alike: of each origin's rows, which
    are a multiple of how many: so all parts of a kind are of one size.

    >>> list(cut({"pictures": 2, "stay_near": 1}, 2))
    [{'pictures': slice(0, 2, None)}, {'stay_near': slice(0, 1, None)}]
    >>> list(cut({"pictures": 2, "stay_near": 2}, None, (1, 2)))
    [{'stay_near': slice(0, 2, None)}]
    >>> list(cut({"pictures": 2, "stay_near": 2}, None, (1, 2), alike=True))
    [{'pictures': slice(1, 2, None), 'stay_near': slice(1, 2, None)}]
    """
    which, of = share
    if alike:
        own = {name: count // of for name, count in rows.items()}
        for part in cut(own, size):
            yield {
                name: slice(where.start + which * own[name], where.stop + which * own[name])
                for name, where in part.items()
            }
        return
    total = sum(rows.values())
    start, end = total * which // of, total * (which + 1) // of
    for first in range(start, end, size or max(1, end - start)):
        last, begin, part = min(first + (size or total), end), 0, {}
        for name, count in rows.items():
            here = slice(max(first - begin, 0), min(last - begin, count))
            if here.start < here.stop:
                part[name] = here
            begin += count
        yield part


def piece(rows: Rows, where: slice) -> Rows:
    """Some of the rows."""
    return replace(
        rows,
        noised=rows.noised[where],
        timesteps=rows.timesteps[where],
        prompts=rows.prompts[where],
        frames=rows.frames[where],
        turns=rows.turns[where],
    )


def within_memory(
    work: Callable[[int], Work], size: int, *, tell: Callable[[str], None]
) -> tuple[Work, int]:
    """What `work(size)` gives, and the size: after running out of memory, once more at half of it.

    Raises: NoMemory when half does not fit either.
    """
    for attempt in (size, max(1, (size + 1) // 2)):
        try:
            return work(attempt), attempt
        except torch.OutOfMemoryError as error:
            # Named here and left: while it is being handled it holds on to what was computed.
            why = str(error).splitlines()[0]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if attempt == size and size > 1:
            half = (size + 1) // 2
            tell(
                f"{size} rows at once ran out of memory ({why}); from here on {half} at a time, "
                "gradients added up: the same batch, more slowly"
            )
        else:
            break
    raise NoMemory(
        f"{attempt} rows at once do not fit into memory ({why}); the last checkpoint stands: set "
        "memory.gradient_checkpointing=true, precision=bf16, a smaller resolution, or "
        "optimizer.micro_batch=1; `--vram GIB` chooses among these"
    )
