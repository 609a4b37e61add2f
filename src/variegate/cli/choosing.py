"""The verb after training: which checkpoint to use, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from variegate.answers import pick_text
from variegate.cli.words import Base, ClassNoun, Encoders, Seed, TrainImages, Trigger, verb
from variegate.console import Door
from variegate.errors import RequestError


@verb
def pick(
    door: Door,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, or a folder of LoRA files of any trainer.")
    ],
    base: Base = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    style: Annotated[
        bool,
        typer.Option("--style", help="They learnt a look, not a subject (not of the pocket)."),
    ] = False,
    train_images: TrainImages = None,
    strengths: Annotated[str, typer.Option(help="Adapter strengths to try.")] = "0.6,0.8,1",
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scales to try: the base's own and an eased one.")
    ] = None,
    checkpoints: Annotated[
        int, typer.Option(min=1, help="At most so many checkpoints, evenly spread.")
    ] = 12,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Pictures to spend in all; or use --share.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Pictures to spend, as a share of the full grid's.")
    ] = 0.25,
    margin: Annotated[
        float,
        typer.Option(help="Share of the times that the best plain one shows the subject, to lose."),
    ] = 0.03,
    votes: Annotated[
        Path | None, typer.Option(help='Blind votes: JSON lines {"a", "b", "winner"}.')
    ] = None,
    encoder: Encoders = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the export goes; `picked` in the folder without it.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Which checkpoint, strength and guidance scale to use: most variety at enough likeness."""
    if samples is not None and share != 0.25:
        raise RequestError("--samples and --share both say how many pictures; give one of them")
    from variegate.pick import pick as room

    found = room(
        run,
        base=base,
        out=out,
        trigger=trigger,
        class_noun=class_noun,
        style=style,
        train_images=train_images,
        encoders=encoder or (),
        strengths=_numbers("--strengths", strengths),
        guidance=_numbers("--guidance", guidance) if guidance else (),
        checkpoints=checkpoints,
        samples=samples,
        share=share,
        margin=margin,
        votes=votes,
        seed=seed or 0,
        say=door.say,
    )
    for warning in found.warnings:
        door.warn(warning)
    document = found.to_json()
    door.answer(document, pick_text(document))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise RequestError(
            f"{option} {text!r}; expected numbers with commas between, such as 0.6,0.8,1"
        ) from error
