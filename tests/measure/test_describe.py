"""The reported numbers say of planted sets what their papers say they should."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from measure.planted import (
    FactorEncoder,
    draw_set,
    faultless,
    pixels_of,
    planned,
    training_set,
)
from variegate.images import ImageSet
from variegate.measure import Evidence, PlannedPrompt, describe, gather
from variegate.measurement import Measurement, Missing

NAMES = {
    *("mean_distance_vs_base", "precision", "recall", "density", "coverage", "frechet_distance"),
    *("kid", "mmd", "top_likeness", "near_ratio", "authenticity", "cluster_distance"),
    *("orbited_pictures", "data_copying", "self_against_other"),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VARIEGATE_CACHE", "/dev/null/no-cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def evidence(ours: ImageSet, train: ImageSet | None) -> Evidence:
    base = draw_set(planned(), faultless, root=1, base=True)
    return gather(
        ours,
        base,
        encoders=[FactorEncoder()],
        train_images=train,
        trigger="zqx",
        class_noun="toy",
    )


def numbers(found: Evidence) -> dict[str, Measurement]:
    readings = describe(found)
    assert {r.name for r in readings} == NAMES
    return {r.name: r for r in readings if isinstance(r, Measurement)}


def test_copies_orbit_their_pictures_and_a_faultless_adapter_does_not() -> None:
    train = training_set(varied=True)
    originals = [pixels_of(p) for p in train][:4]

    def copy(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        if line.group != "trigger":
            return faultless(line, prompt, rng)
        return originals[rng.integers(len(originals))]

    copied = numbers(evidence(draw_set(planned(), copy, root=2), train))
    well = numbers(evidence(draw_set(planned(), faultless, root=3), train))
    assert copied["orbited_pictures"].value == 4
    assert copied["near_ratio"].value == 1
    assert copied["authenticity"].value == 0
    assert copied["top_likeness"].value == pytest.approx(1)
    assert well["orbited_pictures"].value > 8
    assert well["near_ratio"].value < 0.2
    assert well["authenticity"].value > 0.3
    assert well["mean_distance_vs_base"].value == pytest.approx(1, abs=0.1)
    for m in (*copied.values(), *well.values()):
        assert m.low is not None, m.name
        assert m.high is not None, m.name
        assert m.low <= m.value <= m.high
        assert m.n > 1


def test_without_training_pictures_or_enough_of_them_they_are_missing_with_the_reason() -> None:
    ours = draw_set(planned(), faultless, root=3)
    for train, told in ((None, "no training pictures"), (training_set(2), "three or more")):
        missing = {r.name: r.why for r in describe(evidence(ours, train)) if isinstance(r, Missing)}
        assert told in missing["orbited_pictures"]
    few = [p._replace(seeds=(0,)) for p in planned() if p.group == "class"][:3]
    sparse = gather(
        draw_set(few, faultless, root=4),
        draw_set(few, faultless, root=5, base=True),
        encoders=[FactorEncoder()],
    )
    missing = {r.name: r.why for r in describe(sparse) if isinstance(r, Missing)}
    assert "want more than 10" in missing["coverage"]
    assert "no prompt has pictures" in missing["mean_distance_vs_base"]
