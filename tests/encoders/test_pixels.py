from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from variegate.bench import world
from variegate.encoders import Encoder
from variegate.encoders.pixels import (
    Layout,
    Placement,
    Recolour,
    Thumbnail,
    _to_lab,
    colour_moments,
)


def plain(rgb: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), rgb)


def test_white_black_and_red_have_their_published_lab_values() -> None:
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]).reshape(3, 3, 1, 1)
    lab = 100 * _to_lab(rgb).reshape(3, 3)
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]])
    assert torch.allclose(lab, expected, atol=0.05)


def test_layout_rows_are_unit_and_tell_the_share_of_the_area_that_differs() -> None:
    half = plain((200, 30, 30))
    half.paste(plain((30, 30, 200)), (0, 32))
    rows = Layout().images([plain((200, 30, 30)), half, plain((30, 30, 200))])
    shares = torch.cdist(rows, rows).square() / 2
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-5)
    assert abs(float(shares[0, 1]) - 0.5) < 0.15
    assert abs(float(shares[0, 2]) - 1) < 0.25


def test_layout_knows_stripes_from_plain_ground_of_the_same_colour() -> None:
    stripes = np.full((64, 64, 3), 150, np.uint8)
    stripes[::4] = stripes[1::4] = 106
    even = plain((128, 128, 128))
    rows = Layout().images([even, Image.fromarray(stripes), plain((130, 130, 130))])
    assert torch.dist(rows[0], rows[1]) > 3 * torch.dist(rows[0], rows[2])


def test_the_same_pictures_give_the_same_rows_at_any_size() -> None:
    small, large = plain((10, 200, 90), 64), plain((10, 200, 90), 640)
    for encoder in (Layout(), Thumbnail()):
        assert isinstance(encoder, Encoder)
        rows = encoder.images([small, large])
        assert torch.allclose(rows[0], rows[1], atol=1e-6)


def scenes(count: int = 4) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(world.render(world.draw_scene(rng, ("robot",)))) for _ in range(count)]


def apart(a: Image.Image, b: Image.Image) -> float:
    """The mean difference of two pictures, of 255."""
    return float(np.abs(np.asarray(a, int) - np.asarray(b, int)).mean())


def chroma(picture: Image.Image) -> float:
    """How far red, green and blue are apart in the mean."""
    return float(np.abs(np.diff(np.asarray(picture, int), axis=2)).mean())


def recoloured(picture: Image.Image, like: Image.Image) -> Image.Image:
    both = (colour_moments(picture), colour_moments(like))
    return Recolour(luma=both, chroma=both)(picture)


def of_colours(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of luma and chroma."""
    pixels = np.asarray(picture.convert("YCbCr"), float).reshape(-1, 3)
    return pixels.mean(0), np.cov(pixels.T)


def test_recoloured_pictures_have_the_tones_and_the_palette_of_the_others() -> None:
    some, like = scenes(2)
    like = like.point(lambda v: 70 + v // 3)  # far from what would be cut off
    (mean, spread), (to_mean, to_spread) = map(of_colours, (recoloured(some, like), like))
    assert np.allclose(mean, to_mean, atol=2)
    assert np.allclose(spread[0, 0], to_spread[0, 0], rtol=0.06)
    assert np.allclose(spread[1:, 1:], to_spread[1:, 1:], rtol=0.1, atol=6)


def test_moments_of_pictures_together_are_the_sum_of_theirs() -> None:
    some = scenes(2)
    joined = Image.new("RGB", (64, 128))
    for y, picture in enumerate(some):
        joined.paste(picture, (0, 64 * y))
    pixels = np.asarray(joined.convert("YCbCr"), float).reshape(-1, 3)
    sums = colour_moments(some[0]) + colour_moments(some[1])
    assert sums[3, 3] == len(pixels)
    assert np.allclose(sums[3, :3], pixels.sum(0))
    assert np.allclose(sums[:3, :3], pixels.T @ pixels)


def test_pictures_of_one_palette_stay_and_black_and_white_takes_the_colour_out() -> None:
    for picture in scenes():
        gray = picture.convert("L").convert("RGB")
        assert apart(recoloured(picture, picture), picture) < 2
        assert apart(recoloured(picture, gray), gray) < 2
        assert chroma(recoloured(picture, gray)) < 0.1 * chroma(picture)


def test_a_flat_picture_can_be_recoloured_and_be_recoloured_like() -> None:
    flat, scene = plain((10, 200, 90)), scenes(1)[0]
    assert apart(recoloured(scene, flat), flat) < 6
    assert np.asarray(recoloured(flat, scene)).std((0, 1)).max() < 1


def test_placement_tells_where_the_subject_stands_and_how_large_and_not_on_what() -> None:
    rng = np.random.default_rng(0)

    def rows(**fixed: str) -> torch.Tensor:
        scenes = [world.draw_scene(rng, ("robot",), **fixed) for _ in range(16)]
        return Placement().images([Image.fromarray(world.render(s)) for s in scenes])

    corners = {(x, y): rows(position=f"{y} {x}")[:, :2].mean(0) for x in X for y in Y}
    for (x, y), middle in corners.items():
        assert torch.allclose(middle, torch.tensor([X[x], Y[y]]), atol=0.07)
    small, medium, large = (rows(size=size, position="center")[:, 2] for size in world.SIZES)
    assert small.quantile(0.75) < medium.median() < large.quantile(0.25)
    on_green, on_any = rows(colour="green"), rows()
    assert torch.allclose(on_green.std(0), on_any.std(0), atol=0.05)
    assert Placement().images([]).shape == (0, 3)


# Where the corners of the pocket's world lie, of the side.
X = {"left": 0.34, "right": 0.66}
Y = {"top": 0.34, "bottom": 0.66}
