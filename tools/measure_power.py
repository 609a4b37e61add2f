"""How often the variety measures alarm, by the share of pictures that one attractor replaced.

    python tools/measure_power.py

Sets are drawn from a bank of rendered scenes per prompt: four pictures for the adapter, four others
for the base. The shares are truth, so share 0 gives the false alarms and the rest the power.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from measure.planted import draw, planned, scene_of  # noqa: E402
from variegate import encoders  # noqa: E402
from variegate.encoders.pixels import Layout  # noqa: E402
from variegate.measure.diversity import compare_variety  # noqa: E402

BANK = 24  # pictures per prompt
PICTURES = 4  # per prompt and model
GATES = {"class": (0.9, 0.7), "trigger": (0.7, 0.5)}  # warn and clear margins


def main() -> None:
    rng = np.random.default_rng(0)
    plan = planned("standard")
    for group, encoder in (("class", encoders.load("pocket")), ("trigger", Layout())):
        lines = [line for line in plan if line.group == group]
        bank = [
            encoder.images(
                [Image.fromarray(draw(scene_of(line.base_prompt, rng))) for _ in range(BANK)]
            )
            for line in lines
        ]
        for prompts in (len(lines) // 2, len(lines)):
            for share in (0, 0.1, 0.2, 0.3, 0.5, 0.8):
                tell(group, bank[:prompts], share, sets=200 if share == 0 else 60)


def tell(group: str, bank: list, share: float, *, sets: int) -> None:  # type: ignore[type-arg]
    warn, clear = GATES[group]
    alarms = unsure = covered = 0
    for number in range(sets):
        rng = np.random.default_rng((number, len(bank)))
        adapter, base = [], []
        for rows in bank:
            order = rng.permutation(BANK)
            ours = rows[order[:PICTURES]].clone()
            ours[rng.random(PICTURES) < share] = bank[0][0]
            adapter.append(ours)
            base.append(rows[order[PICTURES : 2 * PICTURES]])
        found = compare_variety(adapter, base, address="power")
        assert found is not None
        alarm = found.p < 0.01 and found.high < warn
        alarms += alarm
        unsure += not alarm and not (found.ratio >= warn and found.low >= clear)
        covered += found.low <= 1 <= found.high
    print(
        f"{group} prompts {len(bank)}, share {share}: alarms {alarms / sets:.3f}, inconclusive "
        f"{unsure / sets:.3f}, interval holds 1 {covered / sets:.3f} (of {sets} sets)",
        flush=True,
    )


if __name__ == "__main__":
    main()
