"""Two adapters against each other: what is gained, and what of the subject is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from variegate import seeds
from variegate.measure import Evidence, Line, View
from variegate.measure.versus import (
    gain,
    kept,
    likeness_versus,
    paired_recognised,
    paired_subject,
    paired_variety,
    recognised,
    subject_kept,
    subject_spread,
    versus,
)
from variegate.measurement import Measurement, Missing

PROMPTS, EACH = 8, 4


def rows(at: str, spread: float, *, middle: Float[Tensor, " d"]) -> Float[Tensor, "n d"]:
    noise = torch.randn(PROMPTS * EACH, 16, generator=seeds.at(0, at))
    return functional.normalize(middle + spread * noise, dim=1)


def evidence(spread: float, *, share: float, at: str = "ours") -> Evidence:
    """An adapter whose pictures spread so far, `share` of the way from the base to the subject."""
    subject, other = torch.eye(16)[0], torch.eye(16)[1]
    ours = rows(at, spread, middle=share * subject + (1 - share) * other)
    base = rows("base", 0.2, middle=other)
    view = View("made up", ours, base, rows("train", 0.05, middle=subject)[:6])
    lines = []
    for group in ("class", "trigger"):
        for i in range(PROMPTS):
            own = tuple(range(EACH * i, EACH * (i + 1)))
            lines.append(Line(group, f"{group} {i}", f"base {i}", own, own, EACH))
    return Evidence(tuple(lines), (view,), identity=view, layout=view)


def number(found: Measurement | Missing) -> Measurement:
    assert isinstance(found, Measurement), found
    return found


def test_an_adapter_gains_nothing_on_itself_and_keeps_all_of_its_subject() -> None:
    own = evidence(0.05, share=1.0)
    assert number(gain(own, own)).value == 0
    assert number(likeness_versus(own, own)).value == 0
    assert number(subject_kept(own, own)).value == pytest.approx(1.0, abs=1e-5)


def test_the_gain_is_the_mean_of_both_headlines_and_holds_its_value() -> None:
    narrow, wide = evidence(0.03, share=1.0), evidence(0.15, share=1.0)
    whole = number(gain(narrow, wide))
    assert whole.value == pytest.approx(sum(number(m).value for m in versus(narrow, wide)) / 2)
    assert whole.n == 2 * PROMPTS
    assert whole.low is not None
    assert whole.high is not None
    assert 0 < whole.low < whole.value < whole.high
    assert number(gain(wide, narrow)).value == pytest.approx(-whole.value)


def test_the_bases_pictures_keep_nothing_of_the_subject() -> None:
    own = evidence(0.05, share=1.0)
    view = replace(own.identity, adapter=own.identity.base)
    base = replace(own, views=(view,), identity=view, layout=view)
    assert number(subject_kept(own, base)).value == pytest.approx(0.0, abs=1e-5)


def test_less_of_the_subject_is_less_kept_and_less_like() -> None:
    own = evidence(0.05, share=1.0)
    kept = [number(subject_kept(own, evidence(0.05, share=s))).value for s in (0.9, 0.6, 0.3)]
    assert kept == sorted(kept, reverse=True)
    fallen = number(likeness_versus(own, evidence(0.05, share=0.5)))
    assert fallen.high is not None
    assert fallen.high < 0


def test_the_subject_is_recognised_in_as_many_pictures_as_are_as_like() -> None:
    own = evidence(0.05, share=1.0)
    assert number(recognised(own, own)).value == pytest.approx(1.0, abs=1e-6)
    assert number(recognised(own, evidence(0.05, share=1.0, at="others"))).value == pytest.approx(
        1.0, abs=0.2
    )
    # Every second picture is the base's: half as often.
    mixed = own.identity.adapter.clone()
    mixed[::2] = own.identity.base[::2]
    view = replace(own.identity, adapter=mixed)
    half = replace(own, views=(view,), identity=view, layout=view)
    found = number(recognised(own, half))
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    for line in half.of_group("trigger"):
        one = replace(half, lines=(line,))
        assert number(recognised(own, one)).low is None
        assert number(recognised(own, one)).value >= 0  # a share of the same pictures' times


def test_what_is_more_the_base_than_the_subject_is_not_recognised() -> None:
    own = evidence(0.03, share=1.0)
    assert number(recognised(own, evidence(0.03, share=0.3))).value < 0.2


def test_somebody_else_across_the_line_is_told_by_the_last_fifth_alone() -> None:
    own = evidence(0.03, share=1.0)
    turned = own.identity.adapter.clone()
    turned[:, 2] += turned[:, 0]  # another direction, as far from the base
    view = replace(own.identity, adapter=functional.normalize(turned, dim=1))
    other = replace(own, views=(view,), identity=view, layout=view)
    assert 0.7 < number(recognised(own, other)).value < 0.95


def test_where_every_picture_shows_the_subject_less_alike_ones_count_as_much() -> None:
    alike, varied = evidence(0.03, share=1.0), evidence(0.1, share=0.9)
    assert number(likeness_versus(alike, varied)).value < -0.05
    assert number(recognised(alike, varied)).value > 0.85


def test_the_line_between_base_and_subject_is_drawn_from_all_that_is_known_of_the_base() -> None:
    own, other = evidence(0.05, share=1.0), evidence(0.05, share=0.6)
    wide = functional.normalize(rows("more", 0.6, middle=torch.eye(16)[1]), dim=1)
    few, many = (number(recognised(own, other, base)).value for base in (None, wide))
    assert many < few - 0.2  # a base that draws the like anyway: less of it tells the subject


def test_a_subject_that_is_drawn_otherwise_is_kept_whole() -> None:
    own, again = (evidence(0.2, share=1.0, at=at) for at in ("ours", "others"))
    assert number(subject_kept(own, again)).value == pytest.approx(1.0, abs=0.05)


def test_a_subject_of_one_look_has_no_spread_and_a_varied_one_has_some() -> None:
    spreads = [subject_spread(evidence(s, share=1.0)) for s in (0.0, 0.05, 0.2)]
    assert spreads[0] == pytest.approx(0.0, abs=1e-5)
    assert None not in spreads
    assert spreads == sorted(spreads)  # type: ignore[type-var]
    assert subject_spread(replace(evidence(0.1, share=1.0), lines=())) is None


def test_without_trigger_prompts_nobody_can_tell_what_is_kept() -> None:
    own = evidence(0.05, share=1.0)
    classes = replace(own, lines=own.of_group("class"))
    assert isinstance(subject_kept(classes, classes), Missing)
    assert isinstance(likeness_versus(classes, classes), Missing)
    assert isinstance(recognised(classes, classes), Missing)
    untaught = replace(own, identity=replace(own.identity, train=None))
    assert isinstance(recognised(untaught, own), Missing)
    assert number(gain(classes, classes)).n == PROMPTS


def test_the_pairs_are_what_the_gains_are_made_of() -> None:
    narrow, wide = evidence(0.03, share=0.9), evidence(0.15, share=1.0)
    logs = paired_variety(narrow, wide)
    assert len(logs) == 2 * PROMPTS
    assert sum(logs) > 0
    assert paired_variety(wide, narrow) == pytest.approx([-x for x in logs])
    assert paired_variety(wide, wide) == pytest.approx([0.0] * 2 * PROMPTS)
    like = paired_recognised(narrow, wide)
    assert not isinstance(like, Missing)
    assert [len(own) for own in like] == [EACH] * PROMPTS
    mean = 1 + sum(map(sum, like)) / (PROMPTS * EACH)
    assert mean == pytest.approx(number(recognised(narrow, wide)).value, abs=1e-5)
    lost = paired_subject(narrow, wide)
    assert not isinstance(lost, Missing)
    mean = 1 + sum(map(sum, lost)) / (PROMPTS * EACH)
    assert mean == pytest.approx(number(subject_kept(narrow, wide)).value, abs=1e-5)


def test_of_one_prompt_nobody_knows_how_sure_it_is() -> None:
    own = evidence(0.05, share=1.0)
    one = replace(own, lines=(own.of_group("class")[0], own.of_group("trigger")[0]))
    assert number(kept(one)).low is None


def test_what_is_kept_is_the_mean_of_both_headlines_and_its_difference_the_gain() -> None:
    narrow, wide = evidence(0.03, share=1.0), evidence(0.15, share=1.0)
    own = number(kept(narrow))
    assert own.low is not None
    assert own.high is not None
    assert own.low <= own.value <= own.high
    gap = number(kept(wide)).value - own.value
    assert gap == pytest.approx(number(gain(narrow, wide)).value)
    bare = replace(narrow, lines=narrow.of_group("trigger"), layout=None)
    assert isinstance(kept(bare), Missing)
