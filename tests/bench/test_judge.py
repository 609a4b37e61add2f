"""The judge knows the truth, on fresh renders of every subject, held out or not."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.bench import judge, world


@pytest.fixture(scope="module")
def read() -> tuple[list[world.Scene], judge.Reading]:
    rng = np.random.default_rng(2**40)
    scenes = [world.draw_scene(rng, world.SUBJECTS) for _ in range(2000)]
    return scenes, judge.read([world.render(s) for s in scenes])


@pytest.mark.parametrize("factor", list(world.FACTORS))
def test_the_judge_reads_fresh_renders_right(
    read: tuple[list[world.Scene], judge.Reading], factor: str
) -> None:
    scenes, reading = read
    right = [v == getattr(s, factor) for v, s in zip(reading.values[factor], scenes, strict=True)]
    assert np.mean(right) >= 0.99


def test_entropy_is_nothing_for_one_value_and_one_for_all_alike_often() -> None:
    alike = judge.Reading({"pattern": ("plain",) * 8}, {})
    even = judge.Reading({"pattern": world.PATTERNS * 2}, {})
    assert alike.entropy("pattern") == pytest.approx(0)
    assert even.entropy("pattern") == pytest.approx(1)
    assert even.share("pattern", "dotted") == pytest.approx(0.25)
