"""One command per verb. Each reads its words, calls one function, and answers through a `Door`.

Rooms are imported inside the verbs: `variegate --help` must not wait for PyTorch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from variegate import answers
from variegate.console import Door
from variegate.errors import RequestError
from variegate.measurement import Label, Verdict

if TYPE_CHECKING:
    from variegate.progress import Say
    from variegate.recipe import Recipe

app = typer.Typer(
    name="variegate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Stable Diffusion with LoRA without losing variety, and measure what any "
    "adapter lost.",
)

# The same four options on every verb; `_verb` adds them.
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault, and the log.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Where all randomness starts.")]

Images = Annotated[
    Path, typer.Argument(metavar="IMAGES", help="Folder of pictures, captions beside them.")
]
MaybeImages = Annotated[
    Path | None, typer.Argument(metavar="IMAGES", help="Folder of pictures to learn.")
]
Base = Annotated[
    str | None, typer.Option(help="'pocket', a diffusers folder, or a hub name.", metavar="BASE")
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
Preset = Literal["quick", "standard", "thorough"]


def _verb(function: Callable[..., None]) -> Callable[..., None]:
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


@app.command()
@_verb
def audit(
    door: Door,
    images: Images,
    encoder: Annotated[
        str | None, typer.Option(help="'pocket', a hub name, a folder, or sscd=FILE.")
    ] = None,
    trigger: Trigger = None,
) -> None:
    """Can these pictures end well? Faults, duplicates, how many truly differ, captions."""
    from variegate.audit import audit as look
    from variegate.encoders import load

    report = look(
        images,
        encoder=load(encoder) if encoder else None,
        trigger=trigger,
        say=lambda stage: door.say(stage, 0, 0),
    ).to_json()
    door.answer(report, answers.audit_text(report))


@app.command()
@_verb
def train(
    door: Door,
    images: MaybeImages = None,
    base: Base = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    recipe: RecipeName = None,
    settings: Settings = None,
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
    if resume is not None and (images or base or out or recipe or settings or vram):
        raise RequestError(
            "--resume RUN goes on with that run's own recipe and pictures; "
            "leave IMAGES, --base, --out, --recipe, --set and --vram out"
        )
    if resume is None and steps is not None:
        raise RequestError(
            "--steps makes a run of --resume longer; here say --set optimizer.steps=N"
        )
    if resume is None:
        asked = _recipe(images, base, trigger, class_noun, recipe, _with(settings, vram), seed)
    from variegate import train as room

    folder = resume.resolve() if resume else _run_folder(out, asked)
    with _followed(sink, folder, door) as say:
        if resume is None:
            run = room.train(asked, out=folder, say=say)
        else:
            run = room.resume(folder, steps=steps, say=say)
    document = room.result(run)
    door.answer(document, answers.run_text(document))


@app.command()
@_verb
def sample(
    door: Door,
    prompt: Annotated[list[str], typer.Option(help="What to draw. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Where the pictures go; those there already are kept.")],
    base: Base = None,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA file (safetensors).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 4,
    strength: Annotated[float, typer.Option(help="How strongly the adapter acts.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance scale.")] = None,
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Seed = None,
) -> None:
    """Draw every prompt with every seed."""
    from variegate import recipes
    from variegate import sample as room
    from variegate.formats import clip_skip_of, read
    from variegate.models import load, pick_device

    base = base or "pocket"
    plan = recipes.read(recipes.default_for(base)).sampling
    changes = {"steps": steps, "guidance_scale": guidance}
    plan = plan.model_copy(update={k: v for k, v in changes.items() if v is not None})
    learnt = read(adapter).scaled(strength) if adapter else None
    first = seed or 0
    wanted = room.grid(prompt, range(first, first + seeds))
    out = out.resolve()
    skip = clip_skip_of(learnt.metadata) if learnt else 1
    model = load(base, device=pick_device(), clip_skip=skip)
    pictures = room.sample(
        model, learnt, wanted, plan=plan, out=out, negative=negative, say=door.say
    )
    sheet = room.contact_sheet(pictures, out / "contact_sheet.png")
    door.answer(
        room.sample_json(pictures, sheet),
        f"{len(pictures)} pictures in {out}, side by side in {sheet}",
    )


@app.command()
@_verb
def measure(
    door: Door,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="ADAPTER", help="A LoRA file (safetensors).")
    ] = None,
    base: Base = None,
    images: Annotated[
        Path | None, typer.Option(help="Or: a folder of samples, or their features ...")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="... against those of the base, prompt by prompt.")
    ] = None,
    encoder: Encoders = None,
    train_images: TrainImages = None,
    trigger: Trigger = None,
    class_noun: ClassNoun = None,
    style: Annotated[
        bool,
        typer.Option(
            "--style", help="The adapter learnt a look, not a subject (not of the pocket)."
        ),
    ] = False,
    preset: Annotated[Preset, typer.Option(help="How many prompts and seeds.")] = "standard",
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, one per line.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep pictures, verdict and a page of them here.")
    ] = None,
    keep_features: Annotated[
        Path | None, typer.Option(help="Write the features here, as .npy with prompts beside.")
    ] = None,
    faces: Annotated[
        Path | None, typer.Option(help="A YuNet file (.onnx): are the faces alike?")
    ] = None,
    fail_on: FailOn = None,
    seed: Seed = None,
) -> None:
    """What did this adapter lose? Draws from adapter and base alike, and judges."""
    _check_labels(fail_on)
    drawing = {"--base": base, "--prompts": prompts, "--style": style}
    _check_sources(adapter, images, reference, drawing)
    out = out.resolve() if out else None
    asked: dict[str, Any] = {
        "encoders": encoder or (),
        "train_images": train_images,
        "trigger": trigger,
        "class_noun": class_noun,
        "out": out,
        "features": keep_features,
        "faces": faces,
    }
    if adapter is not None:
        from variegate.drawn import measure_adapter  # only here are models wanted

        verdict = measure_adapter(
            adapter,
            base or "pocket",
            style=style,
            preset=preset,
            prompts=prompts,
            seed=seed or 0,
            say=door.say,
            tell=door.tell,
            **asked,
        )
    else:
        assert images is not None
        assert reference is not None
        verdict = _measure_given(images, reference, asked, door)
    _answer_verdict(door, verdict, fail_on, page=out / "report.html" if out else None)


def _measure_given(images: Path, reference: Path, asked: dict[str, Any], door: Door) -> Verdict:
    from variegate.elsewhere import measure_features, measure_folders
    from variegate.measure.tables import SUFFIXES

    if images.suffix not in SUFFIXES:
        return measure_folders(images, reference, say=door.say, **asked)
    train_images = asked.pop("train_images")
    if any(asked.values()):
        raise RequestError(
            "features are measured as they are: leave out --encoder, --keep-features, --out, "
            "--trigger, --class and --faces"
        )
    return measure_features(images, reference, train=train_images)


def _check_sources(
    adapter: Path | None, images: Path | None, reference: Path | None, drawing: Mapping[str, object]
) -> None:
    """One thing to measure, and nothing asked of it that is for another."""
    if adapter is not None and (images or reference):
        raise RequestError("give an ADAPTER, or --images with --reference; not both")
    if adapter is None and (images is None or reference is None):
        raise RequestError(
            "nothing to measure: give an ADAPTER file with --base, or two folders with "
            "--images DIR --reference DIR"
        )
    if adapter is None and any(drawing.values()):
        idle = ", ".join(option for option, value in drawing.items() if value)
        raise RequestError(f"two folders are measured as they are: leave out {idle}")


@app.command()
@_verb
def verdict(
    door: Door,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a verdict.json.")],
    rules: Annotated[
        Path | None, typer.Option(help="A TOML file of rules; the shipped ones without it.")
    ] = None,
    fail_on: FailOn = None,
) -> None:
    """Judge stored measurements again, by the shipped rules or by your own."""
    _check_labels(fail_on)
    from variegate.measure import RULES, Rules, read_verdict, rejudge

    found = rejudge(read_verdict(run), Rules.read(rules) if rules else RULES)
    _answer_verdict(door, found, fail_on)


@app.command()
@_verb
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
    vram: Vram = None,
    sink: SinkNames = None,
    seed: Seed = None,
) -> None:
    """The whole story in one run: audit, train, sample, measure, report."""
    asked = _recipe(images, base, trigger, class_noun, recipe, _with(settings, vram), seed)
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


@app.command()
@_verb
def demo(
    door: Door,
    out: Annotated[Path, typer.Option(help="Where the two runs and the page go.")] = Path(
        "runs/demo"
    ),
    seed: Seed = None,
) -> None:
    """See collapse and its prevention in five minutes: no GPU, no download."""
    from variegate import trial as room

    document = room.demo(out=out.resolve(), seed=seed or 0, say=door.say)
    door.answer(document, answers.demo_text(document))


@app.command()
@_verb
def report(
    door: Door,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
) -> None:
    """Write the page of a run again: one HTML file that needs nothing else."""
    from variegate.report import write_report

    page = write_report(run).resolve()
    door.answer({"run": str(run.resolve()), "report": str(page)}, str(page))


@app.command()
@_verb
def strategies(door: Door) -> None:
    """Everything that prevents collapse here: where it acts, what it costs, what it did."""
    from variegate import catalogue

    menu = catalogue.strategies()
    door.answer(menu, answers.strategies_text(menu))


@app.command()
@_verb
def inspect(
    door: Door,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file (safetensors).")],
) -> None:
    """What is in a LoRA file: family, format, kind, ranks, norms, spectra, hashes, metadata."""
    from variegate import formats

    facts = formats.inspect(file)
    door.answer(facts, answers.adapter_text(facts))


@app.command()
@_verb
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


@app.command()
@_verb
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


@app.command()
@_verb
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


@app.command()
@_verb
def doctor(door: Door) -> None:
    """What is installed, which device will be used, what is missing and the line that mends it."""
    from variegate import doctor as room

    findings = room.examine()
    door.answer(findings, room.as_text(findings), exit_code=0 if findings["fit"] else 1)


def _recipe(
    images: Path | None,
    base: str | None,
    trigger: str | None,
    class_noun: str | None,
    recipe: str | None,
    settings: list[str] | None,
    seed: int | None,
) -> Recipe:
    """What the words on the command line ask for, with absolute paths."""
    from variegate import recipes

    if base is not None and base != "pocket" and Path(base).exists():
        base = str(Path(base).resolve())
    asked = recipes.read(
        recipe or recipes.default_for(base),
        settings=tuple(settings or ()),
        images=str(images.resolve()) if images else None,
        base=base,
        trigger=trigger,
        class_noun=class_noun,
        seed=seed,
    )
    if not asked.images:
        raise RequestError("no pictures to learn from: name their folder, as in `... my_photos`")
    return asked


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
    return (out or Path("runs") / f"{Path(asked.images).name}-{asked.id[:8]}").resolve()


def _answer_verdict(
    door: Door, verdict: Verdict, fail_on: list[str] | None, *, page: Path | None = None
) -> None:
    met = sorted(set(fail_on or ()) & set(verdict.labels))
    if met:
        door.warn(f"--fail-on: the verdict is {', '.join(met)}")
    document, text = verdict.to_json(), answers.verdict_text(verdict)
    if page:
        document, text = document | {"report": str(page)}, f"{text}\n\nOpen {page}"
    door.answer(document, text, exit_code=3 if met else 0)


def _check_labels(labels: list[str] | None) -> None:
    known = get_args(Label)
    for label in labels or ():
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise RequestError(f"--fail-on {label!r} is no label; {hint}")


def main() -> None:
    """The `variegate` command."""
    app()
