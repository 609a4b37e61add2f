"""Fine-tune Stable Diffusion with LoRA without losing variety.

The nouns are here by name; each verb is a function in the room of the same name, as in
`variegate.train.train(recipe, out=...)`, but for `repair`, which is here. Nothing is imported until
it is used:

>>> import variegate
>>> variegate.Recipe(trigger="zqx").optimizer.steps
1000
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from variegate.adapter import Adapter
    from variegate.errors import VariegateError
    from variegate.images import ImageSet, Picture
    from variegate.measurement import Measurement, Missing, Verdict
    from variegate.pick import repair
    from variegate.recipe import Recipe
    from variegate.run import Run

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "ImageSet",
    "Measurement",
    "Missing",
    "Picture",
    "Recipe",
    "Run",
    "VariegateError",
    "Verdict",
    "repair",
]

_HOME = {
    "Adapter": "adapter",
    "ImageSet": "images",
    "Measurement": "measurement",
    "Missing": "measurement",
    "Picture": "images",
    "Recipe": "recipe",
    "Run": "run",
    "VariegateError": "errors",
    "Verdict": "measurement",
    "repair": "pick",
}
_ROOMS = (
    *("audit", "bench", "encoders", "formats", "measure", "models"),
    *("report", "sample", "train", "trial"),
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"variegate.{_HOME[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"variegate.{name}")
    raise AttributeError(f"module 'variegate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_ROOMS])
