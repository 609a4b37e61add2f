"""The report of one run: one HTML file that an artist can read, keep and send.

The page holds everything it shows: pictures as WebP data, curves as inline SVG, no script, no
address on any network. The same files give the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from variegate.errors import NoSpace
from variegate.measurement import Measurement, Missing, Verdict
from variegate.recipe import Strategies
from variegate.report.charts import journal_charts
from variegate.report.numbers import headline_numbers, technical
from variegate.report.pictures import Album, PromptRow, Rows, Thumbnail, pair, spread
from variegate.report.record import Panel, RunRecord, Sample, inside, read_record
from variegate.report.text import lasted, long, number, opening, plain, when
from variegate.report.words import (
    ADVICE_TITLES,
    GROUPS,
    NUMBERS,
    STRATEGIES,
    LabelWords,
    label_words,
)
from variegate.run import write_atomically

MOST_NEAREST = 8
MOST_COPIES = 32
MOST_PANELS = 3
MOST_PANEL_PICTURES = 8
MOST_LOOKS = 8
MOST_STRIPS = 4
MOST_OF_A_STRIP = 4
MOST_LAYERS = 5
MOST_LISTED = 30
MOST_ENTRIES = 1_000_000  # read of any list


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder from the files there, and return its path.

    A file that is missing or damaged leaves a sentence on the page. `evidence.json` (optional)
    holds `nearest`, most suspicious first, a list of `{"sample", "train", "similarity",
    "difference", "copy"}`
    (the sample's path relative to the run, the training picture's absolute or relative to the
    run), and `panels`, a list of `{"title", "text", "pictures": [{"file", "caption"}]}`; also
    `encoder`, which the page names beside the pairs.

    Raises: RunError when the folder is missing or is no run, NoSpace when it cannot be written.
    """
    record = read_record(Path(run_folder))
    html = environment().get_template("report.html.j2").render(_context(record))
    return write_page(html, record.folder / "report.html")


def write_page(html: str, file: Path) -> Path:
    """Put the page in place whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, html.encode("utf8"))
    except OSError as error:
        raise NoSpace(f"{file} cannot be written: {error.strerror or error}") from error
    return file


@cache
def environment() -> Environment:
    """Templates whose every output is made plain, then escaped."""
    jinja = Environment(
        loader=PackageLoader("variegate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    style = resources.files("variegate.report").joinpath("templates/style.css")
    jinja.globals["style"] = Markup(style.read_text(encoding="utf8"))
    jinja.filters.update(long=long, number=number, opening=opening)
    return jinja


def _context(record: RunRecord) -> dict[str, Any]:
    rows = pair([record.base, record.adapter])
    nearest = _nearest(record)
    panels = tables(record.evidence.get("panels"), MOST_PANELS)
    pictured = [tables(p.get("pictures"), MOST_PANEL_PICTURES) for p in panels]
    count = sum(len(r.sides) * len(r.seeds) for g in rows for r in g.rows)
    columns = spread(record.panels, MOST_LOOKS)
    strips = _strips(columns)
    count += len(columns) * sum(len(seeds) for _, seeds in strips)
    album = Album(count + 2 * len(nearest) + sum(map(len, pictured)))
    journal, verdict = record.journal, record.verdict
    return {
        "name": record.folder.resolve().name,
        "gaps": record.gaps,
        "verdict": verdict,
        "chips": chips(verdict),
        "facts": _facts(record),
        "trained": record.trained,
        "groups": [group_view(g, album, ("Base", "Adapter")) for g in rows],
        "shown": sampling_note(rows),
        "samples": {"base": len(record.base), "adapter": len(record.adapter)},
        "nearest": [_nearest_view(n, record, album) for n in nearest],
        "nearest_total": len(tables(record.evidence.get("nearest"), MOST_ENTRIES)),
        "nearest_encoder": record.evidence.get("encoder"),
        "panels": [
            {
                "title": p.get("title", ""),
                "text": p.get("text", ""),
                "pictures": _panel(f, record, album),
            }
            for p, f in zip(panels, pictured, strict=True)
        ],
        "numbers": headline_numbers(verdict) if verdict else [],
        "looks": [_look_name(panel) for panel in columns],
        "strips": [_strip_view(prompt, seeds, columns, album) for prompt, seeds in strips],
        "charts": journal_charts(journal) if journal else [],
        "intruders": journal.intruders[:MOST_LAYERS] if journal else (),
        "notes": journal.notes[:MOST_LISTED] if journal else (),
        "advice": [_advice_view(vars(a)) for a in verdict.advice[:MOST_LISTED]] if verdict else [],
        "asked": _asked(record),
        "strategies": strategies_on(record.recipe),
        "recipe_text": record.recipe_text,
        "audit": _audit_view(record.audit),
        "measured": _measured(verdict),
        "commands": _commands(record),
    }


def tables(value: Any, most: int) -> list[dict[str, Any]]:
    """The tables in what should be a list of them."""
    return [x for x in value if isinstance(x, dict)][:most] if isinstance(value, list) else []


@dataclass(frozen=True)
class Chip:
    """A label with the tone of its worst reason and the sentences behind it."""

    label: str
    words: LabelWords
    tone: str
    sentences: tuple[str, ...]


def chips(verdict: Verdict | None) -> list[Chip]:
    """The verdict's labels, each with its reasons."""
    made = []
    for label in verdict.labels if verdict else ():
        assert verdict is not None
        reasons = [r for r in verdict.reasons if r.label == label]
        words = label_words(str(label))
        failed = words.tone == "warn" and any(r.severity == "fail" for r in reasons)
        sentences = tuple(dict.fromkeys(r.sentence for r in reasons))[:MOST_LISTED]
        made.append(Chip(str(label), words, "bad" if failed else words.tone, sentences))
    return made


def _facts(record: RunRecord) -> list[str]:
    recipe, journal = record.recipe or {}, record.journal
    facts = []
    if trigger := recipe.get("trigger"):
        noun = recipe.get("class_noun")
        facts.append(f"“{trigger}”, {article(str(noun))}" if noun else f"“{trigger}”")
    if base := recipe.get("base"):
        facts.append(f"base {base}")
    if journal and journal.last_step is not None:
        facts.append(f"{journal.last_step:,} steps")
    if journal:
        facts.append(lasted(journal.started, journal.ended))
        facts.append(when(journal.ended))
    return [fact for fact in facts if fact]


def article(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    return f"an {noun}" if noun[:1].lower() in tuple("aeiou") else f"a {noun}"


def group_view(rows: Rows, album: Album, names: Sequence[str]) -> dict[str, Any]:
    """One group's mosaics: for each prompt, one mosaic per side."""
    views = [_row_view(row, album, names) for row in rows.rows]
    for previous, view in reversed(list(pairwise(views))):
        if view["seeds"] == previous["seeds"]:  # said once
            view["seeds"] = ""
    return {"title": GROUPS.get(rows.group, rows.group), "rows": views}


def sampling_note(groups: Sequence[Rows]) -> str:
    """What share of the samples the mosaics show; nothing when they show all of them."""
    told: dict[str, list[str]] = {}
    for g in groups:
        if g.sampled:
            seeds = max(len(row.seeds) for row in g.rows)
            share = f"{len(g.rows)} of {g.prompts} prompts and {seeds} of {g.seeds} seeds"
            told.setdefault(share, []).append(GROUPS.get(g.group, g.group).lower())
    if not told:
        return ""
    parts = (f"{share} ({' and '.join(names)})" for share, names in told.items())
    return f"Not every sample is shown: {'; '.join(parts)}, spread evenly."


def _row_view(row: PromptRow, album: Album, names: Sequence[str]) -> dict[str, Any]:
    sides = []
    for name, prompt, samples in zip(names, row.prompts, row.sides, strict=True):
        thumbs = [
            _thumbnail(sample, name, prompt, seed, album)
            for sample, seed in zip(samples, row.seeds, strict=True)
        ]
        empty = all(sample is None for sample in samples)
        sides.append({"name": name, "prompt": prompt, "thumbs": thumbs, "empty": empty})
    seeds = [str(s) for s in row.seeds if s is not None]
    return {"sides": sides, "seeds": ", ".join(seeds)}


def _thumbnail(
    sample: Sample | None, side: str, prompt: str, seed: int | None, album: Album
) -> Thumbnail:
    at = "" if seed is None else f", seed {seed}"
    alt = f"{side}: {plain(prompt, 120)}{at}"
    if sample is None:
        return Thumbnail(Markup(), 1, 1, alt, "not drawn")
    return album.thumbnail(sample.file, alt)


def _strips(columns: Sequence[Panel]) -> list[tuple[str, list[int | None]]]:
    """The prompts that were drawn while training, each with the seeds that are shown."""
    seeds: dict[str, dict[int | None, None]] = {}
    for panel in columns:
        for sample in panel.samples:
            seeds.setdefault(sample.prompt, {})[sample.seed] = None
    shown = list(seeds.items())[:MOST_STRIPS]
    return [(prompt, list(found)[:MOST_OF_A_STRIP]) for prompt, found in shown]


def _look_name(panel: Panel) -> str:
    return f"step {panel.step:,}" if panel.step else "Base"


def _strip_view(
    prompt: str, seeds: Sequence[int | None], columns: Sequence[Panel], album: Album
) -> dict[str, Any]:
    """One prompt: a row for each seed, in it a picture for each look."""
    rows = []
    for seed in seeds:
        thumbs = []
        for panel in columns:
            asked = (s for s in panel.samples if (s.prompt, s.seed) == (prompt, seed))
            thumbs.append(_thumbnail(next(asked, None), _look_name(panel), prompt, seed, album))
        rows.append(thumbs)
    return {"prompt": prompt, "rows": rows}


def _nearest(record: RunRecord) -> list[dict[str, Any]]:
    """The first pairs as they were written, copies before all others."""
    found = tables(record.evidence.get("nearest"), MOST_ENTRIES)
    copies = [pair for pair in found if pair.get("copy")][:MOST_COPIES]
    others = [pair for pair in found if not pair.get("copy")]
    return copies + others[: max(0, MOST_NEAREST - len(copies))]


def _nearest_view(found: Mapping[str, Any], record: RunRecord, album: Album) -> dict[str, Any]:
    home = record.folder.resolve()
    sample, train = str(found.get("sample", "")), str(found.get("train", ""))
    file = inside(home, sample)
    known = next((s for s in record.adapter if file is not None and s.file == file), None)
    said = f"sample {Path(sample).name}" if known is None else f"sample of “{known.prompt}”"
    if known is not None and known.seed is not None:
        said += f", seed {known.seed}"
    return {
        "sample": album.thumbnail(file, f"Adapter: {plain(said, 160)}"),
        "train": album.thumbnail(_local(home, train), f"Training picture {Path(train).name}"),
        "said": said,
        "train_name": Path(train).name,
        "similarity": found.get("similarity"),
        "difference": found.get("difference"),
        "is_copy": bool(found.get("copy")),
    }


def _local(home: Path, name: str) -> Path | None:
    """A path that the run itself names: absolute, or relative to the run."""
    try:
        return (home / name).resolve() if name else None
    except (OSError, ValueError, RuntimeError):
        return None


def _panel(
    pictures: Iterable[Mapping[str, Any]], record: RunRecord, album: Album
) -> list[dict[str, Any]]:
    home = record.folder.resolve()
    made = []
    for picture in pictures:
        caption = str(picture.get("caption", ""))
        file = _local(home, str(picture.get("file", "")))
        alt = plain(caption, 120) or (file.name if file else "picture")
        made.append({"thumb": album.thumbnail(file, alt), "caption": caption})
    return made


def _advice_view(advice: Mapping[str, str]) -> dict[str, str]:
    title = ADVICE_TITLES.get(advice["strategy"], strategy_words(advice["strategy"])[0])
    return {"title": title, **advice}


def strategy_words(name: str) -> tuple[str, str]:
    """Title and purpose of a strategy; of an unlisted one, its name and its recipe's own words."""
    key = name.replace("-", "_")
    if key in STRATEGIES:
        return STRATEGIES[key]
    return name.replace("_", " "), _recipe_words(key)


def _recipe_words(key: str) -> str:
    known = Strategies.model_fields.get(key)
    kinds = getattr(known.annotation, "__args__", ()) if known else ()
    return next((kind.__doc__ or "" for kind in kinds if kind is not type(None)), "")


def strategies_on(recipe: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The strategies whose tables a recipe has, with what each is for and how it was set."""
    on = (recipe or {}).get("strategies")
    made = []
    for name, settings in on.items() if isinstance(on, dict) else ():
        title, purpose = strategy_words(str(name))
        entries = settings.items() if isinstance(settings, dict) else ()
        setting = ", ".join(f"{k} = {v}" for k, v in entries)
        made.append({"name": name, "title": title, "purpose": purpose, "setting": setting})
    return made


def _asked(record: RunRecord) -> list[tuple[str, str]]:
    recipe = record.recipe
    if recipe is None:
        return []
    rows = [
        ("Base model", _entry(recipe, "base")),
        ("Training pictures", _entry(recipe, "images")),
        ("Trigger word", _entry(recipe, "trigger")),
        ("Kind of thing", _entry(recipe, "class_noun")),
        ("Steps", _entry(recipe, "optimizer", "steps")),
        ("Learning rate", _entry(recipe, "optimizer", "lr")),
        ("Rank", _entry(recipe, "adapter", "rank")),
        ("Layers", _entry(recipe, "adapter", "layers")),
        ("Sampler", _entry(recipe, "sampling", "sampler")),
        ("Guidance", _entry(recipe, "sampling", "guidance_scale")),
        ("Seed", _entry(recipe, "seed")),
    ]
    journal = record.journal
    if journal and journal.stopped_because:
        rows.append(("Stopped because", journal.stopped_because))
    return [(title, text) for title, text in rows if text]


def _entry(recipe: Mapping[str, Any], *keys: str) -> str:
    value: Any = recipe
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _audit_view(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if audit is None:
        return None
    faults, findings = audit.get("faults"), audit.get("findings")
    duplicates, captions = audit.get("duplicates"), audit.get("captions")
    limits = audit.get("limited_by")
    return {
        "images": audit.get("images"),
        "usable": audit.get("usable"),
        "limited_by": ", ".join(map(str, limits)) if isinstance(limits, list) else "",
        "effective": audit.get("effective_images"),
        "findings": tables(findings, MOST_LISTED),
        "faults": tables(faults, MOST_LISTED),
        "faults_total": len(tables(faults, MOST_ENTRIES)),
        "duplicates": len(duplicates) if isinstance(duplicates, list) else 0,
        "captions": [
            (str(k).replace("_", " "), number(v))
            for k, v in list(captions.items())[:MOST_LISTED]
            if isinstance(v, str | int | float)
        ]
        if isinstance(captions, dict)
        else [],
    }


def _measured(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    known = [m for m in verdict.measurements if isinstance(m, Measurement)]
    return {
        "encoders": ", ".join(map(str, verdict.encoders)) or "none named",
        "weak": verdict.weak_encoder,
        "rules": verdict.rules,
        "plan": [(str(k).replace("_", " "), number(v)) for k, v in verdict.plan.items()][
            :MOST_LISTED
        ],
        "all": [(m.name, technical(m), m.better) for m in known][:200],
        "missing": [
            (m.name, m.why)
            for m in verdict.measurements
            if isinstance(m, Missing) and m.name not in NUMBERS
        ][:MOST_LISTED],
    }


def _commands(record: RunRecord) -> list[tuple[str, str]]:
    run = record.folder.resolve().name
    recipe = record.recipe or {}
    images = str(recipe.get("images") or "IMAGES")
    commands = []
    if record.recipe is not None:
        again = ["variegate", "trial", images, "--recipe", f"{run}/recipe.toml"]
        commands.append(("Train, sample and measure again", [*again, "--out", f"{run}-again"]))
    if record.verdict is not None and record.verdict.weak_encoder:
        look = ["variegate", "measure", f"{run}/adapter.safetensors"]
        look += ["--base", str(recipe.get("base") or "BASE"), "--train-images", images]
        if record.recipe is None:  # a measurement alone, which may not know the adapter
            look = ["variegate", "measure", "--images", f"{run}/samples/adapter"]
            look += ["--reference", f"{run}/samples/base"]
        look += ["--encoder", "facebook/dinov2-base"]
        commands.append(("Measure with an encoder made for photographs", look))
    commands.append(("Write this page again", ["variegate", "report", run]))
    return [(what, shlex.join(words)) for what, words in commands]
