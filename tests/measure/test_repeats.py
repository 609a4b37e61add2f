"""Pictures that come again under other prompts."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from variegate.measure.evidence import Line, View
from variegate.measure.repeats import find_repeats

PROMPTS, SEEDS, WIDTH = 32, 4, 24


def lines(prompts: int = PROMPTS, seeds: int = SEEDS) -> list[Line]:
    rows = [tuple(range(i * seeds, (i + 1) * seeds)) for i in range(prompts)]
    return [Line("class", f"prompt {i}", f"prompt {i}", own, own) for i, own in enumerate(rows)]


def drawn(seed: int, count: int = PROMPTS * SEEDS) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, WIDTH, generator=rng), dim=1)


def with_attractor(rows: torch.Tensor, share: float, seed: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    taken = torch.rand(len(rows), generator=rng) < share
    near = F.normalize(rows[:1] + 0.02 * torch.randn(rows.shape, generator=rng), dim=1)
    return torch.where(taken[:, None], near, rows)


@pytest.mark.parametrize("seed", range(5))
def test_other_pictures_of_the_same_kind_repeat_no_more_than_the_bases(seed: int) -> None:
    found = find_repeats(View("e", drawn(2 * seed), drawn(2 * seed + 1)), lines())
    assert not isinstance(found, str)
    assert found.share.low <= 0.02
    assert found.share.p > 0.01


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_an_attractor_is_found_at_its_share(share: float) -> None:
    found = find_repeats(View("e", with_attractor(drawn(0), share), drawn(1)), lines())
    assert not isinstance(found, str)
    assert found.share.value == pytest.approx(share, abs=0.05)
    assert found.share.low > 0.02
    assert found.share.p < 0.01
    assert found.hits >= 1
    assert found.other.startswith("prompt ")
    assert found.other != found.prompt


def test_pictures_alike_within_one_prompt_are_no_repeats() -> None:
    ours = drawn(0).reshape(PROMPTS, SEEDS, WIDTH)[:, :1].expand(-1, SEEDS, -1).reshape(-1, WIDTH)
    found = find_repeats(View("e", ours, drawn(1)), lines())
    assert not isinstance(found, str)
    assert found.share.value <= 0
    assert found.hits == 0


def test_what_all_prompts_share_in_the_base_too_is_no_repeat() -> None:
    """One seed for all prompts: pictures of a seed are alike in both models."""
    of_seed = drawn(3, SEEDS).repeat(PROMPTS, 1)
    ours, base = (F.normalize(of_seed + 0.4 * drawn(s), dim=1) for s in (4, 5))
    found = find_repeats(View("e", ours, base), lines())
    assert not isinstance(found, str)
    assert found.share.p > 0.01


def test_a_case_by_hand() -> None:
    """Angles in degrees: the base's nearest pictures of two prompts lie 60 apart (1 - cos = .5), so
    a repeat is nearer than .3 (45.6 degrees)."""

    def at(*degrees: float) -> torch.Tensor:
        return torch.tensor(
            [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]
        )

    base, two = at(0, 180, 60, 240), lines(2, 2)
    for apart, hits in ((40, 1), (50, 0)):
        found = find_repeats(View("e", at(0, 180, apart, 270), base), two)
        assert not isinstance(found, str)
        assert found.share.value == pytest.approx(hits / 2)
        assert (found.hits, found.of) == (hits, 2)


def test_what_cannot_be_told_says_why() -> None:
    alone = find_repeats(View("e", drawn(0, 4), drawn(1, 4)), lines(1))
    assert isinstance(alone, str)
    assert "between prompts" in alone
    same = drawn(1, 1).expand(8, -1)
    known = find_repeats(View("e", drawn(0, 8), same), lines(2))
    assert isinstance(known, str)
    assert "base's own pictures" in known
