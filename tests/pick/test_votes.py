"""Votes between two at a time, made into strengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from variegate.errors import RequestError
from variegate.pick.votes import Vote, read_votes, strengths

NAMES = ("a", "b", "c", "d")


def drawn(count: int, seed: int = 0) -> list[Vote]:
    """Votes of a crowd that likes a best and d least."""
    rng = np.random.default_rng(seed)
    worth = dict(zip(NAMES, (1.5, 0.5, 0.0, -1.0), strict=True))
    votes = []
    for _ in range(count):
        a, b = rng.choice(NAMES, 2, replace=False)
        chance = 1 / (1 + np.exp(worth[b] - worth[a]))
        votes.append(Vote(str(a), str(b), str(a if rng.random() < chance else b)))
    return votes


def test_strengths_are_those_of_most_likelihood() -> None:
    """Parity: the same likelihood, half votes against an average point counted in, maximised by
    another method; to 1e-4, what its gradient tolerance leaves."""
    votes = [*drawn(60), Vote("a", "d", None)]
    found = strengths(votes)

    def loss(x: np.ndarray) -> float:
        at = dict(zip(NAMES, x, strict=True))
        total = 0.0
        for vote in votes:
            gap = at[vote.a] - at[vote.b]
            won = 0.5 if vote.winner is None else float(vote.winner == vote.a)
            total += won * np.log1p(np.exp(-gap)) + (1 - won) * np.log1p(np.exp(gap))
        return float(total + 0.5 * (np.log1p(np.exp(-x)) + np.log1p(np.exp(x))).sum())

    least = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-7})
    for name, value in zip(NAMES, least.x, strict=True):
        assert found[name].value == pytest.approx(value, abs=1e-4)


def test_the_best_liked_comes_first_and_more_votes_are_surer() -> None:
    few, many = strengths(drawn(30)), strengths(drawn(480))
    assert list(many) == list(NAMES)
    assert all(few[n].high - few[n].low > many[n].high - many[n].low for n in few)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = []
    for seed in range(60):
        found = strengths(drawn(120, seed))
        gap = found["a"].value - found["d"].value
        error = np.hypot(*(found[n].high - found[n].value for n in ("a", "d")))
        hits.append(abs(gap - 2.5) < error)
    assert np.mean(hits) > 0.85


def test_neither_order_nor_side_matters() -> None:
    votes = drawn(40)
    turned = [Vote(v.b, v.a, v.winner) for v in reversed(votes)]
    for name, own in strengths(votes).items():
        assert strengths(turned)[name].value == pytest.approx(own.value)


def test_one_vote_and_none_stay_finite() -> None:
    found = strengths([Vote("a", "b", "a")])
    assert found["a"].low < 0 < found["a"].value < found["a"].high < 5
    assert found["a"].value == pytest.approx(-found["b"].value)
    assert strengths([]) == {}


def test_a_file_of_votes_is_read_and_all_its_faults_are_told(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    good = [
        {"a": "a", "b": "b", "winner": "a"},
        {"a": "a", "b": "c", "winner": "c"},
        {"a": "b", "b": "c", "winner": "tie"},
    ]
    file.write_text("\n".join(map(json.dumps, good)) + "\n\n")
    votes = read_votes(file, NAMES)
    assert votes == [Vote("a", "b", "a"), Vote("a", "c", "c"), Vote("b", "c", None)]
    bad = ["{", '{"a": "a"}', '{"a": "a", "b": "zz", "winner": "a"}']
    bad += ['{"a": "a", "b": "a", "winner": "a"}', '{"a": "a", "b": "b", "winner": "d"}']
    bad += ['{"a": ["a"], "b": {}, "winner": 3}', '["a", "b"]']
    file.write_text("\n".join(bad))
    with pytest.raises(RequestError) as told:
        read_votes(file, NAMES)
    for words in ("line 1: no JSON", "line 2: expected", "line 3: 'zz' is no point", "line 4"):
        assert words in str(told.value)
    assert "and 2 more" in str(told.value)
    with pytest.raises(RequestError, match="cannot be read"):
        read_votes(tmp_path / "nowhere", NAMES)
