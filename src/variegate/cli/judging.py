"""The verbs that judge: measuring, judging again, and the page."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from variegate import answers
from variegate.cli.words import (
    Base,
    ClassNoun,
    Encoders,
    FailOn,
    On,
    Preset,
    Seed,
    T5Tokenizer,
    TrainImages,
    Trigger,
    Workers,
    place_of,
    verb,
)
from variegate.console import Door
from variegate.errors import RequestError
from variegate.measurement import Label, Verdict


@verb
def measure(
    door: Door,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="ADAPTER", help="A LoRA file, or an ensemble's .toml.")
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
    t5_tokenizer: T5Tokenizer = None,
    jobs: Workers = 1,
    on: On = "",
    fail_on: FailOn = None,
    seed: Seed = None,
) -> None:
    """What did this adapter lose? Draws from adapter and base alike, and judges."""
    _check_labels(fail_on)
    drawing = {
        "--base": base,
        "--prompts": prompts,
        "--style": style,
        "--t5-tokenizer": t5_tokenizer,
        "--workers": jobs > 1,
        "--on": on,
    }
    _check_sources(adapter, images, reference, drawing)
    out = place_of(out) if out else None
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
            t5_tokenizer=t5_tokenizer,
            seed=seed or 0,
            jobs=jobs,
            on=on,
            say=door.say,
            tell=door.tell,
            **asked,
        )
    else:
        assert images is not None
        assert reference is not None
        verdict = _measure_given(images, reference, asked, door)
    _answer_verdict(door, verdict, fail_on, page=out / "report.html" if out else None)


@verb
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


@verb
def report(
    door: Door,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
) -> None:
    """Write the page of a run again: one HTML file that needs nothing else."""
    from variegate.report import write_report

    page = write_report(run).resolve()
    door.answer({"run": str(run.resolve()), "report": str(page)}, str(page))


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
