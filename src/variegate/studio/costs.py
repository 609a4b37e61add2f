"""What a run will take where none was done yet: its work counted, the machine's speed measured.

The counts per family ship (`costs.toml`, made by `tools/step_costs.py`); the speed is that of a
matrix product, which `variegate doctor` measures in a moment. How much of it training comes to was
measured on two families and is told as a range.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from variegate.recipe import Recipe

# Of the machine's best matrix product, what a step comes to, by docs/speed.md: Stable Diffusion
# 1.5 52 % (float32) and 53 % (bf16) on one machine, 36 % and 15 % on one whose products are faster
# by far, XL 25 % (bf16). The pocket's layers are too small for that: measured on two cores, as
# `OVERHEAD` was.
SHARES = {"pocket": (0.10, 0.4)}
SHARE = (0.15, 0.55)
# Seconds of a step beside its passes, of a forward pass of the drawing loop, and of loading it all.
OVERHEAD = {"pocket": (0.02, 0.002, 15.0)}
USUAL = (0.03, 0.005, 60.0)
BACK = 2.0  # forward and backward, in forward passes: frozen weights want no gradient
WATCHED = 1.15  # looks of the probes and panels, which are planned as shares of the time
CHECKED = 3  # numbers kept for each learnt: itself and the optimizer's two
PICTURE = 2.0  # bytes of a pixel in a PNG file
RUNTIME = 0.7e9  # bytes of the program and its libraries before a weight is loaded
HEADER = 50 * 2**20  # bytes of a file's list of tensors, at most


@dataclass(frozen=True)
class Rough:
    """Ends between which a number is expected."""

    least: float
    most: float

    @property
    def typical(self) -> float:
        """Their geometric mean: either is as many times off."""
        return (self.least * self.most) ** 0.5


@dataclass(frozen=True)
class Guess:
    """seconds: None where no speed of this machine is known."""

    seconds: Rough | None
    memory: Rough
    disk: Rough


def guess(recipe: Recipe, speeds: Mapping[str, Any] | None, *, pictures: int) -> Guess | None:
    """What a recipe will take; None for a base of which nothing was counted.

    speeds: 10^9 operations a second by precision, as the doctor tells them. pictures: how many are
    learnt from.
    """
    family = family_of(recipe.base)
    costs = _costs().get(family or "")
    if family is None or costs is None:
        return None
    side = recipe.resolution or int(costs["side"])
    area = (side / costs["side"]) ** 2
    learnt = _learnt(recipe, costs["per_rank"])
    return Guess(
        _seconds(recipe, family, costs["gflop"] * area, speeds),
        _memory(recipe, costs, area, learnt),
        _disk(recipe, side, learnt, pictures),
    )


def _seconds(
    recipe: Recipe, family: str, pass_gflop: float, speeds: Mapping[str, Any] | None
) -> Rough | None:
    speed = (speeds or {}).get(recipe.precision) or (speeds or {}).get("float32")
    if not isinstance(speed, int | float) or speed <= 0:
        return None
    ends = []
    beside, drawing, loading = OVERHEAD.get(family, USUAL)
    for share in SHARES.get(family, SHARE):
        one = pass_gflop / (speed * share)  # seconds of a forward pass
        step = beside + one * _passes(recipe)
        drawn = _drawn(recipe) * recipe.sampling.steps
        twice = 2 if recipe.sampling.guidance_scale > 1 else 1
        ends.append(
            loading + WATCHED * recipe.optimizer.steps * step + drawn * twice * (one + drawing)
        )
    return Rough(min(ends), max(ends))


def _passes(recipe: Recipe) -> float:
    """Forward passes of one row that a step is worth."""
    rows = recipe.optimizer.batch_size
    near = recipe.strategies.stay_near
    beside = (near.batch_size or rows) if near is not None else 0
    again = 1 if recipe.memory.gradient_checkpointing else 0
    # Held to the base, rows are asked once more with the adapter silenced.
    return rows * (BACK + again) + beside * (BACK + again + 1)


def _drawn(recipe: Recipe) -> int:
    """Pictures that are drawn: for the verdict from adapter and base, and as new grounds."""
    new = recipe.strategies.new_background
    grounds = new.count if new is not None and new.source != "painted" else 0
    return 2 * int(_costs()["pictures"][recipe.sampling.preset]) + grounds


def _learnt(recipe: Recipe, per_rank: Mapping[str, int]) -> int:
    """Numbers that are learnt, as a plain LoRA of that rank has them."""
    plan = recipe.adapter
    wanted = str(getattr(plan, "layers", "attention")).split("+")
    rank = int(getattr(plan, "rank", 16))
    text = int(getattr(plan, "text_encoder_rank", None) or rank)
    learnt = rank * sum(size for name, size in per_rank.items() if name in wanted)
    return learnt + (text * per_rank["text"] if getattr(plan, "text_encoder", False) else 0)


def _memory(recipe: Recipe, costs: Mapping[str, Any], area: float, learnt: int) -> Rough:
    half = 0.5 if recipe.precision != "float32" else 1.0
    bits = recipe.memory.base_bits
    weights = costs["weights"] * (bits / 8 if bits else 4 * half)
    rows = recipe.optimizer.micro_batch or recipe.optimizer.batch_size
    kept = rows * costs["kept"] * area * half * (0.2 if recipe.memory.gradient_checkpointing else 1)
    whole = RUNTIME + weights + kept + learnt * 4 * (2 + CHECKED)
    # Autograd keeps less than was counted where layers work in place, and libraries take scratch.
    return Rough(0.7 * whole, 1.4 * whole)


def _disk(recipe: Recipe, side: int, learnt: int, pictures: int) -> Rough:
    # A checkpoint is kept at each look of the probes, too, so that the guard can go back to it.
    every = min(recipe.checkpoints.every, recipe.probes.every or recipe.checkpoints.every)
    points = min(recipe.checkpoints.keep, recipe.optimizer.steps // every + 1)
    drawn = (_drawn(recipe) + pictures) * side**2 * PICTURE
    whole = learnt * 4 * (1 + points * CHECKED) + drawn
    return Rough(0.6 * whole, 1.6 * whole)


def family_of(base: str) -> str | None:
    """The family of a base by its folder, its file's list of tensors, or its name on the hub; None
    where these do not tell."""
    if base in ("", "pocket"):
        return "pocket"
    if base.startswith(("\\\\", "//")):  # a share of another machine is not asked from here
        return None
    path = Path(base).expanduser()
    try:
        if (path / "unet" / "config.json").is_file():
            width = json.loads((path / "unet" / "config.json").read_bytes())["cross_attention_dim"]
            return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(width)
        if path.is_dir():
            return None
        if path.suffix == ".safetensors" and path.is_file():
            return _family_of_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if path.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        return None
    for family, pattern in (
        ("sdxl", r"sdxl|stable-diffusion-xl|-xl\b"),
        ("sd1", r"stable-diffusion-v1|sd-?1[.-]?[45]|v1-[45]"),
        ("sd2", r"stable-diffusion-2|sd-?2"),
    ):
        if re.search(pattern, base, re.IGNORECASE):
            return family
    return None


def _family_of_file(file: Path) -> str | None:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        names = stream.read(size) if size <= HEADER else b""
    for family, mark in (
        ("sdxl", b"conditioner.embedders."),
        ("sd2", b"cond_stage_model.model."),
        ("sd1", b"cond_stage_model.transformer."),
    ):
        if mark in names:
            return family
    return None


@cache
def _costs() -> dict[str, Any]:
    text = (resources.files("variegate.studio") / "costs.toml").read_text(encoding="utf8")
    return tomllib.loads(text)
