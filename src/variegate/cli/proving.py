"""The verb that proves: which strategy prevents collapse, on ailments made on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from variegate.cli.words import (
    Base,
    ClassNoun,
    Encoders,
    On,
    Settings,
    Trigger,
    Workers,
    place_of,
    verb,
)
from variegate.console import Door
from variegate.errors import RequestError

if TYPE_CHECKING:
    from variegate.bench.testbed import Testbed


@verb
def bench(
    door: Door,
    base: Base = None,
    images: Annotated[
        Path | None, typer.Option(help="With --base: pictures of yours, to make the ailments of.")
    ] = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    encoder: Encoders = None,
    settings: Settings = None,
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
    jobs: Workers = 1,
    on: On = "",
    out: Annotated[Path, typer.Option(help="Where the table and its page are written.")] = Path(
        "bench"
    ),
    show: Annotated[bool, typer.Option("--show", help="The published table; run nothing.")] = False,
) -> None:
    """Ailments x strategies x seeds: on the pocket, read by a judge that knows the truth; or on a
    base and pictures of yours (--base, --images), measured."""
    from variegate.bench import scoreboard
    from variegate.bench import suite as room
    from variegate.report import write_scoreboard

    if show and base not in (None, "pocket"):
        raise RequestError("--show is the published table, of the pocket; leave --base out")
    if show:
        found = scoreboard.summary(room.published())
        door.answer(found, scoreboard.as_text(found))
        return
    out = place_of(out)
    bed = _bed(base, images, trigger, class_noun, encoder or (), settings or ())
    asked = room.cells(
        suite, strategies=_listed(strategies), ailments=_listed(ailments), seeds=seeds, bed=bed
    )
    left_out = {} if ailments else dict(bed.left_out())
    if left_out:
        reasons = dict.fromkeys(left_out.values())
        told = [
            ", ".join(n for n in left_out if left_out[n] == why) + f": {why}" for why in reasons
        ]
        door.tell(f"Left out: {'; '.join(told)}.")
    rows = room.run_suite(asked, minutes=minutes, jobs=jobs, on=on, say=door.say, tell=door.tell)
    found = {
        **scoreboard.summary(rows, by=bed.yardstick),
        "asked": len(asked),
        "base": base or "pocket",
        "left_out": left_out,
    }
    room.write_table(rows, out / "rows.parquet")
    page = write_scoreboard(
        found,
        command=room.command_of(suite, strategies, ailments, seeds, bed=bed),
        sheets=room.sheets(rows, bed=bed),
        out=out / "index.html",
    ).resolve()
    left = len(asked) - len(rows)
    more = f"\n{left} of {len(asked)} runs are left; the same command goes on" if left else ""
    text = f"{scoreboard.as_text(found)}\n\n{page}{more}"
    door.answer({**found, "page": str(page)}, text)


def _bed(
    base: str | None,
    images: Path | None,
    trigger: str | None,
    class_noun: str | None,
    encoders: Sequence[str],
    settings: Sequence[str],
) -> Testbed:
    """The pocket, or a base and pictures of the user's.

    Raises: RequestError for words that do not go together, and as `Own.open`.
    """
    from variegate.bench.own import Own
    from variegate.bench.testbed import POCKET

    if base is None or base == "pocket":
        if images:
            raise RequestError(
                f"--images {images} wants --base BASE: a diffusers folder, a .safetensors "
                "checkpoint or a hub name; the pocket's benchmark draws pictures of its own, so "
                "there leave --images out"
            )
        if trigger or class_noun or encoders or settings:
            raise RequestError(
                "--trigger, --class, --encoder and --set go with --base BASE and --images FOLDER; "
                "the pocket's benchmark has its own"
            )
        return POCKET
    if images is None:
        raise RequestError(
            f"--base {base} wants --images FOLDER, pictures of yours that the ailments are made "
            "of; without --base the benchmark is the pocket's"
        )
    if not (trigger and trigger.strip() and class_noun and class_noun.strip()):
        raise RequestError(
            "the benchmark needs to know what to ask for: give --trigger WORD (a rare word that "
            "will call the subject) and --class NOUN (what it is: dog, toy, person)"
        )
    return Own.open(
        base,
        images,
        trigger=trigger,
        class_noun=class_noun,
        encoders=encoders,
        settings=settings,
    )


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]
