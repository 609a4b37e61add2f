"""Laws of noising: targets, clean estimates and weights agree, and nothing divides by zero."""

from __future__ import annotations

import pytest
import torch

from variegate import seeds
from variegate.diffusion import NoiseSchedule
from variegate.errors import BaseError

LEVELS = 50


def schedule(prediction: str, *, terminal: float = 0.01) -> NoiseSchedule:
    if prediction == "flow":
        return NoiseSchedule.flow(shift=3.0, timesteps=LEVELS)
    return NoiseSchedule(torch.linspace(0.999, terminal, LEVELS), prediction)  # type: ignore[arg-type]


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0 = torch.randn(n, 4, 8, 8, generator=seeds.at(0, "x0"))
    noise = torch.randn(n, 4, 8, 8, generator=seeds.at(0, "noise"))
    return x0, noise, torch.arange(n) * LEVELS // n


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
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


def test_a_flow_is_the_straight_line_from_the_picture_to_noise() -> None:
    s = NoiseSchedule.flow(timesteps=1000)
    x0, noise, _ = rows(4)
    t = torch.tensor([0, 250, 999, 1000])
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        s.noised(x0, noise, t), (1 - sigma) * x0 + sigma * noise, atol=2e-6, rtol=0
    )
    assert torch.equal(s.target(x0, noise, t), noise - x0)
    assert torch.equal(s.noised(x0, noise, t)[3], noise[3])
    assert s.snr(t)[0] == torch.inf
    assert s.snr(t)[3] == 0
    torch.testing.assert_close(s.snr(t)[1], torch.tensor(9.0))
    weights = s.min_snr_weight(t, gamma=5.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 5 / 16, 1e-6, 0.0]))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_noise_alone_has_the_power_of_what_it_stands_for(prediction: str) -> None:
    s = schedule(prediction)
    x0, noise, _ = rows(200)
    for level in (5, 25, 45):
        t = torch.full((200,), level)
        power = s.noised(x0, noise, t).square().mean()
        torch.testing.assert_close(s.unseen(noise, t).square().mean(), power, atol=0.03, rtol=0)


def test_a_flows_training_levels_are_logit_normal_and_shifted() -> None:
    """The median of a logit-normal is 1/2; shifted by 3 it is 3/4, and quartiles go along."""
    for shift, expected in ((1.0, (0.338, 0.5, 0.662)), (3.0, (0.605, 0.75, 0.855))):
        s = NoiseSchedule.flow(shift=shift)
        t = s.draw(40_000, seeds.at(0, "draw"))
        assert 1 <= int(t.min()) <= int(t.max()) <= 1000
        found = torch.quantile(t / 1000, torch.tensor([0.25, 0.5, 0.75]))
        torch.testing.assert_close(found, torch.tensor(expected), atol=0.01, rtol=0)


def test_other_training_levels_are_uniform() -> None:
    t = schedule("epsilon").draw(40_000, seeds.at(0, "draw"))
    shares = torch.bincount(t, minlength=LEVELS) / 40_000
    torch.testing.assert_close(shares, torch.full((LEVELS,), 1 / LEVELS), atol=0.004, rtol=0)
