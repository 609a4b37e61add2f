"""Successive halving on points whose truth is made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest

from variegate.errors import NotFinite, RequestError
from variegate.pick.points import Point
from variegate.pick.race import Differences, Race, Sight, race, surely_above

EACH = 4
POINTS = tuple(
    Point(f"step-{step:06d}", step, strength, scale)
    for step, strength, scale in product((100, 200, 300, 400, 500), (0.6, 0.8, 1.0), (1.0, 1.4))
)


def plain(point: Point) -> bool:
    return (point.strength, point.guidance_scale) == (1.0, 1.4)


def truth(point: Point) -> tuple[float, float]:
    """Variety and likeness: more of one is less of the other, and one checkpoint is better."""
    assert point.step is not None
    on = point.step / 500 * (0.4 + 0.6 * point.strength) * (0.8 + 0.2 * point.guidance_scale / 1.4)
    likeness = 1 - np.exp(-4 * on)
    variety = 1.05 - 0.8 * on**2 + (0.1 if point.step == 300 else 0)
    return float(variety), float(likeness)


@dataclass
class Made:
    """An arena where prompts shift all points alike and each point a little by itself."""

    seed: int = 0
    noise: float = 0.1
    broken: tuple[Point, ...] = ()
    asked: list[tuple[Point, int]] = field(default_factory=list)

    def rows(self, point: Point, prompts: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.random.default_rng((self.seed, POINTS.index(point)))
        common = np.random.default_rng((self.seed, 999))
        variety, likeness = truth(point)
        shared = common.normal(0, 0.3, 2 * 16).reshape(16, 2)
        mine = own.normal(0, self.noise, 2 * 16).reshape(16, 2)
        pictures = common.normal(0, 0.2, (16, EACH)) + own.normal(0, self.noise, (16, EACH))
        logs = np.log(variety) + shared + mine
        return logs[:prompts].T.ravel(), likeness + pictures[:prompts]

    def look(self, point: Point, prompts: int) -> Sight:
        if point in self.broken:
            raise NotFinite("a NaN")
        self.asked.append((point, prompts))
        logs, likeness = self.rows(point, prompts)
        return Sight(prompts, float(np.exp(logs.mean())), float(likeness.mean()))

    def differences(self, left: Point, right: Point) -> Differences:
        prompts = min(max(n for p, n in self.asked if p == q) for q in (left, right))
        (a, x), (b, y) = (self.rows(p, prompts) for p in (left, right))
        return Differences(tuple(b - a), tuple(tuple(row) for row in (y - x) / x.mean()))


def run(made: Made, *, share: float = 0.25, margin: float = 0.03) -> Race:
    budget = int(share * len(POINTS) * 2 * 16 * EACH)
    return race(POINTS, made, plain=plain, prompts=16, each=EACH, budget=budget, margin=margin)


def best(margin: float = 0.03) -> tuple[float, float]:
    """The most variety at enough likeness, and that floor."""
    floor = max(truth(p)[1] for p in POINTS if plain(p)) - margin
    return max(truth(p)[0] for p in POINTS if truth(p)[1] >= floor), floor


def test_at_a_quarter_of_the_pictures_little_is_lost_of_what_the_grid_has() -> None:
    most, floor = best()
    losses = []
    for seed in range(10):
        found = run(Made(seed))
        assert found.choice is not None
        assert found.pictures <= 0.25 * len(POINTS) * 2 * 16 * EACH
        variety, likeness = truth(found.choice)
        # What is short of likeness counts as the search counts it.
        losses.append(most - variety + 5 * max(0.0, floor - likeness))
        assert likeness > floor - 0.06
    plainest = max((p for p in POINTS if plain(p)), key=lambda p: truth(p)[1])
    assert np.mean(losses) < (most - truth(plainest)[0]) / 2
    assert np.median(losses) < 0.05


def test_what_is_ruled_out_is_truly_worse() -> None:
    wrong = ruled = 0
    for seed in range(6):
        found = run(Made(seed))
        assert found.reference is not None
        for point, why in found.ruled_out.items():
            ruled += 1
            variety, likeness = truth(point)
            if "less often" in why.why:
                wrong += likeness >= 0.97 * truth(found.reference)[1]
            else:
                wrong += variety >= best()[0]
    assert ruled > 30
    assert wrong <= 0.02 * ruled


def test_without_a_difference_no_point_is_ruled_out_and_all_are_told_as_tied() -> None:
    """A bare mean never decides: points that are alike rest, and the answer says so."""
    alike = tuple(Point("only", 1, s, g) for s in (0.8, 0.9, 1.0) for g in (1.0, 1.4))

    class Flat(Made):
        def rows(self, point: Point, prompts: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((self.seed, alike.index(point)))
            return rng.normal(0, 0.2, (2, 16))[:, :prompts].ravel(), rng.normal(
                0.9, 0.05, (16, EACH)
            )[:prompts]

    ruled = 0
    for seed in range(6):
        found = race(alike, Flat(seed), plain=plain, prompts=16, each=EACH, budget=300, margin=0.1)
        ruled += len(found.ruled_out)
        assert found.choice is not None
        assert len(found.tied) >= 3
    assert ruled <= 2  # of 36 points, each asked at several stages


def test_a_larger_budget_looks_at_more_and_a_stage_doubles_the_prompts() -> None:
    small, large = Made(), Made()
    few, many = run(small, share=0.2), run(large, share=1.0)
    assert few.pictures < many.pictures
    sizes = sorted({n for _, n in large.asked})
    assert sizes == [1, 2, 4, 8, 16]
    assert {p for p, n in large.asked if n == 1} == set(POINTS)
    assert sum(n == 16 for _, n in large.asked) > sum(n == 16 for _, n in small.asked)


def test_the_reference_is_drawn_at_every_stage() -> None:
    made = Made()
    found = run(made)
    assert found.reference is not None
    deepest = max(s.prompts for s in found.sights.values())
    assert found.sights[found.reference].prompts == deepest
    assert found.choice is not None
    assert found.sights[found.choice].prompts == deepest


def test_a_point_whose_pictures_turn_nan_is_left_and_the_others_go_on() -> None:
    broken = POINTS[-1]
    found = run(Made(broken=(broken,)))
    assert "NaN" in found.ruled_out[broken].why
    assert found.choice not in (None, broken)
    with pytest.raises(NotFinite):
        run(Made(broken=POINTS))


def test_a_budget_that_does_not_reach_for_one_look_is_refused() -> None:
    with pytest.raises(RequestError, match=r"30 points want 240 pictures.*budget of 192"):
        run(Made(), share=0.05)


def test_a_test_that_may_rule_out_wants_more_than_a_mean() -> None:
    rng = np.random.default_rng(0)
    hits = sum(surely_above(list(rng.normal(0, 1, n))) for n in (3, 5, 8, 16) for _ in range(200))
    assert hits <= 0.025 * 800
    assert surely_above([0.3, 0.31, 0.29, 0.3])
    assert not surely_above([0.5])
    assert not surely_above([0.3, 0.31, 0.29, 0.3], than=0.4)
