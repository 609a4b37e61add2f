"""The verb that opens the studio."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from variegate.cli.words import verb
from variegate.console import Door


@verb
def studio(
    door: Door,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any that is free.")] = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open it in the browser, too.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(help="Where pictures, runs and the queue lie.", metavar="FOLDER"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="An address that others can reach; only with a password.", metavar="HOST"
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="VARIEGATE_PASSWORD", help="What others have to know. At least 8 letters."
        ),
    ] = None,
) -> None:
    """The window in a browser: from a folder of pictures to an adapter, in plain English."""
    from variegate import cli
    from variegate import studio as room

    own = home or Path(os.environ.get("VARIEGATE_STUDIO") or Path.home() / "variegate")
    own = own.expanduser().resolve()

    def announce(address: str) -> None:
        line = json.dumps({"address": address, "home": str(own)}) if door.as_json else address
        door.as_json = False  # this is the one answer
        print(line, file=sys.__stdout__, flush=True)

    names = [v.__name__ for v in cli.VERBS]
    room.serve(
        own,
        verbs=names,
        port=port,
        open_browser=open_browser,
        listen=listen,
        password=password,
        watched=[Path("runs")],
        announce=announce,
    )
