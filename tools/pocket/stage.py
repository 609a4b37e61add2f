"""One training stage: minutes of work, warm restarts, averaged weights, a line of progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


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
    weights, history = folder / f"{name}.safetensors", folder / f"{name}.json"
    done = {"seconds": 0.0, "steps": 0}
    if weights.exists():
        module.load_state_dict(load_file(weights))
        done = json.loads(history.read_text())
    elif shipped is not None and (known := shipped()):
        module.load_state_dict(known)
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    optimizer = torch.optim.AdamW(
        module.parameters(), lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )

    def save() -> None:
        save_file({k: v.contiguous() for k, v in average.items()}, weights)
        history.write_text(
            json.dumps(
                {
                    "seconds": done["seconds"] + time.monotonic() - start,
                    "steps": done["steps"] + step,
                }
            )
        )

    start = said = saved = time.monotonic()
    step = 0
    means: dict[str, float] = {}
    while (spent := time.monotonic() - start) < minutes * 60:
        share = spent / (minutes * 60)
        floor = 0.0 if final else 0.33
        scale = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale * min(1.0, (step + 1) / warmup)
        terms = loss_of(done["steps"] + step)
        loss = sum(terms.values())
        assert isinstance(loss, Tensor)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in module.state_dict().items():
                if v.is_floating_point():
                    average[k].lerp_(v, 1 - decay)
                else:
                    average[k].copy_(v)
        for k, v in terms.items():
            means[k] = 0.98 * means.get(k, float(v.detach())) + 0.02 * float(v.detach())
        now = time.monotonic()
        if now - said > 20:
            said = now
            said_terms = "  ".join(f"{k} {v:.4f}" for k, v in means.items())
            print(f"{name}  {spent / 60:5.1f} min  step {step}  {said_terms}", flush=True)
        if now - saved > 120:
            saved = now
            save()
    save()
    module.load_state_dict(average)
    if check is not None:
        print(f"{name}  done: {check()}", flush=True)
