"""What became of the class: how far its pictures drifted, and how many of them are the subject."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from variegate.measure.evidence import Line, View
from variegate.measure.retention import class_retention, class_taken

PROMPTS, SEEDS, WIDTH = 32, 4, 24
SUBJECT = F.one_hot(torch.tensor(0), WIDTH).float()
LINES = tuple(
    Line("class", f"prompt {i}", f"prompt {i}", rows, rows)
    for i in range(PROMPTS)
    for rows in [tuple(range(i * SEEDS, (i + 1) * SEEDS))]
)


def drawn(seed: int, *, towards: float = 0.0, count: int = PROMPTS * SEEDS) -> torch.Tensor:
    """Pictures of the class; towards: how much of the subject each has of its own."""
    rng = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(count, WIDTH, generator=rng), dim=1)
    return F.normalize(rows + towards * SUBJECT, dim=1)


def of_the_subject(seed: int, count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(SUBJECT + 0.05 * torch.randn(count, WIDTH, generator=rng), dim=1)


def view(adapter: torch.Tensor, base: torch.Tensor | None = None) -> View:
    return View("e", adapter, drawn(1) if base is None else base, of_the_subject(2, 12))


@pytest.mark.parametrize("seed", range(4, 9))
def test_a_class_that_is_as_it_was_is_not_taken(seed: int) -> None:
    found = class_taken(view(drawn(seed)), LINES)
    assert not isinstance(found, str)
    assert found.share.low <= 0.02
    assert found.share.p > 0.01


@pytest.mark.parametrize("share", [0.15, 0.4, 1.0])
def test_pictures_that_show_the_subject_are_found_at_their_share(share: float) -> None:
    rows = drawn(3)
    taken = torch.rand(len(rows), generator=torch.Generator().manual_seed(5)) < share
    found = class_taken(
        view(torch.where(taken[:, None], of_the_subject(6, len(rows)), rows)), LINES
    )
    assert not isinstance(found, str)
    assert found.share.value == pytest.approx(float(taken.float().mean()), abs=0.02)
    assert found.share.p < 0.01
    assert found.hits == int(taken.view(PROMPTS, SEEDS).sum(1).max())
    assert found.of == SEEDS


def test_what_the_base_draws_of_the_subject_is_not_counted() -> None:
    theirs = drawn(1)
    theirs[7] = of_the_subject(6, 1)[0]
    found = class_taken(view(theirs.clone(), theirs), LINES)
    assert not isinstance(found, str)
    assert found.hits == 1
    assert found.share.value == pytest.approx(0.0, abs=1e-6)


def test_a_drift_of_the_whole_class_is_told_by_retention_alone() -> None:
    drifted = view(drawn(3, towards=0.15))
    kept, found = class_retention(drifted, LINES), class_taken(drifted, LINES)
    assert not isinstance(kept, str)
    assert not isinstance(found, str)
    assert kept.high < 0.95
    assert found.share.low < 0.1


def test_where_the_base_draws_the_subject_itself_nothing_is_told() -> None:
    mine, theirs = drawn(3), drawn(1)
    mine[::2], theirs[::2] = of_the_subject(6, len(mine) // 2), of_the_subject(7, len(mine) // 2)
    told = class_taken(view(mine, theirs), LINES)
    assert isinstance(told, str)
    assert "some of the base's own pictures as like the training pictures" in told
