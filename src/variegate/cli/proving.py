"""The verb that proves: which strategy prevents collapse, on ailments whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from variegate.cli.words import verb
from variegate.console import Door


@verb
def bench(
    door: Door,
    suite: Annotated[
        Literal["quick", "full"], typer.Option(help="A taste, or the whole table.")
    ] = "quick",
    strategies: Annotated[
        str | None, typer.Option(help="Names or groups of them, separated by commas.")
    ] = None,
    ailments: Annotated[str | None, typer.Option(help="Names, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each pair.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no run after these; go on another time.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, sharing the cores.")] = 1,
    on: Annotated[str, typer.Option(help="'ray': spread the runs over a Ray cluster.")] = "",
    out: Annotated[Path, typer.Option(help="Where the table and its page are written.")] = Path(
        "bench"
    ),
    show: Annotated[bool, typer.Option("--show", help="The published table; run nothing.")] = False,
) -> None:
    """Ailments x strategies x seeds on the pocket, read by a judge that knows the truth."""
    from variegate.bench import scoreboard
    from variegate.bench import suite as room
    from variegate.report import write_scoreboard

    if show:
        found = scoreboard.summary(room.published())
        door.answer(found, scoreboard.as_text(found))
        return
    asked = room.cells(
        suite, strategies=_listed(strategies), ailments=_listed(ailments), seeds=seeds
    )
    rows = room.run_suite(asked, minutes=minutes, jobs=jobs, on=on, say=door.say)
    found = {**scoreboard.summary(rows), "asked": len(asked)}
    out.mkdir(parents=True, exist_ok=True)
    room.write_table(rows, out / "rows.parquet")
    page = write_scoreboard(
        found,
        command=room.command_of(suite, strategies, ailments, seeds),
        sheets=room.sheets(rows),
        out=out / "index.html",
    ).resolve()
    left = len(asked) - len(rows)
    more = f"\n{left} of {len(asked)} runs are left; the same command goes on" if left else ""
    text = f"{scoreboard.as_text(found)}\n\n{page}{more}"
    door.answer({**found, "page": str(page)}, text)


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]
