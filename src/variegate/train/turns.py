"""Whose turn it is: which examples each step takes, from its number alone.

A card is one turn in an epoch; it is held by one example, or by several that share it and take it
in turns, epoch by epoch. Cards lie in decks, one for each shape of picture, and a step draws from
one deck.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
