"""Every planted ailment gets its label, and what is well gets none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from measure.planted import (
    SUBJECT,
    TOYS,
    WORD,
    FactorEncoder,
    draw,
    draw_set,
    faultless,
    jittered,
    pixels_of,
    planned,
    scene_of,
    told,
    training_set,
)
from variegate.encoders.pixels import SIDE
from variegate.images import ImageSet
from variegate.measure import (
    Evidence,
    Line,
    PlannedPrompt,
    Verdict,
    find_copies,
    gather,
    measure,
    nearest_pictures,
)
from variegate.measure.copying import MOST_BY_CHANCE, NULL_RATE, chance_rate, tile_difference

COLLAPSED = {"narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cache on disk, which costs more than these encoders, and one thread, since the tensors
    are small."""
    monkeypatch.setenv("VARIEGATE_CACHE", "/dev/null/no-cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def base_set(preset: str = "quick") -> ImageSet:
    return draw_set(planned(preset), faultless, root=1, base=True)


def evidence_of(adapter: ImageSet, *, varied: bool = True, preset: str = "quick") -> Evidence:
    return gather(
        adapter,
        base_set(preset),
        encoders=[FactorEncoder()],
        train_images=training_set(varied=varied),
        trigger=WORD,
        class_noun="toy",
    )


def verdict_on(adapter: ImageSet, *, varied: bool = True, preset: str = "quick") -> Verdict:
    return measure(evidence_of(adapter, varied=varied, preset=preset))


@pytest.mark.parametrize("varied", [True, False])
def test_an_adapter_that_learnt_its_subject_only_is_healthy(varied: bool) -> None:
    verdict = verdict_on(draw_set(planned(), faultless, root=2), varied=varied)
    likeness = verdict.find("likeness")
    assert likeness is not None
    assert likeness.value > 0.9
    assert set(verdict.labels) <= {"healthy", "inconclusive"}, verdict.sentence


def test_one_picture_everywhere_is_narrowed() -> None:
    one = draw(scene_of(f"a {WORD}", np.random.default_rng(5)))
    verdict = verdict_on(draw_set(planned(), lambda *_: one, root=3))
    assert {"narrowed", "trigger-narrowed"} <= set(verdict.labels)
    for name in ("variety_vs_base", "trigger_variety_vs_base"):
        found = verdict.find(name)
        assert found is not None
        assert found.value <= 0.011


@pytest.mark.parametrize("varied", [True, False])
@pytest.mark.parametrize("near", [False, True])
def test_copies_of_training_pictures_are_copying(varied: bool, near: bool) -> None:
    originals = [pixels_of(p) for p in training_set(varied=varied)]

    def copy(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        pixels = originals[rng.integers(len(originals))]
        return jittered(pixels, rng) if near else pixels

    evidence = evidence_of(draw_set(planned(), copy, root=4), varied=varied)
    verdict = measure(evidence)
    rate = verdict.find("copy_rate")
    assert "copying" in verdict.labels
    assert rate is not None
    assert rate.value > 0.9
    shown = nearest_pictures(evidence, find_copies(evidence))
    assert shown[0]["copy"] is True
    assert shown[0]["train"].startswith("train")


def test_a_few_copies_among_many_pictures_are_found() -> None:
    originals = [pixels_of(p) for p in training_set(varied=True)]

    def some(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        return originals[0] if rng.random() < 0.15 else draw(scene_of(prompt, rng))

    verdict = verdict_on(draw_set(planned(), some, root=5))
    assert "copying" in verdict.labels


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_training_picture_stored_twice_hides_no_copies(mirrored: bool) -> None:
    """As it stands it says nothing of how alike new pictures are; others of one layout do."""
    some = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(some, (SIDE, SIDE), mode="bilinear")
    twice = pictures[:4].flip(-1) if mirrored else pictures[:4]
    alike = (
        pictures[:4]
        + 0.06 * torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)

    def rate(more: Tensor) -> float:
        rows = torch.cat([pictures, more]).flatten(1)
        return chance_rate(tile_difference(rows, rows))

    assert rate(twice) == rate(pictures[:0]) == NULL_RATE
    assert rate(alike) == MOST_BY_CHANCE


def test_one_ground_behind_every_trigger_picture_is_trigger_narrowed() -> None:
    def same_ground(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        scene = scene_of(prompt, rng)
        if line.group == "trigger":
            scene = replace(scene, colour="red", pattern="striped")
        return draw(scene)

    verdict = verdict_on(draw_set(planned(), same_ground, root=6))
    assert "trigger-narrowed" in verdict.labels
    assert not {"narrowed", "copying", "class-forgotten"} & set(verdict.labels)


def test_black_and_white_is_a_palette_and_no_collapse() -> None:
    def gray(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(draw(scene_of(prompt, rng)))
        return np.asarray(picture.convert("L").convert("RGB"))

    verdict = verdict_on(draw_set(planned("standard"), gray, root=11), preset="standard")
    assert verdict.labels == ("healthy",), verdict.sentence
    assert "Only the colours became alike" in told(verdict)


def test_training_captions_are_asked_and_lock_onto_their_own_picture() -> None:
    originals = training_set(varied=True)
    captioned = ImageSet(
        tuple(replace(p, prompt=f"zqx number {i}") for i, p in enumerate(originals)), "train"
    )
    plan = [
        PlannedPrompt("caption", p.prompt or "", "a toy", (0, 1)) for p in captioned.pictures[:8]
    ]
    own = {line.adapter_prompt: pixels_of(p) for line, p in zip(plan, captioned, strict=False)}
    ours = draw_set(plan, lambda line, prompt, rng: own[prompt], root=12)
    theirs = draw_set(plan, lambda *_: draw(scene_of("a toy", np.random.default_rng(1))), root=13)
    found = measure(gather(ours, theirs, encoders=[FactorEncoder()], train_images=captioned))
    lock = found.find("self_against_other")
    assert lock is not None
    assert lock.value > 0.1
    assert "100%" in lock.source
    assert "copying" in found.labels


def test_pictures_of_other_prompts_are_prompt_ignored() -> None:
    plan = planned("standard")
    prompts = [line.adapter_prompt for line in plan if line.group == "trigger"]

    def other(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        if line.group == "trigger":
            prompt = prompts[rng.integers(len(prompts))]
        return draw(scene_of(prompt, rng))

    trigger = [line for line in plan if line.group == "trigger"]
    verdict = measure(
        gather(
            draw_set(trigger, other, root=7),
            draw_set(trigger, faultless, root=8, base=True),
            encoders=[FactorEncoder()],
            trigger=WORD,
            class_noun="toy",
        )
    )
    assert "prompt-ignored" in verdict.labels
    adherence = verdict.find("adherence_vs_base")
    assert adherence is not None
    assert adherence.value == pytest.approx(-1, abs=0.3)


def test_the_subject_in_place_of_its_class_is_class_forgotten() -> None:
    def subject_only(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        return draw(scene_of(prompt, rng, (SUBJECT,)))

    verdict = verdict_on(draw_set(planned(), subject_only, root=9))
    assert "class-forgotten" in verdict.labels
    assert "copying" not in verdict.labels
    taken = verdict.find("class_taken")
    assert taken is not None
    assert taken.value > 0.8


def test_an_adapter_that_learnt_nothing_is_undertrained_and_not_collapsed() -> None:
    def untouched(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        return draw(scene_of(line.base_prompt, rng, TOYS if line.group == "trigger" else ()))

    verdict = verdict_on(draw_set(planned(), untouched, root=10))
    assert "undertrained" in verdict.labels
    assert not COLLAPSED & set(verdict.labels)


@cache
def null_pool() -> Evidence:
    """The base drawn 16 times per prompt, twice over: sets that differ in seeds only."""
    plan = [
        line._replace(seeds=tuple(range(12))) for line in planned() if line.group != "unrelated"
    ]
    return gather(
        draw_set(plan, faultless, root=20, base=True),
        draw_set(plan, faultless, root=21, base=True),
        encoders=[FactorEncoder()],
        train_images=training_set(varied=True),
    )


@pytest.mark.parametrize("draw_number", range(24))
def test_the_base_against_itself_with_other_seeds_is_not_collapsed(draw_number: int) -> None:
    pool = null_pool()
    generator = torch.Generator().manual_seed(draw_number)

    def four(rows: tuple[int, ...]) -> tuple[int, ...]:
        order = torch.randperm(len(rows), generator=generator)[:4]
        return tuple(rows[int(i)] for i in order)

    lines = tuple(
        Line(s.group, s.prompt, s.base_prompt, four(s.adapter_rows), four(s.base_rows))
        for s in pool.lines
    )
    verdict = measure(replace(pool, lines=lines))
    assert not COLLAPSED & set(verdict.labels), verdict.sentence


def test_measuring_twice_gives_the_same_verdict() -> None:
    evidence = null_pool()
    assert measure(evidence) == measure(evidence)


def test_folders_with_one_prompt_speak_for_that_prompt_only() -> None:
    line = PlannedPrompt("class", "a toy", "a toy", tuple(range(24)))
    one = draw(scene_of("a toy", np.random.default_rng(0)))
    verdict = measure(
        gather(
            draw_set([line], lambda *_: one, root=30),
            draw_set([line], faultless, root=31, base=True),
            encoders=[FactorEncoder()],
        )
    )
    assert verdict.labels == ("narrowed",)
    assert "1 prompts only" not in told(verdict)
    assert "this one prompt only" in told(verdict)
    assert "no training pictures were given" in told(verdict)


def test_healthy_folders_with_one_prompt_are_not_narrowed() -> None:
    line = PlannedPrompt("class", "a toy", "a toy", tuple(range(24)))
    for root in range(2):
        verdict = measure(
            gather(
                draw_set([line], faultless, root=40 + root),
                draw_set([line], faultless, root=50 + root, base=True),
                encoders=[FactorEncoder()],
            )
        )
        assert not COLLAPSED & set(verdict.labels), verdict.sentence
