"""Randomness as an address: the same (root, stream, address) always gives the same draws.

No generator is ever carried from one step to the next, so adding a probe, resuming or rewinding
shifts nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def number(root: int, stream: str, *address: int | str) -> int:
    """A 63-bit seed for one address."""
    text = "\x1f".join([str(root), stream, *map(str, address)])
    data = text.encode("utf8", "surrogatepass")  # names of files need not be UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def at(root: int, stream: str, *address: int | str) -> torch.Generator:
    """A CPU generator for one address: draw on the CPU, then move, so devices agree.

    >>> a = torch.rand(3, generator=at(0, "noise", 7))
    >>> bool((a == torch.rand(3, generator=at(0, "noise", 7))).all())
    True
    """
    return torch.Generator().manual_seed(number(root, stream, *address))


def numpy_at(root: int, stream: str, *address: int | str) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(number(root, stream, *address))
