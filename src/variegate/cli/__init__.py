"""One command per verb. Each reads its words, calls one function, and answers through a `Door`.

Rooms are imported inside the verbs: `variegate --help` must not wait for PyTorch.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Annotated

import typer

from variegate.cli import (
    blending,
    choosing,
    files,
    judging,
    making,
    opening,
    pictures,
    proving,
    tuning,
)

VERBS = (
    *(pictures.audit, pictures.caption),
    *(making.train, making.sample),
    *(judging.measure, judging.verdict),
    *(making.trial, making.demo),
    judging.report,
    *(choosing.pick, tuning.tune),
    proving.bench,
    *(blending.blend, blending.repair),
    *(blending.extract, blending.resize, blending.scale, blending.merge),
    opening.studio,
    *(files.strategies, files.inspect, files.convert, files.share),
    *(files.recipe, files.cache, files.doctor),
)

app = typer.Typer(
    name="variegate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Stable Diffusion with LoRA without losing variety, and measure what any "
    "adapter lost.",
)


def _version(asked: bool | None) -> None:
    if asked:
        from variegate import __version__

        typer.echo(f"variegate {__version__}")
        raise typer.Exit


@app.callback()
def variegate(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    pass


for _verb in VERBS:
    app.command()(_verb)


def main() -> None:
    """The `variegate` command."""
    try:
        app()
    except SystemExit as end:
        if "RANK" in os.environ and "torch" in sys.modules:
            _leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _leave(code: int) -> None:
    """End one of several processes without taking the interpreter down.

    Caches of DTensor hold a process group that was destroyed, so its threads live on; one that
    lets go of its last tensor while the interpreter is taken down aborts a process whose work is
    done (pytorch/pytorch#179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
