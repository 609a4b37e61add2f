"""What is told of a pick, and what is handed over: the words, the files, the page's pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from variegate.errors import AdapterError
from variegate.formats import own_notes, read, stamp, write, write_sidecar
from variegate.formats.metadata import OURS, usage_hint
from variegate.images import ImageSet
from variegate.measure import PlannedPrompt, Verdict, find_copies, nearest_pictures
from variegate.measurement import Measurement, Missing
from variegate.pick.points import Checkpoint, Point
from variegate.pick.race import Race
from variegate.pick.stand import Bench, Fresh
from variegate.pick.votes import Strength
from variegate.sample import Named, Request, sample

SHOWN = 6  # pictures that go with the export


def reason(
    seen: Fresh,
    grown: Measurement | Missing,
    closer: Measurement | Missing,
    own: Measurement | Missing,
    went: Race,
    liked: dict[str, Strength],
    margin: float,
) -> str:
    """Why this point, in one plain sentence of the fresh pictures."""
    point, reference = seen.point, seen.reference
    keeps = ""
    if isinstance(own, Measurement):
        keeps = f"it keeps {own.value:.0%} of the base's variety ({own.low:.0%} to {own.high:.0%})"
    if point == reference:
        if seen.fell:
            return f"We would use {point.words}, as it was trained: {keeps}, and {seen.fell}."
        return (
            f"We would use {point.words}, as it was trained: {keeps}, and no other point keeps "
            f"more while it shows the subject at least {1 - margin:.0%} as often."
        )
    beside = f"where {reference.words}, the best plain one, "
    if isinstance(grown, Measurement):
        assert grown.low is not None
        beside += f"has {spelled(grown)} {'less' if grown.value >= 0 else 'more'}"
        beside += "" if grown.low > 0 else f", which {grown.n} prompts cannot tell from nothing"
    else:
        beside += "cannot be compared"
    like = "how often it shows the subject is not known"
    if isinstance(closer, Measurement):
        sure = "" if closer.low is None else f" ({closer.low:.0%} to {closer.high:.0%})"
        like = f"it shows the subject {closer.value:.0%} as often{sure}"
    told = f"We would use {point.words}: {keeps}, {beside}, and {like}."
    if point != went.choice and point.name in liked:
        told = told[:-1] + (
            f"; people liked it better than {went.choice.words if went.choice else ''}, from which "
            "these pictures cannot tell it."
        )
    return told


def spelled(m: Measurement) -> str:
    """The size of a difference in points of a hundred, with its interval on that side."""
    text = f"{abs(100 * m.value):.0f} points"
    if m.low is None or m.high is None:
        return text
    low, high = (m.low, m.high) if m.value >= 0 else (-m.high, -m.low)
    return f"{text} ({100 * low:.0f} to {100 * high:.0f})"


def cannot_tell(went: Race, grown: Measurement | Missing, point: Point, reference: Point) -> str:
    """What these pictures leave open, or ""."""
    said = list[str]()
    if point != reference and not (isinstance(grown, Measurement) and (grown.low or 0) > 0):
        said.append(f"whether {point.words} is more varied than {reference.words}, the plain one")
    others = [p for p in went.tied if p not in (point, reference)]
    if others:
        named = ", ".join(p.words for p in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        said.append(f"whether {named}{more} would do as well or better")
    return f"These pictures cannot tell {'; nor '.join(said)}." if said else ""


def export(
    checkpoint: Checkpoint,
    point: Point,
    verdict: Verdict,
    bench: Bench,
    out: Path,
    warned: list[str],
) -> dict[str, str]:
    """The chosen adapter in every form that can hold it, the recommendation in each header, and
    what A1111 reads beside."""
    learnt = checkpoint.adapter
    notes = own_notes(learnt.metadata) | {
        "recommended": {"strength": point.strength, "guidance_scale": point.guidance_scale}
    }
    if bench.class_noun:
        notes["class"] = bench.class_noun
    told = {
        **learnt.metadata,
        OURS: json.dumps(notes, sort_keys=True),
        "modelspec.usage_hint": usage_hint(point.strength, point.guidance_scale),
        "modelspec.trigger_phrase": bench.trigger,
    }
    learnt = replace(learnt, metadata=told)
    stem = _stem(checkpoint)
    main = write(learnt, out / f"{stem}.safetensors")
    stamp(main, verdict)
    shown = _pictures(bench, point, main, out / "pictures")
    beside = write_sidecar(main, preview=shown.pictures[0].file)
    files = {"a1111": str(main), "sidecar": str(beside[0])}
    files |= {"preview": str(beside[1])} if len(beside) > 1 else {}
    try:
        single = out / "diffusers" / "pytorch_lora_weights.safetensors"
        files["diffusers"] = str(write(learnt, single, "diffusers"))
        stamp(single, verdict)
        files["peft"] = str(write(learnt, out / "peft", "peft"))
    except AdapterError as error:  # a kind that their form cannot hold
        warned.append(f"not written for diffusers and PEFT: {error}")
    return files


def _stem(checkpoint: Checkpoint) -> str:
    """What the exported file is called: after what its header calls it, else after itself."""
    name = checkpoint.metadata.get("ss_output_name", "") or checkpoint.name
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    return kept[:80] or "adapter"


def _pictures(bench: Bench, point: Point, file: Path, out: Path) -> ImageSet:
    """Some pictures of the point under the trigger, drawn as it is recommended, with the text by
    which A1111 draws them again."""
    lines = [line for line in bench.checked if line.group == "trigger"]
    asked = [
        Request(line.adapter_prompt, seed, "trigger", point.strength)
        for line in lines[: bench.fresh_prompts]
        for seed in line.seeds
    ]
    learnt = bench.adapters[point.checkpoint].adapter
    return sample(
        bench.model,
        learnt,
        asked[:: max(1, len(asked) // SHOWN)][:SHOWN],
        plan=bench.own.model_copy(update={"guidance_scale": point.guidance_scale}),
        out=out,
        named=Named.of(file, read(file).metadata),
    )


def page_rows(bench: Bench, points: Sequence[Point]) -> dict[str, Any]:
    """What the page shows: prompts and seeds, the base's pictures, those of each point of the
    front, and what these come nearest to of what was learnt."""
    shown = [line for group in ("trigger", "class") for line in _of(bench.searched, group)[:2]]
    asked = [(line, seed) for line in shown for seed in line.seeds]
    base = {(p.prompt, p.seed): p.file for p in bench.draw_base(shown, bench.quick)}
    rows = []
    for point in points:
        evidence = bench.evidence[point]
        drawn = bench.draw(point, shown, bench.quick, "lay out")
        files = {(p.prompt, p.seed): p.file for p in drawn}
        near: list[dict[str, Any]] = []
        if bench.learnt_known:
            near = nearest_pictures(evidence, find_copies(evidence))[:8]
        rows.append(
            {
                "point": point.name,
                "files": [files.get((line.adapter_prompt, seed)) for line, seed in asked],
                "nearest": near,
            }
        )
    return {
        "columns": [
            {"prompt": line.adapter_prompt, "asked": line.base_prompt, "seed": seed}
            for line, seed in asked
        ],
        "base": [base.get((line.base_prompt, seed)) for line, seed in asked],
        "rows": rows,
        "trigger": bench.trigger,
        "base_name": bench.base,
    }


def _of(plan: Sequence[PlannedPrompt], group: str) -> list[PlannedPrompt]:
    return [line for line in plan if line.group == group]
