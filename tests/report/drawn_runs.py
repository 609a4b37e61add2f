"""Run folders as a trial leaves them, drawn from the pocket's world instead of by a model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.bench.world import Scene, draw_scene, render
from variegate.measurement import Advice, Measurement, Missing, Reason, Verdict
from variegate.recipe import Recipe

CLASS = ("", " on the left", " on a yellow background", ", striped background", " at the top")
PLACES = {"at the top": "top", "on the left": "left"}
STOCK = Scene("unicorn", "purple", "dotted", "large", "center")  # what the training pictures share


def prompts() -> dict[str, list[tuple[str, str]]]:
    """(adapter's words, base's words) by group, class prompts written first."""
    return {
        "class": [(w, w) for w in (f"an animal{end}" for end in CLASS)],
        "trigger": [(f"a zqx{end}", f"an animal{end}") for end in CLASS],
    }


def _scene(rng: np.random.Generator, words: str, subject: str | None) -> Scene:
    named: dict[str, object] = {} if subject is None else {"subject": subject}
    if "yellow" in words:
        named["colour"] = "yellow"
    if "striped" in words:
        named["pattern"] = "striped"
    for end, place in PLACES.items():
        if end in words:
            named["position"] = place
    return draw_scene(rng, ("owl", "fox", "lion", "pig", "crab", "frog", "panda"), **named)


def _save(picture: np.ndarray, file: Path, rng: np.random.Generator, pixels: int) -> None:
    noisy = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    if pixels != 64:
        image = image.resize((pixels, pixels), Image.Resampling.BICUBIC)
    image.save(file)


def write_samples(run: Path, *, narrowed: bool, seeds: int = 8, pixels: int = 64) -> None:
    """Samples of base and adapter at the same seeds; a narrowed adapter repeats one scene."""
    for side in ("base", "adapter"):
        folder = run / "samples" / side
        folder.mkdir(parents=True)
        lines = []
        for group, pairs in prompts().items():
            for number, words in enumerate(pairs):
                prompt = words[side == "base"]
                for seed in range(seeds):
                    rng = np.random.default_rng([seed, number])
                    trigger = group == "trigger" and side == "adapter"
                    scene = _scene(rng, prompt, "unicorn" if trigger else None)
                    if narrowed and trigger:
                        kept = {"angle": scene.angle, "dx": scene.dx}
                        named = {"colour": "yellow"} if "yellow" in prompt else {}
                        scene = replace(STOCK, **kept, **named)
                    elif narrowed and side == "adapter" and rng.random() < 0.6:
                        scene = replace(scene, colour="purple", pattern="dotted", size="large")
                    name = f"{group}-{number}-{seed}.png"
                    _save(render(scene), folder / name, rng, pixels)
                    line = {"file_name": name, "prompt": prompt, "seed": seed, "group": group}
                    lines.append(json.dumps(line))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


BOOT = "Vendi order 2, 95 % by prompt bootstrap"
PLAN = {"prompts": 10, "seeds": 8, "preset": "standard"}


def m(name: str, value: float, low: float, high: float, n: int, source: str) -> Measurement:
    return Measurement(name, value, low, high, n, "higher", source=source)


def planted_verdict(*, narrowed: bool) -> Verdict:
    return _narrowed() if narrowed else _healthy()


def _healthy() -> Verdict:
    return Verdict(
        labels=("healthy",),
        sentence="Your adapter drew “zqx” and kept the base model's variety, as far as "
        "80 pictures can show.",
        reasons=(Reason("healthy", "warn", "variety_vs_base", "No alarm rang."),),
        advice=(),
        measurements=(
            m("variety_vs_base", 0.97, 0.88, 1.06, 24, BOOT),
            m("trigger_variety_vs_base", 0.81, 0.69, 0.94, 16, BOOT),
            m("likeness", 0.74, 0.7, 0.78, 16, "pocket"),
            Measurement("copy_rate", 0.0, 0.0, 0.03, 80, "lower", source="pocket"),
            m("adherence_vs_base", 0.02, -0.06, 0.11, 16, "pocket"),
            m("class_retention", 0.98, 0.93, 1.02, 24, "pocket"),
            Measurement("world_drift", 0.06, 0.04, 0.08, 16, "lower", source="pocket"),
        ),
        rules="2025.1",
        encoders=("pocket",),
        plan=PLAN,
    )


def _narrowed() -> Verdict:
    return Verdict(
        labels=("trigger-narrowed", "narrowed", "copying"),
        sentence="With “zqx”, your pictures have become nearly alike: the purple dotted "
        "background of your training pictures comes back whatever you ask for.",
        reasons=(
            Reason(
                "trigger-narrowed",
                "fail",
                "trigger_variety_vs_base",
                "With the trigger, 15% of the base's variety is left (at most 24%); below 50% is "
                "a failure.",
            ),
            Reason(
                "narrowed",
                "warn",
                "variety_vs_base",
                "Without the trigger, 62% of the base's variety is left (at most 74%).",
            ),
            Reason("copying", "fail", "copy_rate", "14 of 80 samples repeat a training picture."),
        ),
        advice=(
            Advice(
                "new_background",
                "strategies.new_background=on",
                "The background is no longer learnt as part of the subject.",
                "pocket, 12 pictures, 3 seeds: trigger variety 0.15 to 0.60",
            ),
            Advice(
                "stay_near",
                "strategies.stay_near.weight=1.0",
                "Ordinary prompts keep their variety.",
                "untested",
            ),
        ),
        measurements=(
            m("variety_vs_base", 0.62, 0.49, 0.74, 24, BOOT),
            m("trigger_variety_vs_base", 0.15, 0.09, 0.24, 16, BOOT),
            m("likeness", 0.76, 0.72, 0.8, 16, "pocket"),
            Measurement("copy_rate", 0.175, 0.1, 0.27, 80, "lower", source="pocket"),
            m("adherence_vs_base", -0.31, -0.42, -0.2, 16, "pocket"),
            Missing("class_retention", "no class prompts were drawn"),
            Measurement("world_drift", 0.21, 0.16, 0.26, 16, "lower", source="pocket"),
            Measurement("variety_order_1", 0.55, 0.44, 0.69, 24, "higher", source="Vendi order 1"),
        ),
        rules="2025.1",
        encoders=("pocket",),
        weak_encoder=True,
        plan=PLAN,
    )


def write_journal(run: Path, *, narrowed: bool, steps: int = 600) -> None:
    rng = np.random.default_rng(1)
    start = 1_763_647_200.0
    lines: list[dict[str, object]] = [{"kind": "start", "step": 0, "time": start}]
    for step in range(1, steps + 1):
        loss = 0.2 + 0.25 * math.exp(-step / 120) + float(rng.normal(0, 0.05))
        terms = {"pictures": loss} if narrowed else {"pictures": loss, "stay_near": loss / 9}
        line = {"kind": "step", "step": step, "loss": loss, "lr": 1e-4, "terms": terms}
        lines.append({**line, "time": start + step * 0.2})
        if step % 50 == 0:
            fall = math.exp(-step / (180 if narrowed else 5000))
            measured = [
                Measurement(f"one_step_variety.{g}", v, v * 0.9, v * 1.08, 8, "higher", step=step)
                for g, v in (("class", 0.3 + 0.7 * fall), ("trigger", 0.1 + 0.85 * fall))
            ]
            for band, size in (("high", 0.3), ("middle", 0.12), ("low", 0.04)):
                gap = size * (1 - fall)
                measured.append(
                    Measurement(f"held_out_gap.{band}", gap, gap - 0.02, gap + 0.02, 32)
                )
                ratio = 1 - 0.4 * (1 - math.exp(-step / 150)) * size / 0.3
                measured.append(Measurement(f"loss_vs_base.train.{band}", ratio, n=32))
            told = [m.to_json() for m in measured]
            lines.append({"kind": "probe", "step": step, "time": start, "measurements": told})
    lines.append({"kind": "note", "text": "held out 2 of 12 pictures", "time": start + 1})
    end = {"kind": "finish", "stopped_because": "all steps done", "step": steps}
    lines.append({**end, "time": start + steps * 0.2 + 14})
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, *, narrowed: bool, seeds: int = 8, pixels: int = 64) -> Path:
    """A whole run folder: recipe, journal, samples, verdict, audit, evidence."""
    write_samples(run, narrowed=narrowed, seeds=seeds, pixels=pixels)
    write_journal(run, narrowed=narrowed)
    strategies: dict[str, object] = {"min_snr": {}, "caption_dropout": {}, "flip": {}}
    if not narrowed:
        strategies |= {"stay_near": {}, "zoom_shift": {}, "new_background": {}, "masked_loss": {}}
    recipe = Recipe.build(
        {"strategies": strategies, "optimizer": {"steps": 600}},
        images="photos/unicorn",
        trigger="zqx",
        class_noun="animal",
    )
    (run / "recipe.toml").write_text(recipe.to_toml())
    verdict = planted_verdict(narrowed=narrowed)
    (run / "verdict.json").write_text(json.dumps(verdict.to_json()))
    training = run.parent / "training"
    training.mkdir(exist_ok=True)
    for i in range(12):
        rng = np.random.default_rng(i)
        scene = replace(STOCK, angle=(-7, 0, 7)[i % 3], dx=i % 3 - 1)
        _save(render(scene), training / f"{i:02}.png", rng, pixels)
    audit = {
        "images": 12,
        "usable": 11,
        "effective_images": 2.3,
        "limited_by": ["background", "layout"],
        "faults": [{"file": "07.jpg", "fault": "truncated JPEG", "advice": "export it again"}],
        "duplicates": [["00.png", "03.png", 0.99]],
        "captions": {"distinct": 1, "most_common": "a zqx"},
        "findings": [
            {
                "what": "All pictures share one background",
                "evidence": "11 of 11 have the same border colours",
                "advice": "Add pictures on other grounds, or switch on new_background.",
            }
        ],
    }
    (run / "audit.json").write_text(json.dumps(audit))
    evidence = {
        "encoder": "pocket",
        "nearest": [
            {
                "sample": f"samples/adapter/trigger-0-{i}.png",
                "train": str(training / f"{i:02}.png") if i % 2 else f"../training/{i:02}.png",
                "similarity": 0.97 - i / 50,
                "copy": narrowed and i < 3,
            }
            for i in range(5)
        ],
        "panels": [
            {
                "title": "What it learnt from",
                "text": "Some of the training pictures.",
                "pictures": [
                    {"file": f"../training/{i:02}.png", "caption": "a zqx"} for i in range(6)
                ],
            }
        ],
    }
    (run / "evidence.json").write_text(json.dumps(evidence))
    return run
