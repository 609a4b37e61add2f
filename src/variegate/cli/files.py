"""The verbs that tell: the menu, adapter files, what is shared, recipes, the cache, the
installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from variegate import answers
from variegate.cli.words import Seed, Settings, verb
from variegate.console import Door
from variegate.errors import RequestError


@verb
def strategies(door: Door) -> None:
    """Everything that prevents collapse here: where it acts, what it costs, what it did."""
    from variegate import catalogue

    menu = catalogue.strategies()
    door.answer(menu, answers.strategies_text(menu))


@verb
def inspect(
    door: Door,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file (safetensors).")],
) -> None:
    """What is in a LoRA file: family, format, kind, ranks, norms, spectra, hashes, metadata."""
    from variegate import formats

    facts = formats.inspect(file)
    door.answer(facts, answers.adapter_text(facts))


@verb
def convert(
    door: Door,
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file (safetensors).")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    to: Annotated[Literal["kohya", "diffusers", "peft"], typer.Option(help="Key names to use.")],
    dense: Annotated[
        bool, typer.Option("--dense", help="Kinds that are no LoRA as whole differences: exact.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Kinds that are no LoRA as the nearest of this rank.")
    ] = None,
    sidecar: Annotated[
        bool, typer.Option("--sidecar", help="Write the JSON that A1111 reads beside the file.")
    ] = False,
    preview: Annotated[
        Path | None, typer.Option(help="With --sidecar: a picture for A1111's card.")
    ] = None,
) -> None:
    """Rewrite a LoRA file with other key names; the update stays the same."""
    if preview is not None and not sidecar:
        raise RequestError("--preview goes with --sidecar: A1111 shows it beside the JSON")
    from variegate import formats

    written, kept = formats.convert(source, target, to, dense=dense, rank=rank)
    beside = formats.write_sidecar(written, preview=preview) if sidecar else []
    facts: dict[str, Any] = {**formats.inspect(written), "kept": None}
    told = f"{written.resolve()}: {facts['layers']} layers in {to} form"
    if kept is not None and kept.layers:
        facts["kept"] = {"least": kept.least, "mean": kept.mean, "layers": kept.layers}
        told += f"; {kept.layers} cut to rank {rank}, which keeps {kept.mean:.1%} of them"
    facts["sidecar"] = [str(path.resolve()) for path in beside]
    door.answer(facts, told)


@verb
def share(
    door: Door,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or what `pick` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; `share` in the run without it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the files are called.")] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The base's name on the Hub: OWNER/NAME.")
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private", help="Without prompts and captions; of --push, a private repository."
        ),
    ] = False,
    push: Annotated[str | None, typer.Option(help="Upload it to the Hub as OWNER/NAME.")] = None,
) -> None:
    """A folder ready for the Hub, Civitai and A1111: weights, card, pictures, recipe."""
    from variegate.share import share as room

    found = room(run, out=out, name=name, base_model=base_model, private=private, push=push)
    for warning in found.warnings:
        door.warn(warning)
    document = found.to_json()
    door.answer(document, answers.share_text(document))


@verb
def recipe(
    door: Door,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A shipped recipe's name or a file.")
    ] = "pocket",
    settings: Settings = None,
    preset: Annotated[
        Path | None,
        typer.Option("--from", help="Or: another trainer's preset (kohya, OneTrainer)."),
    ] = None,
    seed: Seed = None,
) -> None:
    """Print a whole recipe, every entry spelled out, to start from."""
    from variegate import recipes

    if preset is not None:
        _answer_preset(door, preset)
        return

    asked = recipes.read(name, settings=tuple(settings or ()), seed=seed)
    document = {"id": asked.id, "shipped": recipes.names(), **asked.model_dump(mode="json")}
    door.answer(document, asked.to_toml().rstrip())


@verb
def cache(
    door: Door,
    action: Annotated[
        Literal["show", "clear"], typer.Argument(help="Say what lies there, or remove it.")
    ],
    kind: Annotated[
        list[str] | None, typer.Option(help="Of this kind only, as `show` names it. Repeatable.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Only what has not changed for so many days.")
    ] = None,
) -> None:
    """What is kept so as not to be computed again, and clearing it."""
    from variegate.images import cache as room

    if action == "show" and (kind or older_than is not None):
        raise RequestError("--kind and --older-than say what to clear; `cache show` shows all")
    if action == "show":
        kept, head = room.contents(), f"{room.cache_dir()} holds"
    else:
        kept = room.clear(tuple(kind or ()), older_than_days=older_than or 0.0)
        head = f"cleared from {room.cache_dir()}"
    kinds = [{"kind": k.kind, "what": k.what, "files": k.files, "bytes": k.bytes} for k in kept]
    lines = [f"  {k.kind:9} {k.bytes / 2**20:9.1f} MiB in {k.files} files: {k.what}" for k in kept]
    document = {"folder": str(room.cache_dir()), "action": action, "kinds": kinds}
    door.answer(document, "\n".join([head, *lines]))


@verb
def doctor(door: Door) -> None:
    """What is installed, which device will be used, what is missing and the line that mends it."""
    from variegate import doctor as room

    findings = room.examine()
    door.answer(findings, room.as_text(findings), exit_code=0 if findings["fit"] else 1)


def _answer_preset(door: Door, file: Path) -> None:
    from variegate.imports import read_preset

    found = read_preset(file)
    document = {
        "from": found.kind,
        "recipe": found.tables,
        "taken_over": found.taken,
        "changed": found.changed,
        "left_out": found.left_out,
    }
    door.answer(document, found.to_toml().rstrip())
