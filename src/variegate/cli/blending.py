"""The verbs on finished adapters: blend, repair, extract, resize, scale, merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from variegate.answers import repair_text
from variegate.cli.words import ClassNoun, Encoders, Seed, Trigger, verb
from variegate.console import Door
from variegate.errors import RequestError

if TYPE_CHECKING:
    from variegate.adapter import Adapter
    from variegate.blend.together import Blended

Method = Literal["soup", "sum", "svd", "ties", "dare", "dare_ties", "knots"]
Out = Annotated[Path, typer.Option(help="The file to write.")]
File = Annotated[Path, typer.Argument(metavar="ADAPTER", help="A LoRA file (safetensors).")]
Rank = Annotated[int | None, typer.Option(min=1, help="At most this rank in any layer.")]
Energy = Annotated[
    float | None, typer.Option(help="Or: the smallest ranks that keep this share, such as 0.99.")
]
Base = Annotated[
    str | None,
    typer.Option(help="The base: its weights (kinds other than LoRA), and who is judged on."),
]


@verb
def blend(
    door: Door,
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="LoRA files, or runs: all their checkpoints."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write; of an ensemble, a .toml.")],
    weights: Annotated[
        str | None, typer.Option(help="One number each: 0.5,0.5. Without it 1 each.")
    ] = None,
    method: Annotated[Method, typer.Option(help="How updates become one; see docs.")] = "soup",
    rank: Rank = None,
    energy: Energy = None,
    density: Annotated[
        float | None, typer.Option(help="Share of entries kept (ties, dare, dare_ties, knots).")
    ] = None,
    ensemble: Annotated[
        Literal["member", "switch", "average"] | None,
        typer.Option(help="Do not blend: let them sample together, in this way."),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="A soup of those alone that do it good.")
    ] = False,
    by: Annotated[
        list[str] | None, typer.Option(help="What --greedy goes by: a measurement. Repeatable.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Draw, and compare the blend with every member.")
    ] = False,
    base: Base = None,
    encoder: Annotated[list[str] | None, typer.Option(help="As of `measure`.")] = None,
    train_images: Annotated[
        Path | None, typer.Option("--train-images", help="What the members learnt from.")
    ] = None,
    trigger: Annotated[str | None, typer.Option(help="The word that calls the subject.")] = None,
    class_noun: Annotated[str | None, typer.Option("--class", help="What it is to the base.")] = (
        None
    ),
    preset: Annotated[
        Literal["quick", "standard", "thorough"], typer.Option(help="How many prompts and seeds.")
    ] = "standard",
    seed: int | None = None,
) -> None:
    """Several adapters as one, by their exact updates; or as an ensemble that samples."""
    _check_blend(ensemble, greedy, by, method, rank, energy, density, weights)
    from variegate import blended as room
    from variegate.blend.cast import read_ensemble, write_ensemble
    from variegate.formats import read, write

    shares = _numbers(weights)
    files = room.members_of(adapters)
    members = [read(file) for file in files]
    told: dict[str, Any] = {"members": [str(file.resolve()) for file in files]}
    jury: room.Judge | None = None
    if greedy or judge:
        jury = room.Judge.on(
            base or "pocket",
            members,
            encoders=encoder or (),
            train_images=train_images,
            trigger=trigger,
            class_noun=class_noun,
            preset=preset,
            seed=seed or 0,
            say=door.say,
        )
    learnt: Any
    if ensemble:
        shares = [1.0] * len(files) if shares is None else shares
        written = write_ensemble(out, files, shares, ensemble).resolve()
        learnt = read_ensemble(written)
        told |= {"file": str(written), "ensemble": ensemble, "weights": list(learnt.shares)}
        text = f"{written}: {len(files)} members, {ensemble}"
    else:
        if greedy:
            assert jury is not None
            made, told["soup"] = _soup(members, told["members"], jury.score(by or room.BY), rank)
        else:
            from variegate.blend.together import blend as together

            made = together(
                members,
                shares,
                method=method,
                rank=rank,
                energy=energy,
                density=density,
                seed=seed or 0,
                base=_weights_of(base, members),
            )
        learnt = made.adapter
        written = write(learnt, out).resolve()
        told |= {"file": str(written), "method": "greedy soup" if greedy else method}
        told |= made.to_json()
        text = _size_text(written, made)
    if judge:
        assert jury is not None
        told["compared"] = room.compare(learnt, members, jury)
        for file, member in zip(files, told["compared"]["members"], strict=True):
            text += "\n" + "\n".join([f"beside {file}:", *(f"  {s}" for s in member["said"])])
    door.answer(told, text)


@verb
def repair(
    door: Door,
    adapter: File,
    base: Annotated[
        str | None, typer.Option(help="What it sits on: 'pocket', a folder, a file, a name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; beside the adapter without it.")
    ] = None,
    train_images: Annotated[
        Path | None,
        typer.Option("--train-images", help="What it learnt from: likeness is measured to that."),
    ] = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    encoder: Encoders = None,
    price: Annotated[float, typer.Option(help="The share of its likeness that may be lost.")] = 0.1,
    tries: Annotated[int, typer.Option(min=1, help="How many repairs are drawn.")] = 24,
    timed: Annotated[
        bool,
        typer.Option("--timed", help="It may act late in the noise; not for other tools."),
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write it though no gain was shown.")
    ] = False,
    seed: Seed = None,
) -> None:
    """Give variety back to a collapsed adapter, without training."""
    from variegate.pick import repair as room

    found = room(
        adapter,
        base=base or "pocket",
        out=out,
        train_images=train_images,
        trigger=trigger,
        class_noun=class_noun,
        encoders=encoder or (),
        price=price,
        tries=tries,
        timed=timed,
        anyway=anyway,
        seed=seed or 0,
        say=door.say,
    )
    for warning in found.warnings:
        door.warn(warning)
    door.answer(found.to_json(), repair_text(found.to_json()))


@verb
def extract(
    door: Door,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model as it was.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same, finetuned.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
) -> None:
    """An adapter out of a finetuned model: what its weights have that its base's have not."""
    from variegate.blend.extract import extract as room
    from variegate.formats import write
    from variegate.models import load

    made = room(load(base), load(tuned), rank=rank, energy=energy)
    written = write(made.adapter, out).resolve()
    for left in made.left_out:
        door.warn(left)
    door.answer({"file": str(written), **made.to_json()}, _size_text(written, made))


@verb
def resize(
    door: Door,
    adapter: File,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    base: Base = None,
) -> None:
    """The same adapter as a LoRA of another rank, with what that keeps of it."""
    from variegate.blend.together import resize as room
    from variegate.formats import read, write

    learnt = read(adapter)
    made = room(learnt, rank=rank, energy=energy, base=_weights_of(base, [learnt]))
    written = write(made.adapter, out).resolve()
    door.answer({"file": str(written), **made.to_json()}, _size_text(written, made))


@verb
def scale(
    door: Door,
    adapter: File,
    strength: Annotated[
        float, typer.Argument(metavar="STRENGTH", help="How many times as strong.")
    ],
    out: Out,
) -> None:
    """The same adapter, acting so many times as strongly."""
    if not abs(strength) < float("inf"):
        raise RequestError(f"strength {strength}; expected a finite number")
    from variegate.formats import read, write

    written = write(read(adapter).scaled(strength), out).resolve()
    door.answer({"file": str(written), "strength": strength}, f"{written}: {strength:g} times")


@verb
def merge(
    door: Door,
    adapter: File,
    base: Annotated[str, typer.Option(help="A diffusers folder, a .safetensors file, or a name.")],
    out: Annotated[Path, typer.Option(help="The folder, or the file, to make.")],
    strength: Annotated[float, typer.Option(help="How strongly the adapter acts.")] = 1.0,
) -> None:
    """A base with the adapter in its weights for good."""
    from variegate.blend.merge import merge as room
    from variegate.formats import read

    written = room(base, read(adapter), out, strength=strength)
    document = {"model": str(written), "strength": strength}
    door.answer(document, f"{written}: {base} with {adapter} at strength {strength:g}")


def _soup(
    members: list[Adapter], names: list[str], score: Any, rank: int | None
) -> tuple[Blended, dict[str, Any]]:
    """A greedy soup, and what was tasted on the way to it."""
    from variegate.blend.soup import greedy_soup

    soup = greedy_soup(members, score, rank=rank)
    tastings = [
        {"members": list(t.members), "score": t.score, "stayed": t.stayed} for t in soup.tastings
    ]
    return soup.blended, {"taken": [names[i] for i in soup.members], "tastings": tastings}


def _check_blend(
    ensemble: str | None,
    greedy: bool,
    by: list[str] | None,
    method: str,
    rank: int | None,
    energy: float | None,
    density: float | None,
    weights: str | None,
) -> None:
    """Nothing asked of one way that is for another."""
    if ensemble and (greedy or method != "soup" or rank or energy or density):
        raise RequestError(
            "--ensemble keeps every member whole: leave out --method, --rank, --energy, --density "
            "and --greedy"
        )
    if greedy and (method != "soup" or weights or energy):
        raise RequestError(
            "--greedy makes a soup of equal parts: leave out --method, --weights and --energy"
        )
    if by and not greedy:
        raise RequestError("--by says what --greedy goes by; give both, or leave it out")


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise RequestError(
            f"--weights {text!r}; expected numbers with commas between, such as 0.5,0.5"
        ) from error


def _weights_of(base: str | None, members: Sequence[Adapter]) -> dict[str, Any] | None:
    """The base's weights where a member cannot do without them."""
    if all(member.kind == "lora" for member in members):
        return None
    if base is None:
        return None
    from variegate.blend.extract import base_weights
    from variegate.models import load

    return base_weights(load(base), members)


def _size_text(file: Path, made: Blended) -> str:
    least = min(made.layers, key=lambda name: made.layers[name].energy)
    lines = [
        f"{file}: {len(made.layers)} layers, rank up to {made.adapter.rank}; "
        f"{made.energy:.2%} of the energy kept, least {made.layers[least].energy:.2%} in {least}"
    ]
    if made.partial:
        lines.append(
            f"{len(made.partial)} layers are not in every member, which counted as no change there"
        )
    if made.vectors:
        lines.append(f"{len(made.vectors)} norms or biases stay whole, which no LoRA can hold")
    return "\n".join(lines)
