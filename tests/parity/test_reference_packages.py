"""Against the packages that the field uses, on the same features.

Tolerance 1e-5 relative throughout: theirs run in single precision in places.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor

from variegate.measure.distance import Moments, frechet_distance, kid, mifid
from variegate.measure.fidelity import fidelity
from variegate.measure.vendi import vendi, vendi_from_kernel

CLOSE = 1e-5


def rows(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + 0.3


# The package asks scipy for a module whose name is no longer public.
OLD_NAME = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


@OLD_NAME
@pytest.mark.parametrize("n", [20, 200])
def test_the_vendi_score_is_the_authors_own(n: int) -> None:
    reference = import_module("vendi_score.vendi")
    x = rows(n, 48, 1)
    assert float(vendi(x, order=1)) == pytest.approx(reference.score_X(x.numpy()), rel=CLOSE)
    unit = torch.nn.functional.normalize(x)
    kernel = (unit @ unit.T).numpy()
    # score_X heeds no order and score_dual only above zero: the kernel's function does.
    for order, theirs in ((0.5, 0.5), (1, 1), (2, 2), (3, 3), (float("inf"), "inf")):
        if order == 0.5 and n > 48:
            continue  # theirs counts rounding of the zero eigenvalues as modes there
        expected = reference.score_K(kernel, q=theirs)
        assert float(vendi(x, order=order)) == pytest.approx(expected, rel=CLOSE)
        found = float(vendi_from_kernel(torch.from_numpy(kernel), order))
        assert found == pytest.approx(expected, rel=CLOSE)
    assert float(vendi(x, order=1)) == pytest.approx(reference.score_dual(x.numpy()), rel=CLOSE)


@OLD_NAME
def test_a_weighted_vendi_score_is_the_authors_own() -> None:
    reference = import_module("vendi_score.vendi")
    x, p = rows(30, 48, 2), np.random.default_rng(0).dirichlet(np.ones(30))
    expected = reference.score_X(x.numpy(), p=p)
    found = vendi(x, order=1, shares=torch.from_numpy(p))
    assert float(found) == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("shrunk", [1.0, 0.7])
def test_precision_recall_density_coverage_are_the_reference_packages(
    k: int, shrunk: float
) -> None:
    reference = import_module("prdc")
    both = rows(1300, 32, 3)
    real, fake = both[:700], shrunk * both[700:]
    expected = reference.compute_prdc(real.numpy(), fake.numpy(), k)
    found = fidelity(real, fake, k=k)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=CLOSE)


@pytest.mark.parametrize("n", [400, 40])
def test_the_frechet_distance_is_that_of_torchmetrics(n: int) -> None:
    # 40 rows of 64 numbers have covariances of no full rank.
    reference = import_module("torchmetrics.image.fid")
    a, b = rows(n, 64, 4), rows(n + 7, 64, 5) + 0.1
    ours, theirs = Moments.of(a), Moments.of(b)
    expected = reference._compute_fid(ours.mean, torch.cov(a.T), theirs.mean, torch.cov(b.T))
    assert float(frechet_distance(a, b)) == pytest.approx(float(expected), rel=CLOSE)


def test_the_frechet_distance_of_hand_worked_gaussians() -> None:
    # Diagonal covariances 1 and 4, means 3 apart in each of two axes: 18 + 2 (1 + 4 - 4).
    one = Moments(torch.zeros(2).double(), torch.eye(2).double(), 9)
    other = Moments(torch.full((2,), 3.0).double(), 4 * torch.eye(2).double(), 9)
    assert float(frechet_distance(one, other)) == pytest.approx(20)


def test_the_kernel_distance_is_that_of_torchmetrics_on_the_same_subsets() -> None:
    reference = import_module("torchmetrics.image.kid")
    a, b = rows(300, 48, 6), rows(280, 48, 7)
    g = torch.Generator().manual_seed(0)
    indices = [
        (torch.randperm(300, generator=g)[:100], torch.randperm(280, generator=g)[:100])
        for _ in range(10)
    ]
    theirs = [float(reference.poly_mmd(a[i], b[j])) for i, j in indices]
    mean, deviation = kid(a, b, indices=indices)
    assert mean == pytest.approx(np.mean(theirs), rel=CLOSE)
    assert deviation == pytest.approx(np.std(theirs), rel=CLOSE)


@pytest.mark.parametrize("copied", [True, False])
def test_the_memorisation_informed_distance_is_that_of_torchmetrics(copied: bool) -> None:
    reference = import_module("torchmetrics.image.mifid")
    a = rows(300, 32, 8)
    b = a + 0.01 * rows(300, 32, 9) if copied else rows(200, 32, 9)
    expected = reference._mifid_compute(a.mean(0), torch.cov(a.T), a, b.mean(0), torch.cov(b.T), b)
    assert float(mifid(a, b)) == pytest.approx(float(expected), rel=CLOSE)
    if copied:
        assert float(mifid(a, b)) > 2 * float(frechet_distance(a, b))
