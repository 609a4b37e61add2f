"""Several processes at one run, as `torchrun` or `accelerate launch` starts them.

Every process makes the whole batch of a step, works on its share of the rows, and adds its gradient
to the others': so a step is that of one process at the same batch, but for the order in which
numbers are added. The first process alone owns the folder: it notes, looks, saves, and says what
the guard decided.

Only numbers and JSON go from one to another. A process that dies or hangs ends them all, with a
message, within `TIMEOUT`; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from variegate.errors import RequestError, VariegateError, WorkerLost

TIMEOUT = "VARIEGATE_RANK_TIMEOUT"  # seconds that a process waits for the others
SECONDS = 600.0  # long enough for the first to draw its panels


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is. Alone, nothing here does anything.

    network: what the processes hold a part of each, and so have to pass through together; None
    where each has it whole. lend: makes a small pass through it.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    network: Any = field(default=None, repr=False, compare=False)
    lend: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Which part of a step's rows is this process's: part so many of how many."""
        return self.rank, self.size

    @contextmanager
    def owning(self, lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """The first one holds the lock for all.

        Raises: what keeps the first one from it there, WorkerLost elsewhere.
        """
        with ExitStack() as ends:
            with self.as_one():
                if self.first:
                    ends.enter_context(lock())
            yield

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first one does the block, then all others, which ask the network nothing then."""
        if not self.first:
            self._accompany()
            with self.as_one():  # the first one's end of its turn
                pass
        with self.as_one() if self.first else nullcontext(), self._accompanied():
            yield

    @contextmanager
    def led(self) -> Iterator[None]:
        """In the block the first one alone asks the network something; all come to it. Where the
        network is divided, the others lend it their parts, pass by pass."""
        if not self.first:
            self._accompany()
        with self._accompanied():
            yield

    @contextmanager
    def _accompanied(self) -> Iterator[None]:
        """While the block runs in the first one, the others make each of its passes with it."""
        if self.network is None or not self.first:
            yield
            return

        def announce(*_: Any) -> None:
            self.shared(True)

        # Before the network's own, which gathers the others' parts.
        hook = self.network.register_forward_pre_hook(announce, prepend=True)
        try:
            yield
        finally:
            hook.remove()
            self.shared(False)

    def _accompany(self) -> None:
        """Make each pass with the first one, until it has done with its block."""
        while self.lend is not None and self.shared(None):
            self.lend()

    def wait(self) -> None:
        """Until all are here."""
        self._numbers([0], torch.distributed.ReduceOp.MAX)

    def shared(self, value: Any) -> Any:
        """The first one's value, as JSON has it; what others hand over is left out."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        (length,) = self._numbers([len(text)], torch.distributed.ReduceOp.MAX)
        data = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.first:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        with self._together():
            torch.distributed.broadcast(data, src=0)
        return json.loads(bytes(data.cpu().tolist()))

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value in their order, as JSON has it."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = [len(text) if rank == self.rank else 0 for rank in range(self.size)]
        lengths = self._numbers(lengths, torch.distributed.ReduceOp.MAX)
        ends = [sum(lengths[: rank + 1]) for rank in range(self.size)]
        data = torch.zeros(ends[-1], dtype=torch.uint8)
        data[ends[self.rank] - len(text) : ends[self.rank]] = torch.frombuffer(
            bytearray(text), dtype=torch.uint8
        )
        whole = bytes(self.laid_together(data).tolist())
        return [
            json.loads(whole[end - length : end]) for end, length in zip(ends, lengths, strict=True)
        ]

    def laid_together(self, parts: Tensor) -> Tensor:
        """The numbers that any process has, where all others have noughts."""
        if self.size == 1:
            return parts
        whole = parts.to(self.device)
        with self._together():
            torch.distributed.all_reduce(whole)
        return whole.cpu()

    def most(self, number: int) -> int:
        """The largest of what the processes have."""
        return self._numbers([number], torch.distributed.ReduceOp.MAX)[0]

    def summed(self, terms: Mapping[str, float]) -> dict[str, float]:
        """Each term added up over all processes."""
        if self.size == 1:
            return dict(terms)
        values = torch.tensor(list(terms.values()), dtype=torch.float64).to(self._dtype())
        values = values.to(self.device)
        with self._together():
            torch.distributed.all_reduce(values)
        return dict(zip(terms, values.tolist(), strict=True))

    def add_up(self, parameters: Sequence[Tensor]) -> None:
        """Make every parameter's gradient the sum of all processes'; where none has one, none."""
        if self.size == 1:
            return
        there = [int(p.grad is not None) for p in parameters]
        found = self._numbers(there, torch.distributed.ReduceOp.MAX)
        moved = [p for p, some in zip(parameters, found, strict=True) if some]
        if not moved:
            return
        for p in moved:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in moved if p.grad is not None])
        with self._together():
            torch.distributed.all_reduce(flat)
        begin = 0
        for p in moved:
            assert p.grad is not None
            p.grad.copy_(flat[begin : begin + p.numel()].view_as(p))
            begin += p.numel()

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """What fails in one process fails in all, so that none waits for it. Where the network is
        divided the others may be amid a pass then, and find that one is gone.

        Raises: the fault where it happened, WorkerLost elsewhere.
        """
        fault: VariegateError | None = None
        try:
            with self._together() if self.network is not None else nullcontext():
                yield
        except VariegateError as error:
            if self.size == 1 or self.network is not None:
                raise
            fault = error
        if self.size == 1:
            return
        which = self.most(self.rank + 1 if fault else 0)
        if fault:
            raise fault
        if which:
            raise WorkerLost(
                f"process {which - 1} of {self.size} stopped at this step, and says why; the last "
                "checkpoint stands"
            )

    def _numbers(self, numbers: Sequence[int], how: Any) -> list[int]:
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(list(numbers), dtype=torch.int64, device=self.device)
        with self._together():
            torch.distributed.all_reduce(told, op=how)
        return [int(n) for n in told.tolist()]

    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "mps" else torch.float64

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raises: WorkerLost when another process is not there any more, or too late."""
        try:
            yield
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise WorkerLost(
                f"process {self.rank} of {self.size} waits for another that died or hangs "
                f"({said}); all end here: the same command goes on from the last checkpoint. "
                f"{TIMEOUT}=SECONDS says how long to wait"
            ) from error


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that were started together, while the block runs; this one alone if it was
    started alone.

    Raises: RequestError when the environment does not say how to meet, WorkerLost when the others
    do not come.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    if torch.distributed.is_initialized():
        raise RequestError("these processes have met already; train one run at a time")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    seconds = float(os.environ.get(TIMEOUT, SECONDS))
    rank = int(os.environ["RANK"])
    try:
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=timedelta(seconds=seconds)
        )
    except (RuntimeError, ValueError) as error:
        raise WorkerLost(
            f"process {rank} of {size} did not meet the others within {seconds:g} s: "
            f"{' '.join(str(error).split())[:200]}; start them together, as torchrun does"
        ) from error
    try:
        yield Ranks(rank, size, "cuda" if cuda else "cpu")
    finally:
        torch.distributed.destroy_process_group()
