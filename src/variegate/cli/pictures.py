"""The verbs for a folder of pictures, before anything is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from variegate import answers
from variegate.cli.words import ClassNoun, Images, ImagesOrTars, Trigger, verb
from variegate.console import Door
from variegate.errors import RequestError


@verb
def audit(
    door: Door,
    images: ImagesOrTars,
    encoder: Annotated[
        str | None, typer.Option(help="'pocket', a hub name, a folder, or sscd=FILE.")
    ] = None,
    trigger: Trigger = None,
    resolution: Annotated[
        int, typer.Option(min=16, help="Pixels that the base is trained at.")
    ] = 512,
) -> None:
    """Can these pictures end well? Faults, duplicates, how many truly differ, captions."""
    from variegate.audit import audit as look
    from variegate.encoders import load

    report = look(
        images,
        encoder=load(encoder) if encoder else None,
        trigger=trigger,
        resolution=resolution,
        say=lambda stage: door.say(stage, 0, 0),
    ).to_json()
    door.answer(report, answers.audit_text(report))


@verb
def caption(
    door: Door,
    images: Images,
    model: Annotated[
        Path,
        typer.Option(help="A captioning model's folder: BLIP, GIT, Florence-2.", metavar="FOLDER"),
    ],
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write them beside the pictures, as .txt.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --write: over captions that are there.")
    ] = False,
) -> None:
    """Propose captions: a model of yours says what is seen, the trigger is woven in."""
    if force and not write:
        raise RequestError("--force writes over captions that are there: say --write too")
    from variegate import caption as room
    from variegate.images import ImageSet

    pictures = ImageSet.read(images)
    if write:
        room.check_writable(pictures)
    found = room.propose(
        pictures,
        room.load_captioner(model),
        trigger=trigger or "",
        class_noun=class_noun or "",
        say=door.say,
    )
    document = (room.write(found, force=force) if write else found).to_json()
    door.answer(document, answers.captions_text(document))
