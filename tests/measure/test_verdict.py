from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from measure.planted import told
from variegate.errors import RequestError
from variegate.measure.rules import RULES, Rules
from variegate.measure.verdict import judge, prompts_to_settle
from variegate.measure.wording import ADVICE
from variegate.measurement import Measurement, Missing, Verdict
from variegate.recipe import Recipe, Strategies


def headline(
    name: str, value: float, low: float, high: float, *, p: float = 1.0, n: int = 32
) -> list[Measurement | Missing]:
    return [Measurement(name, value, low, high, n), Measurement(f"{name}_p", p, n=n)]


WELL = [
    *headline("variety_vs_base", 1.0, 0.9, 1.1),
    *headline("trigger_variety_vs_base", 0.9, 0.8, 1.0),
    *headline("copy_rate", 0.0, 0.0, 0.02, n=128),
    *headline("adherence_vs_base", 0.0, -0.1, 0.1),
    *headline("class_taken", 0.0, 0.0, 0.01),
    *headline("likeness", 0.8, 0.7, 0.9, p=0.0001),
]


def ill(*changed: Measurement | Missing) -> Verdict:
    names = {m.name for m in changed}
    return judge([m for m in WELL if m.name not in names] + list(changed))


def test_all_well_is_healthy_and_says_what_was_measured() -> None:
    verdict = judge(WELL)
    assert verdict.labels == ("healthy",)
    assert verdict.reasons == ()
    assert "none of 128 samples is a copy" in told(verdict)


@pytest.mark.parametrize(
    ("name", "edges", "label", "severity"),
    [
        ("variety_vs_base", (0.8, 0.75, 0.85), "narrowed", "warn"),
        ("variety_vs_base", (0.5, 0.4, 0.65), "narrowed", "fail"),
        ("repeat_rate", (0.06, 0.03, 0.09), "narrowed", "warn"),
        ("repeat_rate", (0.3, 0.2, 0.4), "narrowed", "fail"),
        ("trigger_variety_vs_base", (0.6, 0.55, 0.68), "trigger-narrowed", "warn"),
        ("trigger_variety_vs_base", (0.3, 0.2, 0.4), "trigger-narrowed", "fail"),
        ("copy_rate", (0.06, 0.02, 0.1), "copying", "warn"),
        ("copy_rate", (0.3, 0.2, 0.4), "copying", "fail"),
        ("adherence_vs_base", (-0.15, -0.2, -0.1), "prompt-ignored", "warn"),
        ("adherence_vs_base", (-0.9, -1.0, -0.8), "prompt-ignored", "fail"),
        ("class_taken", (0.2, 0.12, 0.3), "class-forgotten", "warn"),
        ("class_taken", (0.8, 0.7, 0.9), "class-forgotten", "fail"),
    ],
)
def test_each_gate_has_its_label_and_two_severities(
    name: str, edges: tuple[float, float, float], label: str, severity: str
) -> None:
    verdict = ill(*headline(name, *edges, p=0.0001, n=100))
    assert verdict.labels == (label,)
    assert [(r.label, r.severity, r.measurement) for r in verdict.reasons] == [
        (label, severity, name)
    ]
    assert verdict.advice


def test_a_class_of_which_only_the_drift_was_measured_is_told_as_untested() -> None:
    drift = headline("class_retention", 0.4, 0.3, 0.5, p=0.0001)
    older = [m for m in WELL if not m.name.startswith("class_taken")]
    assert "measure it again" in told(judge([*older, *drift]))
    blind = Missing("class_taken", "the encoder finds them alike")
    assert "was not tested: the encoder finds them alike." in told(judge([*older, *drift, blind]))
    assert "was not tested" not in told(judge([*WELL, *drift]))


def test_two_signs_of_one_label_are_both_told() -> None:
    repeated = headline("repeat_rate", 0.3, 0.2, 0.4, p=0.0001)
    verdict = ill(*headline("variety_vs_base", 0.8, 0.75, 0.85, p=0.0001), *repeated)
    assert verdict.labels == ("narrowed",)
    assert [r.measurement for r in verdict.reasons] == ["variety_vs_base", "repeat_rate"]
    assert "30 % of its pictures without the trigger word nearly repeat one" in told(verdict)


def test_a_large_drop_by_chance_alone_is_not_narrowed() -> None:
    assert ill(*headline("variety_vs_base", 0.5, 0.2, 1.4, p=0.2)).labels == ("inconclusive",)


def test_a_sure_but_small_drop_is_not_narrowed() -> None:
    assert ill(*headline("variety_vs_base", 0.95, 0.92, 0.98, p=0.0001)).labels == ("healthy",)


def test_an_interval_across_the_margin_is_inconclusive_and_says_how_many_prompts_would_do() -> None:
    verdict = ill(*headline("variety_vs_base", 0.8, 0.6, 1.05, p=0.02, n=16))
    assert verdict.labels == ("inconclusive",)
    assert "prompts instead of 16 would settle it" in told(verdict)
    assert verdict.advice[0].setting == "sampling.preset=thorough"


def test_the_nearer_the_limit_the_more_prompts_are_needed() -> None:
    near = Measurement("variety_vs_base", 0.85, 0.7, 1.05, 16)
    far = replace(near, value=0.7, low=0.58, high=0.86)
    needed = [prompts_to_settle(m, warn=0.9, clear=0.7) for m in (far, near)]
    assert needed[0] is not None
    assert needed[1] is not None
    assert 16 < needed[0] < needed[1]
    at_limit = replace(near, value=0.9, low=0.7, high=1.1)
    assert prompts_to_settle(replace(at_limit, value=0.8999), warn=0.9, clear=0.7) is None


def recoloured(value: float, low: float, *, palette: float = 0.4) -> list[Measurement | Missing]:
    return [
        Measurement("variety_vs_base@recoloured", value, low, value + 0.1, 32),
        Measurement("variety_vs_base@palette", palette, palette - 0.1, palette + 0.1, 32),
    ]


LOST = headline("variety_vs_base", 0.5, 0.4, 0.65, p=0.0001)


def test_colours_alone_are_no_collapse_and_are_told() -> None:
    verdict = ill(*LOST, *recoloured(0.97, 0.9))
    assert verdict.labels == ("healthy",)
    assert "Only the colours became alike without the trigger word" in told(verdict)
    assert "97 %" in verdict.sentence


def test_pictures_that_are_alike_beside_the_base_in_their_colours_are_narrowed() -> None:
    assert ill(*LOST, *recoloured(0.6, 0.5)).labels == ("narrowed",)


def test_where_more_than_colours_may_be_lost_the_verdict_stays_open() -> None:
    verdict = ill(*LOST, *recoloured(0.85, 0.6))
    assert verdict.labels == ("inconclusive",)
    assert "too little was drawn to tell whether it is narrowed beyond that" in told(verdict)
    lost = headline("class_taken", 0.5, 0.45, 0.55, p=0.0001)
    beside = Measurement("class_taken@recoloured", 0.01, 0.0, 0.04, 32)
    assert ill(*lost, beside, *recoloured(0.85, 0.6)).labels == ("inconclusive",)


def test_the_doubt_about_colours_is_no_excuse_beside_another_label() -> None:
    placed = headline("trigger_variety_vs_base", 0.3, 0.25, 0.35, p=0.0001)
    verdict = ill(*LOST, *recoloured(0.85, 0.6), *placed)
    assert verdict.labels == ("narrowed", "trigger-narrowed")
    assert "too little was drawn" not in told(verdict)
    styled = ill(*LOST, *recoloured(0.97, 0.9), *placed)
    assert styled.labels == ("trigger-narrowed",)
    assert "Only the colours became alike without the trigger word" in told(styled)
    forgot = headline("class_taken", 0.5, 0.45, 0.55, p=0.0001)
    beside = Measurement("class_taken@recoloured", 0.15, 0.05, 0.3, 32)
    doubted = ill(*LOST, *recoloured(0.85, 0.6), *placed, *forgot, beside)
    assert doubted.labels == ("narrowed", "trigger-narrowed")
    assert "whether it is class-forgotten beyond that" in told(doubted)


@pytest.mark.parametrize(
    ("name", "ill_value", "well_value", "told_as"),
    [
        ("adherence_vs_base", -0.4, -0.03, "what colours the prompts name is all that is lost"),
        ("class_taken", 0.5, 0.03, "they took on its colours alone"),
        ("repeat_rate", 0.4, 0.02, "their colours alone are the same"),
    ],
)
def test_what_only_colours_lost_is_neither_ignored_nor_forgotten(
    name: str, ill_value: float, well_value: float, told_as: str
) -> None:
    lost = headline(name, ill_value, ill_value - 0.05, ill_value + 0.05, p=0.0001)

    def beside(value: float, palette: float, varied: float = 0.97) -> list[Measurement | Missing]:
        return [
            Measurement(f"{name}@recoloured", value, value - 0.05, value + 0.05, 32),
            *recoloured(varied, varied - 0.1, palette=palette),
        ]

    alone = ill(*lost, *beside(well_value, 0.4))
    assert alone.labels == ("healthy",)
    assert told_as in told(alone)
    label = ill(*lost).labels
    assert label != ("healthy",)
    assert ill(*lost, *beside(ill_value, 0.4)).labels == label
    assert ill(*lost, *beside(well_value, 0.97)).labels == label
    assert ill(*lost, *beside(well_value, 0.4, varied=0.5)).labels == label


def test_what_chance_may_do_without_colour_is_no_loss() -> None:
    lost = headline("adherence_vs_base", -0.4, -0.45, -0.35, p=0.0001)
    palettes = recoloured(0.97, 0.87)
    for value, low, high, label in (
        (-0.08, -0.25, 0.02, "healthy"),
        (-0.12, -0.25, -0.02, "inconclusive"),
        (-0.18, -0.25, -0.11, "prompt-ignored"),
    ):
        beside = Measurement("adherence_vs_base@recoloured", value, low, high, 32)
        assert ill(*lost, beside, *palettes).labels == (label,)


def test_where_the_base_was_not_seen_in_their_colours_nothing_is_excused() -> None:
    lost = headline("adherence_vs_base", -0.4, -0.45, -0.35, p=0.0001)
    assert ill(*lost, *recoloured(0.97, 0.87)).labels == ("prompt-ignored",)


def test_where_colours_kept_their_variety_they_excuse_nothing() -> None:
    assert ill(*LOST, *recoloured(0.97, 0.9, palette=0.95)).labels == ("narrowed",)


def test_colours_that_lost_less_than_the_whole_explain_nothing() -> None:
    assert ill(*LOST, *recoloured(0.85, 0.6, palette=0.55)).labels == ("narrowed",)
    assert ill(*LOST, *recoloured(0.85, 0.6, palette=0.45)).labels == ("inconclusive",)


def test_what_is_far_gone_beside_the_base_in_its_colours_is_narrowed_though_little_was_drawn() -> (
    None
):
    wide = [replace(m, high=0.95) for m in recoloured(0.65, 0.5) if isinstance(m, Measurement)]
    assert ill(*LOST, *wide).labels == ("narrowed",)
    wider = [replace(m, high=1.05) for m in recoloured(0.65, 0.5) if isinstance(m, Measurement)]
    assert ill(*LOST, *wider).labels == ("inconclusive",)


def test_a_loss_of_colours_that_raised_no_alarm_leaves_no_doubt() -> None:
    near = headline("variety_vs_base", 0.85, 0.7, 1.0, p=0.03)
    assert ill(*near).labels == ("inconclusive",)
    assert ill(*near, *recoloured(0.97, 0.85)).labels == ("healthy",)


@pytest.mark.parametrize(
    ("first", "other", "labels"),
    [
        (LOST, (0.97, 0.9, 1.05), ("inconclusive",)),
        (LOST, (0.7, 0.6, 0.95), ("narrowed",)),
        ([], (0.5, 0.4, 0.6), ("inconclusive",)),
        ([], (0.85, 0.7, 1.0), ("healthy",)),
    ],
)
def test_two_encoders_must_agree(
    first: list[Measurement | Missing], other: tuple[float, float, float], labels: tuple[str, ...]
) -> None:
    second = Measurement("variety_vs_base@clip", *other, n=32)
    names = {m.name for m in first}
    found = [m for m in WELL if m.name not in names] + [*first, second]
    verdict = judge(found, encoders=["pocket", "clip"])
    assert verdict.labels == labels
    assert ("encoders disagree" in told(verdict)) == (labels == ("inconclusive",))


def test_two_encoders_that_are_low_but_unsure_do_not_disagree() -> None:
    unsure = headline("variety_vs_base", 0.8, 0.6, 1.05, p=0.02)
    second = Measurement("variety_vs_base@clip", 0.5, 0.4, 0.6, n=32)
    found = [m for m in WELL if not m.name.startswith("variety")] + [*unsure, second]
    verdict = judge(found, encoders=["pocket", "clip"])
    assert verdict.labels == ("inconclusive",)
    assert "Too little was drawn" in verdict.sentence


def test_a_disagreement_beside_an_alarm_is_a_note() -> None:
    copies = headline("copy_rate", 0.3, 0.2, 0.4, p=0.0001, n=100)
    second = Measurement("variety_vs_base@clip", 0.5, 0.4, 0.6, n=32)
    found = [m for m in WELL if not m.name.startswith("copy_rate")] + [*copies, second]
    verdict = judge(found, encoders=["pocket", "clip"])
    assert verdict.labels == ("copying",)
    assert any("encoders disagree" in note for note in verdict.notes)


def test_few_prompts_speak_for_themselves_only() -> None:
    verdict = ill(*headline("variety_vs_base", 0.3, 0.2, 0.4, p=0.0001, n=3))
    assert "for these 3 prompts only" in told(verdict)


def test_unmeasured_variety_is_inconclusive_with_the_reason() -> None:
    verdict = judge([Missing("variety_vs_base", "draw 4 seeds or more")])
    assert verdict.labels == ("inconclusive",)
    assert "draw 4 seeds or more" in told(verdict)


def test_untested_copying_is_told() -> None:
    verdict = ill(
        Missing("copy_rate", "no training pictures were given"), Missing("copy_rate_p", "-")
    )
    assert "Copying was not tested: no training pictures were given." in told(verdict)


def test_little_likeness_is_undertrained_beside_other_labels() -> None:
    low = headline("likeness", 0.05, -0.1, 0.2)
    assert ill(*low).labels == ("undertrained",)
    both = ill(*low, *headline("variety_vs_base", 0.3, 0.2, 0.4, p=0.0001))
    assert set(both.labels) == {"narrowed", "undertrained"}


def test_a_weak_encoder_is_told_with_the_one_to_name() -> None:
    verdict = judge(WELL, weak_encoder=True)
    assert verdict.weak_encoder
    assert "--encoder facebook/dinov2-base" in told(verdict)


def test_advice_that_answers_two_labels_comes_first() -> None:
    verdict = ill(
        *headline("copy_rate", 0.5, 0.4, 0.6, p=0.0, n=100),
        *headline("trigger_variety_vs_base", 0.3, 0.2, 0.4, p=0.0001),
    )
    assert [a.strategy for a in verdict.advice][:2] == ["new_background", "layout_prior"]
    assert len({a.strategy for a in verdict.advice}) == len(verdict.advice)


def test_all_advice_can_be_set() -> None:
    for options in ADVICE.values():
        for advice in options:
            recipe = Recipe.build(settings=(advice.setting,))
            if advice.strategy in Strategies.model_fields:
                assert getattr(recipe.strategies, advice.strategy) is not None
            else:
                assert advice.strategy in Recipe.model_fields


def test_a_verdict_comes_again_from_its_own_json() -> None:
    first = ill(*headline("variety_vs_base", 0.5, 0.4, 0.65, p=0.0001))
    stored = Verdict.from_json(json.loads(json.dumps(first.to_json())))
    assert stored == first
    assert judge(stored.measurements) == first


def test_other_rules_give_another_verdict_from_the_same_numbers() -> None:
    gates = [
        g.model_copy(update={"warn": 0.99}) if g.label == "narrowed" else g for g in RULES.gates
    ]
    strict = RULES.model_copy(update={"version": "strict", "gates": tuple(gates)})
    measured = [m for m in WELL if not m.name.startswith("variety")]
    measured += headline("variety_vs_base", 0.95, 0.92, 0.98, p=0.0001)
    assert judge(measured).labels == ("healthy",)
    assert judge(measured, strict).labels == ("narrowed",)
    assert judge(measured, strict).rules == "strict"


def test_rules_come_from_a_file_and_their_faults_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "strict.toml"
    file.write_text(
        'version = "mine"\n[[gates]]\nlabel = "narrowed"\nmeasurement = "variety_vs_base"\n'
        'edge = "high"\nside = "below"\nwarn = 0.99\nfail = 0.7\n'
    )
    rules = Rules.read(file)
    measured = headline("variety_vs_base", 0.95, 0.92, 0.98, p=0.0001)
    assert judge(measured, rules).labels == ("narrowed",)
    file.write_text('verzion = "mine"\n[[gates]]\nlabel = "narrow"\n')
    with pytest.raises(RequestError) as fault:
        Rules.read(file)
    for part in ("verzion", "gates.0.label", "gates.0.warn"):
        assert part in str(fault.value)
    file.write_text("version = ")
    with pytest.raises(RequestError, match="no TOML"):
        Rules.read(file)
    with pytest.raises(RequestError, match="cannot be read"):
        Rules.read(tmp_path / "none.toml")


def test_what_became_alike_is_named_most_alike_first() -> None:
    verdict = ill(
        *headline("variety_vs_base", 0.5, 0.4, 0.65, p=0.0001),
        Measurement("variety_vs_base@palette", 0.4, 0.3, 0.5, 32),
        Measurement("variety_vs_base@background", 0.2, 0.1, 0.3, 32),
    )
    assert "backgrounds (20 % of the base's variety) and colours (40 %" in told(verdict)
    whole = ill(*headline("variety_vs_base", 0.5, 0.4, 0.65, p=0.0001))
    assert "What became alike" not in told(whole)


def test_a_subject_that_always_stands_alike_is_told_and_no_label_rests_on_it() -> None:
    place = Measurement("trigger_variety_vs_base@place", 0.2, 0.1, 0.3, 16)
    size = Measurement("trigger_variety_vs_base@size", 0.4, 0.3, 0.69, 16)
    verdict = ill(place, size)
    assert verdict.labels == ("healthy",)
    (note,) = [n for n in verdict.notes if "comes in much the same" in n]
    assert "the same place and size: it keeps 20 % of the base's variety of places" in note
    assert "(surely between 10 % and 30 %) and 40 %" in note
    unsure = replace(size, high=0.7)
    assert "the same place: it keeps" in "".join(ill(place, unsure).notes)
    assert not ill(unsure).notes
    narrowed = headline("trigger_variety_vs_base", 0.3, 0.2, 0.4, p=0.0001)
    verdict = ill(*narrowed, place)
    assert not any("comes in much the same" in note for note in verdict.notes)
    assert "What became alike: places (20 % of the base's variety)" in told(verdict)


def test_the_plainest_case_is_told() -> None:
    example = "on 'a toy' its 4 pictures amount to 1.1 different ones, the base's to 3.6"
    worst = Measurement("variety_vs_base", 0.5, 0.4, 0.65, 32, example=example)
    verdict = ill(worst, Measurement("variety_vs_base_p", 0.0001, n=32))
    assert f"At its plainest, {example}." in told(verdict)


def test_the_sentence_is_one_and_names_every_label() -> None:
    verdict = ill(
        *headline("variety_vs_base", 0.8, 0.75, 0.85, p=0.0001),
        *headline("copy_rate", 0.3, 0.2, 0.4, p=0.0001, n=128),
        *headline("class_taken", 0.2, 0.12, 0.3, p=0.0001),
    )
    assert verdict.sentence.startswith("It copies: 38 of 128 samples")
    assert "; it also draws alike pictures without the trigger word and has forgotten" in (
        verdict.sentence
    )
    assert verdict.sentence.count(". ") == 0
    assert verdict.sentence.endswith(".")


def test_an_encoder_out_of_its_depth_finds_nothing_healthy() -> None:
    verdict = judge(WELL, weak_encoder=True)
    assert verdict.labels == ("inconclusive",)
    assert "does not know pictures like these" in verdict.sentence
