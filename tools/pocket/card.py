"""Measure the shipped pocket with the judge and write its model card."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from variegate import seeds
from variegate.bench import judge, world
from variegate.models import load
from variegate.recipes import read

PACKAGE = Path(import_module("variegate.models").__file__).parent / "pocket"  # type: ignore[arg-type]
FACTORS = ("colour", "pattern", "size", "position")


def draw(prompts: list[str], *, guidance: float, steps: int, seed: int) -> np.ndarray:
    """Pictures of prompts, uint8 `[n, 64, 64, 3]`."""
    model = load("pocket")
    pictures = []
    for start in range(0, len(prompts), 128):
        part = prompts[start : start + 128]
        scheduler = model.sampler("ddim")
        scheduler.set_timesteps(steps)
        g = seeds.at(seed, "card", start)
        x = torch.randn(len(part), model.latent_channels, 8, 8, generator=g)
        given, empty = model.embed(part), model.embed([""])
        with torch.no_grad():
            for t in scheduler.timesteps:
                when = t.expand(len(part))
                v = model.predict(x, when, given)
                if guidance != 1:
                    u = model.predict(x, when, empty.repeat(len(part)))
                    v = u + guidance * (v - u)
                x = scheduler.step(v, t, x).prev_sample
            y = model.decode(x).clamp(-1, 1)
        pictures.append(((y.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy())
    return np.concatenate(pictures)


def examine(n: int, *, guidance: float, steps: int) -> dict[str, dict[str, float]]:
    """By factor: share right where the caption names it, entropy where it does not."""
    rng = np.random.default_rng(31)
    scenes = [world.draw_scene(rng) for _ in range(n)]
    named = [frozenset(f for f in FACTORS if rng.random() < 0.5) for _ in scenes]
    told = [rng.random() < 0.8 for _ in scenes]
    prompts = [
        world.caption(s, named=k, noun=None if t else s.class_noun, rng=rng)
        for s, k, t in zip(scenes, named, told, strict=True)
    ]
    reading = judge.read(draw(prompts, guidance=guidance, steps=steps, seed=1))
    found: dict[str, dict[str, float]] = {"followed": {}, "entropy": {}}
    right = [reading.values["subject"][i] == s.subject for i, s in enumerate(scenes) if told[i]]
    found["followed"]["subject"] = float(np.mean(right))
    kept = [
        world.CLASS_OF[reading.values["subject"][i]] == s.class_noun
        for i, s in enumerate(scenes)
        if not told[i]
    ]
    found["followed"]["class noun"] = float(np.mean(kept))
    for f in FACTORS:
        rows = [i for i in range(n) if f in named[i]]
        found["followed"][f] = float(
            np.mean([reading.values[f][i] == getattr(scenes[i], f) for i in rows])
        )
        free = [i for i in range(n) if f not in named[i]]
        part = judge.Reading({f: tuple(reading.values[f][i] for i in free)}, {})
        found["entropy"][f] = part.entropy(f)
    return found


def write_card(n: int = 2400) -> None:
    sampling = read("pocket").sampling
    columns = {}
    for guidance in (sampling.guidance_scale, 1.0):
        columns[guidance] = examine(n, guidance=guidance, steps=sampling.steps)
        print(guidance, columns[guidance], flush=True)
    lines = []
    for kind, title in (("followed", "followed when named"), ("entropy", "entropy when not named")):
        for factor in columns[1.0][kind]:
            figures = " | ".join(f"{100 * c[kind][factor]:.1f} %" for c in columns.values())
            lines.append(f"| {factor}, {title} | {figures} |")
    heads = " | ".join(f"guidance {g:g}" for g in columns)
    size = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.suffix != ".md") / 2**20
    text = CARD.format(
        heads=heads,
        rule="---|" * (len(columns) + 1),
        rows="\n".join(lines),
        n=n,
        steps=sampling.steps,
        size=f"{size:.1f}",
    )
    (PACKAGE / "README.md").write_text(text, encoding="utf8")


CARD = """\
# The pocket: a latent diffusion model small enough to ship

A complete Stable Diffusion pipeline in the diffusers folder form, {size} MiB in half precision,
for 64-pixel pictures: `AutoencoderTiny` (8x downscale, 12 latent channels), `CLIPTextModel` with
its own BPE vocabulary (32 tokens), `UNet2DConditionModel` on 8x8 latents, v-prediction with zero
terminal SNR. `StableDiffusionPipeline.from_pretrained(FOLDER)` loads it.

Its world: one emoji sprite on a composed ground, ten colours, four patterns, three sizes, nine
positions, 64 subjects in eight classes. Fifteen further subjects are held out of it (and of its
autoencoder): {held_out}. They are what adapters learn.

Made by `tools/make_pocket.py` (stages codec, judge, encoder, meaning, base, export). The last
minutes of the base taught it what a guidance scale of 1.3 gives (Tang et al. 2025, arXiv
2502.12154), so it stands well without guidance. Sprites: Noto Color Emoji, Google, SIL Open Font
License 1.1.

## Measured

The judge (`variegate.bench.judge`) read {n} samples per column, {steps} DDIM steps, captions that
name each factor by chance; entropy is that of the judged factor over the samples whose caption
leaves it out, as a share of the uniform one's. Again with `python tools/make_pocket.py card`.

| | {heads} |
|{rule}
{rows}

## Not for

Anything but trying, testing and measuring. It knows no photographs.
""".replace("{held_out}", ", ".join(world.HELD_OUT))
