"""Prompts that differ from seed to seed in what they leave open: lists of words, taken in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from variegate import seeds
from variegate.errors import RequestError

LIST = re.compile(r"\{([^{}]*)\}")


def varied(prompt: str, seed: int, additions: Sequence[str]) -> str:
    """The prompt with each addition after a comma, of every {list|of|words} one word.

    Which word hangs on the seed and the addition alone. Seeds are taken in blocks as long as the
    list, and each block has every word once, in an order of its own: N seeds show all of N words.
    A word may be empty, as in {|at night}.

    Raises: RequestError for an addition without a list of two words or more.

    >>> [varied("an owl", seed, ["{in snow|at sea}"]) for seed in range(2)]
    ['an owl, at sea', 'an owl, in snow']
    """
    parts = [prompt]
    for addition in additions:
        if not any("|" in found for found in LIST.findall(addition)):
            raise RequestError(
                f"{addition!r} leaves nothing open; expected a list of words in it, such as "
                "'on a {red|blue} background'"
            )
        parts.append(_chosen(addition, seed).strip())
    return ", ".join(part for part in parts if part)


def _chosen(addition: str, seed: int) -> str:
    number = 0

    def choose(found: re.Match[str]) -> str:
        nonlocal number
        number += 1
        words = found[1].split("|")
        block, place = divmod(seed, len(words))
        order = torch.randperm(len(words), generator=seeds.at(block, "vary", addition, number))
        return words[int(order[place])].strip()

    return LIST.sub(choose, addition)
