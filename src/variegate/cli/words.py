"""The words that verbs share, and what makes a function a verb."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from variegate.console import Door
from variegate.errors import RequestError

# The same four options on every verb; `verb` adds them.
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault, and the log.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Where all randomness starts.")]

Images = Annotated[
    Path, typer.Argument(metavar="IMAGES", help="Folder of pictures, captions beside them.")
]
ImagesOrTars = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES", help="Folder of pictures, or tars of them: 'set-{000..009}.tar'."
    ),
]
MaybeImages = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGES",
        help="Folder of pictures to learn, or tars of them: 'set-{000..009}.tar', s3://...",
    ),
]
Base = Annotated[
    str | None, typer.Option(help="'pocket', a diffusers folder, or a hub name.", metavar="BASE")
]
T5Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--t5-tokenizer",
        help="For Stable Diffusion 3: a folder, tokenizer.json or spiece.model.",
    ),
]
Trigger = Annotated[str | None, typer.Option(help="The word that calls the subject.")]
ClassNoun = Annotated[
    str | None, typer.Option("--class", help="What the subject is to the base: dog, toy, person.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A shipped recipe's name or a TOML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A recipe entry: optimizer.steps=600, strategies.flip=off.",
        metavar="KEY=VALUE",
    ),
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="'pocket', a hub name, a folder, sscd=FILE, or inception=FILE#SHA256. Repeatable.",
    ),
]
TrainImages = Annotated[
    Path | None, typer.Option("--train-images", help="What the adapter learnt from, for copying.")
]
FailOn = Annotated[list[str] | None, typer.Option(help="Exit 3 when the verdict has this label.")]
Vram = Annotated[
    float | None,
    typer.Option("--vram", help="GiB to fit into; how is then chosen, and told.", metavar="GIB"),
]
SinkNames = Annotated[
    list[str] | None,
    typer.Option("--sink", help="Tell tensorboard, wandb or trackio too. Repeatable."),
]
Workers = Annotated[
    int,
    typer.Option("--workers", "--jobs", min=1, help="So many side by side, sharing the cores."),
]
On = Annotated[
    str,
    typer.Option(help="'ray' or ray://HOST:PORT: spread the work over a Ray cluster."),
]
Preset = Literal["quick", "standard", "thorough"]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """A command of its words and the four common ones, run inside a `Door`, which it is given."""
    hints = get_type_hints(function, include_extras=True)
    own = signature(function).parameters
    words = {name: p.replace(annotation=hints[name]) for name, p in own.items() if name != "door"}
    for name, kind, default in (
        ("json", Json, False),
        ("quiet", Quiet, False),
        ("seed", Seed, None),
        ("debug", Debug, False),
    ):
        where = Parameter.POSITIONAL_OR_KEYWORD
        words[name] = Parameter(name, where, default=default, annotation=kind)

    @wraps(function)
    def command(**given: Any) -> None:
        as_json, quiet, debug = (given.pop(name) for name in ("json", "quiet", "debug"))
        if "seed" not in own:
            del given["seed"]
        with Door(as_json=as_json, quiet=quiet, debug=debug) as door:
            function(door, **given)

    command.__signature__ = Signature(list(words.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in words.items()}
    return command


def place_of(out: Path) -> Path:
    """A folder to write to, made before the work is begun that fills it.

    Raises: RequestError when it cannot be.
    """
    place = out.expanduser().resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"--out {out}: {error.strerror}; name a folder that can be written, or a new one"
        ) from error
    if not os.access(place, os.W_OK):
        raise RequestError(f"--out {out}: not writable; change its permissions, or name another")
    return place
