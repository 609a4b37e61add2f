"""One command per verb. Each reads its words, calls one function, and answers through a `Door`.

Rooms are imported inside the verbs: `variegate --help` must not wait for PyTorch.
"""

from __future__ import annotations

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
    app()
