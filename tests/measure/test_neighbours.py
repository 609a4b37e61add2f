from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from variegate.errors import EmptyImageSet, FeaturesError
from variegate.measure import neighbours
from variegate.measure.fidelity import fidelity
from variegate.measure.neighbours import nearest


def rows(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_brute_force(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 37)  # so that every set here spans several


def test_neighbours_are_those_of_brute_force() -> None:
    a, b = rows(90, seed=1), rows(130, seed=2)
    found, truth = nearest(a, b, k=4), by_brute_force(a, b).sort(1)
    assert torch.equal(found.index, truth.indices[:, :4])
    assert torch.allclose(found.distance, truth.values[:, :4], rtol=1e-12)


def test_no_row_is_its_own_neighbour() -> None:
    a = rows(80)
    found = nearest(a, a, k=1, same=True)
    truth = by_brute_force(a, a).fill_diagonal_(torch.inf).min(1)
    assert torch.equal(found.index[:, 0], truth.indices)


def test_neighbours_that_single_precision_cannot_tell_apart_are_told_apart() -> None:
    # Twenty rows within 1e-6 of one another, ten thousand away from the origin: in single
    # precision their distances are rounding.
    centre = 1e4 + rows(1)
    near = centre + 1e-6 * torch.arange(1, 21, dtype=torch.float64)[:, None]
    found = nearest(centre, torch.cat([rows(60), near.flip(0)]), k=3)
    assert found.index[0].tolist() == [79, 78, 77]


def test_equal_pictures_lie_at_distance_nothing() -> None:
    same = rows(1).repeat(50, 1)
    assert float(nearest(same, same, k=5, same=True).distance.max()) == 0


def test_rows_may_lie_on_disk(tmp_path: Path) -> None:
    a, b = rows(60, seed=1), rows(100, seed=2)
    np.save(tmp_path / "rows.npy", b.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert torch.equal(nearest(a, mapped, k=2).distance, nearest(a, b, k=2).distance)


def test_fidelity_is_that_of_brute_force() -> None:
    real, fake = rows(120, seed=1), 0.9 * rows(100, seed=2)
    k = 3
    d = by_brute_force(real, fake)
    real_radii = by_brute_force(real, real).sort(1).values[:, k]
    fake_radii = by_brute_force(fake, fake).sort(1).values[:, k]
    found = fidelity(real, fake, k=k)
    assert found.precision == float((d < real_radii[:, None]).any(0).double().mean())
    assert found.recall == float((d < fake_radii).any(1).double().mean())
    inside = (d < real_radii[:, None]).double().sum()
    assert found.density == pytest.approx(float(inside) / k / 100)
    assert found.coverage == float((d.amin(1) < real_radii).double().mean())
    assert not found.enough


def test_a_set_covers_itself() -> None:
    real = rows(150)
    found = fidelity(real, real, k=5)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_far_sets_share_nothing() -> None:
    found = fidelity(rows(60), rows(60, seed=3) + 100, k=5)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_too_few_rows_say_so() -> None:
    with pytest.raises(FeaturesError, match="5 real rows have no 5 neighbours"):
        fidelity(rows(5), rows(60), k=5)


def test_what_is_not_a_number_names_its_row() -> None:
    broken = rows(60)
    broken[41, 3] = torch.nan
    with pytest.raises(FeaturesError, match="row 41"):
        nearest(rows(10), broken)


def test_features_of_two_encoders_are_refused() -> None:
    with pytest.raises(FeaturesError, match="of 16 and of 8 numbers"):
        nearest(rows(10), rows(10, d=8))


def test_no_rows_are_refused() -> None:
    with pytest.raises(EmptyImageSet):
        nearest(rows(0), rows(10))
    with pytest.raises(FeaturesError, match="shape"):
        nearest(torch.zeros(3), rows(10))
