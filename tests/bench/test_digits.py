"""Stacked digits: what is counted agrees with closed forms, and who reads the pictures is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import digits_base, stacked_digits

from variegate import formats
from variegate.bench import digits
from variegate.blend.merge import merge
from variegate.models import DiffusionModel, load
from variegate.train import train

N = 2000


@pytest.mark.parametrize("among", [1, 10, 250, 1000])
def test_modes_drawn_alike_often_have_the_logarithm_of_what_is_left_out(among: int) -> None:
    seen = np.repeat(np.arange(among), 7)
    found = digits.spread(seen)
    assert found.modes == among
    assert found.kl == pytest.approx(np.log(1000 / among))


def test_the_kl_of_uneven_shares_is_that_of_the_formula() -> None:
    seen = np.repeat([3, 14, 159], [5, 3, 2])
    shares = np.array([0.5, 0.3, 0.2])
    assert digits.spread(seen).kl == pytest.approx(float((shares * np.log(1000 * shares)).sum()))


def test_the_order_of_pictures_and_the_names_of_modes_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    seen = rng.integers(0, 1000, N)
    renamed = rng.permutation(1000)[rng.permutation(seen)]
    assert digits.spread(renamed).modes == digits.spread(seen).modes
    assert digits.spread(renamed).kl == pytest.approx(digits.spread(seen).kl)


@pytest.mark.parametrize("shown", [range(1000), digits.some_modes(30, 0)])
def test_what_is_expected_of_chance_is_what_simulation_gives(shown: Any) -> None:
    shares, rng = digits.even(shown), np.random.default_rng(2)
    drawn = [digits.spread(rng.choice(1000, N, p=shares)) for _ in range(400)]
    told = digits.expected(shares, N)
    for name in ("modes", "kl"):
        values = np.array([getattr(spread, name) for spread in drawn])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - getattr(told, name)) <= 4 * error + 1e-9, name


def test_the_floor_at_the_number_of_the_literature_is_near_millers() -> None:
    floor = digits.expected(digits.even(), digits.DRAWN)
    assert floor.modes == pytest.approx(1000, abs=1e-6)
    assert floor.kl == pytest.approx(999 / (2 * digits.DRAWN), rel=0.01)


def test_uneven_shares_are_expected_as_they_fall_too() -> None:
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.full(1000, 0.3))
    drawn = [digits.spread(rng.choice(1000, N, p=shares)) for _ in range(60)]
    told = digits.expected(shares, N)
    assert np.mean([s.modes for s in drawn]) == pytest.approx(told.modes, rel=0.01)
    assert np.mean([s.kl for s in drawn]) == pytest.approx(told.kl, rel=0.01)


def test_stacked_pictures_hold_the_digits_of_their_modes_in_order() -> None:
    modes = np.arange(1000)
    pictures = digits.stack(modes, np.random.default_rng(4), part="held out")
    known = digits.digits("held out")
    named = {
        (pixels.tobytes(), int(label))
        for pixels, label in zip(known.pixels, known.labels, strict=True)
    }
    for mode, picture in zip(modes, pictures, strict=True):
        for channel, digit in enumerate(f"{mode:03d}"):
            assert (picture[..., channel].tobytes(), int(digit)) in named


def test_no_digit_is_in_both_parts_and_each_class_is_in_both() -> None:
    learnt, held_out = digits.digits("learnt"), digits.digits("held out")
    assert len(learnt.labels) + len(held_out.labels) == 1797
    for part in (learnt, held_out):
        assert set(part.labels) == set(range(10))
    # One digit of the collection is there twice.
    both = {p.tobytes() for p in learnt.pixels} & {p.tobytes() for p in held_out.pixels}
    assert len(both) <= 1


def test_the_classifier_reads_digits_that_it_has_not_seen() -> None:
    known = digits.digits("held out")
    right = digits.read_digits(known.pixels) == known.labels
    assert right.mean() >= 0.98
    assert digits.confusion().sum(1) == pytest.approx(np.ones(10))
    assert (digits.confusion().diagonal() >= 0.93).all()


def test_what_the_classifier_alone_does_is_foretold_from_its_confusion() -> None:
    rng, shown = np.random.default_rng(5), digits.some_modes(30, 0)
    pictures = digits.stack(rng.choice(shown, 6000), rng, part="held out")
    found = digits.spread(digits.read_modes(pictures))
    told = digits.expected(digits.as_read(digits.even(shown)), 6000)
    assert found.modes > 30  # its errors look like modes
    assert found.modes == pytest.approx(told.modes, rel=0.15)
    assert found.kl == pytest.approx(told.kl, rel=0.03)


def test_the_share_outside_what_was_shown_is_counted() -> None:
    assert digits.learnt(np.array([1, 1, 2, 7, 8]), [1, 2, 3]) == digits.Learnt(2, 0.4)


def test_the_written_codec_is_the_projection_on_its_components() -> None:
    codec = digits_base.new_codec()
    pictures = digits.stack(np.arange(0, 1000, 9), np.random.default_rng(6), part="held out")
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = codec.encode(pixels).latents
        again = codec.decode(latents).sample
        twice = codec.decode(codec.encode(again).latents).sample
    assert latents.shape[1:] == (digits_base.CHANNELS, 1, 1)
    assert (twice - again).abs().max() < 1e-3
    # What is lost is the components left out, a fourteenth of the variance of the learnt part.
    lost = (again - pixels).square().mean() / (pixels - pixels.mean(0)).square().mean()
    assert 0.05 < float(lost) < 0.1
    seen = (again / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    modes = digits.read_modes(seen.numpy())
    assert (modes == np.arange(0, 1000, 9)).mean() > 0.9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    folder = tmp_path_factory.mktemp("digits")
    digits_base.train_base(folder, 0.02, width=32)
    torch.set_flush_denormal(False)  # what training switched on is the whole process's
    return load(str(folder / "base"))


def test_drawn_modes_do_not_depend_on_the_batch(base: DiffusionModel) -> None:
    few = stacked_digits.PLAN.model_copy(update={"steps": 2})
    whole, parts = (
        digits.draw_modes(base, None, "a photo of a number", 12, plan=few, batch_size=size)
        for size in (12, 5)
    )
    assert whole.tolist() == parts.tolist()
    assert ((whole >= 0) & (whole < 1000)).all()


def test_a_merged_adapter_draws_the_modes_of_an_attached_one(
    base: DiffusionModel, tmp_path: Path
) -> None:
    recipe = stacked_digits.recipe_of(("optimizer.steps=4", "optimizer.warmup=0"), 0, base.name)
    images = stacked_digits.pictures_of((7, 77, 777), 0, 12)
    adapter = formats.read(
        train(recipe, out=tmp_path / "run", model=base, images=images).adapter_file
    )
    changed = load(str(merge(base.name, adapter, tmp_path / "merged")))
    few = stacked_digits.PLAN.model_copy(update={"steps": 2})
    drawn = [
        digits.draw_modes(model, learnt, "a photo of zqx number", 40, plan=few).tolist()
        for model, learnt in ((base, adapter), (changed, None), (base, None))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_cell_is_trained_drawn_and_read(base: DiffusionModel) -> None:
    row = stacked_digits.run_cell(
        base,
        ("optimizer.steps=4", "strategies.stay_near=on", "guard.mode=stop"),
        10,
        0,
        drawn=40,
        drawn_trigger=20,
        pictures=20,
    )
    assert row["of"] == 4
    assert 1 <= row["class"]["modes"] <= 40
    assert 0 <= row["class"]["kl"] <= np.log(1000)
    assert 0 <= row["trigger"]["outside"] <= 1


def test_the_pictures_of_a_run_show_its_modes_alike_often() -> None:
    shown = digits.some_modes(10, 3)
    pictures = stacked_digits.pictures_of(shown, 3, 400)
    seen = digits.read_modes(np.stack([np.asarray(picture.open()) for picture in pictures]))
    assert np.isin(seen, shown).mean() >= 0.9
    assert np.bincount(seen, minlength=1000)[list(shown)].min() >= 30
    assert all(picture.prompt is None for picture in pictures)
