"""From image sets to evidence: which picture answers which prompt, seen through every encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from variegate.encoders import Encoder, KnowsIdentity
from variegate.encoders.faces import FaceFinder
from variegate.encoders.pixels import (
    Border,
    Layout,
    Palette,
    Placement,
    Recolour,
    Thumbnail,
    colour_moments,
)
from variegate.errors import EncoderError, FeaturesError, ImagesError
from variegate.images import ImageSet, Picture
from variegate.measure.diversity import AT_LEAST_PICTURES, compare_variety
from variegate.measure.evidence import GROUPS, Evidence, Line, View
from variegate.measure.neighbours import Rows
from variegate.measure.prompts import as_base, bare

PIXEL_BATCH = 32  # pictures open at a time
FEWER_COLOURS = 0.9  # of the base's variety of palettes: below, the base is looked at in those too


def gather(
    adapter: ImageSet,
    base: ImageSet,
    *,
    encoders: Sequence[Encoder],
    train_images: ImageSet | None = None,
    held_out: ImageSet | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    faces: FaceFinder | None = None,
) -> Evidence:
    """All that the measures need of these pictures.

    adapter, base: samples, their pictures in the groups class, trigger, unrelated and caption;
    no group counts as class. A prompt of one is matched with the same prompt of the other; trigger
    prompts with those that have the class noun in the trigger's place, else line by line.
    encoders: the first decides; SSCD among them decides on copying as well. faces: cuts them out,
    to tell whether they became alike.
    Raises: EncoderError when no encoder is given, ImagesError when no prompt matches.
    """
    general = [e for e in encoders if not _finds_copies(e)]
    sscd = next((e for e in encoders if _finds_copies(e)), None)
    if not general:
        raise EncoderError(
            "no encoder to measure variety with; name 'pocket' or for example"
            " 'facebook/dinov2-base' (SSCD alone finds copies only)"
        )
    lines = match_lines(adapter, base, trigger=trigger, class_noun=class_noun)
    sets = {"adapter": adapter, "base": base, "train": train_images, "held_out": held_out}
    views = tuple(_view(e, sets, lines) for e in general)
    first = views[0]
    pixels = _pixel_views(sets)
    recoloured, recoloured_layout = beside_recoloured(
        general[0], first, pixels["layout"], pixels["palette"], lines, (adapter, base)
    )
    shown, face_lines = _faces(faces, general[0], adapter, base, lines)
    return Evidence(
        lines=lines,
        views=views,
        identity=in_identity(general[0], first),
        layout=pixels["layout"],
        recoloured=recoloured,
        recoloured_identity=recoloured and in_identity(general[0], recoloured),
        recoloured_layout=recoloured_layout,
        faces=shown,
        face_lines=face_lines,
        thumbnails=pixels["thumbnails"],
        axes={name: pixels[name] for name in ("palette", "background", "place", "size")},
        copies=None if sscd is None else _view(sscd, sets, lines),
        pictures=tuple(_name(p) for p in adapter),
        trained_on=tuple(_name(p) for p in train_images or ()),
        captions=tuple((p.prompt or "").strip() for p in train_images or ()),
        weak_encoder=_unfamiliar(general[0], first),
        plan=_plan(lines, adapter, base, trigger, class_noun),
    )


def evidence_of_features(
    features: ArrayLike | Tensor,
    reference: ArrayLike | Tensor,
    *,
    prompts: Sequence[str] | None = None,
    reference_prompts: Sequence[str] | None = None,
    train: ArrayLike | Tensor | None = None,
    encoder: str = "features as given",
) -> Evidence:
    """Evidence from features computed elsewhere: `[n, d]` of samples, `[m, d]` of the base's.

    prompts: one per row; None: all rows answer one prompt. reference_prompts: those of the
    reference; None: as `prompts`. Rows of one prompt are taken as drawn from unrelated seeds.
    Raises: FeaturesError when rows, widths or prompts do not fit; EmptyImageSet without rows.
    """
    tables = {"samples": features, "reference": reference, "training": train}
    rows = {
        name: functional.normalize(_whole(table, name).float(), dim=1)
        for name, table in tables.items()
        if table is not None
    }
    widths = {name: part.shape[1] for name, part in rows.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise FeaturesError(f"features differ in width ({told}); compute all with one encoder")
    ours = _named(prompts, rows["samples"], "prompts")
    other = prompts if reference_prompts is None else reference_prompts
    theirs = _named(other, rows["reference"], "reference_prompts")
    shared = [p for p in ours if p in theirs]
    if not shared:
        raise FeaturesError("no prompt of the samples is among those of the reference")
    lines = tuple(Line("class", p, p, tuple(ours[p]), tuple(theirs[p])) for p in shared)
    view = View(encoder, rows["samples"], rows["reference"], rows.get("training"))
    plan = {
        "prompts": {"class": len(lines)},
        "seeds": {"class": min(min(len(s.adapter_rows), len(s.base_rows)) for s in lines)},
        "pictures": {"adapter": len(view.adapter), "base": len(view.base)},
    }
    return Evidence(lines, (view,), identity=view, plan=plan)


def _whole(table: ArrayLike | Tensor, name: str) -> Tensor:
    rows = Rows.of(table, name=f"the {name} features")
    return rows.block(0, len(rows))


def _named(prompts: Sequence[str] | None, rows: Tensor, name: str) -> dict[str, list[int]]:
    if prompts is None:
        return {"": list(range(len(rows)))}
    if len(prompts) != len(rows):
        raise FeaturesError(f"{len(prompts)} {name} for {len(rows)} rows; expected one per row")
    found: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(row)
    return found


def match_lines(
    adapter: ImageSet,
    base: ImageSet,
    *,
    trigger: str | None = None,
    class_noun: str | None = None,
) -> tuple[Line, ...]:
    """The prompts that both sets answer, group by group.

    Raises: ImagesError when there are none.
    """
    lines: list[Line] = []
    for group in GROUPS:
        ours, theirs = _rows_by_prompt(adapter, group), _rows_by_prompt(base, group)
        for prompt, base_prompt in _pair_prompts(
            group, list(ours), list(theirs), trigger=trigger, class_noun=class_noun
        ):
            a, b, paired = _pair_seeds(
                adapter.pictures, base.pictures, ours[prompt], theirs[base_prompt]
            )
            lines.append(Line(group, prompt, base_prompt, a, b, paired))
    if not lines:
        raise ImagesError(
            f"no prompt of {adapter.origin!r} is found in {base.origin!r}; expected the same"
            f" prompts in both, but the first has {_few(adapter)} and the second {_few(base)}."
            " Name sub-folders or captions alike"
        )
    return tuple(lines)


def nearest_pictures(evidence: Evidence, copies: Any) -> list[dict[str, Any]]:
    """Each sample with its nearest training picture, for showing: `{"sample", "train",
    "similarity", "difference", "copy"}`, copies first. copies: of `find_copies`."""
    if copies is None:
        return []
    taken = {m.picture for m in copies.matches}
    rows = sorted(copies.nearest, key=lambda m: (m.picture not in taken, m.difference))
    return [
        {
            "sample": evidence.pictures[m.picture],
            "train": evidence.trained_on[m.training],
            "similarity": round(m.similarity, 4),
            "difference": round(m.difference, 4),
            "copy": m.picture in taken,
        }
        for m in rows
    ]


def _view(encoder: Any, sets: dict[str, ImageSet | None], lines: tuple[Line, ...]) -> View:
    rows = {
        name: pictures.features(encoder) if pictures is not None and len(pictures) else None
        for name, pictures in sets.items()
    }
    adapter, base = rows["adapter"], rows["base"]
    assert adapter is not None
    assert base is not None
    texts = encoder.texts([line.base_prompt for line in lines]) if encoder.has_text else None
    return View(encoder.id, adapter, base, rows["train"], rows["held_out"], texts)


def _pixel_views(sets: dict[str, ImageSet | None]) -> dict[str, View]:
    """All that plain pixels tell, each picture opened once; quicker than a cache would be."""
    encoders: dict[str, Encoder] = {
        "layout": Layout(),
        "palette": Palette(),
        "background": Border(),
        "placement": Placement(),
        "thumbnails": Thumbnail(),
    }
    rows: dict[str, list[Tensor | None]] = {}
    for name, pictures in sets.items():
        parts: list[list[Tensor]] = [[] for _ in encoders]
        for start in range(0, len(pictures or ()), PIXEL_BATCH):
            assert pictures is not None
            opened = [p.open() for p in pictures.pictures[start : start + PIXEL_BATCH]]
            for part, encoder in zip(parts, encoders.values(), strict=True):
                part.append(encoder.images(opened))
        rows[name] = [torch.cat(part) if part else None for part in parts]
    views: dict[str, View] = {}
    for i, (name, encoder) in enumerate(encoders.items()):
        adapter, base = rows["adapter"][i], rows["base"][i]
        assert adapter is not None
        assert base is not None
        views[name] = View(encoder.id, adapter, base, rows["train"][i], rows["held_out"][i])
    placed = views["placement"]
    return views | {"place": placed.columns(slice(0, 2)), "size": placed.columns(slice(2, 3))}


def beside_recoloured(
    encoder: Encoder,
    first: View,
    layout: View,
    palette: View,
    lines: tuple[Line, ...],
    pictures: tuple[ImageSet, ImageSet],
) -> tuple[View | None, View | None]:
    """The first view and the layout with the base's pictures in the adapter's colours.

    For the first each takes the hues of the picture that the adapter drew in its place (of the same
    seed where seeds are known), so that all but colours is compared. For the layout all trigger
    pictures take them by one map, as a style would: the subject may have one palette and its
    grounds not. Tones are mapped alike in all pictures. None where palettes are as varied as the
    base's, and so explain nothing: those of class pictures for the first, of trigger pictures for
    the second. pictures: the adapter's and the base's.
    """
    of = {group: [s for s in lines if s.group == group and s.adapter_rows] for group in GROUPS}
    seen = shown = None
    if _fewer_colours(palette, of["class"]):
        asked = [s for s in of["class"] + of["trigger"] if s.base_rows]
        seen = _recoloured(encoder, first, asked, *pictures, one_by_one=True)
    if _fewer_colours(palette, of["trigger"]):
        shown = _recoloured(Layout(), layout, of["trigger"], *pictures, one_by_one=False)
    return seen, shown


def _fewer_colours(palette: View, lines: Sequence[Line]) -> bool:
    least = AT_LEAST_PICTURES
    usable = [s for s in lines if min(len(s.adapter_rows), len(s.base_rows)) >= least]
    if not usable:
        return False
    colours = compare_variety(
        [palette.of_adapter(line) for line in usable], [palette.of_base(line) for line in usable]
    )
    return colours is not None and colours.ratio < FEWER_COLOURS


def _recoloured(
    encoder: Encoder,
    seen: View,
    lines: Sequence[Line],
    adapter: ImageSet,
    base: ImageSet,
    *,
    one_by_one: bool,
) -> View:
    """The base's pictures of these lines in the adapter's colours, the others as they are.

    one_by_one: each in the hues of its partner, not of all of the adapter's together.
    """
    partner = {
        row: line.adapter_rows[i % len(line.adapter_rows)]
        for line in lines
        for i, row in enumerate(line.base_rows)
    }
    theirs = {row: colour_moments(base.pictures[row].open()) for row in partner}
    ours = {
        row: colour_moments(adapter.pictures[row].open()) for s in lines for row in s.adapter_rows
    }
    whole = (np.sum(list(theirs.values()), 0), np.sum(list(ours.values()), 0))
    rows, order = seen.base.clone(), list(partner)
    for start in range(0, len(order), PIXEL_BATCH):
        some = order[start : start + PIXEL_BATCH]
        changed = [
            Recolour(luma=whole, chroma=(theirs[row], ours[partner[row]]) if one_by_one else whole)
            for row in some
        ]
        opened = [how(base.pictures[row].open()) for how, row in zip(changed, some, strict=True)]
        with torch.no_grad():
            rows[some] = encoder.images(opened).detach().float().cpu()
    return replace(seen, encoder=f"{seen.encoder}, base recoloured", base=rows)


def _faces(
    finder: FaceFinder | None,
    encoder: Encoder,
    adapter: ImageSet,
    base: ImageSet,
    lines: tuple[Line, ...],
) -> tuple[View | None, tuple[Line, ...]]:
    """The faces in class pictures through the first encoder, and their rows by prompt."""
    if finder is None:
        return None, ()
    crops: tuple[list[Picture], list[Picture]] = ([], [])
    found = []
    for line in lines:
        if line.group != "class":
            continue
        rows: list[tuple[int, ...]] = []
        for own, pictures, kept in zip(
            (line.adapter_rows, line.base_rows), (adapter, base), crops, strict=True
        ):
            start = len(kept)
            for row in own:
                face = finder.largest(pictures.pictures[row].open())
                if face is not None:
                    pixels = torch.from_numpy(np.array(face.convert("RGB"))).permute(2, 0, 1)
                    name = f"face in {pictures.pictures[row].key}"
                    kept.append(Picture(name, None, tensor=pixels.contiguous()))
            rows.append(tuple(range(start, len(kept))))
        found.append(replace(line, adapter_rows=rows[0], base_rows=rows[1], paired=0))
    if not all(crops):
        return None, ()
    ours, theirs = (ImageSet(tuple(part), "faces").features(encoder) for part in crops)
    return View(encoder.id, ours, theirs), tuple(found)


def first_features(pictures: ImageSet, encoders: Sequence[Encoder]) -> Float[Tensor, "n d"]:
    """The pictures as in the first view of evidence that these encoders gather."""
    return pictures.features(next(e for e in encoders if not _finds_copies(e)))


def in_identity(encoder: Encoder, view: View) -> View:
    """The view in what the encoder knows of who is in the picture, where it knows that apart."""
    if not isinstance(encoder, KnowsIdentity):
        return view

    def part(rows: Float[Tensor, "n d"] | None) -> Float[Tensor, "n i"] | None:
        return None if rows is None else encoder.identity(rows)

    return View(
        f"{view.encoder} identity",
        encoder.identity(view.adapter),
        encoder.identity(view.base),
        part(view.train),
        part(view.held_out),
    )


def _unfamiliar(encoder: Encoder, view: View) -> bool:
    given = [rows for rows in (view.adapter, view.base, view.train) if rows is not None]
    return any(encoder.unfamiliar(rows) for rows in given)


def _finds_copies(encoder: Encoder) -> bool:
    return encoder.id.startswith("sscd")


def _rows_by_prompt(pictures: ImageSet, group: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, picture in enumerate(pictures):
        if (picture.group or "class") == group:
            found.setdefault(picture.prompt or "", []).append(row)
    return found


def _pair_prompts(
    group: str,
    ours: list[str],
    theirs: list[str],
    *,
    trigger: str | None,
    class_noun: str | None,
) -> list[tuple[str, str]]:
    """Same with same if that leaves none over; else trigger with class noun; else, of what was
    asked with the trigger, line by line."""
    known = {bare(prompt): prompt for prompt in theirs}
    alike = [(p, p if p in theirs else known.get(bare(p))) for p in ours]
    same = [(p, q) for p, q in alike if q is not None]
    if len(same) == len(ours):
        return same
    if trigger:
        noun = class_noun or "thing"
        swapped = [(p, known.get(bare(as_base(p, trigger, noun)))) for p in ours]
        named = [(p, q) for p, q in swapped if q is not None]
        if len(named) == len(ours):
            return named
    if group in ("trigger", "caption") and len(ours) == len(theirs) and not same:
        return list(zip(ours, theirs, strict=True))
    return same


def _pair_seeds(
    adapter: Sequence[Picture], base: Sequence[Picture], ours: list[int], theirs: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Rows of both with common seeds first and in one order, and how many those are.

    Where a seed is unknown or drawn twice none are paired, and all keep their order.
    """
    a = {adapter[r].seed: r for r in ours}
    b = {base[r].seed: r for r in theirs}
    if None in a or None in b or len(a) < len(ours) or len(b) < len(theirs):
        return tuple(ours), tuple(theirs), 0
    common = sorted(s for s in a if s is not None and s in b)
    first_a, first_b = [a[s] for s in common], [b[s] for s in common]
    rest_a = [r for r in ours if r not in set(first_a)]
    rest_b = [r for r in theirs if r not in set(first_b)]
    return (*first_a, *rest_a), (*first_b, *rest_b), len(common)


def _plan(
    lines: tuple[Line, ...],
    adapter: ImageSet,
    base: ImageSet,
    trigger: str | None,
    class_noun: str | None,
) -> dict[str, Any]:
    per_group = {g: [s for s in lines if s.group == g] for g in GROUPS}
    return {
        "prompts": {g: len(found) for g, found in per_group.items() if found},
        "seeds": {
            g: min(min(len(s.adapter_rows), len(s.base_rows)) for s in found)
            for g, found in per_group.items()
            if found
        },
        "pictures": {"adapter": len(adapter), "base": len(base)},
        "trigger": trigger or "",
        "class_noun": class_noun or "",
    }


def _name(picture: Picture) -> str:
    return picture.key if picture.file is None else str(picture.file.resolve())


def _few(pictures: ImageSet) -> str:
    prompts = list(dict.fromkeys(p.prompt or "(no prompt)" for p in pictures))
    return ", ".join(repr(p) for p in prompts[:3])
