"""The command line's answers as text for people; the JSON beside each carries the same facts."""

from __future__ import annotations

from typing import Any

from variegate.console import printable
from variegate.measurement import Measurement, Missing, Verdict, measurement_from_json


def verdict_text(verdict: Verdict) -> str:
    """The sentence, the reasons, every number with its interval, and what to do."""
    parts = [f"{', '.join(verdict.labels)}: {verdict.sentence}"]
    if verdict.reasons:
        parts.append(_listed("Why", [f"[{r.severity}] {r.sentence}" for r in verdict.reasons]))
    parts.append(_listed("Measured", [_measurement_line(m) for m in verdict.measurements]))
    parts += verdict.notes
    if verdict.advice:
        parts.append(
            _listed("Try", [f"{a.strategy} {a.setting}: {a.expected}" for a in verdict.advice])
        )
    return printable("\n\n".join(parts), keep="\n")


def _measurement_line(measurement: Measurement | Missing) -> str:
    if not isinstance(measurement, Measurement):
        return f"{measurement.name}: missing, {measurement.why}"
    line = f"{measurement.name} {measurement.value:.3g}{measurement.unit and ' '}{measurement.unit}"
    if measurement.low is not None and measurement.high is not None:
        line += f" ({measurement.low:.3g} to {measurement.high:.3g})"
    return f"{line}, n = {measurement.n}"


def audit_text(report: dict[str, Any]) -> str:
    """How many pictures, how many truly differ, and each finding with its advice."""
    head = (
        f"{report['images']} pictures, {report['usable']} usable, "
        f"{report['effective_images']:.1f} effectively different"
    )
    faults = [f"{f['file']}: {f['fault']}. {f['advice']}" for f in report["faults"]]
    twins = [f"{a} ~ {b} ({alike:.2f})" for a, b, alike in report["duplicates"]]
    findings = [f"{f['what']} ({f['evidence']}). {f['advice']}" for f in report["findings"]]
    lists = {"Faults": faults, "Look-alikes": twins, "Findings": findings}
    told = [_listed(name, lines) for name, lines in lists.items() if lines]
    return printable("\n\n".join([head, *told]), keep="\n")


def captions_text(document: dict[str, Any]) -> str:
    """Each picture with what became of its caption, and what is wrong with them all."""
    rows = document["captions"]
    names = [row["file"].rpartition("/")[2] for row in rows]
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:{width}}  {row['state']:8}  {row['caption']}")
        if row["state"] == "kept":
            lines.append(f"{'':{width}}  {'':8}  there already: {row['existing']}")
    lines += [f"not opened: {row['fault']}" for row in document["unread"]]
    told = ["\n".join(lines)]
    if findings := document["findings"]:
        listed = [f"{f['what']} ({f['evidence']}). {f['advice']}" for f in findings]
        told.append(_listed("Findings", listed))
    if not document["written"]:
        told.append("Nothing was written; --write does, --force over captions that are there.")
    return printable("\n\n".join(told), keep="\n")


def run_text(document: dict[str, Any]) -> str:
    """Where the run lies, where it stopped and why, and the verdict when there is one."""
    lines = [f"{document['run']}: step {document['step']}, {document['stopped_because']}"]
    for key in ("adapter", "report"):
        if document.get(key):
            lines.append(f"{key}: {document[key]}")
    if verdict := document.get("verdict"):
        lines += ["", verdict_text(Verdict.from_json(verdict))]
    return "\n".join(lines)


def demo_text(document: dict[str, Any]) -> str:
    """The two verdicts side by side and where the page is."""
    lines = []
    for name in ("plain", "guarded"):
        verdict = Verdict.from_json(document[name])
        lines.append(f"{name:8} {', '.join(verdict.labels)}: {verdict.sentence}")
        headlines = ("variety_vs_base", "trigger_variety_vs_base", "likeness")
        found = [m for m in map(verdict.find, headlines) if m]
        lines += [f"         {_measurement_line(m)}" for m in found]
    for difference in map(measurement_from_json, document.get("differences", ())):
        lines.append(f"guarded less plain: {_measurement_line(difference)}")
    return printable("\n".join([*lines, "", f"Open {document['report']}"]), keep="\n")


def repair_text(document: dict[str, Any]) -> str:
    """What was done, what it gave on fresh pictures, and where file and page are."""
    lines = [document["said"], ""]
    for name in ("before", "after"):
        if document[name]:
            verdict = Verdict.from_json(document[name])
            lines.append(f"{name:7} {', '.join(verdict.labels)}: {verdict.sentence}")
    if document["after"]:
        kept = measurement_from_json(document["kept"])
        lines.append(f"kept: {_measurement_line(kept)}")
    found = [document["gain"], *document["differences"]] if document["after"] else []
    lines += [
        f"after less before: {_measurement_line(m)}" for m in map(measurement_from_json, found)
    ]
    if later := document["timed"]:
        lines.append(
            f"Acting late in the noise as well (--timed) it had {later['variety']:.2f} of the "
            f"base's variety with {later['likeness']:.0%} of its likeness kept, on the pictures of "
            f"the search: {later['words']}"
        )
    if document["page"]:
        lines += ["", f"Open {document['page']}"]
    return printable("\n".join(lines).strip(), keep="\n")


def pick_text(document: dict[str, Any]) -> str:
    """What to use, why, what cannot be told, the front, and where files and page are."""
    lines = [document["reason"]]
    lines += [document["cannot_tell"]] if document["cannot_tell"] else []
    share = document["samples_used"] / max(1, document["samples_of_grid"])
    lines += [
        "",
        f"{document['samples_used']} pictures were drawn, {share:.0%} of the full grid's; "
        f"{document['stopped_because']}.",
    ]
    front = []
    for point in document["front"]:
        variety, likeness = (measurement_from_json(point[k]) for k in ("variety", "likeness"))
        told = ", ".join(_measurement_line(m) for m in (variety, likeness))
        mark = "*" if point["name"] == document["point"] else " "
        front.append(f"{mark} {point['name']}: {told}")
    lines += ["", _listed("On the front", front), "", f"adapter: {document['adapter']}"]
    return printable("\n".join([*lines, f"Open {document['page']}"]), keep="\n")


def share_text(document: dict[str, Any]) -> str:
    """Where the folder is, what is in it, and where it went."""
    lines = [_listed(document["folder"], document["files"])]
    if document["pushed"]:
        lines.append(f"uploaded: {document['pushed']}")
    else:
        lines.append("Nothing was uploaded; --push OWNER/NAME does.")
    return printable("\n".join(lines), keep="\n")


def tuning_text(document: dict[str, Any]) -> str:
    """The front, what to take and why, what mattered, and where the page is."""
    counts = document["trials"]
    lines = [
        f"{counts['measured']} settings measured, {counts['given_up']} given up by their probes"
    ]
    if counts["failed"]:
        lines[0] += f", {len(counts['failed'])} came to nothing"
    if document["left"]:
        lines.append(f"{document['left']} are left; the same command goes on")
    where = "fresh prompts and seeds" if document["measured_anew"] else "the search's own pictures"
    lines += ["", f"On the front ({where}):"] if document["front"] else []
    for point in document["front"]:
        lines.append(
            f"  {point['number']:4d}  likeness {_spread(point['likeness'])}  variety "
            f"{_spread(point['variety'])}  {', '.join(point['settings'])}"
        )
    taken = document["recommended"]
    if taken:
        lines += ["", f"Take {taken['number']}: {taken['reason']}", taken["adapter"]]
    else:
        lines += ["", f"Nothing can be recommended: {document['why_none']}."]
    lines += ["", _listed("What mattered", document["effects_told"])]
    return printable("\n".join([*lines, "", f"Open {document['page']}"]), keep="\n")


def _spread(number: dict[str, Any]) -> str:
    ends = "" if number["low"] is None else f" ({number['low']:.2f} to {number['high']:.2f})"
    return f"{number['value']:.2f}{ends}"


def strategies_text(menu: list[dict[str, Any]]) -> str:
    """Each strategy with its settings and their defaults."""
    blocks = []
    for entry in menu:
        settings = ", ".join(f"{s['name']}={s['default']}" for s in entry["settings"])
        blocks.append(
            f"{entry['name']}  ({entry['stage']})\n  {entry['summary']}\n  settings: {settings}\n"
            f"  cost: {entry['cost']}\n  effect: {entry['effect']}"
        )
    return "\n\n".join(blocks)


def adapter_text(facts: dict[str, Any]) -> str:
    """What is in a file: one fact per line, then its metadata, then a line for each layer. Long
    texts are cut, the JSON has more of them."""
    layers = facts.get("layer_facts") or []
    plain = {k: v for k, v in facts.items() if k not in ("layer_facts", "metadata")}
    parts = ["\n".join(_fact_lines(plain))]
    if facts["metadata"]:
        parts.append(_listed("Metadata", _fact_lines(facts["metadata"])))
    if layers:
        parts.append(_listed("Layers", [_layer_line(layer) for layer in layers]))
    return printable("\n\n".join(parts), keep="\n")


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    texts = {" ".join(key.split()): " ".join(str(value).split()) for key, value in facts.items()}
    return [f"{k}: {text if len(text) <= 200 else text[:197] + '...'}" for k, text in texts.items()]


def _layer_line(layer: dict[str, Any]) -> str:
    words = [layer["name"], layer["kind"]]
    for key in ("rank", "alpha", "norm", "effective_rank"):
        if layer[key] is not None:
            words.append(f"{key.replace('_', ' ')} {layer[key]:.4g}")
    if values := layer["singular_values"]:
        words.append(f"singular values {values[0]:.3g} to {values[-1]:.3g}")
    return "  ".join(words)


def _listed(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)])
