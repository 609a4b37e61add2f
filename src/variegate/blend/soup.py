"""Who goes into a soup: members are taken in while a score does not fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from variegate.adapter import Adapter
from variegate.blend.together import Blended, blend


@dataclass(frozen=True)
class Tasting:
    """One try: who was in it, the score, and whether its last member stayed."""

    members: tuple[int, ...]
    score: float
    stayed: bool


@dataclass(frozen=True)
class Soup:
    """The mean of those that were taken in, and every try in order."""

    members: tuple[int, ...]
    blended: Blended
    tastings: tuple[Tasting, ...]


def greedy_soup(
    members: Sequence[Adapter],
    score: Callable[[Adapter], float],
    *,
    rank: int | None = None,
) -> Soup:
    """Members by their own score, best first, each kept when the mean with it scores no less.

    score: higher is better; asked once per member and once per try, of the mean at the rank that
    is asked for. Ties go to the member that stands first.

    Source: Wortsman et al., Model soups, 2022, arXiv 2203.05482, recipe 1.
    Raises: as `blend`.
    """
    blend(members)  # all that is wrong with them, before hours of judging
    alone = [score(member) for member in members]
    order = sorted(range(len(members)), key=lambda i: (-alone[i], i))
    taken, best = [order[0]], alone[order[0]]
    tastings = [Tasting((order[0],), best, True)]
    for i in order[1:]:
        tried = [*taken, i]
        found = score(blend([members[j] for j in tried], rank=rank).adapter)
        stays = found >= best
        tastings.append(Tasting(tuple(tried), found, stays))
        if stays:
            taken, best = tried, found
    return Soup(tuple(taken), blend([members[j] for j in taken], rank=rank), tuple(tastings))
