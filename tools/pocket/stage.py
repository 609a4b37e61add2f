"""One training stage: minutes of work, warm restarts, averaged weights, a line of progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pocket.muon import Muon
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def optimizers_of(
    module: nn.Module, lr: float, *, weight_decay: float, muon: bool
) -> list[torch.optim.Optimizer]:
    """AdamW for all, or, with `muon`, only for what is no inner matrix: embeddings, the last
    convolution, norms and biases."""
    inner = {
        id(p)
        for name, p in module.named_parameters()
        if muon and p.ndim >= 2 and "embedding" not in name and "conv_out" not in name
    }
    rest = [p for p in module.parameters() if id(p) not in inner]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
    ]
    if inner:
        matrices = [p for p in module.parameters() if id(p) in inner]
        found.append(Muon(matrices, lr, weight_decay=weight_decay))
    return found


class Average:
    """A module's averaged weights, and how long they were trained, in the folder and in memory."""

    def __init__(self, name: str, folder: Path, decay: float) -> None:
        self._weights, self._history = folder / f"{name}.safetensors", folder / f"{name}.json"
        self._decay = decay
        self._start = time.monotonic()
        self._done = {"seconds": 0.0, "steps": 0}
        self.step = 0

    @property
    def steps(self) -> int:
        """All that were ever taken."""
        return int(self._done["steps"]) + self.step

    def begin(self, module: nn.Module, shipped: Callable[[], dict[str, Tensor]] | None) -> None:
        """Lay into the module what the folder holds, else what ships, else leave it."""
        if self._weights.exists():
            module.load_state_dict(load_file(self._weights))
            self._done = json.loads(self._history.read_text())
        elif shipped is not None and (known := shipped()):
            module.load_state_dict(known)
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        self.step += 1
        decay = min(self._decay, (1 + self.step) / (10 + self.step))
        for k, v in module.state_dict().items():
            if v.is_floating_point():
                self.state[k].lerp_(v, 1 - decay)
            else:
                self.state[k].copy_(v)

    def save(self) -> None:
        save_file({k: v.contiguous() for k, v in self.state.items()}, self._weights)
        seconds = self._done["seconds"] + time.monotonic() - self._start
        self._history.write_text(json.dumps({"seconds": seconds, "steps": self.steps}))


def run_stage(
    name: str,
    module: nn.Module,
    loss_of: Callable[[int], dict[str, Tensor]],
    *,
    folder: Path,
    minutes: float,
    lr: float,
    weight_decay: float = 0.01,
    ema_decay: float = 0.999,
    muon: bool = False,
    warmup: int = 100,
    final: bool = True,
    check: Callable[[], str] | None = None,
    shipped: Callable[[], dict[str, Tensor]] | None = None,
) -> None:
    """Train `module` for some minutes and leave its averaged weights in it and on disk.

    The learning rate falls along a cosine to nothing when `final`, else to a third, by the clock:
    a stage that starts again goes on from the averaged weights of the last one, or, in a fresh
    folder, from the weights that `shipped` gives.
    """
    torch.set_flush_denormal(True)  # dead units otherwise slow the processor manyfold
    folder.mkdir(parents=True, exist_ok=True)
    average = Average(name, folder, ema_decay)
    average.begin(module, shipped)
    optimizers = optimizers_of(module, lr, weight_decay=weight_decay, muon=muon)
    start = said = saved = time.monotonic()
    means: dict[str, float] = {}
    floor = 0.0 if final else 0.33
    while (spent := time.monotonic() - start) < minutes * 60:
        fall = 0.5 * (1 + math.cos(math.pi * spent / (minutes * 60)))
        rate = lr * (floor + (1 - floor) * fall) * min(1.0, (average.step + 1) / warmup)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = rate
        terms = loss_of(average.steps)
        loss = sum(terms.values())
        assert isinstance(loss, Tensor)
        module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.take(module)
        for k, v in terms.items():
            means[k] = 0.98 * means.get(k, float(v.detach())) + 0.02 * float(v.detach())
        now = time.monotonic()
        if now - said > 20:
            said = now
            told = "  ".join(f"{k} {v:.4f}" for k, v in means.items())
            print(f"{name}  {spent / 60:5.1f} min  step {average.step}  {told}", flush=True)
        if now - saved > 120:
            saved = now
            average.save()
    average.save()
    module.load_state_dict(average.state)
    if check is not None:
        print(f"{name}  done: {check()}", flush=True)
