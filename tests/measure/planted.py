"""Sample sets whose ailment is known, rendered from the pocket's world, and an encoder for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from variegate.bench.world import (
    BASE_SUBJECTS,
    CLASSES,
    FACTORS,
    HELD_OUT,
    Scene,
    draw_scene,
    render,
)
from variegate.images import ImageSet, Picture
from variegate.measure import PlannedPrompt, prompt_plan
from variegate.measurement import Verdict

NOUN, WORD, SUBJECT = "toy", "zqx", "robot"
TOYS = tuple(s for s in CLASSES["toy"] if s not in HELD_OUT)
WEIGHTS = {"subject": 1.0, "colour": 0.8, "pattern": 0.6, "size": 0.6, "position": 0.7}
NOISE = 0.2  # length of what an encoder sees besides the factors

_scenes: dict[bytes, Scene] = {}
_shapes: dict[bytes, np.ndarray] = {}


def told(verdict: Verdict) -> str:
    """All that a verdict says in words."""
    return " ".join([verdict.sentence, *(r.sentence for r in verdict.reasons), *verdict.notes])


def draw(scene: Scene) -> np.ndarray:
    """The scene's picture, remembered so that the encoder below knows it again."""
    pixels = render(scene)
    _scenes[pixels.tobytes()] = scene
    return pixels


def _known(pixels: bytes) -> tuple[Scene, tuple[str, ...]]:
    """The scene of a picture, and the factors that can be seen in it: in gray, no colour.

    One whose colours were changed is known by its lights and darks, and keeps only what they tell.
    """
    if pixels in _scenes:
        return _scenes[pixels], tuple(FACTORS)
    for known in list(_scenes)[len(_shapes) :]:
        _shapes[known] = _lights(known)
    alike = np.stack(list(_shapes.values())) @ _lights(pixels)
    scene = _scenes[list(_shapes)[int(np.abs(alike).argmax())]]
    return scene, tuple(f for f in FACTORS if f != "colour")


def _lights(pixels: bytes) -> np.ndarray:
    gray = np.frombuffer(pixels, np.uint8).reshape(-1, 3).astype(np.float32).mean(1)
    return (gray - gray.mean()) / max(1e-6, float(np.linalg.norm(gray - gray.mean())))


class FactorEncoder:
    """What a good encoder would see: each factor of the scene, and noise of its own."""

    id = "factors-test-1"
    has_text = True

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        rows = []
        for picture in pictures:
            pixels = np.asarray(picture).tobytes()
            scene, seen = _known(pixels)
            named = {f: (getattr(scene, f),) for f in seen}
            seed = int.from_bytes(hashlib.sha256(pixels).digest()[:4], "big")
            noise = torch.randn(16, generator=torch.Generator().manual_seed(seed)) * NOISE / 4
            rows.append(torch.cat([_one_hot(named), noise]))
        return F.normalize(torch.stack(rows), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        rows = [torch.cat([_one_hot(factors_named(p)), torch.zeros(16)]) for p in prompts]
        return F.normalize(torch.stack(rows), dim=-1)

    def unfamiliar(self, features: Tensor) -> bool:
        return False

    def identity(self, features: Tensor) -> Tensor:
        return F.normalize(features[:, : len(FACTORS["subject"])] + 1e-6, dim=-1)


def _one_hot(named: dict[str, tuple[str, ...]]) -> Tensor:
    parts = []
    for factor, values in FACTORS.items():
        part = torch.zeros(len(values))
        for value in named.get(factor, ()):
            part[values.index(value)] = WEIGHTS[factor] / len(named[factor])
        parts.append(part)
    return torch.cat(parts)


def factors_named(prompt: str) -> dict[str, tuple[str, ...]]:
    """The factors that a caption of the world names."""
    named: dict[str, tuple[str, ...]] = {"subject": subjects_of(prompt)}
    for factor in ("colour", "pattern", "size"):
        found = [v for v in FACTORS[factor] if v in prompt.split()]
        named |= {factor: (found[0],)} if found else {}
    places = [v for v in FACTORS["position"] if prompt.endswith(f" {v}")]
    return named | ({"position": (max(places, key=len),)} if places else {})


def subjects_of(prompt: str) -> tuple[str, ...]:
    words = prompt.split()
    if WORD in words:
        return (SUBJECT,)
    named = tuple(w for w in words if w in BASE_SUBJECTS)
    return named or (TOYS if NOUN in words else BASE_SUBJECTS)


def scene_of(prompt: str, rng: np.random.Generator, subjects: Sequence[str] = ()) -> Scene:
    """A scene in which all that the prompt names is right and the rest is drawn."""
    named = factors_named(prompt)
    fixed = {f: v[0] for f, v in named.items() if f != "subject"}
    return replace(draw_scene(rng, tuple(subjects) or named["subject"]), **fixed)


Draw = Callable[[PlannedPrompt, str, np.random.Generator], np.ndarray]


def faultless(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
    """What a base draws that follows its prompts, and an adapter that learnt its subject only."""
    return draw(scene_of(prompt, rng))


def as_picture(
    pixels: np.ndarray, key: str, *, prompt: str = "", seed: int = 0, group: str = "class"
) -> Picture:
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
    return Picture(key, None, prompt=prompt, seed=seed, tensor=tensor, group=group)


def draw_set(
    plan: Sequence[PlannedPrompt], how: Draw, *, root: int, base: bool = False
) -> ImageSet:
    """Every prompt of the plan at every seed."""
    rng = np.random.default_rng(root)
    pictures: list[Picture] = []
    for line in plan:
        prompt = line.base_prompt if base else line.adapter_prompt
        for seed in line.seeds:
            key = f"{len(pictures):04}.png"
            pixels = how(line, prompt, rng)
            pictures.append(as_picture(pixels, key, prompt=prompt, seed=seed, group=line.group))
    return ImageSet(tuple(pictures), "base" if base else "adapter")


def training_set(count: int = 12, *, varied: bool = False) -> ImageSet:
    """Pictures of the one subject: all on red stripes, or on grounds of all kinds."""
    rng = np.random.default_rng(99)
    fixed = {} if varied else {"colour": "red", "pattern": "striped"}
    scenes = [draw_scene(rng, (SUBJECT,), **fixed) for _ in range(count)]
    pictures = [as_picture(draw(s), f"train{i:02}.png") for i, s in enumerate(scenes)]
    return ImageSet(tuple(pictures), "train")


def planned(preset: str = "quick") -> tuple[PlannedPrompt, ...]:
    return prompt_plan(NOUN, WORD, preset=preset, pocket=True)  # type: ignore[arg-type]


def pixels_of(picture: Picture) -> np.ndarray:
    assert picture.tensor is not None
    return picture.tensor.permute(1, 2, 0).contiguous().numpy()


def jittered(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A near copy: flipped by chance, shifted by up to 2 pixels, brighter or darker, noisy."""
    out = pixels[:, ::-1] if rng.integers(2) else pixels
    dy, dx = rng.integers(-2, 3, size=2)
    out = np.pad(out, ((2, 2), (2, 2), (0, 0)), mode="edge")[2 + dy : 66 + dy, 2 + dx : 66 + dx]
    noise = rng.normal(0, 4, out.shape) + 255 * rng.uniform(-0.03, 0.03)
    near = np.ascontiguousarray(np.clip(out + noise, 0, 255).astype(np.uint8))
    _scenes[near.tobytes()] = _scenes[pixels.tobytes()]
    return near
