"""Whose turn it is: which examples each step takes, from its number alone.

`Turns` is for pictures that are held whole, `BlockTurns` for those that are read as they come.

A card is one turn in an epoch; it is held by one example, or by several that share it and take it
in turns, epoch by epoch. Cards lie in decks, one for each shape of picture, and a step draws from
one deck.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from variegate import seeds

Card = tuple[int, ...]  # the examples that share one turn; one of them has it in each epoch


class Turns:
    """Steps counted from 1 -> indices of examples.

    Every epoch of a deck is shuffled anew. Decks get steps in proportion to their cards: the next
    step goes to the deck that is farthest behind its share, so none is ever a whole step behind
    for long, and after as many steps as there are cards all cards were drawn equally often.
    """

    def __init__(self, decks: Sequence[Sequence[Card]], *, size: int, seed: int) -> None:
        self._decks = decks
        self._size = size
        self._seed = seed
        self._total = sum(map(len, decks))
        self._picked: list[tuple[int, int]] = []  # for each step: its deck, and steps it had before
        self._taken = [0] * len(decks)

    def at(self, step: int) -> list[int]:
        """The examples of a step, all of one deck."""
        which, before = self._deck_of(step)
        deck = self._decks[which]
        # With a single deck the address is what it was before there were several.
        stream = ("order",) if len(self._decks) == 1 else ("order in deck", which)
        picked = []
        for place in range(before * self._size, (before + 1) * self._size):
            epoch, at = divmod(place, len(deck))
            order = torch.randperm(
                len(deck), generator=seeds.at(self._seed, str(stream[0]), *stream[1:], epoch)
            )
            card = deck[int(order[at])]
            # Copies of one card start at different holders, so that an epoch shows many of them.
            turn = epoch * deck.count(card) + deck[: int(order[at])].count(card)
            picked.append(card[turn % len(card)])
        return picked

    def _deck_of(self, step: int) -> tuple[int, int]:
        while len(self._picked) < step:
            now = len(self._picked) + 1
            behind = [
                len(deck) * now - taken * self._total
                for deck, taken in zip(self._decks, self._taken, strict=True)
            ]
            which = behind.index(max(behind))
            self._picked.append((which, self._taken[which]))
            self._taken[which] += 1
        return self._picked[step - 1]


class BlockTurns:
    """Steps counted from 1 -> numbers of pictures that lie in blocks, which are read whole.

    Every epoch takes the blocks in an order of its own, `at_once` of them at a time, a window, and
    shows the pictures of a window in an order of their own; each picture once. So reading goes by
    blocks, and what is remembered does not grow with the pictures. Where all blocks fit into one
    window it is an ordinary shuffle.

    Source: Xu et al., Stochastic Gradient Descent without Full Data Shuffle (CorgiPile), 2022
    (arXiv 2206.05830): blocks, then what is in them; it converges much as a full shuffle does.

    ends: how many pictures are before the end of each block.
    """

    def __init__(self, ends: NDArray[np.int64], *, at_once: int, size: int, seed: int) -> None:
        self._begins = np.concatenate([[0], ends[:-1]])
        self._lengths = ends - self._begins
        self._total = int(ends[-1])
        self._at_once, self._size, self._seed = at_once, size, seed
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._shuffled: dict[tuple[int, int], NDArray[np.int64]] = {}

    def at(self, step: int) -> list[int]:
        """The pictures of a step."""
        return [self._picture(place) for place in self._places(step)]

    def windows(self, step: int) -> list[tuple[int, int]]:
        """The windows that a step takes pictures from, as (epoch, which), mostly one."""
        found = [self._window(place)[:2] for place in self._places(step)]
        return list(dict.fromkeys(found))

    def after(self, window: tuple[int, int]) -> tuple[int, int]:
        """The window after one."""
        epoch, which = window
        last = len(self._order(epoch)[1]) - 1
        return (epoch, which + 1) if which < last else (epoch + 1, 0)

    def begins(self, window: tuple[int, int]) -> int:
        """The step that first takes a picture of a window."""
        epoch, which = window
        ends = self._order(epoch)[1]
        place = epoch * self._total + (int(ends[which - 1]) if which else 0)
        return place // self._size + 1

    def blocks(self, window: tuple[int, int]) -> list[int]:
        """The blocks of a window."""
        epoch, which = window
        order = self._order(epoch)[0]
        return [int(b) for b in order[which * self._at_once : (which + 1) * self._at_once]]

    def pictures(self, window: tuple[int, int]) -> NDArray[np.int64]:
        """The pictures of a window, in the order of their turns."""
        if window not in self._shuffled:
            blocks = self.blocks(window)
            parts = [
                np.arange(begin, begin + length)
                for begin, length in zip(
                    self._begins[blocks].tolist(), self._lengths[blocks].tolist(), strict=True
                )
            ]
            numbers = np.concatenate(parts)
            turn = torch.randperm(
                len(numbers), generator=seeds.at(self._seed, "order in blocks", *window)
            )
            while len(self._shuffled) > 2:
                del self._shuffled[next(iter(self._shuffled))]
            self._shuffled[window] = numbers[turn.numpy()]
        return self._shuffled[window]

    def _places(self, step: int) -> range:
        return range((step - 1) * self._size, step * self._size)

    def _picture(self, place: int) -> int:
        epoch, which, within = self._window(place)
        return int(self.pictures((epoch, which))[within])

    def _window(self, place: int) -> tuple[int, int, int]:
        """The epoch of a place in the row of all turns, the window, and the place in it."""
        epoch, at = divmod(place, self._total)
        ends = self._order(epoch)[1]
        which = int(np.searchsorted(ends, at, side="right"))
        return epoch, which, at - (int(ends[which - 1]) if which else 0)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's order of blocks, and how many pictures are before the end of each window."""
        if epoch not in self._orders:
            blocks = torch.randperm(
                len(self._lengths), generator=seeds.at(self._seed, "blocks", epoch)
            ).numpy()
            ends = np.cumsum(self._lengths[blocks])
            last = np.arange(self._at_once, len(ends) + self._at_once, self._at_once)
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = blocks, ends[np.minimum(last, len(ends)) - 1]
        return self._orders[epoch]
