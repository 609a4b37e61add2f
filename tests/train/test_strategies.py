"""Menu and kitchen agree, and each strategy does what its name says, by address."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from variegate import seeds
from variegate.bench import world
from variegate.diffusion import NoiseSchedule
from variegate.errors import RecipeError
from variegate.images import ImageSet, Picture
from variegate.recipe import Recipe, Strategies
from variegate.train.data import read_training_set
from variegate.train.masks import find_masks
from variegate.train.objective import row_losses
from variegate.train.paint import ground_colour
from variegate.train.strategies import KITCHEN, Seen, Setting, Shot, Strategy, cook
from variegate.train.strategies.stay_near import draw_prompt
from variegate.train.strategies.zoom_shift import extent, keep_in_view, move


def one(name: str, **settings: Any) -> Strategy:
    return cook(Recipe.build({"strategies": {name: settings}, "class_noun": "face"}))[name]


def shot(seed: int = 0) -> tuple[Shot, world.Scene]:
    rng = np.random.default_rng(seed)
    scene = world.draw_scene(rng, ("robot",), size="medium", position="center")
    pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
    return Shot(pixels, torch.from_numpy(world.render_mask(scene)), True), scene


def test_menu_and_kitchen_agree() -> None:
    assert set(KITCHEN) == set(Strategies.model_fields)
    everything: dict[str, Any] = {name: {} for name in KITCHEN if name != "swa"}
    assert set(cook(Recipe.build({"strategies": everything}))) == set(everything)
    assert set(cook(Recipe.build({"strategies": {"swa": {}}}))) == {"swa"}
    assert cook(Recipe()) == {}


def test_a_file_stands_in_the_kitchen_for_each_strategy() -> None:
    folder = Path(__file__).parents[2] / "src/variegate/train/strategies"
    files = {p.stem for p in folder.glob("*.py")} - {"__init__", "base"}
    assert files == set(KITCHEN)


@pytest.mark.parametrize(
    "name", ["zoom_shift", "new_background", "crop", "affine", "colour", "erase"]
)
def test_the_same_address_gives_the_same_picture_and_others_differ(name: str) -> None:
    strategy = one(name, p=1.0)
    picture, _ = shot()
    state = torch.random.get_rng_state()
    first = strategy.alter(picture, ("a.png", 0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.pixels, strategy.alter(picture, ("a.png", 0)).pixels)
    assert not torch.equal(first.pixels, strategy.alter(picture, ("a.png", 1)).pixels)
    assert not torch.equal(first.pixels, strategy.alter(picture, ("b.png", 0)).pixels)
    assert one(name, p=0.0).alter(picture, ("a.png", 0)) is picture


def test_zoom_and_shift_take_the_mask_along_and_keep_the_subject_in_view() -> None:
    strategy = one("zoom_shift", zoom_min=0.6, zoom_max=1.0)
    picture, _ = shot()
    for variant in range(10):
        moved = strategy.alter(picture, ("a.png", variant))
        ratio = float(moved.mask.sum() / picture.mask.sum())
        assert 0.33 < ratio < 1.03
        inner = moved.mask > 0.9
        assert float((moved.pixels[:, inner].std(1)).mean()) > 0.05
        assert moved.pixels.min() >= 0
        assert moved.pixels.max() <= 1


@pytest.mark.parametrize(("smallest", "least"), [(0.0, 0.5), (0.9, 0.999)])
def test_a_subject_is_not_zoomed_below_the_size_at_which_it_is_seen(
    smallest: float, least: float
) -> None:
    strategy = one("zoom_shift", zoom_min=0.5, zoom_max=1.0, shift=0, smallest=smallest)
    picture, _ = shot()
    sides = [
        extent(strategy.alter(picture, ("a.png", n)).mask) / extent(picture.mask) for n in range(20)
    ]
    assert least - 0.05 < min(sides) < least + 0.1
    assert max(sides) > 0.9


def test_by_area_a_subject_is_moved_the_less_often_the_smaller_it_is() -> None:
    def moved(size: str, found: bool = True) -> float:
        scene = world.Scene("robot", "yellow", "plain", size, "center")
        pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
        picture = Shot(pixels, torch.from_numpy(world.render_mask(scene)), found)
        strategy = one("zoom_shift", p=0.8, by_area=True)
        return sum(strategy.alter(picture, ("a.png", n)) is not picture for n in range(200)) / 200

    assert moved("large") == pytest.approx(0.75, abs=0.08)
    assert moved("medium") == pytest.approx(0.4, abs=0.08)
    assert moved("small") == pytest.approx(0.22, abs=0.08)
    assert moved("small", found=False) == pytest.approx(0.8, abs=0.08)


def test_a_shift_alone_loses_no_detail() -> None:
    picture, _ = shot()
    moved, mask, covered = move(picture.pixels, picture.mask, 1.0, (0.125, -0.0625))
    assert torch.equal(moved[:, :60, 8:], picture.pixels[:, 4:, :56])
    assert torch.equal(mask[:60, 8:], picture.mask[4:, :56])
    assert covered[:60, 8:].all()
    assert covered.sum() == 60 * 56


def test_a_zoom_keeps_the_middle_in_its_place() -> None:
    pixels = torch.zeros(3, 64, 64)
    pixels[:, 28:36, 20:44] = 1
    half, _, covered = move(pixels, torch.ones(64, 64), 0.5, (0.0, 0.0))
    assert half[:, 30:34, 27:37].min() > 0.9
    assert half[:, :29].max() < 0.1
    assert half[:, 35:].max() < 0.1
    assert covered.sum() == 32 * 32
    double, _, covered = move(pixels, torch.ones(64, 64), 2.0, (0.0, 0.0))
    assert double[:, 26:38, 10:54].min() > 0.9
    assert covered.all()


def test_the_ground_goes_on_and_the_subject_is_drawn_once() -> None:
    strategy = one("zoom_shift", zoom_min=0.6, zoom_max=1.0)
    scene = world.Scene("robot", "yellow", "plain", "medium", "center")
    pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1).float() / 255
    for found in (True, False):
        mask = torch.from_numpy(world.render_mask(scene)) if found else torch.ones(64, 64)
        for variant in range(6):
            moved = strategy.alter(Shot(pixels, mask, found), ("a.png", variant)).pixels
            ground = (moved - pixels[:, :1, :1]).abs().amax(0) < 0.02
            assert float((~ground).float().mean()) < 0.2
            assert bool(ground[0].all() or ground[-1].all())


def test_a_shift_is_cut_where_the_subject_would_leave() -> None:
    profile = torch.zeros(10)
    profile[4:6] = 1
    assert keep_in_view(profile, 1.0, 0.9) == pytest.approx(0.4)
    assert keep_in_view(profile, 1.0, -0.9) == pytest.approx(-0.4)
    assert keep_in_view(profile, 1.0, 0.1) == pytest.approx(0.1)
    assert keep_in_view(torch.ones(10), 1.1, 0.3) == 0


def test_a_new_ground_leaves_the_subject_and_needs_a_mask() -> None:
    strategy = one("new_background", p=1.0, source="painted")
    picture, _ = shot()
    changed = strategy.alter(picture, ("a.png", 0))
    inside, outside = picture.mask > 0.99, picture.mask == 0
    torch.testing.assert_close(
        changed.pixels[:, inside], picture.pixels[:, inside], atol=0.02, rtol=0
    )
    assert not torch.allclose(changed.pixels[:, outside], picture.pixels[:, outside], atol=0.02)
    unknown = Shot(picture.pixels, torch.ones(64, 64), False)
    assert strategy.alter(unknown, ("a.png", 0)) is unknown


NOTHING = Seen(None, None)


def as_seen(scene: world.Scene) -> Seen:
    """What the loop hands over of a scene, whose mask is found in the pixels."""
    pixels = torch.from_numpy(world.render(scene)).permute(2, 0, 1)
    masks, found = find_masks(pixels[None])
    if not found[0]:
        return NOTHING
    mask = torch.nn.functional.adaptive_avg_pool2d(masks, 8)[0]
    return Seen(mask, ground_colour(pixels / 255, masks[0]))


def namer(*, pocket: bool, p: float = 1.0) -> Strategy:
    plan = {"strategies": {"caption_scene": {"p": p}}, "trigger": "zqx", "class_noun": "face"}
    recipe = Recipe.build(plan)
    strategy = cook(recipe)["caption_scene"]
    model = SimpleNamespace(pocket=pocket)
    strategy.prepare(Setting(recipe, model, Path(), lambda *_: None))
    return strategy


def test_size_place_and_colour_are_named_as_the_world_has_them() -> None:
    strategy, rng = namer(pocket=True), np.random.default_rng(0)
    places = {"center": "in the center", "left": "on the left", "right": "on the right"}
    told: dict[str, list[bool]] = {"size": [], "place": [], "colour": []}
    for step in range(400):
        scene = world.draw_scene(rng, world.HELD_OUT)
        caption = strategy.caption("a zqx", step, 0, as_seen(scene))
        form = r"a (?:(\w+) )?zqx(?: on an? (\w+) background)?(?: (\w+ the .*))?"
        found = re.fullmatch(form, caption)
        assert found, caption
        place = places.get(scene.position, f"at the {scene.position}")
        truths = {"size": scene.size, "colour": scene.colour, "place": place}
        for (factor, truth), said in zip(truths.items(), found.groups(), strict=True):
            if said:
                told[factor].append(said == truth)
    for factor, right in told.items():
        assert len(right) > 120, factor
        assert np.mean(right) >= 0.9, factor


def test_what_is_seen_is_named_by_chance_and_never_twice() -> None:
    seen = as_seen(world.Scene("robot", "red", "plain", "small", "top left"))
    seldom = namer(pocket=True, p=0.3)
    said = [seldom.caption("a zqx", step, 0, seen) != "a zqx" for step in range(500)]
    assert sum(said) == pytest.approx(0.3 * 500 * 7 / 8, abs=40)
    always, steps = namer(pocket=True), range(30)
    assert {always.caption("", step, 0, seen) for step in steps} == {""}
    assert {always.caption("a zqx", step, 0, NOTHING) for step in steps} == {"a zqx"}
    own = {always.caption("a large zqx in the center", step, 0, seen) for step in steps}
    assert own == {
        "a large zqx in the center",
        "a large zqx in the center on a red background",
    }
    assert seen.mask is not None
    mirrored = replace(seen, mask=seen.mask.flip(1))
    for step in steps:
        told = always.caption("a zqx", step, 0, seen)
        assert always.caption("a zqx", step, 0, mirrored) == told.replace("left", "right")


def test_on_real_bases_the_scene_is_named_in_a_photographers_words() -> None:
    strategy = namer(pocket=False)
    mask = torch.zeros(64, 64)
    mask[2:14, 50:62] = 1
    seen = Seen(mask, torch.tensor([0.2, 0.4, 0.8]))
    told = {strategy.caption("a photo of zqx dog", step, 0, seen) for step in range(60)}
    facts = ("seen from afar", "at the top right", "blue background")
    assert told == {
        ", ".join(("a photo of zqx dog", *some))
        for n in range(4)
        for some in itertools.combinations(facts, n)
    }


def test_a_ground_of_several_colours_has_none() -> None:
    half = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 64)
    mask[20:40, 20:40] = 1
    assert ground_colour(half, mask) is None
    plain = torch.full((3, 64, 64), 0.5)
    plain[:, 20:40, 20:40] = half[:, 20:40, 20:40]
    assert torch.equal(ground_colour(plain, mask), torch.full((3,), 0.5))


def test_captions_are_dropped_and_pictures_mirrored_at_their_rate() -> None:
    drop, flip = one("caption_dropout", p=0.25), one("flip", p=0.5)
    captions = [
        drop.caption("a zqx", step, row, NOTHING) for step in range(200) for row in range(5)
    ]
    assert captions.count("") == pytest.approx(250, abs=50)
    mirrored = [flip.mirrors(step, row) for step in range(200) for row in range(5)]
    assert sum(mirrored) == pytest.approx(500, abs=60)
    assert mirrored == [flip.mirrors(step, row) for step in range(200) for row in range(5)]


def test_masked_loss_counts_the_subject_fully_and_is_normalised() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, :, :4] = 1
    schedule, low = NoiseSchedule(torch.linspace(0.99, 0.01, 10), "epsilon"), torch.tensor([1])
    places = one("masked_loss", outside=0.1).weigh_places(masks, schedule, low)
    assert places is not None
    target = torch.zeros(1, 4, 8, 8)
    left, right = target.clone(), target.clone()
    left[..., :4], right[..., 4:] = 1.0, 1.0
    assert float(row_losses(left, target, places)) == pytest.approx(1 / 1.1)
    assert float(row_losses(right, target, places)) == pytest.approx(0.1 / 1.1)
    torch.testing.assert_close(
        row_losses(left + right, target, places), row_losses(left + right, target)
    )


def test_masked_loss_does_not_enlarge_what_noise_hides_above_its_boundary() -> None:
    masks = torch.zeros(2, 8, 8)  # a small subject and a large one, as likely behind the noise
    masks[0, 3:5, 3:5] = 1
    masks[1, 1:7, 1:7] = 1
    schedule = NoiseSchedule(torch.linspace(0.99, 0.01, 10), "epsilon")

    def learnt(at: int, **settings: float) -> float:
        """How much of the subject the best answer has where the large one alone reaches."""
        timesteps = torch.tensor([at, at])
        places = one("masked_loss", **settings).weigh_places(masks, schedule, timesteps)
        assert places is not None
        counts = places / places.sum((1, 2), keepdim=True)
        return float(((counts * masks).sum(0) / counts.sum(0))[1, 1])

    assert learnt(9) == pytest.approx(0.72, abs=0.01)
    assert learnt(9, boundary=0.5) == pytest.approx(0.5, abs=0.001)
    assert learnt(0, boundary=0.5) == pytest.approx(learnt(0), abs=0.001)


def test_masked_loss_leaves_grounds_to_pictures_on_others_above_its_boundary() -> None:
    schedule = NoiseSchedule(torch.linspace(0.99, 0.01, 10), "epsilon")
    at, moved = torch.tensor([0, 0, 9, 9]), torch.tensor([False, True, False, True])
    weights = one("masked_loss", boundary=0.5, own_ground=0.1).weigh_grounds(schedule, at, moved)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1, 1, 0.1, 1]))
    assert one("masked_loss", boundary=0.5).weigh_grounds(schedule, at, moved) is None
    with pytest.raises(RecipeError, match="set boundary too"):
        one("masked_loss", own_ground=0.1)


def test_min_snr_weighs_rows() -> None:
    schedule = NoiseSchedule(torch.linspace(0.99, 0.01, 10), "epsilon")
    weights = one("min_snr", gamma=5.0).weigh_rows(schedule, torch.arange(10))
    assert weights is not None
    assert bool((weights.diff() >= 0).all())
    assert float(weights[-1]) == 1


def test_stay_near_never_names_the_trigger_and_draws_by_address() -> None:
    for pocket in (True, False):
        prompts = [
            draw_prompt(seeds.numpy_at(0, "p", i), "face", pocket=pocket) for i in range(400)
        ]
        assert not any("zqx" in prompt for prompt in prompts)
        assert 100 < sum("face" in prompt for prompt in prompts) < 300
        assert "" in prompts
        assert len(set(prompts)) > 100


def pictures_of(arrays: list[np.ndarray]) -> ImageSet:
    return ImageSet(
        tuple(
            Picture(f"{i}", None, tensor=torch.from_numpy(a.copy()).permute(2, 0, 1))
            for i, a in enumerate(arrays)
        ),
        "memory",
    )


def test_hand_drawn_masks_win(tmp_path: Path) -> None:
    array = world.render(world.draw_scene(np.random.default_rng(0)))
    drawn = np.zeros((64, 64), np.uint8)
    drawn[:10, :10] = 255
    Image.fromarray(drawn).save(tmp_path / "a-masklabel.png")
    Image.fromarray(array).save(tmp_path / "a.png")
    picture = Picture("a.png", tmp_path / "a.png", mask_file=tmp_path / "a-masklabel.png")
    images = ImageSet((picture,), str(tmp_path))
    recipe = Recipe(trigger="zqx")
    found = read_training_set(images, recipe, side=64, pocket=True, needs_masks=True)
    assert float(found.train[0].shot.mask.sum()) == 100
    assert any("1 hand-drawn" in note for note in found.notes)
    assert found.train[0].caption == "a zqx"
