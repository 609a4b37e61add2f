"""Can this training set end well? Faults per file, duplicates, variety, captions.

    report = audit("photos")
    report.effective_images, report.to_json()

Everything but the search for near duplicates by an encoder works on pixels alone: the number of
different pictures does not depend on which networks are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from variegate.audit.captions import count_captions, judge_captions
from variegate.audit.descriptors import Look, look
from variegate.audit.duplicates import families, find_duplicates
from variegate.audit.finding import Finding
from variegate.audit.fixes import fixes
from variegate.audit.frames import Box, judge_frames, picture_inside
from variegate.audit.report import AuditReport, DuplicatePair, name_of
from variegate.audit.sides import is_handed, judge_sides, measure_sides
from variegate.audit.variety import judge_variety, measure_variety
from variegate.encoders import Encoder, load
from variegate.errors import EncoderError, ImagesError
from variegate.images import Fault, ImageSet, Picture, Shards, examine, open_pictures
from variegate.images.captions import clean

__all__ = ["AuditReport", "DuplicatePair", "Finding", "audit", "inspect_file"]

RESOLUTION = 512  # pixels; what Stable Diffusion 1.x is trained at
MOST_COMPARED = 3000  # pictures; every pair is looked at, so time and memory grow with the square
LONG = 2.0  # long side over short side, from which a square crop loses half of the picture


@dataclass(frozen=True)
class _Seen:
    """A usable picture after one decoding."""

    picture: Picture
    look: Look
    size: tuple[int, int]
    content_hash: str
    frame: Box | None


def audit(
    images: ImageSet | Path | str,
    *,
    encoder: Encoder | None = None,
    trigger: str | None = None,
    resolution: int = RESOLUTION,
    say: Callable[[str], object] | None = None,
) -> AuditReport:
    """Everything that can be known of a training set before training.

    encoder: helps to find near duplicates; None takes the shipped one if it is there and knows
    pictures like these. trigger: the word that every caption should hold. resolution: pixels that
    the base is trained at; pictures below it are told. say: is given one line per stage.

    Of pictures in tars a sample is looked at.
    Raises: ImagesError when there is no folder or no picture in it. Pictures that cannot be used
    are faults, not errors.
    """
    say = say or _quiet
    opened = images if isinstance(images, ImageSet) else open_pictures(images)
    if isinstance(opened, Shards):
        say(f"taking a sample of {len(opened)} pictures out of tars")
        whole, pictures = len(opened), ImageSet.sampled(opened, MOST_COMPARED)
        lies = {p.file: Path(f"{opened.home}/{p.key}") for p in pictures if p.file is not None}
    else:
        whole, pictures, lies = len(opened), opened, {}
    say(f"looking at {len(pictures)} pictures")
    seen, faults = _inspect(pictures)
    faults = [*pictures.faults, *(replace(f, file=lies.get(f.file, f.file)) for f in faults)]
    compared = sorted(seen, key=lambda s: s.content_hash)[:MOST_COMPARED]
    compared.sort(key=lambda s: s.picture.key)
    say(f"comparing {len(compared)} pictures with each other")
    cosines, compared_by = _cosines(compared, pictures.origin, encoder)
    looks = [s.look for s in compared]
    hashes = [s.content_hash for s in compared]
    pairs = find_duplicates(hashes, looks, cosines)
    variety = measure_variety(looks, hashes, pairs)
    groups = [
        [clean(compared[i].picture.key) for i in family]
        for family in families(len(compared), pairs)
    ]
    facts = count_captions(
        [s.picture.prompt for s in seen], [_stem(s.picture) for s in seen], trigger=trigger
    )
    at = [s.picture.file and lies.get(s.picture.file, s.picture.file) for s in compared]
    names = [name_of(s.picture.key, file) for s, file in zip(compared, at, strict=True)]
    sides = measure_sides(looks, hashes)
    handed = is_handed([s.picture.prompt for s in compared])
    mended = fixes(
        looks,
        sizes=[s.size for s in compared],
        frames=[s.frame for s in compared],
        sides=sides,
        handed=handed,
        one_place=variety.one_place,
        resolution=resolution,
    )
    refused = {f.file for f in faults if not f.usable}
    return AuditReport(
        folder=pictures.origin,
        images=len(seen) + len(refused),
        usable=len(seen),
        effective_images=round(variety.effective, 2),
        limited_by=variety.limited_by,
        faults=tuple(faults),
        duplicates=tuple(
            DuplicatePair(names[p.first], names[p.second], p.similarity) for p in pairs
        ),
        compared_by=compared_by,
        captions=facts,
        findings=(
            *judge_variety(variety, groups),
            *judge_sides(sides, handed=handed),
            *judge_frames([s.frame for s in seen]),
            *judge_captions(facts, trigger=trigger, one_background=variety.one_background),
            *_judge_sizes([s.size for s in seen], resolution),
            *_judge_count(len(seen), len(compared), whole=whole, looked_at=len(pictures)),
        ),
        chart=variety.chart.to_json(names),
        fixes=tuple(fix.to_json(names) for fix in mended),
    )


def inspect_file(file: Path) -> list[Fault]:
    """Everything odd about one picture file; the last fault says if it cannot be used."""
    return list(examine(file).faults)


def _quiet(_: str) -> None:
    pass


def _inspect(pictures: ImageSet) -> tuple[list[_Seen], list[Fault]]:
    """Decode every picture once."""
    seen: list[_Seen] = []
    faults: list[Fault] = []
    for picture in pictures:
        image: Image.Image | None
        if picture.file is None:
            image = picture.open()
        else:
            examined = examine(picture.file)
            faults.extend(examined.faults)
            image = examined.image
        if image is None:
            continue
        if picture.mask_file is not None:
            faults.extend(_mask_faults(picture.mask_file, image.size))
        hashed = picture.content_hash()
        seen.append(_Seen(picture, look(image), image.size, hashed, picture_inside(image)))
    return seen, faults


def _mask_faults(mask: Path, size: tuple[int, int]) -> list[Fault]:
    examined = examine(mask)
    if examined.image is None:
        cause = examined.faults[-1]
        return [Fault(mask, "mask", f"the mask cannot be used: {cause.fault}", cause.advice)]
    if examined.image.size != size:
        found = "{} x {}".format(*examined.image.size)
        return [
            Fault(
                mask,
                "mask",
                f"the mask has {found} pixels, its picture {size[0]} x {size[1]}",
                "draw the mask on the picture as it is now",
            )
        ]
    if examined.image.convert("L").getextrema() == (0, 0):
        return [Fault(mask, "mask", "the mask is all black", "paint the subject white")]
    return []


def _cosines(
    seen: list[_Seen], origin: str, encoder: Encoder | None
) -> tuple[Float[np.ndarray, "n n"] | None, tuple[str, ...]]:
    """Similarities by an encoder, when there is one that knows such pictures; and all methods."""
    plain = ("sha256", "phash")
    if len(seen) < 2:
        return None, plain
    if encoder is None:
        try:
            encoder = load("pocket")
        except EncoderError:
            return None, plain
    try:
        rows = ImageSet(tuple(s.picture for s in seen), origin).features(encoder)
    except ImagesError:
        return None, plain  # a picture vanished while we looked at it
    if encoder.unfamiliar(rows):
        return None, plain
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (unit @ unit.T).numpy().astype(np.float64), (*plain, encoder.id)


def _stem(picture: Picture) -> str:
    return picture.key if picture.file is None else picture.file.stem


def _judge_sizes(sizes: list[tuple[int, int]], resolution: int) -> list[Finding]:
    found = []
    small = [min(s) for s in sizes if min(s) < resolution]
    if small:
        found.append(
            Finding(
                "Some pictures are smaller than what the base is trained at",
                f"{len(small)} of {len(sizes)} have a side below {resolution} pixels; the smallest "
                f"has {min(small)}",
                "Use larger originals if you have them; enlarged pictures teach blur.",
            )
        )
    long = [s for s in sizes if max(s) >= LONG * min(s)]
    if long:
        width, height = max(long, key=lambda s: max(s) / min(s))
        found.append(
            Finding(
                "Some pictures are very long",
                f"{len(long)} of {len(sizes)} are at least twice as long as wide; one is "
                f"{width} x {height}",
                "Crop them yourself around the subject: training crops a square from the middle.",
            )
        )
    return found


def _judge_count(n: int, compared: int, *, whole: int, looked_at: int) -> list[Finding]:
    found = []
    if whole > looked_at:
        found.append(
            Finding(
                "Only a sample was looked at",
                f"{looked_at} of {whole} pictures, by chance",
                "Nothing to do; faults and captions are those of the sample, and copies are rarer "
                "in it than in the whole.",
            )
        )
    if compared < n:
        found.append(
            Finding(
                "Not all pictures were compared",
                f"{compared} of {n}, chosen by content",
                "Nothing to do; the number of different pictures is that of the ones compared.",
            )
        )
    return found
