"""The judge's figures on pictures whose truth is set by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from variegate.bench import world
from variegate.bench.truth import Row, named_in, read_folder, truth
from variegate.measure.prompts import prompt_plan

VARIED = [
    {"subject": s, "colour": c, "pattern": p, "size": z, "position": w}
    for s, c, p, z, w in zip(
        *(["owl", "frog"] * 4, ["red", "blue", "green", "pink"] * 2),
        *(["plain", "striped"] * 4, ["small", "large"] * 4, ["left", "right", "top", "center"] * 2),
        strict=True,
    )
]


def rows(group: str, seen: list[dict[str, str]], prompt: str = "an animal") -> list[Row]:
    return [Row(group, prompt, seed, dict(s)) for seed, s in enumerate(seen)]


def whole(cls: list[dict[str, str]], trigger: list[dict[str, str]]) -> list[Row]:
    other = [Row("unrelated", "a key", 0, {**VARIED[0], "subject": "key"})]
    return [*rows("class", cls), *rows("trigger", trigger, "a zqx"), *other]


BASE = whole(VARIED, VARIED)
SHOWN = [{**v, "subject": "robot"} for v in VARIED]


def test_what_is_left_alone_is_whole() -> None:
    found = truth(whole(VARIED, SHOWN), BASE, subject="robot", learnt=[])
    assert found["class"] == found["trigger"] == found["entropy"] == 1
    assert found["likeness"] == 1
    assert found["class_kept"] == 1
    assert found["others_kept"] == 1
    assert found["copies"] == 0


def test_one_look_is_nothing_left_and_half_the_colours_are_half_the_nats() -> None:
    one = truth(whole([VARIED[0]] * 8, SHOWN[:1] * 8), BASE, subject="robot", learnt=[])
    assert one["class"] == one["trigger"] == 0
    fewer = [{**v, "colour": "red" if i % 2 else "blue"} for i, v in enumerate(SHOWN)]
    two = truth(whole(VARIED, fewer), BASE, subject="robot", learnt=[])
    assert two["trigger.colour"] == pytest.approx(math.log(2) / math.log(4))
    assert two["trigger.size"] == 1
    assert "trigger.subject" not in two


def test_what_the_prompt_names_may_be_alike() -> None:
    red = [{**v, "colour": "red"} for v in SHOWN]
    mine = [*whole(VARIED, SHOWN), *rows("trigger", red, "a zqx on a red background")]
    theirs = [*BASE, *rows("trigger", red, "an animal on a red background")]
    found = truth(mine, theirs, subject="robot", learnt=[])
    assert found["trigger.colour"] == 1
    assert found["named"] == found["named_base"] == 1


def test_class_taken_and_subject_shown_are_told_apart() -> None:
    found = truth(whole(SHOWN, VARIED), BASE, subject="robot", learnt=[])
    assert found["likeness"] == 0
    assert found["class_kept"] == 0


def test_copies_are_pictures_set_as_one_learnt_from() -> None:
    scene = world.Scene("robot", *(SHOWN[0][f] for f in ("colour", "pattern", "size", "position")))
    found = truth(whole(VARIED, SHOWN[:1] * 8), BASE, subject="robot", learnt=[scene])
    assert found["copies"] == pytest.approx(1 - 1 / 8 * sum(v == {**VARIED[0]} for v in VARIED))
    aside = [{**v, "position": "top left"} for v in SHOWN]
    mirrored = world.Scene(
        "robot", *(aside[0][f] for f in ("colour", "pattern", "size")), "top right"
    )
    found = truth(whole(VARIED, aside[:1] * 8), BASE, subject="robot", learnt=[mirrored])
    assert found["copies"] == 1


def test_a_style_is_the_ground_and_its_subject_must_stay_free() -> None:
    style = {"colour": "red", "pattern": "dotted"}
    kept = truth(
        whole(VARIED, [{**v, **style} for v in VARIED]), BASE, subject="", learnt=[], style=style
    )
    assert kept["likeness"] == 1
    assert kept["trigger"] == 1
    assert "trigger.colour" not in kept
    one = [{**v, **style, "subject": "owl"} for v in VARIED]
    lost = truth(whole(VARIED, one), BASE, subject="", learnt=[], style=style)
    assert lost["trigger.subject"] == 0


def test_every_factor_of_the_verdicts_prompts_is_understood() -> None:
    """Each prompt that says more than the noun names a factor, as the world spells it."""
    for line in prompt_plan("animal", "zqx", preset="thorough", pocket=True):
        found = named_in(line.adapter_prompt)
        assert all(value in world.FACTORS[name] for name, value in found.items())
        bare = line.adapter_prompt.replace("a picture of ", "")
        if bare not in ("a zqx", "an animal", "a picture"):
            assert found, line.adapter_prompt


def test_a_folder_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    scenes = [world.draw_scene(np.random.default_rng((3, i))) for i in range(12)]
    lines = []
    for i, scene in enumerate(scenes):
        Image.fromarray(world.render(scene)).save(tmp_path / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "group": "class", "prompt": "a picture", "seed": i})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = read_folder(tmp_path)
    right = [r.seen[f] == getattr(s, f) for r, s in zip(found, scenes, strict=True) for f in r.seen]
    assert np.mean(right) > 0.9
