"""How strongly an adapter that is on a model acts, set for each row of a batch.

Every update is linear in its strength s: the layer answers W x + s delta x. So a row's share of
what the adapter adds can be scaled on its own, whatever the other rows have; only what is laid on
the weights themselves (whole differences, norms, biases) is the same for all rows of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from variegate.adapter.timed import TimedLora
from variegate.adapter.tuners import SLOT
from variegate.errors import AdapterError


class Dial:
    """Hangs on an adapter's layers when it is put on; at 1 for every row nothing is touched."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None  # None: all rows at 1
        self._laid: list[Callable[[float], None]] = []
        self._at = 1.0  # where what is laid on stands

    @property
    def by_row(self) -> bool:
        """Whether rows of one call may differ."""
        return not self._laid

    def turn(self, strengths: Sequence[float]) -> None:
        """Let the next calls have these strengths, one for each of their rows, or one for all.

        Raises: AdapterError for different ones where `by_row` is false.
        """
        if all(strength == 1 for strength in strengths):
            self._rows = None
        else:
            self._rows = torch.tensor(strengths, dtype=torch.float32)
        if not self._laid:
            return
        if len(set(strengths)) > 1:
            raise AdapterError(
                "this adapter changes weights themselves and acts on all rows of a call alike; "
                f"found strengths {sorted(set(strengths))}"
            )
        if strengths[0] != self._at:
            for lay in self._laid:
                lay(strengths[0])
            self._at = strengths[0]

    def hang(self, layer: Any) -> None:
        """Hear a layer of an adapter."""
        plain = hasattr(layer, "lora_B") and SLOT not in layer.lora_magnitude_vector
        if plain and not isinstance(layer, TimedLora):
            layer.lora_B[SLOT].register_forward_hook(self._scale)
        else:
            layer.register_forward_hook(self._blend)

    def lay(self, at: Callable[[float], None]) -> None:
        """Hear weights that an adapter is laid on; at: lays it on at a strength."""
        self._laid.append(at)

    def _scale(self, module: nn.Module, given: Any, added: Tensor) -> Tensor | None:
        return None if self._rows is None else added * self._by_row_of(added)

    def _blend(self, layer: Any, given: Any, answer: Tensor) -> Tensor | None:
        if self._rows is None:
            return None
        base: Tensor = layer.get_base_layer()(*given)
        return base + self._by_row_of(answer) * (answer - base)

    def _by_row_of(self, like: Tensor) -> Tensor:
        assert self._rows is not None
        rows = self._rows
        if len(rows) not in (1, len(like)):
            raise AdapterError(f"a layer has {len(like)} rows and {len(rows)} strengths")
        return rows.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
