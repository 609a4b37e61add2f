"""A bank of pocket runs of every degree of collapse, made once and kept in the user's cache.

A run is named by its recipe's hash and the pocket's weights, so what changed is made again and what
did not is found. Only recipes and tables are committed. The judge tells what really happened to
each: how many looks the adapter's pictures have left beside its base's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from variegate import encoders, recipes
from variegate.bench import judge, world
from variegate.drawn import draw_both
from variegate.formats import read as read_adapter
from variegate.images import ImageSet, cache_dir
from variegate.measure import Evidence, gather, prompt_plan
from variegate.models import DiffusionModel
from variegate.models.folder import POCKET
from variegate.progress import silent
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.trial import learnt_and_held_out, trial

SUBJECTS = ("robot", "unicorn", "cupcake", "yoyo")  # held out of the pocket, of four classes
FACTORS = ("subject", "colour", "pattern", "size", "position")
# From what the field does by default to everything that is offered here.
TREATMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("pocket-plain", ()),
    "short": ("pocket-plain", ("optimizer.steps=80",)),
    "long": ("pocket-plain", ("optimizer.steps=480",)),
    "hot": ("pocket-plain", ("optimizer.lr=2e-3",)),
    "cool": ("pocket-plain", ("optimizer.lr=1.5e-4",)),
    "stay near": ("pocket-plain", ("strategies.stay_near=on",)),
    "moved": ("pocket-plain", ("strategies.zoom_shift=on", "strategies.new_background=on")),
    "guarded": ("pocket", ()),
}
PICTURES = ("one-sided 12", "varied 12")
SEEDS = 8  # of each prompt in what a run is read from
FIRST_SEED = 5000  # which no training and no verdict of the run itself has seen


@dataclass(frozen=True)
class Ailment:
    """One run of the bank: who is learnt, from which pictures, how."""

    subject: str
    pictures: str
    treatment: str

    @property
    def name(self) -> str:
        return f"{self.subject}, {self.pictures}, {self.treatment}"

    @property
    def class_noun(self) -> str:
        return world.CLASS_OF[self.subject]

    def recipe(self) -> Recipe:
        """What the run is asked, its pictures rendered into the cache."""
        name, settings = TREATMENTS[self.treatment]
        return recipes.read(
            name,
            settings=(*settings, "sampling.preset=quick", "sampling.steps=10", "guard.mode=watch"),
            images=str(render_pictures(self.subject, self.pictures)),
            trigger="zqx",
            class_noun=self.class_noun,
        )


def ailments() -> Iterator[Ailment]:
    """Every run of the bank, the most telling first."""
    for treatment in TREATMENTS:
        for subject in SUBJECTS:
            for pictures in PICTURES:
                yield Ailment(subject, pictures, treatment)


def render_pictures(subject: str, kind: str) -> Path:
    """A folder of rendered training pictures with captions: `one-sided` (large, centred, on red
    stripes) or `varied`, as many as the kind's number says. Rendered anew at each call."""
    word, count = kind.split()
    folder = cache_dir() / "bank" / "pictures" / f"{subject}-{word}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    one_sided = {"colour": "red", "pattern": "striped", "size": "large", "position": "center"}
    for i in range(int(count)):
        rng = np.random.default_rng((29, i))
        scene = world.draw_scene(rng, (subject,), **(one_sided if word == "one-sided" else {}))
        picture = folder / f"{i:02d}.png"
        part = picture.with_suffix(f".{os.getpid()}.part")
        Image.fromarray(world.render(scene)).save(part, format="PNG")
        part.replace(picture)  # whole at any time: another stage may be reading it
        picture.with_suffix(".txt").write_text("a zqx\n", encoding="utf8")
    return folder


@cache
def weights_mark() -> str:
    """What names the weights of the pocket and of its encoder."""
    digest = hashlib.sha256()
    encoder = Path(encoders.__file__).parent / "pocket_weights"
    for file in sorted([*POCKET.rglob("*.safetensors"), *encoder.rglob("*.safetensors")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def run_of(ailment: Ailment) -> Path:
    recipe = ailment.recipe()
    # The folder of the pictures lies in the cache, so its path is not part of the name.
    pixels = hashlib.sha256()
    for file in sorted(Path(recipe.images).glob("*.png")):
        pixels.update(file.read_bytes())
    told = {**recipe.model_dump(mode="json", exclude_none=True), "images": pixels.hexdigest()}
    mark = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "bank" / weights_mark() / mark


def build(ailment: Ailment) -> Path:
    """The run's folder, made if it is not there yet (a minute or two)."""
    folder = run_of(ailment)
    if not (folder / "verdict.json").exists():
        trial(ailment.recipe(), out=folder)
    return folder


def draw(ailment: Ailment, run: Path, model: DiffusionModel) -> tuple[ImageSet, ImageSet]:
    """What adapter and base draw at the `standard` prompts, twice its seeds, kept with the run.

    A run's own 64 class pictures are too few: the truth read from one half of them told little of
    the other's.
    """
    whole = prompt_plan(ailment.class_noun, "zqx", preset="standard", pocket=True)
    seeds = {"class": SEEDS, "trigger": SEEDS, "unrelated": 2}
    plan = [
        line._replace(seeds=tuple(range(FIRST_SEED + SEEDS * i, FIRST_SEED + SEEDS * i + n)))
        for i, line in enumerate(whole)
        if (n := seeds.get(line.group, 0))
    ]
    adapter = read_adapter(Run.open(run).adapter_file)
    sampling = ailment.recipe().sampling
    return draw_both(model, adapter, plan, sampling, out=run / "deep", say=silent)


def evidence_of(ailment: Ailment, run: Path, model: DiffusionModel) -> Evidence:
    """What the product's measures see in a run's pictures, by the pocket's encoder."""
    ours, base = draw(ailment, run, model)
    learnt, held_out = learnt_and_held_out(Run.open(run))
    return gather(
        ours,
        base,
        encoders=encoders.load_encoders(()),
        train_images=learnt,
        held_out=held_out if len(held_out) else None,
        trigger="zqx",
        class_noun=ailment.class_noun,
    )


@dataclass(frozen=True)
class Truth:
    """What the judge reads in a run's samples, each a ratio to the base's.

    modes, trigger_modes: how many values of a factor one prompt's pictures show, the mean over
    factors and prompts (under the trigger without the subject itself). pairs, trigger_pairs: the
    share of pairs of one prompt's pictures that differ in a factor. subject: the share of trigger
    pictures that show it. apart: the share of pictures asked by the class noun that do not.
    """

    modes: float
    trigger_modes: float
    pairs: float
    trigger_pairs: float
    subject: float
    apart: float


def truth(run: Path, subject: str, *, half: int | None = None) -> Truth:
    """Read what `draw` drew with the judge, which no measure of the product ever asks.

    half: 0 or 1, of every second picture alone, to see how far chance moves the truth itself.
    """
    step = slice(None) if half is None else slice(half, None, 2)
    ours, theirs = _read(run, "adapter")[step], _read(run, "base")[step]
    shown = [r["subject"] == subject for r, x in ours if x["group"] == "trigger"]
    noun = world.CLASS_OF[subject]
    taken = [
        r["subject"] == subject for r, x in ours if x["group"] == "class" and noun in x["prompt"]
    ]
    return Truth(
        modes=_ratio(ours, theirs, "class", _modes),
        trigger_modes=_ratio(ours, theirs, "trigger", _modes),
        pairs=_ratio(ours, theirs, "class", _differing),
        trigger_pairs=_ratio(ours, theirs, "trigger", _differing),
        subject=float(np.mean(shown)),
        apart=1 - float(np.mean(taken)),
    )


Read = list[tuple[dict[str, str], dict[str, Any]]]


def entropies(samples: Path, subject: str) -> dict[str, float]:
    """What the judge reads in a folder that holds `adapter` and `base`: the entropy of a prompt's
    factors as a share of the base's, the mean of class and trigger prompts, and the share of
    trigger pictures that show the subject."""
    ours, theirs = _read_folder(samples / "adapter"), _read_folder(samples / "base")
    shown = [r["subject"] == subject for r, x in ours if x["group"] == "trigger"]
    found = [_ratio(ours, theirs, group, _entropy) for group in ("class", "trigger")]
    return {
        "class": found[0],
        "trigger": found[1],
        "entropy": float(np.mean(found)),
        "likeness": float(np.mean(shown)),
    }


@lru_cache(maxsize=4)
def _read(run: Path, of: str) -> Read:
    return _read_folder(run / "deep" / of)


def _read_folder(home: Path) -> Read:
    lines = [
        json.loads(line)
        for line in (home / "metadata.jsonl").read_text(encoding="utf8").splitlines()
    ]
    pictures = [np.asarray(Image.open(home / x["file_name"]).convert("RGB")) for x in lines]
    reading = judge.read(np.stack(pictures))
    rows = [{f: reading.values[f][i] for f in FACTORS} for i in range(len(lines))]
    return list(zip(rows, lines, strict=True))


def _ratio(ours: Read, theirs: Read, group: str, of: Callable[[list[str]], float]) -> float:
    a, b = (_looks(read, group, of) for read in (ours, theirs))
    return float(np.mean(a) / np.mean(b))


def _looks(read: Read, group: str, of: Callable[[list[str]], float]) -> list[float]:
    """Per prompt, the mean over factors of what `of` says of its pictures' values."""
    prompts: dict[str, list[dict[str, str]]] = {}
    for row, line in read:
        if line["group"] == group:
            prompts.setdefault(line["prompt"], []).append(row)
    # What belongs to the subject may narrow under the trigger.
    factors = FACTORS[1:] if group == "trigger" else FACTORS
    return [
        float(np.mean([of([r[f] for r in rows]) for f in factors])) for rows in prompts.values()
    ]


def _entropy(values: list[str]) -> float:
    counts = np.array([values.count(v) for v in set(values)], float) / len(values)
    return float(-(counts * np.log(counts)).sum())


def _modes(values: list[str]) -> float:
    return float(len(set(values)))


def _differing(values: list[str]) -> float:
    n = len(values)
    pairs = n * (n - 1) / 2
    alike = sum(values.count(v) * (values.count(v) - 1) / 2 for v in set(values))
    return 1 - alike / pairs if pairs else 0.0
