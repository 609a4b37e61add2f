"""What there is to work on: every graphics card by itself, or the one machine.

Found without PyTorch being loaded: which cards its build can use is written in its version file,
and the driver's own program lists them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0  # seconds for the driver to answer
CARDS = Path("/sys/class/kfd/kfd/topology/nodes")  # where AMD's driver lists its own
CUDA = "CUDA_VISIBLE_DEVICES"
NONE = ("", "-1", "NoDevFiles")  # what hides all cards


@dataclass(frozen=True)
class Device:
    """Something that one job at a time works on.

    variable, value: of the environment, which show a process this card and no other; empty for the
    one machine. name: the card's own; "" for the machine.
    """

    variable: str = ""
    value: str = ""
    name: str = ""

    @property
    def environment(self) -> dict[str, str]:
        shown = {self.variable: self.value} if self.variable else {}
        if self.variable == CUDA:  # so that numbers are those that the driver tells
            shown["CUDA_DEVICE_ORDER"] = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        return shown


MACHINE = Device()


def devices(environment: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The cards that PyTorch would use, in its order; else the machine alone.

    environment: where cards may be hidden or put in another order.
    """
    built = _built_for()
    if built == "cuda":
        return _cards(CUDA, _nvidia(), environment)
    if built == "hip":
        return _cards("HIP_VISIBLE_DEVICES", _amd(), environment)
    return (MACHINE,)


def shown_to(environment: Mapping[str, str], found: tuple[Device, ...]) -> Device:
    """The one of these that a process of that environment works on: the first that it sees."""
    variable = found[0].variable
    first = environment.get(variable, "").split(",")[0].strip()
    return next((d for d in found if variable and d.value == first), found[0])


def _cards(
    variable: str, names: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[Device, ...]:
    """names: of each card by its number."""
    shown = [w.strip() for w in environment.get(variable, ",".join(names)).split(",")]
    found = tuple(Device(variable, w, names.get(w, "")) for w in shown if w not in NONE)
    return found if names and found else (MACHINE,)


def _built_for() -> str:
    """ "cuda", "hip" or "": what the installed PyTorch can use beside the processor."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf8")
    except OSError:
        return ""
    for kind in ("cuda", "hip"):
        if re.search(rf"^{kind}\b[^=\n]*= *['\"]", text, re.MULTILINE):
            return kind
    return ""


def _nvidia() -> dict[str, str]:
    words = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(",") for line in done.stdout.splitlines())
    return {number.strip(): name.strip()[:80] for number, comma, name in lines if comma}


def _amd() -> dict[str, str]:
    """Of each node of the driver that is a card; processors are nodes, too, without a number."""
    try:
        numbers = [(node / "gpu_id").read_text().strip() for node in sorted(CARDS.iterdir())]
    except OSError:
        return {}
    return {str(i): "" for i, _ in enumerate(n for n in numbers if n not in ("", "0"))}
