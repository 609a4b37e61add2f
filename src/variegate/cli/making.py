"""The verbs that make something: adapters, pictures, and the whole story of a trial."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from variegate import answers
from variegate.cli.words import (
    Base,
    ClassNoun,
    Encoders,
    Images,
    MaybeImages,
    On,
    RecipeName,
    Seed,
    Settings,
    SinkNames,
    T5Tokenizer,
    Trigger,
    Vram,
    Workers,
    place_of,
    verb,
)
from variegate.console import Door
from variegate.errors import RequestError

if TYPE_CHECKING:
    from variegate.progress import Say
    from variegate.recipe import Recipe


@verb
def train(
    door: Door,
    images: MaybeImages = None,
    base: Base = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    recipe: RecipeName = None,
    settings: Settings = None,
    t5_tokenizer: T5Tokenizer = None,
    vram: Vram = None,
    sink: SinkNames = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run from its last checkpoint.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="With --resume: make the run this long.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Learn an adapter from pictures, or go on with a stopped run (--resume RUN)."""
    own = (images, base, trigger, class_noun, out, recipe, settings, t5_tokenizer, vram, seed)
    if resume is not None and any(word not in (None, [], ()) for word in own):
        raise RequestError(
            "--resume RUN goes on with that run's own recipe and pictures; leave IMAGES and all "
            "options of a new run out, such as --base, --trigger, --set and --seed"
        )
    if resume is None and steps is not None:
        raise RequestError(
            "--steps makes a run of --resume longer; here say --set optimizer.steps=N"
        )
    if resume is None:
        settings = _with(settings, vram)
        asked = read_asked(
            images, base, trigger, class_noun, recipe, settings, seed, t5_tokenizer=t5_tokenizer
        )
        for caution in asked.cautions:
            door.warn(caution)
    from variegate import train as room

    folder = resume.resolve() if resume else _run_folder(out, asked)
    with _followed(sink, folder, door) as say:
        if resume is None:
            run = room.train(asked, out=folder, say=say)
        else:
            run = room.resume(folder, steps=steps, say=say)
    document = room.result(run)
    door.answer(document, answers.run_text(document))


@verb
def sample(
    door: Door,
    prompt: Annotated[list[str], typer.Option(help="What to draw. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Where the pictures go; those there already are kept.")],
    base: Base = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA file, or an ensemble's .toml.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 4,
    strength: Annotated[
        list[float] | None, typer.Option(help="How strongly the adapter acts; 1. Repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance scale.")] = None,
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    variety: Annotated[
        Literal["off", "low", "medium", "high"] | None,
        typer.Option(help="A combination of methods that vary; off."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method of sampling, or one of its settings: cads, cads.strength=0.2. "
            "Repeatable.",
            metavar="NAME[.SETTING=VALUE]",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Words to add, of each list another for each seed: 'on a {red|blue} ground'. "
            "Repeatable.",
            metavar="TEXT",
        ),
    ] = None,
    format: Annotated[
        Literal["png", "webp"], typer.Option(help="Both without loss, and with what drew them.")
    ] = "png",
    jobs: Workers = 1,
    on: On = "",
    t5_tokenizer: T5Tokenizer = None,
    seed: Seed = None,
) -> None:
    """Draw every prompt with every seed, and at every strength of the adapter."""
    from dataclasses import replace

    from variegate import recipes
    from variegate import sample as room
    from variegate.adapter import Adapter
    from variegate.blend.cast import open_learnt
    from variegate.formats import reading_of
    from variegate.images import ImageSet
    from variegate.models import load, pick_device

    base = base or "pocket"
    asked = [f"sampling.variety={variety}"] if variety else []
    asked += [f"sampling.methods.{name if '=' in name else f'{name}=on'}" for name in method or ()]
    plan = recipes.read(recipes.default_for(base), settings=tuple(asked)).sampling
    if strength and not adapter:
        raise RequestError("--strength is that of an adapter: give --adapter FILE, or leave it out")
    learnt = open_learnt(adapter) if adapter else None
    first, strengths = seed or 0, dict.fromkeys(strength or (1.0,))
    plain = room.grid(prompt, range(first, first + seeds), strengths=strengths)
    wanted = [replace(r, prompt=room.varied(r.prompt, r.seed, vary or ())) for r in plain]
    out = out.resolve()
    reading = reading_of(learnt.metadata if learnt else {})
    model = load(base, device=pick_device(), **reading, t5_tokenizer=t5_tokenizer)
    changes: dict[str, Any] = {"steps": steps, "guidance_scale": guidance}
    changes["sampler"] = model.nearest_sampler(plan.sampler)
    plan = plan.model_copy(update={k: v for k, v in changes.items() if v is not None})
    named = (
        room.Named.of(adapter, learnt.metadata) if adapter and isinstance(learnt, Adapter) else None
    )
    source = room.Source.of(base, adapter, t5_tokenizer=t5_tokenizer, **reading)
    pictures = room.sample_apart(
        *(model, learnt, wanted),
        hands=room.Hands(source, jobs, on),
        plan=plan,
        out=out,
        negative=negative,
        format=format,
        named=named,
        say=door.say,
    )
    rows = [replace(p, prompt=r.prompt) for p, r in zip(pictures, plain, strict=True)]
    sheet = room.contact_sheet(ImageSet(tuple(rows), str(out)), out / "contact_sheet.png")
    door.answer(
        room.sample_json(pictures, sheet),
        f"{len(pictures)} pictures in {out}, side by side in {sheet}",
    )


@verb
def trial(
    door: Door,
    images: Images,
    base: Base = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    recipe: RecipeName = None,
    settings: Settings = None,
    encoder: Encoders = None,
    t5_tokenizer: T5Tokenizer = None,
    vram: Vram = None,
    sink: SinkNames = None,
    seed: Seed = None,
) -> None:
    """The whole story in one run: audit, train, sample, measure, report."""
    settings = _with(settings, vram)
    asked = read_asked(
        images, base, trigger, class_noun, recipe, settings, seed, t5_tokenizer=t5_tokenizer
    )
    if not asked.trigger or not asked.class_noun:
        raise RequestError(
            "a trial needs to know what to ask for: give --trigger WORD (a rare word that will "
            "call the subject) and --class NOUN (what it is: dog, toy, person)"
        )
    from variegate import trial as room

    folder = _run_folder(out, asked)
    with _followed(sink, folder, door) as say:
        document = room.trial(asked, out=folder, encoders=encoder or (), say=say)
    door.answer(document, answers.run_text(document))


@verb
def demo(
    door: Door,
    out: Annotated[Path, typer.Option(help="Where the two runs and the page go.")] = Path(
        "runs/demo"
    ),
    seed: Seed = None,
) -> None:
    """See collapse and its prevention in a few minutes: no GPU, no download."""
    from variegate import trial as room

    document = room.demo(out=place_of(out), seed=seed or 0, say=door.say)
    door.answer(document, answers.demo_text(document))


def read_asked(
    images: Path | str | None,
    base: str | None,
    trigger: str | None,
    class_noun: str | None,
    recipe: str | None,
    settings: list[str] | None,
    seed: int | None,
    *,
    t5_tokenizer: Path | None,
    pictures: bool = True,
) -> Recipe:
    """What the words on the command line ask for, with absolute paths.

    pictures: that there are some is asked for.
    """
    from variegate import recipes

    if base is not None and base != "pocket" and Path(base).exists():
        base = str(Path(base).resolve())
    asked = recipes.read(
        recipe or recipes.default_for(base),
        settings=tuple(settings or ()),
        images=_placed(images) if images else None,
        base=base,
        trigger=trigger,
        class_noun=class_noun,
        t5_tokenizer=str(t5_tokenizer.expanduser().resolve()) if t5_tokenizer else None,
        seed=seed,
    )
    if asked.images and not images:  # the recipe's own word, wherever this process stands
        asked = asked.model_copy(update={"images": _placed(asked.images)})
    if pictures and not asked.images:
        raise RequestError("no pictures to learn from: name their folder, as in `... my_photos`")
    return asked


def _placed(images: Path | str) -> str:
    """Where pictures are, wherever this process stands; an address of tars stays as it is."""
    from variegate.images import absolute, is_sharded

    if is_sharded(str(images)):
        return absolute(str(images))
    return str(Path(images).expanduser().resolve())


def _with(settings: list[str] | None, vram: float | None) -> list[str]:
    return [*(settings or ()), *([f"memory.vram={vram:g}"] if vram is not None else [])]


@contextmanager
def _followed(names: list[str] | None, folder: Path, door: Door) -> Iterator[Say]:
    """Progress as the door tells it, with the sinks told of what the journal has gained."""
    from variegate.run import Run
    from variegate.sinks import Follower, open_sink

    journal = Run.journal_in(folder)
    followers = [Follower(journal, open_sink(name, folder)) for name in names or ()]

    def say(phase: str, done: int, total: int, note: str) -> None:
        for follower in followers:
            follower.catch_up()
        door.say(phase, done, total, note)

    try:
        yield say
    finally:
        for follower in followers:
            follower.close()


def _run_folder(out: Path | None, asked: Recipe) -> Path:
    """The folder asked for, or one under `runs` named after the pictures and the recipe."""
    name = re.sub(r"[^\w.-]+", "-", Path(asked.images).name.removesuffix(".tar")).strip("-")
    return (out or Path("runs") / f"{name}-{asked.id[:8]}").resolve()
