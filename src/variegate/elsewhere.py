"""The verdict on pictures or features that are there already, made anywhere: no model is loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from variegate.encoders import Encoder, load_encoders
from variegate.encoders.faces import FaceFinder, load_faces
from variegate.errors import RequestError
from variegate.images import ImageSet, Picture
from variegate.judged import keep_verdict, lay_out
from variegate.measure import (
    Evidence,
    Verdict,
    evidence_of_features,
    gather,
    measure,
    read_features,
    write_features,
)
from variegate.measure.gather import match_lines
from variegate.measure.prompts import as_base, bare
from variegate.progress import Say, silent


def measure_folders(
    images: Path,
    reference: Path,
    *,
    encoders: Sequence[str],
    train_images: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    out: Path | None = None,
    features: Path | None = None,
    faces: Path | None = None,
    say: Say | None = None,
) -> Verdict:
    """Judge a folder of samples against a folder of the base's, without any model.

    trigger: pictures whose prompt names it are trigger pictures, unless their folder says what
    they are; class_noun: what stands in its place in the reference's prompts. out: where
    `verdict.json` and `report.html` stay, the pictures beside them. features: a folder
    for the first encoder's features, as `measure_features` reads them. faces: a face detector's
    file, to tell whether faces became alike.
    """
    check_free(out)
    eyes, finder = load_encoders(encoders), load_faces(faces) if faces else None
    ours, theirs = ImageSet.read(images), ImageSet.read(reference)
    if trigger:
        ours, theirs = _with_groups(ours, theirs, trigger, class_noun or "")
    train = ImageSet.read(train_images) if train_images else None
    if out is not None:
        home = (out / "samples").resolve()
        for pictures in (ours, theirs):
            if Path(pictures.origin).resolve().is_relative_to(home):
                raise RequestError(f"{pictures.origin} lies in {out}; name another folder to keep")
        lines = match_lines(ours, theirs, trigger=trigger, class_noun=class_noun)
        ours = lay_out(ours, [s.adapter_rows for s in lines], lines, home / "adapter")
        theirs = lay_out(theirs, [s.base_rows for s in lines], lines, home / "base")
    return measure_sets(
        *(ours, theirs, eyes, train, trigger, class_noun),
        faces=finder,
        out=out,
        features=features,
        say=say or silent,
    )


def measure_features(features: Path, reference: Path, *, train: Path | None = None) -> Verdict:
    """Judge tables of features made elsewhere: `.npy` with prompts in a `.txt` beside it, or
    `.parquet`. What only pictures can show (copies, layout) is missing from the verdict."""
    ours, theirs = read_features(features), read_features(reference)
    if (ours.prompts is None) != (theirs.prompts is None):
        which = reference if theirs.prompts is None else features
        raise RequestError(f"{which} has no prompts and the other table has; give both or none")
    return measure(
        evidence_of_features(
            ours.rows,
            theirs.rows,
            prompts=ours.prompts,
            reference_prompts=theirs.prompts,
            train=read_features(train).rows if train else None,
            encoder=f"features in {features.name}",
        )
    )


def check_free(out: Path | None) -> None:
    """A training run's own verdict must not be overwritten by another's."""
    if out is not None and (out / "recipe.toml").exists():
        raise RequestError(f"{out} is a training run; name another folder for this verdict")


def _with_groups(
    ours: ImageSet, theirs: ImageSet, trigger: str, class_noun: str
) -> tuple[ImageSet, ImageSet]:
    """Which pictures were asked with the trigger: by its word, and in the reference by having the
    prompt that the class noun would make of such a one."""
    called = {p.prompt for p in ours if p.prompt and names_word(p.prompt, trigger)}
    plain = {bare(p.prompt or "") for p in ours if p.prompt not in called}
    swapped = {as_base(prompt, trigger, class_noun or "thing") for prompt in called} | called

    def grouped(pictures: ImageSet, prompts: Collection[str]) -> ImageSet:
        known = {bare(prompt) for prompt in prompts}
        marked: list[Picture] = []
        for p in pictures:
            asked = p.group is None and bare(p.prompt or "") in known
            if asked:
                marked.append(replace(p, group="trigger"))
            if not asked or bare(p.prompt or "") in plain:  # the reference's may answer both
                marked.append(p)
        return ImageSet(tuple(marked), pictures.origin)

    return grouped(ours, called), grouped(theirs, swapped)


def names_word(prompt: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", prompt) is not None


def measure_sets(
    ours: ImageSet,
    theirs: ImageSet,
    encoders: Sequence[Encoder],
    train: ImageSet | None,
    trigger: str | None,
    class_noun: str | None,
    *,
    faces: FaceFinder | None,
    out: Path | None,
    features: Path | None,
    say: Say,
) -> Verdict:
    say("measure", 0, 1, "")
    evidence = gather(
        ours,
        theirs,
        encoders=encoders,
        train_images=train,
        trigger=trigger or None,
        class_noun=class_noun or None,
        faces=faces,
    )
    verdict = measure(evidence)
    if features is not None:
        _write_features(features, evidence)
    if out is not None:
        from variegate.report import write_report  # matplotlib is slow to load

        keep_verdict(out, verdict, evidence, train)
        write_report(out)
    say("measure", 1, 1, "")
    return verdict


def _write_features(folder: Path, evidence: Evidence) -> None:
    """What `measure_features` judges as these pictures were: those of class prompts, whose tables
    know no other group."""
    view, lines = evidence.views[0], evidence.of_group("class")
    for name, rows, prompts in (
        (
            "samples",
            view.adapter[[row for line in lines for row in line.adapter_rows]],
            [line.prompt for line in lines for _ in line.adapter_rows],
        ),
        (
            "reference",
            view.base[[row for line in lines for row in line.base_rows]],
            [line.prompt for line in lines for _ in line.base_rows],
        ),
    ):
        write_features(folder / f"{name}.npy", rows, prompts)
    if view.train is not None:
        write_features(folder / "train.npy", view.train)
