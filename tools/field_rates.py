"""The one factor on the field's learning rates: that at which diffusers' setting is most alike.

    python tools/field_rates.py     # a quarter of an hour; a table

The pocket is small and its pictures are simple, so that rates made for Stable Diffusion teach it
little in the documented number of steps. All of the field get the same factor, chosen for one of
them by likeness alone, where nothing is wrong with the pictures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate.bench.ailments import AILMENTS, HEALTHY  # noqa: E402
from variegate.bench.contenders import FACTOR, FIELD  # noqa: E402
from variegate.bench.suite import Cell, home, run_cell  # noqa: E402

FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0)


def main() -> None:
    print("| factor | likeness | entropy |\n|---|---|---|")
    documented = FIELD[0]
    for factor in FACTORS:
        rate = factor * 1e-4
        settings = tuple(
            f"optimizer.lr={rate:g}" if s.startswith("optimizer.lr=") else s
            for s in documented.settings
        )
        setting = replace(documented, settings=settings)
        rows = [
            run_cell(Cell(ailment, setting, seed), home())
            for ailment in (HEALTHY, AILMENTS["eight pictures"])
            for seed in (0, 1, 2)
        ]
        alike, varied = (np.mean([r[f"true.{n}"] for r in rows]) for n in ("likeness", "entropy"))
        print(
            f"| {factor:g}{' *' if factor == FACTOR else ''} | {alike:.3f} | {varied:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
