from __future__ import annotations

from collections import Counter

import pytest

from variegate.bench.world import BASE_SUBJECTS, CLASS_OF, COLOURS, PATTERNS, POSITIONS, SIZES
from variegate.measure.prompts import POCKET_SUBJECTS, prompt_plan
from variegate.measure.prompts import SIZES as PRESETS


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pocket", [True, False])
@pytest.mark.parametrize("subject", [True, False])
def test_each_group_has_its_prompts_and_seeds(preset: str, pocket: bool, subject: bool) -> None:
    captions = [f"a zqx toy, number {i}" for i in range(40)]
    plan = prompt_plan(
        "toy",
        "zqx",
        preset=preset,  # type: ignore[arg-type]
        pocket=pocket,
        subject=subject,
        captions=captions,
    )
    counted = Counter(line.group for line in plan)
    for group, (prompts, seeds) in PRESETS[preset].items():  # type: ignore[index]
        own = [line for line in plan if line.group == group]
        assert counted[group] == prompts
        assert len({line.adapter_prompt for line in own}) == prompts
        assert len({line.base_prompt for line in own}) == prompts
        assert all(len(line.seeds) == seeds for line in own)


@pytest.mark.parametrize("pocket", [True, False])
def test_the_trigger_stands_in_its_own_group_and_nowhere_else(pocket: bool) -> None:
    for line in prompt_plan("owl", "zqx", pocket=pocket):
        assert ("zqx" in line.adapter_prompt) == (line.group == "trigger")
        assert "zqx" not in line.base_prompt
        if line.group != "trigger":
            assert line.adapter_prompt == line.base_prompt


def test_the_base_hears_the_class_noun_with_its_own_article() -> None:
    plan = prompt_plan("owl", "zqx", pocket=True)
    pairs = {line.adapter_prompt: line.base_prompt for line in plan if line.group == "trigger"}
    assert pairs["a zqx"] == "an owl"
    assert pairs["a zqx on a red background"] == "an owl on a red background"
    photo = {p.adapter_prompt: p.base_prompt for p in prompt_plan("dog", "zqx")}
    assert photo["a photo of a zqx dog"] == "a photo of a dog"


def test_the_pocket_is_asked_in_words_it_knows() -> None:
    known = {*COLOURS, *PATTERNS, *SIZES, *BASE_SUBJECTS, *" ".join(POSITIONS).split()}
    known |= {"a", "an", "of", "on", "in", "at", "the", "picture", "background", "toy", "zqx"}
    for line in prompt_plan("toy", "zqx", preset="thorough", pocket=True):
        assert set(line.adapter_prompt.split()) <= known, line


def test_unrelated_prompts_leave_the_class_out() -> None:
    assert all(CLASS_OF[subject] == kind for subject, kind in POCKET_SUBJECTS)
    for line in prompt_plan("toy", "zqx", pocket=True):
        if line.group == "unrelated":
            assert not {"teddy", "kite", "balloon"} & set(line.adapter_prompt.split())


def test_a_smaller_plan_is_the_beginning_of_a_larger_one() -> None:
    small, large = (
        [p.adapter_prompt for p in prompt_plan("toy", "zqx", preset=preset, pocket=True)]  # type: ignore[arg-type]
        for preset in ("quick", "standard")
    )
    assert small[:16] == large[:16]


def test_captions_are_asked_once_and_evenly_and_the_base_hears_the_class() -> None:
    captions = ["a zqx", "a zqx", *(f"a zqx on day {i}" for i in range(64))]
    plan = prompt_plan("owl", "zqx", pocket=True, captions=captions)
    own = [line for line in plan if line.group == "caption"]
    assert [line.adapter_prompt for line in own] == [f"a zqx on day {i}" for i in range(0, 64, 2)]
    assert own[0].base_prompt == "an owl on day 0"


def test_without_a_trigger_or_a_class_there_is_still_a_plan() -> None:
    assert {p.group for p in prompt_plan("", "", pocket=True)} == {"class", "unrelated"}
    assert {p.group for p in prompt_plan("", "zqx")} == {"class", "trigger", "unrelated"}


def test_every_prompt_of_a_group_has_seeds_of_its_own_and_they_can_be_shifted() -> None:
    plan = prompt_plan("toy", "zqx", preset="quick", first_seed=7)
    assert plan[0].seeds == (7, 8, 9, 10)
    for group in ("class", "trigger", "unrelated"):
        seeds = [seed for line in plan if line.group == group for seed in line.seeds]
        assert len(set(seeds)) == len(seeds)
        assert min(seeds) == 7
