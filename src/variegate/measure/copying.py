"""Which samples are copies of training pictures.

Two witnesses. SSCD, an encoder made for finding copies, is believed alone. Other encoders see what
is in a picture rather than which picture it is, and an adapter that learnt its subject *should*
resemble it; so there the pixels decide, and features only confirm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from variegate.encoders.pixels import SIDE
from variegate.measure.evidence import Evidence, View

NULL_RATE = 0.005  # share of copies among pictures that copy nothing, by calibration
MOST_BY_CHANCE = 0.1  # the most that the training pictures may raise it to
SSCD_FLOOR = 0.5  # Somepalli et al. 2022; 0.75 is 90 % precision on DISC
FEATURE_FLOOR = 0.5
PIXEL_LIMIT = 0.09  # root mean square difference (0..1) of the worst tile of a copy
DUPLICATE = 0.03  # training pictures this near are one picture twice, or nearly so
ONE_PICTURE = 0.01  # and these are nothing else: stored again, or mirrored
NEARER = 0.6  # a copy is this much nearer to its original than other training pictures are
MARGIN = 4  # thumbnail pixels by which a copy may be shifted
TILES = 4  # per side
ZOOMS = (64, 67, 70)  # thumbnail sides at which a training picture is compared


@dataclass(frozen=True)
class Match:
    """One sample taken for a copy: rows into the adapter's and the training pictures, the feature
    similarity, and the worst tile's difference."""

    picture: int
    training: int
    similarity: float
    difference: float


@dataclass(frozen=True)
class Copies:
    matches: tuple[Match, ...]
    of: int  # samples looked at
    nearest: tuple[Match, ...]  # each sample's nearest training picture, copy or not
    by_chance: float  # share of matches to expect of new pictures of the subject

    @property
    def hits(self) -> int:
        return len(self.matches)


def find_copies(evidence: Evidence) -> Copies | None:
    """The adapter's pictures that copy a training picture; None when no training picture is known,
    or pictures are known by their features alone.

    A sample matches a training picture when the worst of 16 tiles differs by less than a limit,
    flips, shifts of up to a sixteenth of the side and zooms of up to a tenth allowed for, and
    the features are more alike than 99 of 100 of the base's pictures are to any training picture.
    A match by less than half of the limit needs no confirmation. The limit is 0.09 at most (see
    `pixel_limits` for how the training pictures themselves lower it).
    With SSCD named, its cosine alone decides too: above 0.5, above 99 of 100 of the base's, and
    above 99 of 100 of what training pictures are to their nearest other one (duplicates aside).

    Source: the worst-tile distance is that of Carlini et al. 2023 (arXiv 2301.13188); the
    calibrated cosine follows Somepalli et al. 2022 (arXiv 2212.03860).
    """
    thumbs, view = evidence.thumbnails, evidence.views[0]
    if thumbs is None or thumbs.train is None or view.train is None or len(thumbs.train) == 0:
        return None
    every = tile_difference(torch.cat([thumbs.adapter, thumbs.base, thumbs.train]), thumbs.train)
    difference, base_difference, among = every.split(
        [len(thumbs.adapter), len(thumbs.base), len(thumbs.train)]
    )
    limit = pixel_limits(among, base_difference)
    similarity = view.adapter @ view.train.T
    bar = max(FEATURE_FLOOR, _base_bar(view))
    seen = (difference < limit) & ((similarity > bar) | (difference < limit / 2))
    if evidence.copies is not None and evidence.copies.train is not None:
        sscd = evidence.copies
        similarity = sscd.adapter @ evidence.copies.train.T
        seen = seen | (similarity > _sscd_bar(sscd, among))
    found: list[Match] = []
    nearest: list[Match] = []
    for row in range(len(difference)):
        order = torch.where(seen[row], difference[row] - 10, difference[row])
        column = int(order.argmin())
        match = Match(row, column, float(similarity[row, column]), float(difference[row, column]))
        nearest.append(match)
        if bool(seen[row].any()):
            found.append(match)
    return Copies(tuple(found), len(difference), tuple(nearest), chance_rate(among))


def tile_difference(
    pictures: Float[Tensor, "n p"], originals: Float[Tensor, "t p"]
) -> Float[Tensor, "n t"]:
    """The root mean square difference of the worst of 16 tiles, at the best flip, shift and zoom.

    pictures, originals: thumbnails in 0..1, compared at half their side; the shifts go by whole
    thumbnail pixels, so that none falls between two that are compared. The worst tile and not
    the whole, since pictures with large dark or plain areas are alike all over without being
    copies.
    """
    inner = SIDE - 2 * MARGIN
    tile = inner // 2 // TILES
    whole = pictures.reshape(-1, 3, SIDE, SIDE)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    small = F.avg_pool2d(whole, 2)
    windows = _windows(originals.reshape(-1, 3, SIDE, SIDE), inner)
    count = len(windows)
    worst = torch.zeros(len(small), count * len(originals))
    for top in range(0, inner // 2, tile):
        for left in range(0, inner // 2, tile):
            a = small[:, :, top : top + tile, left : left + tile].flatten(1)
            b = windows[..., top : top + tile, left : left + tile].flatten(2).flatten(0, 1)
            square = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
            torch.maximum(worst, square.clamp_min(0) / a.shape[1], out=worst)
    return worst.sqrt().reshape(len(small), count, len(originals)).amin(1)


def pixel_limits(among: Float[Tensor, "t t"], base: Float[Tensor, "m t"]) -> Float[Tensor, "t"]:
    """Below which difference a picture counts as a copy, for each training picture.

    0.09 at most; no more than six tenths of the way to the nearest other training picture that is
    not a duplicate (else a set of much the same pictures would make any good likeness a copy);
    and below all but one in a hundred of what the base, which cannot copy, makes.
    """
    others = among.clone()
    others[others < DUPLICATE] = torch.inf
    others.fill_diagonal_(torch.inf)
    limit = (NEARER * others.amin(1)).clamp_max(PIXEL_LIMIT)
    if len(base):
        limit = limit.clamp_max(float(base.amin(1).quantile(0.01)))
    return limit


def chance_rate(among: Float[Tensor, "t t"]) -> float:
    """The share of matches to expect of pictures that copy nothing: that of training pictures
    which another training picture matches, within 0.005 and 0.1.

    Where the subject always sits much the same on the same ground, new pictures fall together
    with old ones as these do with one another. One picture twice, or mirrored, tells nothing of
    that.
    """
    others = among.masked_fill(among < ONE_PICTURE, torch.inf).fill_diagonal_(torch.inf)
    share = float((others.amin(1) < PIXEL_LIMIT / 2).float().mean())
    return min(max(share, NULL_RATE), MOST_BY_CHANCE)


def _windows(originals: Float[Tensor, "t 3 s s"], inner: int) -> Float[Tensor, "v t 3 i i"]:
    """Every flip, zoom and shift of the originals, cut to the inner square and halved."""
    found = []
    for side in ZOOMS:
        zoomed = (
            originals
            if side == SIDE
            else F.interpolate(originals, (side, side), mode="bilinear", antialias=True)
        )
        halves = {(y, x): F.avg_pool2d(zoomed[..., y:, x:], 2) for y in range(2) for x in range(2)}
        start = (side - inner) // 2
        for y in range(start - MARGIN, start + MARGIN + 1):
            for x in range(start - MARGIN, start + MARGIN + 1):
                half = halves[y % 2, x % 2]
                window = half[..., y // 2 : (y + inner) // 2, x // 2 : (x + inner) // 2]
                found += [window, window.flip(-1)]
    return torch.stack(found)


def _base_bar(view: View) -> float:
    """What 99 of 100 of the base's pictures stay below in similarity to any training picture."""
    if view.train is None or len(view.base) == 0:
        return 0.0
    return float((view.base @ view.train.T).amax(1).quantile(0.99))


def _sscd_bar(view: View, among: Float[Tensor, "t t"]) -> float:
    bars = [SSCD_FLOOR, _base_bar(view)]
    if view.train is not None and len(view.train) > 1:
        alike = view.train @ view.train.T
        alike = alike.masked_fill(among < DUPLICATE, -1.0).fill_diagonal_(-1.0)
        bars.append(float(alike.amax(1).quantile(0.99)))
    return max(bars)
