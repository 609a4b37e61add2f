"""What moves an adapter: its optimizer, the rate over time, and what of it a checkpoint keeps.

Every optimizer is a library's own. Add one: an entry in `recipe.OptimizerPlan`, a line in `MAKERS`
and a line in the test that asks all of them to learn and to resume.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from variegate.adapter import Attached
from variegate.errors import NotFinite, RecipeError
from variegate.recipe import (
    Adafactor,
    AdamW,
    AdamW8bit,
    Constant,
    Linear,
    OptimizerPlan,
    Polynomial,
    Prodigy,
    Restarts,
    ScheduleFree,
)
from variegate.train.ranks import Ranks

_POINT = "training_point"  # where schedule-free optimizers take gradients; not what is learnt


def rate_at(step: int, plan: OptimizerPlan) -> float:
    """The share of the peak learning rate at a step (from 1): warm-up, then the schedule."""
    if step <= plan.warmup:
        return step / plan.warmup
    how, length = plan.schedule, max(1, plan.steps - plan.warmup)
    if isinstance(how, Constant):
        return 1.0
    done = min(1.0, (step - plan.warmup - 1) / length)
    if isinstance(how, Linear):
        share = 1 - done
    elif isinstance(how, Polynomial):
        share = (1 - done) ** how.power
    else:
        if isinstance(how, Restarts):
            done = done * how.cycles % 1
        share = 0.5 * (1 + math.cos(math.pi * done))
    return how.floor + (1 - how.floor) * share


class Descent:
    """The optimizer of an attached adapter. One step: `clear`, any number of `add`, `share` among
    processes, `take`."""

    def __init__(self, plan: OptimizerPlan, on: Attached, *, device: Any, precision: str) -> None:
        self.plan = plan
        self._on = on
        groups = on.parameters
        self._rates = {group["name"]: _peak(plan, group["name"]) for group in groups}
        self._factors = [_of_a_layer(group) for group in groups]
        kind = torch.device(device).type
        on_factors = plan.weight_decay if plan.weight_decay_on == "factors" else 0.0
        self._optimizer = MAKERS[type(plan)](
            [{**group, "lr": self._rates[group["name"]]} for group in groups],
            plan,
            on_factors,
            kind,
        )
        self._averages = isinstance(plan, ScheduleFree)
        if self._averages:
            self._optimizer.train()
        self._scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")

    def clear(self) -> None:
        """Forget all gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Tensor) -> None:
        """Add the gradient of one part of a batch to what is there."""
        self._scaler.scale(loss).backward()

    def share(self, ranks: Ranks) -> None:
        """Have the gradients of all processes added up in each."""
        ranks.add_up([p for group in self._optimizer.param_groups for p in group["params"]])

    def take(self, step: int, *, factor: float = 1.0, what: str = "") -> float:
        """Take step `step` (from 1) along the gradients; the learning rate that it took.

        factor: on every learning rate, beside the schedule's. what: the pictures, for the error.
        Raises: NotFinite, before anything has moved.
        """
        plan = self.plan
        share = rate_at(step, plan) * factor
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * share
        self._scaler.unscale_(self._optimizer)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        # With fp16 the scaler skips a step whose gradients overflow, and eases its scale.
        if not self._scaler.is_enabled() and not math.isfinite(float(norm)):
            raise NotFinite(
                f"the gradient at step {step} is {float(norm)} on pictures {what}; the last "
                f"checkpoint stands: lower optimizer.lr (found {plan.lr:g}) or use precision "
                "float32"
            )
        rate = plan.lr * share * self._found_rate()
        if plan.weight_decay_on == "product" and math.isfinite(float(norm)):
            self._shrink_products()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return rate

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While the block runs the adapter is what will be saved: the average, where there is one.

        Where gradients are taken is kept aside and put back to the bit: going to the average and
        back by arithmetic rounds, and watching would change the run.
        """
        if not self._averages:
            yield
            return
        point = self._point()
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            self._stand_at(point)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's tensors by `<factor>.<name>`, on the CPU."""
        kept = {
            f"{name}.{key}": value.detach().cpu().clone().contiguous()
            for name, parameter in self._on.named_parameters()
            for key, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        if self._averages:
            kept |= {f"{name}.{_POINT}": value.cpu() for name, value in self._point().items()}
        return kept

    def numbers(self) -> dict[str, Any]:
        """What else it knows: numbers by factor and by part of the model, and fp16's scale."""
        defaults = self._optimizer.defaults
        return {
            "scaler": self._scaler.state_dict(),
            "factors": {
                name: found
                for name, parameter in self._on.named_parameters()
                if (found := _plain(self._optimizer.state[parameter], {}))
            },
            "parts": {
                group["name"]: _plain({k: v for k, v in group.items() if k != "lr"}, defaults)
                for group in self._optimizer.param_groups
            },
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Stand where `tensors` and `numbers` were asked for."""
        fused = bool(self._optimizer.defaults.get("fused"))
        points = {}
        for name, parameter in self._on.named_parameters():
            state: dict[str, Any] = dict(numbers["factors"].get(name, {}))
            for full, value in tensors.items():
                owner, _, key = full.rpartition(".")
                if owner != name:
                    continue
                # torch counts steps on the CPU, and beside the weights only where it fuses.
                beside = key != "step" or fused
                state[key] = value.clone().to(parameter.device if beside else "cpu")
            if _POINT in state:
                points[name] = state.pop(_POINT)
            self._optimizer.state[parameter] = state
        for group in self._optimizer.param_groups:
            group.update(numbers["parts"].get(group["name"], {}))
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(numbers["scaler"])
        self._stand_at(points)

    def _point(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._on.named_parameters()}

    def _stand_at(self, point: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._on.named_parameters():
                if name in point:
                    parameter.copy_(point[name])

    def _found_rate(self) -> float:
        """The factor on the rate that Prodigy has found so far; 1 for all others."""
        return float(self._optimizer.param_groups[0].get("d", 1.0))

    def _shrink_products(self) -> None:
        """Each layer's update times 1 - lr * weight_decay, spread evenly over its factors."""
        for group, counts in zip(self._optimizer.param_groups, self._factors, strict=True):
            rate = group["lr"] * self._found_rate()
            left = max(0.0, 1 - rate * self.plan.weight_decay)
            with torch.no_grad():
                for parameter, count in zip(group["params"], counts, strict=True):
                    parameter.mul_(left ** (1 / count))


def _peak(plan: OptimizerPlan, part: str) -> float:
    """The peak learning rate of a part of the model; text encoders learn at half the rate."""
    if isinstance(plan, Prodigy) or not part.startswith("text_encoder"):
        return plan.lr
    return plan.text_encoder_lr or plan.lr / 2


def _of_a_layer(group: dict[str, Any]) -> list[int]:
    """For each factor of a group, how many factors its layer's update is the product of."""
    layers = [name.rpartition(".")[0] for name in group["names"]]
    return [layers.count(layer) for layer in layers]


def _plain(entries: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The numbers among some entries that are not as they began."""
    return {
        key: value
        for key, value in entries.items()
        if isinstance(value, int | float) and value != defaults.get(key)
    }


Groups = list[dict[str, Any]]


def _adamw(groups: Groups, plan: AdamW, weight_decay: float, device: str) -> Any:
    return torch.optim.AdamW(
        groups,
        lr=plan.lr,
        betas=(plan.beta1, plan.beta2),
        weight_decay=weight_decay,
        fused=device in ("cpu", "cuda"),
    )


def _adamw8bit(groups: Groups, plan: AdamW8bit, weight_decay: float, device: str) -> Any:
    if device != "cuda":
        raise RecipeError(
            f"optimizer.kind: 'adamw8bit' works on NVIDIA GPUs only, and this run is on {device!r};"
            " use adamw, or adafactor, whose state is as small"
        )
    library = _library("bitsandbytes", "adamw8bit", extra="gpu")
    return library.optim.AdamW8bit(
        groups, lr=plan.lr, betas=(plan.beta1, plan.beta2), weight_decay=weight_decay
    )


def _adafactor(groups: Groups, plan: Adafactor, weight_decay: float, device: str) -> Any:
    from transformers.optimization import Adafactor as Maker

    return Maker(
        groups, lr=plan.lr, weight_decay=weight_decay, scale_parameter=False, relative_step=False
    )


def _prodigy(groups: Groups, plan: Prodigy, weight_decay: float, device: str) -> Any:
    library = _library("prodigyopt", "prodigy", extra="optimizers")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it was asked
        return library.Prodigy(
            groups,
            lr=plan.lr,
            betas=(plan.beta1, plan.beta2),
            weight_decay=weight_decay,
            d_coef=plan.d_coef,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
        )


def _schedulefree(groups: Groups, plan: ScheduleFree, weight_decay: float, device: str) -> Any:
    library = _library("schedulefree", "schedulefree", extra="optimizers")
    return library.AdamWScheduleFree(
        groups, lr=plan.lr, betas=(plan.beta1, plan.beta2), weight_decay=weight_decay
    )


def _library(name: str, kind: str, *, extra: str) -> Any:
    """Raises: RecipeError with the line that installs what is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"optimizer.kind: {kind!r} needs the package {name!r}, which cannot be imported "
            f"({error}); pip install 'variegate[{extra}]', or use adamw"
        ) from error


MAKERS: dict[type[Any], Callable[[Groups, Any, float, str], Any]] = {
    AdamW: _adamw,
    AdamW8bit: _adamw8bit,
    Adafactor: _adafactor,
    Prodigy: _prodigy,
    ScheduleFree: _schedulefree,
}
