"""Laws of the effective number, the descriptors and the caption counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from images import crafted
from variegate.audit import audit
from variegate.audit.captions import CaptionFacts, clip_tokens, count_captions, judge_captions
from variegate.audit.descriptors import (
    colour_shares,
    distances,
    look,
    phash_bits,
)
from variegate.audit.effective import effective_number
from variegate.bench import world
from variegate.images.placement import oklab, subject_box
from variegate.measure.vendi import vendi_from_kernel


def kernel(n: int, seed: int = 0, width: float = 1.0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(n, 3))
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    return np.exp(-squared / (2 * width**2))


def test_the_bounds_are_one_and_n() -> None:
    assert effective_number(np.ones((6, 6))) == pytest.approx(1)
    assert effective_number(np.eye(6)) == pytest.approx(6)
    assert effective_number(np.zeros((0, 0))) == 0.0
    for seed in range(5):
        assert 1 <= effective_number(kernel(20, seed)) <= 20


def test_two_pictures_agree_with_the_formula_by_hand() -> None:
    for alike in (0.0, 0.3, 0.9):
        found = effective_number(np.array([[1, alike], [alike, 1]]))
        assert found == pytest.approx(2 / (1 + alike**2), rel=1e-5)


def test_copies_change_nothing_and_more_pictures_never_lower_it() -> None:
    for seed in range(5):
        full = kernel(15, seed)
        whole = effective_number(full)
        copied = [*range(15), 4, 4, 4, 11]
        assert effective_number(full[np.ix_(copied, copied)]) == pytest.approx(whole, rel=1e-4)
        assert effective_number(full[:14, :14]) <= whole * (1 + 1e-4)
        shuffled = np.random.default_rng(seed).permutation(15)
        assert effective_number(full[np.ix_(shuffled, shuffled)]) == pytest.approx(whole, rel=1e-5)


def test_it_is_at_least_the_order_2_number_of_the_set_as_it_is() -> None:
    for seed in range(5):
        full = kernel(15, seed)
        as_it_is = float(vendi_from_kernel(torch.from_numpy(full), 2.0))
        assert effective_number(full) >= as_it_is * (1 - 1e-6)
    equal = np.full((5, 5), 0.4) + 0.6 * np.eye(5)
    as_it_is = float(vendi_from_kernel(torch.from_numpy(equal), 2.0))
    assert effective_number(equal) == pytest.approx(as_it_is)


def test_oklab_of_white_black_and_gray_has_no_hue() -> None:
    lab = oklab(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]))
    assert lab[:, 0] == pytest.approx([1.0, 0.0, 0.598], abs=1e-3)
    assert np.abs(lab[:, 1:]).max() < 1e-3


def test_oklab_of_red_is_what_its_author_published() -> None:
    assert oklab(np.array([1.0, 0.0, 0.0])) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


def test_colour_shares_sum_to_one_and_do_not_care_for_places() -> None:
    lab = oklab(np.random.default_rng(0).random((50, 3)))
    shares = colour_shares(lab)
    assert shares.sum() == pytest.approx(1)
    assert colour_shares(lab[::-1]) == pytest.approx(shares)


def test_distances_are_symmetric_zero_to_oneself_and_blind_to_mirrors() -> None:
    pictures = crafted.scenes(6)
    looks = [look(p) for p in [*pictures, ImageOps.mirror(pictures[0])]]
    for apart in distances(looks).values():
        assert apart == pytest.approx(apart.T, abs=1e-6)  # of products of float32 numbers
        assert np.diag(apart) == pytest.approx(0, abs=1e-6)
        assert apart[0, 6] == pytest.approx(0, abs=0.02)


def test_size_and_mode_of_storage_do_not_matter_to_the_look() -> None:
    small = crafted.scene()
    looks = [look(small), look(small.resize((256, 256), Image.Resampling.BICUBIC))]
    for name, apart in distances(looks).items():
        assert apart[0, 1] < 0.15, name


def test_the_subject_is_found_where_it_was_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = world.draw_scene(rng, pattern="plain", size="medium")
        truth = world.render_mask(drawn)
        y, x = (np.mgrid[0:64, 0:64] + 0.5) / 64
        found = subject_box(oklab(world.render(drawn).astype(np.float64) / 255))
        assert found[0] == pytest.approx((truth * x).sum() / truth.sum(), abs=0.12)
        assert found[1] == pytest.approx((truth * y).sum() / truth.sum(), abs=0.12)


def test_one_flat_colour_has_its_subject_nowhere() -> None:
    flat = Image.new("RGB", (64, 64), "teal")
    assert look(flat).box == pytest.approx([0.5, 0.5, 0.0])
    assert phash_bits(flat).shape == (64,)


class Blind:
    """An encoder to which all pictures are alike."""

    id = "blind"
    has_text = False

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.ones(len(pictures), 3) / 3**0.5

    def texts(self, prompts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def unfamiliar(self, features: Tensor) -> bool:
        return False


def test_an_encoder_alone_makes_no_duplicates(tmp_path: Path) -> None:
    crafted.write_scenes(tmp_path, 20)
    report = audit(tmp_path, encoder=Blind())
    assert report.compared_by == ("sha256", "phash", "blind")
    assert report.duplicates == ()


def test_an_encoder_that_does_not_know_such_pictures_is_left_out(tmp_path: Path) -> None:
    class Lost(Blind):
        def unfamiliar(self, features: Tensor) -> bool:
            return True

    crafted.write_scenes(tmp_path, 3)
    assert audit(tmp_path, encoder=Lost()).compared_by == ("sha256", "phash")


def judged(captions: list[str | None], **options: object) -> dict[str, str]:
    trigger = options.get("trigger")
    assert trigger is None or isinstance(trigger, str)
    stems = [f"{i:02d}" for i in range(len(captions))]
    facts = count_captions(captions, stems, trigger=trigger)
    return {f.what: f.evidence for f in judge_captions(facts, **options)}  # type: ignore[arg-type]


def test_constant_and_varying_words_are_told_apart() -> None:
    facts = count_captions(["a zqx toy on grass", "a zqx toy in a box", None, ""], list("abcd"))
    assert facts.constant == ("a", "zqx", "toy")
    assert facts.varying == 4
    assert (facts.present, facts.missing, facts.empty, facts.distinct) == (2, 1, 1, 2)
    assert facts.to_json()["constant"] == ["a", "zqx", "toy"]


def test_no_captions_at_all_is_one_finding() -> None:
    assert judged([None, None, ""]) == {"No picture has a caption": "0 of 3 captions"}
    assert judged([]) == {}


def test_gaps_and_sameness_are_found() -> None:
    found = judged(["a toy on grass"] * 3 + [None, ""])
    assert found["Some pictures have no caption"] == "1 of 5 have none"
    assert found["Some captions are empty"] == "1 of 5 are empty"
    assert found["All captions are the same"] == "3 captions, 1 wording (a toy on grass)"


def test_the_trigger_must_be_in_every_caption_as_a_word() -> None:
    captions: list[str | None] = ["a ZQX toy on grass", "a zqxy toy in a box", "a toy in a car"]
    title = "The trigger is not in every caption"
    assert judged(captions, trigger="zqx")[title] == "'zqx' is in 1 of 3 captions"
    assert title not in judged(["a sks dog on a bed", "sks dog in snow"], trigger="sks dog")


def test_unnamed_backgrounds_are_found() -> None:
    title = "Captions do not name the background"
    assert title in judged(["a zqx toy, smiling", "zqx toy"])
    assert title not in judged(["zqx toy on a red background", "a zqx toy in the garden"])


def test_long_captions_and_file_names_are_found() -> None:
    found = judged(["a red owl " * 40, "IMG_2041", "shoe_07.jpg", "DSC00012 (2)"])
    assert found["Some captions are too long"].startswith("1 of 4 pass about 75 tokens")
    assert found["Some captions look like file names"] == "3 of 4"
    assert "Some captions look like file names" not in judged(["an owl", "two owls at 12 o'clock"])


def test_tokens_are_counted_about_as_clip_does() -> None:
    assert clip_tokens("a photo of a cat, sitting on a mat") == 10
    assert clip_tokens("") == 0
    assert clip_tokens("1234") == 4
    assert isinstance(count_captions([], []), CaptionFacts)
