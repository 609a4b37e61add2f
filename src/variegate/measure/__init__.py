"""How varied, how faithful, how original an adapter's pictures are beside its base's.

    evidence = gather(adapter_set, base_set, encoders=[...])    pictures -> rows of features
    readings = read(evidence)                                   rows -> named measurements
    verdict = judge(readings)                                   measurements -> labels, advice

`measure` is the last two in one. Only `gather` opens pictures and runs networks.
"""

from __future__ import annotations

from variegate.measure.copying import find_copies
from variegate.measure.diversity import vendi, vendi_from_kernel
from variegate.measure.evidence import Evidence, Line, View
from variegate.measure.gather import gather, nearest_pictures
from variegate.measure.prompts import PlannedPrompt, prompt_plan
from variegate.measure.readings import read
from variegate.measure.verdict import RULES, Rules, judge
from variegate.measurement import Verdict

__all__ = [
    "RULES",
    "Evidence",
    "Line",
    "PlannedPrompt",
    "Rules",
    "Verdict",
    "View",
    "find_copies",
    "gather",
    "judge",
    "measure",
    "nearest_pictures",
    "prompt_plan",
    "read",
    "vendi",
    "vendi_from_kernel",
]


def measure(evidence: Evidence, *, rules: Rules = RULES) -> Verdict:
    """The verdict on an adapter: every measurement that the evidence allows, judged."""
    return judge(
        read(evidence),
        rules,
        encoders=[view.encoder for view in evidence.views]
        + ([evidence.copies.encoder] if evidence.copies else []),
        weak_encoder=evidence.weak_encoder,
        plan=evidence.plan,
    )
