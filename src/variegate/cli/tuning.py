"""The verb that searches: which settings keep variety, and at what likeness."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from variegate import answers
from variegate.cli.making import read_asked
from variegate.cli.words import (
    Base,
    ClassNoun,
    Encoders,
    On,
    RecipeName,
    Seed,
    Settings,
    T5Tokenizer,
    Trigger,
    Workers,
    verb,
)
from variegate.console import Door
from variegate.errors import RequestError

if TYPE_CHECKING:
    from variegate.recipe import Recipe


@verb
def tune(
    door: Door,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES|RECIPE", help="Pictures to learn, or a recipe that names them."
        ),
    ],
    base: Base = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            help="adapter.rank=2,4,8; optimizer.lr=1e-5..5e-4:log; strategies.stay_near=on,off. "
            "Repeatable.",
            metavar="KEY=VALUES",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Ranges to start from: subject, style, sdxl, pocket.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Settings to try, in all.")] = 24,
    scouts: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of these, how many are given up while they train if their probes fall behind. "
            "A third, if not given.",
        ),
    ] = None,
    replicates: Annotated[int, typer.Option(min=1, help="Training seeds of each setting.")] = 2,
    look: Annotated[
        Literal["quick", "standard", "thorough"],
        typer.Option(help="How many pictures a trial is measured by."),
    ] = "quick",
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="What a trial must keep to: class_retention=0.9, copy_rate=0.01. Repeatable.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the search.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="A database that processes share: postgresql://USER@HOST/DATABASE. A file in the "
            "folder, if not given."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no trial after these; go on another time.")
    ] = None,
    jobs: Workers = 1,
    on: On = "",
    patience: Annotated[
        float,
        typer.Option(min=2, help="Seconds after which a silent process's trial is tried anew."),
    ] = 60.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="What each knob does to collapse; try nothing.")
    ] = False,
    recipe: RecipeName = None,
    settings: Settings = None,
    encoder: Encoders = None,
    t5_tokenizer: T5Tokenizer = None,
    seed: Seed = None,
) -> None:
    """Find rank, rate and strengths by trying: the front of likeness and variety, what to take."""
    from variegate.tune.ranges import read_space, with_preset

    asked = _recipe(
        subject, base, trigger, class_noun, recipe, settings, seed, t5_tokenizer, explain=explain
    )
    space = read_space(with_preset(preset, ranges or ()), asked)
    if explain:
        from variegate.tune.explain import explain as told
        from variegate.tune.explain import explain_text

        lines = told(space, asked)
        notes = space.notes(asked)
        text = "\n\n".join([explain_text(lines), *notes])
        door.answer({"knobs": lines, "notes": notes}, text)
        return
    from variegate.tune.search import Search, default_limits, search

    if not asked.trigger or not asked.class_noun:
        raise RequestError(
            "a search needs to know what to ask for: give --trigger WORD (a rare word that will "
            "call the subject) and --class NOUN (what it is: dog, toy, person)"
        )
    wanted = Search(
        asked,
        space,
        trials=trials,
        scouts=min(trials, trials // 3 if scouts is None else scouts),
        replicates=replicates,
        look=look,
        encoders=tuple(encoder or ()),
        limits=default_limits(_limits(limit or ())),
    )
    folder = out or Path("runs") / f"tuned-{Path(asked.images).name}"
    document = search(
        wanted,
        out=folder.resolve(),
        storage=storage,
        minutes=minutes,
        jobs=jobs,
        on=on,
        patience=patience,
        command=_command(storage),
        say=door.say,
        tell=door.tell,
    )
    door.answer(document, answers.tuning_text(document))


def _recipe(
    subject: str,
    base: str | None,
    trigger: str | None,
    class_noun: str | None,
    recipe: str | None,
    settings: list[str] | None,
    seed: int | None,
    t5_tokenizer: Path | None,
    *,
    explain: bool,
) -> Recipe:
    """The recipe that is varied: of a folder of pictures, or of a file that names one.

    explain: then pictures are not needed, and a shipped recipe will do.
    """
    folder = Path(subject)
    if folder.is_dir():
        return read_asked(
            folder, base, trigger, class_noun, recipe, settings, seed, t5_tokenizer=t5_tokenizer
        )
    if recipe is not None:
        raise RequestError(
            f"{subject} is no folder of pictures, and with --recipe it must be one; give the "
            "folder, or the recipe alone in its place"
        )
    return read_asked(
        None,
        base,
        trigger,
        class_noun,
        subject,
        settings,
        seed,
        t5_tokenizer=t5_tokenizer,
        pictures=not explain,
    )


def _limits(texts: list[str] | tuple[str, ...]) -> dict[str, float]:
    """Raises: RequestError with every limit that is not of the form NAME=VALUE."""
    found, faults = dict[str, float](), list[str]()
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            faults.append(f"--limit {text!r} is not of the form NAME=VALUE, as copy_rate=0.01")
    if faults:
        raise RequestError("\n".join(faults))
    return found


def _command(storage: str | None) -> str:
    """The command line as it was given, less a password."""
    from variegate.tune.book import hidden

    words = ["variegate", *sys.argv[1:]] if sys.argv[1:2] == ["tune"] else []
    return shlex.join(hidden(word) if storage and storage in word else word for word in words)
