"""Whose turn it is: every picture equally often, copies as one, shapes apart, all by address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from tests.tiny import write_tiny_sd
from tests.train.scenes import EVERYTHING, tiny_recipe

from variegate import formats, seeds
from variegate.bench import world
from variegate.images import ImageSet, Picture
from variegate.models import load
from variegate.recipe import Buckets, Recipe
from variegate.train import train
from variegate.train.data import Example, Latents, TrainingSet, deal, read_training_set
from variegate.train.strategies import Shot
from variegate.train.strategies.buckets import nearest_shape, shapes
from variegate.train.strategies.new_background import cover
from variegate.train.turns import Turns


def example(
    key: str, *, repeats: int = 1, family: str = "", size: tuple[int, int] = (64, 64)
) -> Any:
    return Example(
        key, Shot(torch.zeros(3, *size), torch.ones(size), False), "a zqx", repeats, family or key
    )


def shown(examples: list[Example], steps: int, *, size: int = 2) -> list[list[str]]:
    turns = deal(examples, size=size, seed=3)
    return [[examples[i].key for i in turns.at(step)] for step in range(1, steps + 1)]


def test_with_one_deck_the_turns_are_those_of_an_epoch_shuffled_anew() -> None:
    examples = [example("a", repeats=2), example("b"), example("c")]
    steps = shown(examples, 8)
    epochs = [steps[i] + steps[i + 1] for i in range(0, 8, 2)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {("a", "a", "b", "c")}
    assert len({tuple(epoch) for epoch in epochs}) > 1
    order = torch.randperm(4, generator=seeds.at(3, "order", 0)).tolist()
    assert epochs[0] == ["aabc"[i] for i in order]


def test_any_step_can_be_asked_for_alone() -> None:
    decks = [[(0,), (1,), (2,)], [(3,), (4, 5)]]
    turns = Turns(decks, size=2, seed=0)
    run = [turns.at(step) for step in range(1, 40)]
    assert Turns(decks, size=2, seed=0).at(31) == run[30]
    assert turns.at(31) == run[30]


@pytest.mark.parametrize("counts", [(7, 1), (5, 4, 2), (1, 1, 1, 30)])
def test_shapes_get_their_share_and_every_picture_is_shown_equally_often(
    counts: tuple[int, ...],
) -> None:
    total, seen = sum(counts), Counter[int]()
    first = [sum(counts[:i]) for i in range(len(counts))]
    decks = [[(start + i,) for i in range(n)] for start, n in zip(first, counts, strict=True)]
    turns = Turns(decks, size=4, seed=0)
    steps = Counter[int]()
    for step in range(1, 3 * total + 1):
        picked = turns.at(step)
        decks_hit = {next(d for d, deck in enumerate(decks) if (i,) in deck) for i in picked}
        assert len(decks_hit) == 1
        steps[decks_hit.pop()] += 1
        assert all(abs(steps[d] - step * n / total) < len(counts) for d, n in enumerate(counts))
        seen.update(picked)
        if step % total == 0:
            assert set(seen.values()) == {4 * step // total}
            assert len(seen) == total


def test_copies_share_the_votes_of_one_picture_and_take_turns() -> None:
    copies = [example(f"a{i}", family="a0") for i in range(3)]
    others = [example(key) for key in "bcd"]
    seen = Counter(key for keys in shown([*copies, *others], 24) for key in keys)
    assert seen == {"a0": 4, "a1": 4, "a2": 4, "b": 12, "c": 12, "d": 12}
    often = [example("a0", repeats=2, family="a0"), example("a1", repeats=2, family="a0")]
    seen = Counter(key for keys in shown([*often, example("b")], 3) for key in keys)
    assert seen == {"a0": 2, "a1": 2, "b": 2}


def planted() -> ImageSet:
    """Five scenes; the first one also smaller, brighter and mirrored."""
    rng = np.random.default_rng(4)
    subjects = ("robot", "unicorn", "camera", "cupcake", "yoyo")
    pictures = [Image.fromarray(world.render(world.draw_scene(rng, (name,)))) for name in subjects]
    first = pictures[0].resize((256, 256), Image.Resampling.LANCZOS)
    pictures += [
        first.resize((180, 180), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(first).enhance(1.1),
        ImageOps.mirror(first),
    ]
    return in_memory(pictures)


def in_memory(pictures: list[Image.Image]) -> ImageSet:
    return ImageSet(
        tuple(
            Picture(f"{i}", None, tensor=torch.from_numpy(np.array(p)).permute(2, 0, 1).clone())
            for i, p in enumerate(pictures)
        ),
        "memory",
    )


def read(images: ImageSet, **strategies: Any) -> TrainingSet:
    recipe = Recipe.build({"strategies": strategies, "trigger": "zqx", "held_out": {"share": 0}})
    return read_training_set(images, recipe, side=64, pocket=True, needs_masks=False)


def test_planted_copies_are_found_and_have_one_vote() -> None:
    plain, even = read(planted()), read(planted(), even_pictures={})
    assert [e.family for e in plain.train] == [e.key for e in plain.train]
    assert [e.family for e in even.train] == ["0", "1", "2", "3", "4", "0", "0", "0"]
    assert any("8 pictures have 5 votes" in note for note in even.notes)
    seen = Counter(k for keys in shown(list(even.train), 40) for k in keys)
    assert seen == {"0": 4, "5": 4, "6": 4, "7": 4, "1": 16, "2": 16, "3": 16, "4": 16}


def test_copies_are_held_out_together() -> None:
    for seed in range(6):
        recipe = Recipe.build(
            {"strategies": {"even_pictures": {}}, "seed": seed, "held_out": {"share": 0.5}}
        )
        found = read_training_set(planted(), recipe, side=64, pocket=True, needs_masks=False)
        held = {e.family for e in found.held_out}
        assert held
        assert not held & {e.family for e in found.train}


@pytest.mark.parametrize(("side", "multiple"), [(64, 16), (512, 64), (1024, 64)])
def test_shapes_are_multiples_of_about_one_area_and_hold_the_square(
    side: int, multiple: int
) -> None:
    known = shapes(side, Buckets(), pocket=side == 64)
    assert (side, side) in known
    assert len(known) >= 3
    for height, width in known:
        assert height % multiple == width % multiple == 0
        assert height * width == pytest.approx(side**2, rel=0.125)
        assert max(height, width) <= 2 * min(height, width)
        assert (width, height) in known
        assert nearest_shape((10 * height, 10 * width), known) == (height, width)
    assert nearest_shape((100, 1000), known) == known[0]
    assert shapes(side, Buckets(ratio_max=1), pocket=side == 64) == [(side, side)]


def scenery() -> ImageSet:
    """Wide, tall and square pictures, each with a white bar near its short ends."""
    made = []
    for i, (width, height) in enumerate([(160, 96)] * 3 + [(96, 160)] * 2 + [(128, 128)]):
        array = np.full((height, width, 3), 20 * i, np.uint8)
        if width > height:
            array[:, :8] = array[:, -8:] = 255
        else:
            array[:8] = array[-8:] = 255
        made.append(Image.fromarray(array))
    return in_memory(made)


def test_pictures_keep_their_shape_and_tell_their_frame() -> None:
    found = read(scenery(), buckets={})
    sizes = [tuple(e.shot.mask.shape) for e in found.train]
    assert sizes == [(48, 80)] * 3 + [(80, 48)] * 2 + [(64, 64)]
    assert all(float(e.shot.pixels[:, :, 0].min()) > 0.9 for e in found.train[:3])
    assert all(float(e.shot.pixels[:, -1].min()) > 0.9 for e in found.train[3:])
    assert any("80x48: 3" in note for note in found.notes)
    frame = read(scenery()).train[0].shot.frame
    assert frame is not None
    assert (frame.original, frame.scaled) == ((96, 160), (64, 107))
    assert (frame.corner, frame.size) == ((0, 21), (64, 64))


def test_a_ground_is_cut_to_the_pictures_shape_not_squeezed() -> None:
    ground = torch.zeros(3, 64, 64)
    ground[:, 24:40, 24:40] = 1
    wide = cover(ground, (48, 80))
    assert wide.shape == (3, 48, 80)
    rows, columns = wide[0].amax(1) > 0.5, wide[0].amax(0) > 0.5
    assert int(rows.sum()) == pytest.approx(int(columns.sum()), abs=1)
    assert cover(ground, (64, 64)) is ground


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Any:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base"))))


def test_a_batch_has_one_shape_and_carries_its_frames(model: Any) -> None:
    recipe = Recipe.build({"strategies": {"buckets": {}}, "optimizer": {"batch_size": 2}})
    found = read(scenery(), buckets={})
    latents = Latents(model, recipe, {})
    seen = set()
    for step in range(1, 7):
        batch = latents.batch(found.train, step)
        height, width = batch.latents.shape[-2:]
        assert {f.size for f in batch.frames if f} == {(8 * height, 8 * width)}
        assert batch.masks.shape[1:] == batch.noise.shape[2:] == (height, width)
        seen.add((height, width))
    assert seen == {(6, 10), (10, 6), (8, 8)}


def test_with_buckets_and_every_strategy_a_run_learns_from_every_shape(
    tmp_path: Path, model: Any
) -> None:
    recipe = tiny_recipe(Path(model.name), tmp_path, strategies=EVERYTHING, optimizer={"steps": 3})
    run = train(recipe, out=tmp_path / "run", model=model, images=scenery())
    learnt = formats.read(run.adapter_file).layers
    assert any(bool(update.up.any()) for update in learnt.values())
    assert len(run.read_journal("step")) == 3
