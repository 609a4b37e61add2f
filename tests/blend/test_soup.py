"""A greedy soup takes in who does it good, and nobody else."""

from __future__ import annotations

import pytest
import torch
from tests.blend.random_adapters import LAYERS, random_adapter

from variegate.adapter import Adapter
from variegate.blend.soup import greedy_soup
from variegate.blend.together import blend
from variegate.errors import AdapterError

NAME = next(iter(LAYERS))


def near(goal: torch.Tensor) -> object:
    """A judge that likes updates near a goal, and counts how often it is asked."""
    asked: list[Adapter] = []

    def score(adapter: Adapter) -> float:
        asked.append(adapter)
        return -float((adapter.delta(NAME) - goal).norm())

    score.asked = asked  # type: ignore[attr-defined]
    return score


def test_the_soup_is_that_of_the_recipe() -> None:
    """By hand: sorted by score alone, each kept where the mean with it is no worse."""
    members = [random_adapter(i) for i in range(5)]
    goal = torch.stack([members[i].delta(NAME) for i in (1, 3)]).mean(0)
    score = near(goal)
    soup = greedy_soup(members, score)  # type: ignore[arg-type]

    def of(taken: list[int]) -> float:
        mean = torch.stack([members[i].delta(NAME) for i in taken]).mean(0)
        return -float((mean - goal).norm())

    order = sorted(range(5), key=lambda i: -of([i]))
    taken = order[:1]
    for i in order[1:]:
        if of([*taken, i]) >= of(taken):
            taken.append(i)
    assert list(soup.members) == taken
    assert set(taken) >= {1, 3}
    assert len(taken) < 5
    assert len(score.asked) == 5 + 4  # type: ignore[attr-defined]
    assert [t.stayed for t in soup.tastings].count(True) == len(taken)
    want = blend([members[i] for i in taken]).adapter.delta(NAME)
    assert torch.equal(soup.blended.adapter.delta(NAME), want)


def test_members_that_score_no_worse_are_taken_in() -> None:
    members = [random_adapter(i) for i in range(3)]
    assert greedy_soup(members, lambda _: 1.0).members == (0, 1, 2)


def test_what_is_wrong_with_members_is_told_before_any_judging() -> None:
    asked: list[Adapter] = []

    def score(adapter: Adapter) -> float:
        asked.append(adapter)
        return 0.0

    with pytest.raises(AdapterError, match="different families"):
        greedy_soup([random_adapter(0), Adapter("sdxl", random_adapter(1).layers)], score)
    assert not asked
