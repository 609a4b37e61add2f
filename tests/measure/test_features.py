"""A verdict from features that somebody else computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import variegate
from measure.planted import told
from variegate.errors import EmptyImageSet, FeaturesError
from variegate.measure import evidence_of_features, measure

PROMPTS = [f"a picture of {i}" for i in range(12)]


def drawn(seed: int, *, per_prompt: int = 6, spread: float = 1.0) -> tuple[Tensor, list[str]]:
    """Rows about a centre of their prompt's own, with a spread that is the same for all."""
    centres = 2 * torch.randn(len(PROMPTS), 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(PROMPTS), per_prompt, 32, generator=torch.Generator().manual_seed(seed))
    rows = (centres[:, None] + spread * noise).flatten(0, 1)
    return rows, [p for p in PROMPTS for _ in range(per_prompt)]


def test_samples_as_varied_as_the_reference_are_not_narrowed() -> None:
    ours, prompts = drawn(1)
    theirs, _ = drawn(2)
    verdict = measure(evidence_of_features(ours.numpy(), theirs, prompts=prompts))
    assert "narrowed" not in verdict.labels
    found = verdict.find("variety_vs_base")
    assert found is not None
    assert found.value == pytest.approx(1, abs=0.25)


def test_samples_grown_alike_are_narrowed() -> None:
    ours, prompts = drawn(1, spread=0.2)
    theirs, _ = drawn(2)
    verdict = measure(evidence_of_features(ours, theirs, prompts=prompts))
    assert "narrowed" in verdict.labels
    assert measure(ours, theirs, prompts=prompts) == verdict
    assert variegate.measure(ours, theirs, prompts=prompts) == verdict
    with pytest.raises(FeaturesError, match="measure\\(samples, reference\\)"):
        measure(ours)


def test_prompts_are_matched_by_name_and_not_by_place() -> None:
    ours, prompts = drawn(1)
    backwards = ours.flip(0)
    theirs, names = drawn(2)
    first = measure(evidence_of_features(ours, theirs, prompts=prompts))
    other = measure(
        evidence_of_features(backwards, theirs, prompts=prompts[::-1], reference_prompts=names)
    )
    assert other.find("variety_vs_base").value == pytest.approx(  # type: ignore[union-attr]
        first.find("variety_vs_base").value  # type: ignore[union-attr]
    )


def test_one_prompt_is_tested_over_seeds_and_says_so() -> None:
    generator = torch.Generator().manual_seed(3)
    ours, theirs, centre = torch.randn(49, 16, generator=generator).split([24, 24, 1])
    alike = centre + 0.05 * ours
    verdict = measure(evidence_of_features(alike, theirs))
    assert "narrowed" in verdict.labels
    assert "this one prompt only" in told(verdict)


def test_what_features_cannot_show_is_missing_and_not_guessed() -> None:
    ours, prompts = drawn(1)
    verdict = measure(evidence_of_features(ours, drawn(2)[0], prompts=prompts, train=ours[:5]))
    missing = {m["name"]: m["missing"] for m in verdict.to_json()["measurements"] if "missing" in m}
    assert "give the pictures" in missing["copy_rate"]


def test_what_does_not_fit_is_refused() -> None:
    ours, prompts = drawn(1)
    with pytest.raises(FeaturesError, match="differ in width"):
        evidence_of_features(ours, ours[:, :8])
    with pytest.raises(FeaturesError, match="one per row"):
        evidence_of_features(ours, ours, prompts=prompts[:-1])
    with pytest.raises(FeaturesError, match="no prompt of the samples"):
        evidence_of_features(ours, ours, prompts=prompts, reference_prompts=["x"] * len(prompts))
    with pytest.raises(EmptyImageSet):
        evidence_of_features(ours[:0], ours)
    broken = ours.clone()
    broken[5, 0] = torch.nan
    with pytest.raises(FeaturesError, match="row 5"):
        evidence_of_features(broken, ours)


def test_where_one_prompt_has_nearly_all_pictures_there_is_a_verdict_all_the_same() -> None:
    ours, theirs = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0))
    prompts = ["a"] * 20 + ["b"] * 2 + ["c"] * 2
    found = measure(evidence_of_features(ours, theirs, prompts=prompts)).find("precision")
    assert found is not None
    assert found.low is None or found.low <= found.value


def test_features_that_know_kinds_alone_are_measured() -> None:
    """One-hot rows: effective numbers that differ by rounding only have an interval."""
    rng = np.random.default_rng(0)
    theirs = np.eye(60).reshape(12, 5, 60)
    ours = theirs.copy()
    for rows in ours:
        kept, lost = rng.choice(5, 2, replace=False)
        rows[lost] = rows[kept]
    prompts = [p for p in PROMPTS for _ in range(5)]
    verdict = variegate.measure(ours.reshape(60, 60), theirs.reshape(60, 60), prompts=prompts)
    found = verdict.find("variety_vs_base")
    assert found is not None
    assert found.low == pytest.approx(found.value)
