"""Ailments: each does its one thing to pictures or recipe, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from variegate.bench import ailments, world
from variegate.bench.ailments import (
    AILMENTS,
    HEALTHY,
    KNOWN,
    NEW,
    SURROUNDINGS,
    TRIGGER,
    Ailment,
    Pictures,
    draw_pictures,
    fixed_factors,
    scenes_of,
    second_subject,
)
from variegate.bench.contenders import DEFAULT, FIELD, PLAIN, contenders
from variegate.catalogue import KINDS
from variegate.recipe import Recipe, Strategies

EVERY = [*AILMENTS.values(), HEALTHY]


def test_a_third_is_held_out_and_so_are_its_subjects() -> None:
    held_out = [a for a in AILMENTS.values() if a.held_out]
    assert len(held_out) * 3 == len(AILMENTS)
    assert not set(KNOWN) & set(NEW)
    assert set(KNOWN) | set(NEW) <= set(world.HELD_OUT)
    assert {a.subject(seed) for a in held_out for seed in range(6)} == set(NEW)
    assert not any(a.core for a in held_out)
    assert sum(a.core for a in AILMENTS.values()) == 5


@pytest.mark.parametrize("ailment", EVERY, ids=lambda a: a.name)
def test_pictures_are_what_the_ailment_says(ailment: Ailment) -> None:
    pictures, subject = ailment.pictures, ailment.subject(1)
    scenes = scenes_of(pictures, subject, 1)
    assert len(scenes) == pictures.count
    fixed = fixed_factors(pictures, 1)
    for scene in scenes:
        assert all(getattr(scene, name) == value for name, value in fixed.items())
    assert Counter(scenes).most_common(1)[0][1] >= 1 + pictures.copies
    assert len(set(scenes)) >= pictures.count - pictures.copies - 1  # two may be alike by chance
    for name in set(SURROUNDINGS) - set(fixed):
        if pictures.count >= 8 and not pictures.copies:
            assert len({getattr(s, name) for s in scenes}) > 1
    shown = {s.subject for s in scenes}
    if pictures.concept == "subject":
        assert shown == {subject}
    elif pictures.concept == "two subjects":
        assert shown == {subject, second_subject(subject)}
    else:
        assert len(shown) > 5
        assert subject not in shown


def test_captions_name_what_they_may(tmp_path: Path) -> None:
    def words(pictures: Pictures) -> list[str]:
        folder = draw_pictures(pictures, "robot", 0)
        return [f.read_text().strip() for f in sorted(folder.glob("*.txt"))]

    assert words(Pictures(count=3, captions="word")) == [f"a {TRIGGER}"] * 3
    assert len(set(words(Pictures(count=5, captions="sentence")))) == 1
    varied = words(Pictures(count=12))
    assert len(set(varied)) > 6
    assert all(TRIGGER in text for text in varied)
    both = words(Pictures(count=6, concept="two subjects"))
    assert [TRIGGER in text for text in both] == [True, False] * 3


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("long", {"optimizer.steps": 960}),
        ("hot", {"optimizer.lr": 2.4e-3}),
        ("wide", {"adapter.rank": 128, "adapter.alpha": 128.0}),
        ("text encoder", {"adapter.text_encoder": True, "optimizer.text_encoder_lr": 2.4e-3}),
        ("bare", {"optimizer.weight_decay": 0.0}),
        ("biased noise", {"strategies.noise_offset.amount": 0.5}),
        ("one-sided", {}),
    ],
)
def test_what_is_too_much_is_measured_by_the_contender(
    name: str, changed: dict[str, object]
) -> None:
    plain = PLAIN.recipe()
    ill = AILMENTS[name].recipe(plain, 0)
    for key, value in changed.items():
        found: object = ill
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    same = {"images", "trigger", "class_noun", "seed"}
    if not changed:
        assert ill.model_dump(exclude=same) == plain.model_dump(exclude=same)


def test_every_contender_is_a_recipe_that_every_ailment_can_worsen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ailments, "draw_pictures", lambda *_: tmp_path)
    for contender in contenders().values():
        recipe = contender.recipe()
        for ailment in EVERY:
            assert isinstance(ailment.recipe(recipe, 0), Recipe), (contender.name, ailment.name)


def test_every_strategy_and_kind_is_compared() -> None:
    names = set(contenders())
    assert set(Strategies.model_fields) - {"flip", "buckets"} <= names
    assert set(KINDS) - {"lora"} <= names
    assert {DEFAULT.name, PLAIN.name, *(c.name for c in FIELD)} <= names
    assert all(c.source for c in FIELD)
