"""Grounds for pictures: painted anew, continued from what is seen, and subjects laid on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

SEARCH_PIXELS = (
    64  # shifts are searched on pictures of this side: finer ones cost much, gain little
)
MARGIN = 24  # of a picture's side goes as a margin around the subject
SEVERAL = 0.2  # of the range of a channel: half of a ground that is farther off is of other colours
RING = 0.15  # share of the side that is taken for ground where no subject was found
SHIFTS = 160  # of the best ones are tried, until no hole is left


def paint_ground(size: Sequence[int], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    """A plain, shaded, striped or checkered ground in random colours, in 0..1."""
    h, w = size
    kind, angle, phase, period = torch.rand(4, generator=generator).tolist()
    inks: Tensor = torch.rand(2, 3, 1, 1, generator=generator)
    first, second = inks[0], inks[1]
    if kind < 0.4:
        return first.expand(3, h, w).clone()
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    turn = torch.tensor(angle * 2 * torch.pi)
    along = x * turn.cos() + y * turn.sin()
    if kind < 0.7:
        ink = (along - along.min()) / (along.max() - along.min())
    else:
        # The second ink of a pattern is near the first, as on cloth and wallpaper.
        second = (first + 0.35 * (second - 0.5)).clamp(0, 1)
        bands = 3 + 6 * period
        ink = ((along + phase) * bands).floor() % 2
        if kind >= 0.85:
            across = y * turn.cos() - x * turn.sin()
            ink = (ink + ((across + phase) * bands).floor() % 2) % 2
    ground: Tensor = first + (second - first) * ink
    return ground


def continue_ground(
    pixels: Float[Tensor, "3 h w"],
    *,
    hole: Float[Tensor, "h w"],
    usable: Float[Tensor, "h w"],
) -> Float[Tensor, "3 h w"]:
    """The picture with its hole filled from the ground around it, patterns continued.

    The picture is laid over itself, shifted by what makes the overlap match best, and the hole
    is filled from there; what no shift reaches takes the ground's middle colour. `usable` is 1
    where ground is seen.
    """
    known = (usable > 0.5) & (hole < 0.5)
    if not bool(known.any()):
        return pixels
    left = ~known
    filled = torch.where(known, pixels, torch.zeros(()))
    middle = pixels[:, known].median(dim=1).values[:, None, None]
    for down, right in _best_shifts(pixels, known):
        source = torch.roll(known, (down, right), (0, 1))
        _blank_wrapped(source, down, right)
        take = left & source
        filled = torch.where(take, torch.roll(pixels, (down, right), (1, 2)), filled)
        left = left & ~take
        if not bool(left.any()):
            break
    return torch.where(left, middle, filled)


def paint_open(
    pixels: Float[Tensor, "3 h w"],
    *,
    covered: Float[Tensor, "h w"],
    subject: Float[Tensor, "h w"],
) -> Float[Tensor, "3 h w"]:
    """A moved picture whose uncovered places (0) get the ground that goes on around them."""
    if bool(covered.min() == 1):
        return pixels
    ground = continue_ground(pixels, hole=1 - covered, usable=covered * (1 - grow(subject)))
    return covered * pixels + (1 - covered) * ground


def likely_subject(like: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Where the subject must be thought to be when it was not found: all but a ring."""
    h, w = like.shape
    mask = torch.zeros_like(like)
    mask[round(h * RING) : round(h * (1 - RING)), round(w * RING) : round(w * (1 - RING))] = 1
    return mask


def grow(mask: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """The mask with a margin, so that nothing of the subject's edge is taken for ground."""
    reach = max(1, max(mask.shape) // MARGIN)
    return F.max_pool2d(mask[None], 2 * reach + 1, stride=1, padding=reach)[0]


def ground_colour(
    pixels: Float[Tensor, "3 h w"], mask: Float[Tensor, "h w"]
) -> Float[Tensor, " 3"] | None:
    """The middle colour of the ground, None where it has none: most pixels differ much from it."""
    seen = pixels[:, grow(mask) < 0.1]
    if seen.shape[1] == 0:
        return None
    middle = seen.median(dim=1).values
    off = (seen - middle[:, None]).abs().amax(0).median()
    return middle if float(off) < SEVERAL else None


def lay_on(
    pixels: Float[Tensor, "3 h w"], mask: Float[Tensor, "h w"], ground: Float[Tensor, "3 h w"]
) -> Float[Tensor, "3 h w"]:
    """The subject on another ground; its edge takes the colours just inside of it."""
    inside = mask > 0.9
    if not bool(inside.any()):
        return pixels
    rows, columns = ndimage.distance_transform_edt(
        ~inside.numpy(), return_distances=False, return_indices=True
    )
    subject = pixels[:, torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]
    return mask * subject + (1 - mask) * ground


def _best_shifts(pixels: Float[Tensor, "3 h w"], known: Tensor) -> list[tuple[int, int]]:
    """The shifts (down, right) under which the known ground agrees best with itself."""
    h, w = known.shape
    factor = max(1, round(max(h, w) / SEARCH_PIXELS))
    small = F.avg_pool2d(pixels[None], factor)[0]
    seen = (F.avg_pool2d(known[None].float(), factor)[0] > 0.99).float()
    hole = 1 - seen
    size = [2 * s for s in seen.shape]

    def spectrum(x: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft2(x, s=size)
        return found

    def overlap(a: Tensor, b: Tensor) -> Tensor:
        # Entry s holds the sum over x of a(x) b(x - s), s modulo the padded size.
        found: Tensor = torch.fft.irfft2(spectrum(a) * spectrum(b).conj(), s=size)
        return found

    square = (small**2).sum(0)
    cross = torch.fft.irfft2(
        (spectrum(seen * small) * spectrum(seen * small).conj()).sum(0), s=size
    )
    count = overlap(seen, seen)
    error = overlap(seen * square, seen) + overlap(seen, seen * square) - 2 * cross
    reach = overlap(hole, seen) / hole.sum().clamp_min(1)
    enough = count > 0.1 * seen.sum()
    score = torch.where(enough, error.clamp_min(0) / count.clamp_min(1), torch.inf)
    score = score + 0.02 * (1 - reach)
    score[0, 0] = torch.inf
    shifts = []
    for flat in score.flatten().argsort()[:SHIFTS].tolist():
        down, right = divmod(flat, size[1])
        down -= size[0] * (down >= size[0] // 2)
        right -= size[1] * (right >= size[1] // 2)
        shifts.append((down * factor, right * factor))
    return shifts


def _blank_wrapped(mask: Tensor, down: int, right: int) -> None:
    """Forget, in place, what a roll brought around from the other side."""
    h, w = mask.shape
    rows = slice(0, down) if down >= 0 else slice(h + down, h)
    columns = slice(0, right) if right >= 0 else slice(w + right, w)
    mask[rows] = False
    mask[:, columns] = False
