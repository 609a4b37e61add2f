"""Keys that have a meaning beside others only: rates, warm-up, cycles, accumulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from variegate.errors import RecipeError
from variegate.imports.preset import Imported, Rule, Unfit, number, show
from variegate.recipe import Recipe

# What only has a meaning beside other keys; read once all are seen.
TOGETHER = (
    *("learning_rate", "unet_lr", "text_encoder_lr"),
    *("lr_warmup", "lr_warmup_steps", "learning_rate_warmup_steps"),
    *("lr_scheduler_num_cycles", "learning_rate_cycles", "lr_scheduler_power"),
    "gradient_accumulation_steps",
)


def by_rules(kind: str, tables: Mapping[str, Any], rules: Mapping[str, Rule]) -> Imported:
    """A preset read key by key, then what keys mean together."""
    imported = Imported(kind)
    for key, value in tables.items():
        if key in TOGETHER:
            continue
        rule = rules.get(key)
        if rule is None:
            imported.left_out.append(f"{show(key)} = {show(value)}: no counterpart here")
            continue
        try:
            rule(imported, key, value)
        except Unfit as error:
            imported.left_out.append(f"{key} = {show(value)}: {error}")
    for settle in (_rates, _warmup, _cycles, _accumulation, _drop_unfit):
        settle(imported, tables)
    return imported


def _number_of(imported: Imported, tables: Mapping[str, Any], key: str) -> float | None:
    """A number by a key; None where there is none or where it is left out as no number."""
    if key not in tables:
        return None
    try:
        return number(tables[key])
    except Unfit as error:
        imported.left_out.append(f"{key} = {show(tables[key])}: {error}")
        return None


def _rates(imported: Imported, tables: Mapping[str, Any]) -> None:
    """kohya: a part without a rate of its own is left out; where neither has one, both learn."""
    common, unet, text = (
        _number_of(imported, tables, key) for key in ("learning_rate", "unet_lr", "text_encoder_lr")
    )
    if common is None and unet is None and text is None:
        return
    if not unet and not text:
        unet = common
        if imported.kind.startswith("kohya"):
            text = common
    if unet:
        imported.put("optimizer.lr", unet)
        imported.taken.append(f"learning rate {unet:g}: optimizer.lr")
    if text:
        imported.put("adapter.text_encoder", True)
        imported.put("optimizer.text_encoder_lr", text)
        imported.taken.append(f"text encoder's rate {text:g}: optimizer.text_encoder_lr")
    if common is not None and unet and common != unet:
        imported.left_out.append(f"learning_rate = {common:g}: unet_lr stands in its place")
    if text and not unet:
        imported.left_out.append("unet_lr = 0: the UNet always learns here, at the default rate")


def _warmup(imported: Imported, tables: Mapping[str, Any]) -> None:
    steps = imported.tables.get("optimizer", {}).get("steps")
    share = _number_of(imported, tables, "lr_warmup")
    for key in ("lr_warmup_steps", "learning_rate_warmup_steps"):
        count = _number_of(imported, tables, key)
        if count is not None and count == int(count) and count >= 0:
            imported.put("optimizer.warmup", int(count))
            imported.taken.append(f"{key} = {count:g}: optimizer.warmup")
        elif count is not None:
            imported.left_out.append(f"{key} = {count:g}: not a number of steps")
    if not share:
        return
    if steps is None or not 0 < share <= 100:
        imported.left_out.append(f"lr_warmup = {share:g} %: of how many steps is not known")
    else:
        imported.put("optimizer.warmup", round(steps * share / 100))
        imported.changed.append(
            f"lr_warmup = {share:g} %: optimizer.warmup = {round(steps * share / 100)} steps"
        )


def _cycles(imported: Imported, tables: Mapping[str, Any]) -> None:
    """Settings of a schedule count where that schedule was chosen."""
    schedule = imported.tables.get("optimizer", {}).get("schedule")
    for key, kind, name in (
        ("lr_scheduler_num_cycles", "restarts", "cycles"),
        ("learning_rate_cycles", "restarts", "cycles"),
        ("lr_scheduler_power", "polynomial", "power"),
    ):
        value = _number_of(imported, tables, key)
        if not value:
            continue
        if schedule != kind:
            imported.left_out.append(f"{key} = {value:g}: the schedule has no {name}")
            continue
        whole = int(value) if value == int(value) else value
        imported.put("optimizer.schedule", {"kind": kind, name: whole})
        imported.taken.append(f"{key} = {value:g}: optimizer.schedule.{name}")


def _accumulation(imported: Imported, tables: Mapping[str, Any]) -> None:
    """n batches of b per step are one batch of n * b here, b rows at a time."""
    times = _number_of(imported, tables, "gradient_accumulation_steps")
    if times is None or times == 1:
        return
    if times != int(times) or not 1 < times <= 4096:
        imported.left_out.append(f"gradient_accumulation_steps = {times:g}: not a count")
        return
    size = int(imported.tables.get("optimizer", {}).get("batch_size", 1))
    imported.put("optimizer.batch_size", size * int(times))
    imported.put("optimizer.micro_batch", size)
    imported.changed.append(
        f"gradient_accumulation_steps = {times:g}: batches of {size * int(times)}, "
        f"{size} rows at a time"
    )


def _drop_unfit(imported: Imported, tables: Mapping[str, Any]) -> None:
    """Leave out what the chosen optimizer refuses, each entry by itself."""
    plan = imported.tables.get("optimizer", {})
    kind = plan.get("kind", "adamw")
    for key in [k for k in plan if k != "kind"]:
        try:
            Recipe.build({"optimizer": {"kind": kind, key: plan[key]}})
        except RecipeError as error:
            imported.left_out.append(str(error).splitlines()[-1].strip())
            del plan[key]
