"""What the front is measured anew by: new pictures, whatever the search has asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.train.scenes import write_pictures
from tests.tune.pieces import search_of

from variegate.images import ImageSet
from variegate.measure import PlannedPrompt
from variegate.tune.point import fresh_plan, search_plan


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> Path:
    return write_pictures(tmp_path_factory.mktemp("point") / "images", count=3)


def pairs(plan: tuple[PlannedPrompt, ...]) -> list[tuple[str, int]]:
    return [(line.adapter_prompt, seed) for line in plan for seed in line.seeds]


@pytest.mark.parametrize("pocket", [True, False])
@pytest.mark.parametrize("look", ["quick", "standard", "thorough"])
def test_the_front_is_measured_anew_by_a_whole_plan_of_new_pictures(
    images: Path, look: str, pocket: bool
) -> None:
    recipe, pictures = search_of(images).recipe, ImageSet.read(images)
    seen = search_plan(recipe, look, pictures, pocket=pocket)
    fresh = fresh_plan(recipe, look, pictures, pocket=pocket)
    sizes = Counter(line.group for line in fresh)
    assert (sizes["class"], sizes["trigger"], sizes["unrelated"]) == (32, 16, 16)
    assert len(set(pairs(fresh))) == len(pairs(fresh))
    assert not set(pairs(fresh)) & set(pairs(seen))


@pytest.mark.parametrize("pocket", [True, False])
def test_no_prompt_is_asked_again_while_others_are_left(images: Path, pocket: bool) -> None:
    recipe, pictures = search_of(images).recipe, ImageSet.read(images)
    seen = {p.adapter_prompt for p in search_plan(recipe, "quick", pictures, pocket=pocket)}
    fresh = fresh_plan(recipe, "quick", pictures, pocket=pocket)
    again = [p for p in fresh if p.group in ("class", "trigger") and p.adapter_prompt in seen]
    assert not again
