"""What stands on this machine, what is missing, and the exact line that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from variegate import __version__

LEAST_FREE = 2 * 1024**3  # bytes; a run with samples and checkpoints of the pocket needs far less
OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
CUDA_INDEX = "https://download.pytorch.org/whl/cu128"


def examine() -> dict[str, Any]:
    """Every check with its state, ready for JSON; `fit` is False when something essential fails.

    Each check is `{"check", "state": "ok" | "warn" | "fail", "found", "mend"}`; `mend` is a line to
    run, empty when there is nothing to mend.
    """
    packages, package_checks = _packages()
    torch_facts, torch_check = _torch()
    checks = [
        *package_checks,
        torch_check,
        *_precision(torch_facts.get("speed", {})),
        _torchvision(),
        *_disk(),
        *_shipped(),
        _offline(),
    ]
    return {
        "fit": all(c["state"] != "fail" for c in checks),
        "variegate": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch_facts,
        "device": torch_facts.get("device", "none"),
        "packages": packages,
        "checks": checks,
    }


def as_text(findings: dict[str, Any]) -> str:
    """The findings as lines, what needs mending last."""
    head = (
        f"variegate {findings['variegate']} on Python {findings['python']}, "
        f"{findings['platform']}\nwork is done on: {findings['device']}"
    )
    order = {"ok": 0, "warn": 1, "fail": 2}
    lines = []
    for check in sorted(findings["checks"], key=lambda c: order[c["state"]]):
        lines.append(f"{check['state']:5}{check['check']}: {check['found']}")
        if check["mend"]:
            lines.append(f"     mend it: {check['mend']}")
    end = "all well" if findings["fit"] else "not ready: mend the lines marked `fail`"
    return "\n".join([head, "", *lines, "", end])


def _check(check: str, state: str, found: str, mend: str = "") -> dict[str, str]:
    return {"check": check, "state": state, "found": found, "mend": mend}


def _pip(words: str) -> str:
    return f"{Path(sys.executable).name} -m pip install {words}"


def _packages() -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What pyproject asks for against what is installed."""
    try:
        wanted = importlib.metadata.requires("variegate") or []
    except importlib.metadata.PackageNotFoundError:
        found = "runs from its source folder without being installed"
        return [], [_check("variegate", "warn", found, _pip("--editable ."))]
    listed, faults = [], []
    for line in wanted:
        match = re.match(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?\s*$", line)
        if match is None:  # an extra's requirement, with a marker behind it
            continue
        name, least = match.group(1), match.group(2) or "0"
        version = _version_of(name)
        listed.append({"name": name, "version": version, "wanted": f">={least}"})
        if version is None:
            faults.append(_check(name, "fail", "not installed", _pip(f'"{name}>={least}"')))
        elif _numbers(version) < _numbers(least):
            found = f"{version}, but {least} or newer is needed"
            faults.append(_check(name, "fail", found, _pip(f'--upgrade "{name}>={least}"')))
    if not faults:
        return listed, [_check("packages", "ok", f"all {len(listed)} core packages are here")]
    return listed, faults


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def _torch() -> tuple[dict[str, Any], dict[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        return {}, _check("torch", "fail", f"cannot be imported: {reason}", _pip("torch"))
    from variegate.device import pick_device

    device = pick_device()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device,
        "threads": torch.get_num_threads(),
        "speed": _speed(device),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["gpu_bytes"] = torch.cuda.get_device_properties(0).total_memory
        return facts, _check("torch", "ok", f"{torch.__version__} on {facts['gpu']}")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        found = f"{torch.__version__} has no CUDA, yet there is an NVIDIA driver"
        mend = _pip(f"--force-reinstall torch --index-url {CUDA_INDEX}")
        return facts, _check("torch", "warn", found, mend)
    return facts, _check("torch", "ok", f"{torch.__version__} on {device}")


def _speed(device: str) -> dict[str, float]:
    """The best of a few matrix products, by precision, in 10^9 operations a second: what estimates
    of time go by."""
    import torch

    side, found = (8192 if device == "cuda" else 1024), {}
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            square = torch.ones(side, side, device=device, dtype=kind)
            best = min(_product(square) for _ in range(4))
        except RuntimeError:  # no such precision there, or no room
            continue
        found[name] = round(2 * side**3 / best / 1e9, 1)
    return found


def _product(square: Any) -> float:
    start = time.perf_counter()
    float((square @ square)[0, 0])  # waits for the device
    return time.perf_counter() - start


def _precision(speed: dict[str, float]) -> list[dict[str, str]]:
    """Processors without bf16 of their own imitate it, many times slower than float32."""
    if len(speed) < 2 or 0 in speed.values():
        return []
    found = "10^9 operations a second: " + ", ".join(f"{n} {v:,.0f}" for n, v in speed.items())
    times = speed["float32"] / speed["bf16"]
    if times > 1.5:
        found += f"; leave precision at float32, bf16 takes {times:.0f} times as long here"
    return [_check("matrix products", "ok", found)]


def _torchvision() -> dict[str, str]:
    """torchvision is not used here, but a broken one breaks transformers from a distance."""
    if importlib.util.find_spec("torchvision") is None:
        return _check("torchvision", "ok", "not installed, and not needed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        mend = f"{Path(sys.executable).name} -m pip uninstall torchvision"
        return _check("torchvision", "warn", f"installed but broken: {reason}", mend)
    return _check("torchvision", "ok", "installed and working, though not needed")


def _disk() -> list[dict[str, str]]:
    from variegate.images import cache_dir

    checks = []
    for name, folder in (("this folder", Path.cwd()), ("cache folder", cache_dir())):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free
        found = f"{folder}, {free / 1024**3:.1f} GiB free"
        if not os.access(there, os.W_OK):
            mend = "export VARIEGATE_CACHE=/a/writable/folder" if name == "cache folder" else "cd ~"
            checks.append(_check(name, "warn", f"{folder} cannot be written to", mend))
        elif free < LEAST_FREE:
            mend = "export VARIEGATE_CACHE=/a/larger/disk" if name == "cache folder" else "df -h"
            checks.append(_check(name, "warn", found, mend))
        else:
            checks.append(_check(name, "ok", found))
    return checks


def _shipped() -> list[dict[str, str]]:
    package = resources.files("variegate")
    checks = []
    for name, path in (
        ("pocket base", "models/pocket/model_index.json"),
        ("pocket encoder", "encoders/pocket_weights/encoder.safetensors"),
    ):
        if package.joinpath(path).is_file():
            checks.append(_check(name, "ok", "shipped weights are here"))
        else:
            mend = _pip("--force-reinstall --no-deps variegate")
            checks.append(_check(name, "fail", f"variegate/{path} is missing", mend))
    return checks


def _offline() -> dict[str, str]:
    flags = [f"{name}={os.environ[name]}" for name in OFFLINE_FLAGS if os.environ.get(name)]
    found = ", ".join(flags) or "not set; only models that you name are fetched"
    return _check("offline flags", "ok", found)
