from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from measure.planted import FactorEncoder, as_picture, draw, scene_of, told
from variegate.encoders.pixels import Layout
from variegate.errors import EncoderError, ImagesError
from variegate.images import ImageSet
from variegate.measure import View
from variegate.measure.copying import pixel_limits, tile_difference
from variegate.measure.gather import gather, match_lines


def pictures(*lines: tuple[str, int, str], origin: str = "set") -> ImageSet:
    blank = np.zeros((8, 8, 3), np.uint8)
    return ImageSet(
        tuple(
            as_picture(blank, f"{i}.png", prompt=prompt, seed=seed, group=group)
            for i, (prompt, seed, group) in enumerate(lines)
        ),
        origin,
    )


def test_trigger_prompts_meet_the_class_noun_whatever_their_order() -> None:
    ours = pictures(("a zqx", 0, "trigger"), ("a zqx at the top", 0, "trigger"))
    theirs = pictures(("an owl at the top", 0, "trigger"), ("an owl", 0, "trigger"))
    lines = match_lines(ours, theirs, trigger="zqx", class_noun="owl")
    assert [(s.prompt, s.base_prompt) for s in lines] == [
        ("a zqx", "an owl"),
        ("a zqx at the top", "an owl at the top"),
    ]


def test_trigger_prompts_without_a_class_noun_meet_line_by_line() -> None:
    ours = pictures(("a zqx", 0, "trigger"), ("a zqx at sea", 0, "trigger"))
    theirs = pictures(("a dog", 0, "trigger"), ("a dog at sea", 0, "trigger"))
    assert [s.base_prompt for s in match_lines(ours, theirs)] == ["a dog", "a dog at sea"]


def test_a_prompt_that_loads_the_adapter_meets_the_one_that_does_not() -> None:
    ours = pictures(("a cat <lora:mine:0.8>", 0, "class"), ("A dog, <lyco:x>", 0, "class"))
    theirs = pictures(("a dog", 0, "class"), ("a cat", 0, "class"))
    assert [s.base_prompt for s in match_lines(ours, theirs)] == ["a cat", "a dog"]


def test_class_prompts_are_never_matched_by_their_place() -> None:
    with pytest.raises(ImagesError, match="no prompt of"):
        match_lines(pictures(("a cat", 0, "class")), pictures(("a dog", 0, "class")))


def test_faces_are_compared_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    from measure.planted import FactorEncoder, draw, draw_set, faultless, planned, scene_of
    from variegate.measure import PlannedPrompt, measure

    monkeypatch.setenv("VARIEGATE_CACHE", "/dev/null/no-cache")

    class Whole:
        """Takes the whole picture for a face, but for every fifth."""

        calls = 0

        def largest(self, picture: Image.Image) -> Image.Image | None:
            Whole.calls += 1
            return None if Whole.calls % 5 == 0 else picture

    one = draw(scene_of("a toy", np.random.default_rng(5)))

    def same(line: PlannedPrompt, prompt: str, rng: np.random.Generator) -> np.ndarray:
        return one

    plan = [p._replace(seeds=tuple(range(6))) for p in planned() if p.group == "class"]
    verdict = measure(
        gather(
            draw_set(plan, same, root=1),
            draw_set(plan, faultless, root=2, base=True),
            encoders=[FactorEncoder()],
            faces=Whole(),
        )
    )
    found = verdict.find("variety_vs_base@faces")
    assert found is not None
    assert found.value < 0.05
    assert "faces (1 % of the base's variety)" in told(verdict)


def recoloured(how: Callable[[np.ndarray], np.ndarray], *, group: str) -> tuple[View, View]:
    """The base's scenes, changed as an adapter would, as the first encoder and the layout see
    them."""
    rng = np.random.default_rng(0)
    scenes = [draw(scene_of("a toy", rng)) for _ in range(12)]
    base, ours = (
        ImageSet(
            tuple(
                as_picture(change(x), f"{i}", prompt=f"toy {i % 2}", seed=i, group=group)
                for i, x in enumerate(scenes)
            ),
            "a set",
        )
        for change in (np.copy, how)
    )
    evidence = gather(ours, base, encoders=[Layout()])
    return evidence.recoloured, evidence.recoloured_layout  # type: ignore[return-value]


def in_gray(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def test_the_base_is_recoloured_where_palettes_were_lost_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VARIEGATE_CACHE", "/dev/null/no-cache")
    assert recoloured(np.copy, group="class") == (None, None)
    seen, layout = recoloured(in_gray, group="class")
    assert layout is None
    alike = (seen.adapter * seen.base).sum(1)
    assert float(alike.min()) > 0.9
    none, layout = recoloured(in_gray, group="trigger")
    assert none is None
    alike = (layout.adapter * layout.base).sum(1)
    assert float(alike.min()) > 0.8


def test_seeds_meet_each_other() -> None:
    ours = pictures(("x", 2, "class"), ("x", 0, "class"), ("x", 9, "class"))
    theirs = pictures(("x", 0, "class"), ("x", 1, "class"), ("x", 2, "class"))
    (line,) = match_lines(ours, theirs)
    assert line.paired == 2
    assert line.adapter_rows[:2] == (1, 0)
    assert line.base_rows[:2] == (0, 2)


def test_folders_without_a_common_prompt_are_refused_with_what_was_found() -> None:
    with pytest.raises(ImagesError, match=r"'a dog'.*'a cat'"):
        match_lines(
            pictures(("a dog", 0, "class"), ("dogs", 0, "class")), pictures(("a cat", 0, "class"))
        )


def test_no_encoder_is_refused() -> None:
    with pytest.raises(EncoderError, match="no encoder to measure variety"):
        gather(pictures(("x", 0, "class")), pictures(("x", 0, "class")), encoders=[])


def test_too_few_pictures_are_missing_and_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from measure.planted import draw, scene_of
    from variegate.measure import measure

    monkeypatch.setenv("VARIEGATE_CACHE", "/dev/null/no-cache")
    rng = np.random.default_rng(0)
    sets = [
        ImageSet(
            tuple(
                as_picture(draw(scene_of("a toy", rng)), f"{i}", prompt="a toy", seed=i)
                for i in range(3)
            ),
            "few",
        )
        for _ in range(2)
    ]
    verdict = measure(gather(*sets, encoders=[FactorEncoder()]))
    assert verdict.labels == ("inconclusive",)
    assert "4 seeds or more" in told(verdict)


def test_a_flipped_shifted_picture_is_near_and_another_is_far() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 8, 8, generator=generator)
    some = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    moved = some.flip(-1).roll((2, -3), (2, 3))
    difference = tile_difference(moved.flatten(1), some.flatten(1))
    assert difference.diagonal().max() < 0.02
    assert difference[~torch.eye(3, dtype=torch.bool)].min() > 0.1


def test_training_pictures_near_one_another_make_the_limit_stricter() -> None:
    far = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    near = torch.tensor([[0.0, 0.05], [0.05, 0.0]])
    base = torch.full((4, 2), 0.4)
    assert pixel_limits(far, base).tolist() == pytest.approx([0.09, 0.09])
    assert pixel_limits(near, base).tolist() == pytest.approx([0.03, 0.03])
    assert pixel_limits(far, base / 10).max() < 0.05
