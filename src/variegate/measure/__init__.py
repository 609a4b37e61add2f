"""How varied, how faithful, how original an adapter's pictures are beside its base's.

    evidence = gather(adapter_set, base_set, encoders=[...])    pictures -> rows of features
    readings = read(evidence)                                   rows -> what is judged
    others = describe(evidence)                                 rows -> what is reported beside it
    verdict = judge([*readings, *others])                       measurements -> labels, advice

`measure` is the last three in one. Only `gather` opens pictures and runs networks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from variegate.errors import FeaturesError, RunError
from variegate.measure.advice import fit_advice
from variegate.measure.copying import find_copies
from variegate.measure.describe import describe
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.gather import evidence_of_features, gather, nearest_pictures
from variegate.measure.power import foresee, seen_loss
from variegate.measure.prompts import PlannedPrompt, prompt_plan
from variegate.measure.readings import read
from variegate.measure.rules import RULES, Rules
from variegate.measure.tables import Table, read_features, write_features
from variegate.measure.vendi import vendi, vendi_from_kernel
from variegate.measure.verdict import judge
from variegate.measurement import Verdict

__all__ = [
    "RULES",
    "Evidence",
    "Line",
    "PlannedPrompt",
    "Rules",
    "Table",
    "Verdict",
    "View",
    "describe",
    "evidence_of_features",
    "find_copies",
    "fit_advice",
    "foresee",
    "gather",
    "judge",
    "measure",
    "nearest_pictures",
    "prompt_plan",
    "read",
    "read_features",
    "read_verdict",
    "rejudge",
    "seen_loss",
    "vendi",
    "vendi_from_kernel",
    "write_features",
]


def read_verdict(run: Path) -> Verdict:
    """A stored verdict, from a run folder or its `verdict.json`.

    Raises: RunError when there is none or it cannot be read.
    """
    file = run / "verdict.json" if run.is_dir() else run
    try:
        return Verdict.from_json(json.loads(file.read_text(encoding="utf8")))
    except FileNotFoundError as error:
        raise RunError(
            f"no verdict at {file}; a run has one once `variegate trial` or `measure --out` ended"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is no verdict that can be read: {error}") from error


def rejudge(verdict: Verdict, rules: Rules) -> Verdict:
    """The verdict that the same measurements earn under other rules."""
    return judge(
        verdict.measurements,
        rules,
        encoders=verdict.encoders,
        weak_encoder=verdict.weak_encoder,
        plan=verdict.plan,
    )


def measure(
    evidence: Evidence | ArrayLike | Tensor,
    reference: ArrayLike | Tensor | None = None,
    *,
    prompts: Sequence[str] | None = None,
    reference_prompts: Sequence[str] | None = None,
    train: ArrayLike | Tensor | None = None,
    encoder: str = "features as given",
    rules: Rules = RULES,
) -> Verdict:
    """The verdict on an adapter: every measurement that the evidence allows, judged.

    evidence: what `gather` made of pictures; or features `[n, d]` of samples, with those of the
    base `[m, d]` as `reference` and the rest as in `evidence_of_features`.
    The room itself may be called in its place: `variegate.measure(samples, reference)`.

    Raises: FeaturesError when rows, widths or prompts do not fit; EmptyImageSet without rows.
    """
    if not isinstance(evidence, Evidence):
        if reference is None:
            raise FeaturesError("features of the base are missing: measure(samples, reference)")
        evidence = evidence_of_features(
            evidence,
            reference,
            prompts=prompts,
            reference_prompts=reference_prompts,
            train=train,
            encoder=encoder,
        )
    return judge(
        [*read(evidence), *describe(evidence)],
        rules,
        encoders=[view.encoder for view in evidence.views]
        + ([evidence.copies.encoder] if evidence.copies else []),
        weak_encoder=evidence.weak_encoder,
        plan=evidence.plan,
    )


class _Room(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Verdict:
        return measure(*args, **settings)


sys.modules[__name__].__class__ = _Room
