"""The model card: front matter as the Hub documents it, and the verdict's figures, built offline.

Every text from outside (trigger, prompts, names) is data here: YAML is written by a YAML library,
Markdown's marks are escaped, code is quoted as code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from variegate.measurement import Measurement, Verdict
from variegate.report.text import plain
from variegate.report.words import NUMBERS, label_words
from variegate.share.private import clean
from variegate.share.source import Source

WEIGHTS = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a repository
# By family: licence, its name and address where it is none of the Hub's own, and the Hub's tags.
FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": {
        "license": "creativeml-openrail-m",
        "tags": ("stable-diffusion", "stable-diffusion-diffusers"),
        "civitai": "SD 1.5",
    },
    "sd2": {
        "license": "openrail++",
        "tags": ("stable-diffusion", "stable-diffusion-diffusers"),
        "civitai": "SD 2.1",
    },
    "sdxl": {
        "license": "openrail++",
        "tags": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
        "civitai": "SDXL 1.0",
    },
    "sd3": {
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/"
        "LICENSE.md",
        "tags": ("sd3", "sd3-diffusers"),
        "civitai": "SD 3",
    },
    "pocket": {"license": "apache-2.0", "tags": (), "civitai": "Other"},
}
OTHER: dict[str, Any] = {"license": "other", "tags": (), "civitai": "Other"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# The headline numbers in the order of the report, and what each is called on a card.
FIGURES = tuple(NUMBERS)
_MARKS = re.compile(r"([\\`*_{}\[\]()#+.!|~$=^:-])")


def front_matter(
    source: Source,
    *,
    base_model: str | None,
    images: Sequence[tuple[str, str]],
    private: bool,
) -> ModelCardData:
    """What the Hub reads of a card.

    base_model: the base's name on the Hub; None where it has none. images: (file, prompt) of each.
    """
    known = FAMILIES.get(source.adapter.family, OTHER)
    tags = ("text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora")
    told: dict[str, Any] = {
        "license": known["license"],
        "license_name": known.get("license_name"),
        "license_link": known.get("license_link"),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": base_model,
        "base_model_relation": "adapter" if base_model else None,
        "instance_prompt": _text(source.trigger) or None,
        "tags": [*tags, *known["tags"]],
        "widget": [
            {"text": "" if private else _text(prompt), "output": {"url": file}}
            for file, prompt in images
        ],
    }
    return ModelCardData(**{key: value for key, value in told.items() if value})


def body(
    source: Source,
    *,
    name: str,
    repo: str | None,
    files: Sequence[str],
    figures: Sequence[Measurement],
    with_pictures: bool,
    with_recipe: bool,
    private: bool,
) -> str:
    """The card below its front matter."""
    trigger = _text(source.trigger)
    parts = [f"# {escape(name)}"]
    if with_pictures:
        parts.append("<Gallery />")
    parts.append("## Trigger words")
    parts.append(
        f"You should use {code(trigger)} to trigger the image generation."
        if trigger
        else "None is known."
    )
    parts += _use(source, name, repo, trigger, files)
    parts += _figures(source, figures, private)
    parts.append("## How it was made")
    made = "With [variegate](https://pypi.org/project/variegate/), LoRA without loss of variety."
    if with_recipe:
        made += (
            " `recipe.toml` is all that was asked but for the pictures; with yours it can be "
            "repeated:"
        )
        parts += [made, "```sh\nvariegate trial my_photos --recipe recipe.toml\n```"]
    else:
        parts.append(made if source.recipe else "Measured with variegate; made by another trainer.")
    return "\n\n".join(parts) + "\n"


def _use(
    source: Source, name: str, repo: str | None, trigger: str, files: Sequence[str]
) -> list[str]:
    strength = source.strength or 1.0
    scale = source.guidance_scale
    hint = f"Recommended: strength {strength:g}"
    hint += f", guidance scale {scale:g}." if scale else "."
    own = f"{name}.safetensors"
    lines = [
        f"- A1111, Forge: {code(own)} and what lies beside it into `models/Lora`; "
        f"{code(f'{trigger} <lora:{name}:{strength:g}>')}",
        f"- ComfyUI: {code(own)} into `models/loras`; `strength_model` and `strength_clip` "
        f"{strength:g}",
    ]
    parts = ["## How to use it"]
    if source.strength:
        parts.append(hint + (f" {escape(_text(source.reason))}" if source.reason else ""))
    parts.append("\n".join(lines))
    if WEIGHTS in files:
        asked = f", guidance_scale={scale:g}" if scale else ""
        program = (
            "import diffusers\n\n"
            "pipe = diffusers.DiffusionPipeline.from_pretrained(BASE)\n"
            f'pipe.load_lora_weights({json.dumps(repo or "OWNER/NAME")}, adapter_name="own")\n'
            f'pipe.set_adapters("own", {strength:g})\n'
            f"image = pipe({json.dumps(trigger)}{asked}).images[0]"
        )
        parts.append(fenced(program, "python"))
    return parts


def _figures(source: Source, figures: Sequence[Measurement], private: bool) -> list[str]:
    """The verdict and its figures, and how they were measured."""
    verdict = source.verdict
    if verdict is None:
        return []
    parts = ["## What it keeps of its base"]
    labels = ", ".join(label_words(str(label)).title for label in verdict.labels)
    parts.append(f"**{escape(_text(labels))}**")
    if not private:
        parts[-1] += f" {escape(_text(verdict.sentence))}"
    if figures:
        rows = ["| | value | 95 % interval | n |", "|---|---|---|---|"]
        for m in figures:
            title = NUMBERS[m.name].title if m.name in NUMBERS else m.name
            interval = "" if m.low is None else f"{m.low:.2f} to {m.high:.2f}"
            rows.append(f"| {escape(title)} (`{m.name}`) | {m.value:.2f} | {interval} | {m.n} |")
        parts.append("\n".join(rows))
    parts.append(how_measured(verdict))
    return parts


def how_measured(verdict: Verdict) -> str:
    """One paragraph: against what, with how many pictures, by which encoder and rules."""
    plan = verdict.plan
    seeds, prompts, groups = plan.get("seeds"), plan.get("prompts"), list[str]()
    if isinstance(prompts, dict):
        for group, count in prompts.items():
            each = seeds.get(group) if isinstance(seeds, dict) else None
            groups.append(f"{count} {group} prompts" + (f" of {each} pictures" if each else ""))
    drawn = f": {', '.join(groups)}" if groups else ""
    eyes = ", ".join(str(clean(name)) for name in verdict.encoders) or "an encoder"
    weak = (
        " The encoder does not know such pictures, so these figures are weak."
        if verdict.weak_encoder
        else ""
    )
    return escape(
        f"Measured against the base on the same prompts and seeds{drawn}; by {eyes}, rules "
        f"{verdict.rules}. Intervals are over prompts. 1 is the base's own variety; a likeness of "
        f"1 is that of the training pictures to one another.{weak} To measure it again: variegate "
        f"measure FILE --base BASE."
    )


def _text(value: str) -> str:
    """On one line, with control and reordering characters made visible, and no folder or token."""
    return " ".join(plain(clean(value)).split())


def escape(text: str) -> str:
    """Text as Markdown that shows the same text.

    >>> escape("<b>*50_%* [x](y)")
    '&lt;b&gt;\\\\*50\\\\_%\\\\* \\\\[x\\\\]\\\\(y\\\\)'
    """
    one_line = " ".join(text.split())
    html = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", html)


def code(text: str) -> str:
    """Text as inline code, whatever backticks it holds.

    >>> code("a `b` c"), code("plain")
    ('`` a `b` c ``', '`plain`')
    """
    one_line = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", one_line)), default=0)
    if not longest:
        return f"`{one_line}`"
    fence = "`" * (longest + 1)
    return f"{fence} {one_line} {fence}"


def fenced(text: str, language: str) -> str:
    """Text as a block of code that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
