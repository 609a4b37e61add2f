"""What a plan is said to show, it shows."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.measure import RULES, foresee, prompt_plan, seen_loss
from variegate.measure.power import SCATTER
from variegate.measure.uncertainty import bca_interval, sign_flip_p


def test_more_prompts_and_more_seeds_show_smaller_losses() -> None:
    for name in SCATTER:
        few, many = (seen_loss(name, prompts=p, seeds=4) for p in (16, 64))
        deep = seen_loss(name, prompts=16, seeds=8)
        assert few is not None
        assert many is not None
        assert deep is not None
        assert few < many
        assert few < deep


def test_a_few_prompts_speak_of_no_others() -> None:
    assert seen_loss("variety_vs_base", prompts=6, seeds=4) is None
    plan = prompt_plan("", "", preset="quick", pocket=True)[:6]
    assert foresee(plan) == "24 pictures of each model. Too few prompts to speak of any but these."


def test_the_sentence_counts_the_pictures_and_names_both_losses() -> None:
    told = foresee(prompt_plan("toy", "zqx", preset="quick", pocket=True))
    assert told.startswith("112 pictures of each model.")
    assert "without the trigger word and to" in told


@pytest.mark.parametrize("prompts", [16, 32])
def test_the_loss_that_is_promised_is_seen_nine_times_in_ten(prompts: int) -> None:
    gate = next(g for g in RULES.gates if g.measurement == "variety_vs_base")
    loss = seen_loss("variety_vs_base", prompts=prompts, seeds=4)
    assert loss is not None
    deviation = SCATTER["variety_vs_base"][4]
    rng = np.random.default_rng(prompts)
    alarms = 0
    for draw in range(200):
        logs = list(rng.normal(np.log(loss), deviation, prompts))
        high = np.exp(bca_interval(logs, address=str(draw))[1])
        alarms += high < gate.warn and sign_flip_p(logs, address=str(draw)) < RULES.alpha
    assert 0.8 <= alarms / 200 <= 0.97
