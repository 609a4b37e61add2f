"""Laws of noising: targets, clean estimates and weights agree, and nothing divides by zero."""

from __future__ import annotations

import pytest
import torch

from variegate import seeds
from variegate.diffusion import NoiseSchedule
from variegate.errors import BaseError

LEVELS = 50


def schedule(prediction: str, *, terminal: float = 0.01) -> NoiseSchedule:
    return NoiseSchedule(torch.linspace(0.999, terminal, LEVELS), prediction)  # type: ignore[arg-type]


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0 = torch.randn(n, 4, 8, 8, generator=seeds.at(0, "x0"))
    noise = torch.randn(n, 4, 8, 8, generator=seeds.at(0, "noise"))
    return x0, noise, torch.arange(n) * LEVELS // n


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_clean_picture(prediction: str) -> None:
    s = schedule(prediction)
    x0, noise, t = rows(10)
    x_t = s.noised(x0, noise, t)
    torch.testing.assert_close(
        s.clean_estimate(x_t, s.target(x0, noise, t), t), x0, atol=2e-5, rtol=1e-4
    )


def test_noising_keeps_unit_power() -> None:
    x0, _, t = rows(10)
    alpha, sigma = schedule("epsilon").levels(t, x0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(10, 1, 1, 1))


def test_at_zero_terminal_snr_everything_is_finite() -> None:
    s = schedule("v_prediction", terminal=0.0)
    x0, noise, _ = rows(2)
    t = torch.tensor([0, LEVELS - 1])
    x_t = s.noised(x0, noise, t)
    torch.testing.assert_close(x_t[1], noise[1])
    torch.testing.assert_close(s.clean_estimate(x_t, s.target(x0, noise, t), t)[1], x0[1])
    assert s.snr(t)[1] == 0
    assert s.min_snr_weight(t, gamma=5.0)[1] == 0


def test_noise_prediction_at_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(BaseError, match="v_prediction"):
        schedule("epsilon", terminal=0.0)


def test_min_snr_weights_are_the_papers() -> None:
    t = torch.arange(LEVELS)
    for prediction in ("epsilon", "v_prediction"):
        s = schedule(prediction)
        snr = s.snr(t)
        below = snr if prediction == "epsilon" else snr + 1
        expected = torch.minimum(snr, torch.tensor(5.0)) / below
        torch.testing.assert_close(s.min_snr_weight(t, gamma=5.0), expected)


def test_weights_are_finite_where_no_noise_was_added() -> None:
    for prediction in ("epsilon", "v_prediction"):
        s = NoiseSchedule(torch.tensor([1.0, 0.5]), prediction)  # type: ignore[arg-type]
        assert s.min_snr_weight(torch.tensor([0, 1]), gamma=5.0).isfinite().all()
