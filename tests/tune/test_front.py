"""Laws of the front, its hypervolume and its knee; and of what is said to have mattered."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from variegate.tune.effects import effects, told
from variegate.tune.front import front, hypervolume, knee, neighbours, thinned
from variegate.tune.point import RUNGS, bars_of, probe_score
from variegate.tune.ranges import Knob

shares = some.floats(0, 1).map(lambda x: round(x, 3))
points = some.lists(some.tuples(shares, shares), min_size=1, max_size=12)


def area_by_cells(found: list[tuple[float, float]], cells: int = 200) -> float:
    """The same area, counted in small squares."""
    middles = (np.arange(cells) + 0.5) / cells
    x, y = np.meshgrid(middles, middles)
    covered = np.zeros_like(x, dtype=bool)
    for a, b in found:
        covered |= (x <= a) & (y <= b)
    return float(covered.mean())


@given(points)
def test_hypervolume_is_the_area_that_is_dominated(found: list[tuple[float, float]]) -> None:
    assert hypervolume(found) == pytest.approx(area_by_cells(found), abs=0.02)


@given(points, some.tuples(shares, shares))
def test_another_point_never_takes_hypervolume(
    found: list[tuple[float, float]], more: tuple[float, float]
) -> None:
    assert hypervolume([*found, more]) >= hypervolume(found) - 1e-12


@given(points)
def test_the_front_alone_has_all_the_hypervolume(found: list[tuple[float, float]]) -> None:
    kept = [found[i] for i in front(found)]
    assert hypervolume(kept) == pytest.approx(hypervolume(found))
    assert front(kept) == list(range(len(kept)))


@given(points)
def test_the_knee_is_on_the_front_and_has_the_largest_rectangle(
    found: list[tuple[float, float]],
) -> None:
    at = knee(found)
    assert at in front(found)
    alone = [hypervolume([p]) for p in found]
    assert alone[at] == pytest.approx(max(alone))


@given(points, some.floats(0.1, 10), some.floats(0.1, 10))
def test_the_knee_does_not_depend_on_units(
    found: list[tuple[float, float]], a: float, b: float
) -> None:
    products = sorted({round(x * y, 6) for x, y in found})
    if len(products) > 1 and products[-1] - products[-2] < 1e-4:
        return  # rounding may decide between what is equal
    scaled = [(a * x, b * y) for x, y in found]
    assert math.prod(found[knee(scaled)]) == pytest.approx(math.prod(found[knee(found)]))


@given(points)
def test_the_knee_stays_when_points_that_lose_are_left_out(
    found: list[tuple[float, float]],
) -> None:
    best = found[knee(found)]
    kept = [p for p in found if p == best or math.prod(p) < 0.5 * math.prod(best)]
    assert kept[knee(kept)] == best


def test_a_knee_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        knee([])


def test_a_front_is_thinned_to_what_spans_it_best() -> None:
    found = [(0.1, 1.0), (0.11, 0.99), (0.5, 0.5), (0.99, 0.11), (1.0, 0.1), (0.4, 0.4)]
    assert thinned(found, 9) == [0, 1, 2, 3, 4]
    # A greedy choice: the middle first, then what adds most beside it.
    assert 2 in thinned(found, 1)
    assert len(thinned(found, 3)) == 3


def test_neighbours_are_the_next_on_the_front_either_way() -> None:
    found = [(0.2, 0.9), (0.6, 0.6), (0.5, 0.5), (0.9, 0.1)]
    assert neighbours(found, 1) == {"likeness": 3, "variety": 0}
    assert neighbours(found, 0) == {"likeness": 1}


# --- what mattered ------------------------------------------------------------------------------

KNOBS = (
    Knob("adapter.rank", (2, 4, 8, 16)),
    Knob("optimizer.lr", (), 1e-5, 1e-3, log=True),
    Knob("strategies.flip", ("on", "off")),
)


def trials(n: int, seed: int = 0) -> list[dict[str, float | int | str]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "adapter.rank": int(rng.choice([2, 4, 8, 16])),
            "optimizer.lr": float(10 ** rng.uniform(-5, -3)),
            "strategies.flip": str(rng.choice(["on", "off"])),
        }
        for _ in range(n)
    ]


def test_what_mattered_is_found_and_what_did_not_is_told_with_a_bound() -> None:
    asked = trials(24)
    rng = np.random.default_rng(1)
    # A peak in the rate, which a straight line would miss.
    y = [-((math.log10(float(t["optimizer.lr"])) + 4) ** 2) + rng.normal(0, 0.05) for t in asked]
    found = effects(KNOBS, asked, {"likeness": y})
    assert not isinstance(found, str)
    lr = next(e for e in found if e.knob == "optimizer.lr")
    assert lr.shown
    assert lr.share > 0.7
    assert lr.towards == "middle"
    others = [e for e in found if e.knob != "optimizer.lr"]
    assert not any(e.shown for e in others)
    assert "did not matter to likeness, as far as 24 trials can tell" in told(others[0])
    assert all(0 <= e.share <= e.most <= 1 + 1e-9 for e in found)


def test_chance_is_seldom_called_an_effect() -> None:
    alarms = 0
    for seed in range(12):
        y = np.random.default_rng(100 + seed).normal(size=20).tolist()
        found = effects(KNOBS, trials(20, seed), {"variety": y}, seed=seed)
        alarms += any(e.shown for e in found if not isinstance(e, str))
    # At 5 % each over all knobs: two of twelve would come once in five times.
    assert alarms <= 2


def test_too_few_trials_tell_nothing_and_how_many_would() -> None:
    found = effects(KNOBS, trials(6), {"variety": [0.1] * 6})
    assert isinstance(found, str)
    assert "10 would do" in found


def test_a_knob_that_only_went_along_with_another_gets_no_credit() -> None:
    rng = np.random.default_rng(3)
    asked = trials(40)
    for trial in asked:  # nearly always together
        trial["strategies.flip"] = (
            "on" if (int(trial["adapter.rank"]) > 4) != (rng.random() < 0.1) else "off"
        )
    y = [math.log2(int(t["adapter.rank"])) + rng.normal(0, 0.2) for t in asked]
    found = effects(KNOBS, asked, {"likeness": y})
    assert not isinstance(found, str)
    share = {e.knob: e for e in found}
    assert share["adapter.rank"].shown
    assert not share["strategies.flip"].shown


def test_a_switch_keeps_its_credit_when_what_is_set_of_it_is_varied_too() -> None:
    weight = Knob("strategies.flip.p", (), 0.25, 4.0, log=True)
    rng = np.random.default_rng(5)
    asked = trials(40)
    y = [0.4 * (t["strategies.flip"] == "on") + rng.normal(0, 0.02) for t in asked]
    for trial in asked:
        if trial["strategies.flip"] == "on":
            trial["strategies.flip.p"] = float(np.exp(rng.uniform(np.log(0.25), np.log(4))))
    found = effects((*KNOBS, weight), asked, {"variety": y})
    assert not isinstance(found, str)
    share = {e.knob: e for e in found}
    assert share["strategies.flip"].share > 0.8
    assert share["strategies.flip"].shown
    assert not share["strategies.flip.p"].shown


def test_what_is_set_of_a_switch_has_the_credit_for_its_own_part() -> None:
    weight = Knob("strategies.flip.p", (), 0.25, 4.0, log=True)
    rng = np.random.default_rng(5)
    asked, y = trials(60), list[float]()
    for trial in asked:
        p = float(np.exp(rng.uniform(np.log(0.25), np.log(4))))
        if trial["strategies.flip"] == "on":
            trial["strategies.flip.p"] = p
        y.append(math.log(p) * (trial["strategies.flip"] == "on") + rng.normal(0, 0.05))
    found = effects((*KNOBS, weight), asked, {"variety": y})
    assert not isinstance(found, str)
    share = {e.knob: e for e in found}
    assert share["strategies.flip.p"].share > 0.8
    assert share["strategies.flip.p"].towards == "high"


# --- scouting -----------------------------------------------------------------------------------


def look(loss: float, variety: float, **more: float) -> list[dict[str, float | str]]:
    values = {
        "loss_vs_base.held_out.low": loss,
        "loss_vs_base.held_out.middle": loss,
        "loss_vs_base.train.low": 0.01,
        "one_step_variety.class": variety,
        "one_step_variety.trigger": variety,
    } | more
    return [{"name": name, "value": value} for name, value in values.items()]


@given(some.floats(0.3, 1), some.floats(0, 1), some.floats(0.01, 0.3))
def test_more_learnt_or_more_kept_never_scores_less(loss: float, variety: float, d: float) -> None:
    here = probe_score(look(loss, variety))
    assert probe_score(look(loss - d, variety)) >= here
    assert probe_score(look(loss, min(1.0, variety + d))) >= here


def test_neither_learning_nor_variety_is_bought_with_the_whole_of_the_other() -> None:
    assert probe_score(look(1.0, 1.0)) == 0
    assert probe_score(look(0.2, 0.0)) == 0


def test_a_scout_is_compared_with_the_median_once_there_are_others() -> None:
    assert bars_of([]) == (None,) * RUNGS
    others = [[0.1, 0.2], [0.3, 0.4, 0.9], [0.2, 0.6]]
    bars = bars_of(others)
    assert bars[:2] == (0.2, 0.4)
    assert bars[2:] == (None,) * (RUNGS - 2)
