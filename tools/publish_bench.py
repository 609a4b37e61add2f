"""Publishes what `variegate bench --suite full` has made so far in this machine's cache.

    python tools/publish_bench.py

Rows that the full suite asks for, whose recipes still are what they were, go into the package as
`bench/results.parquet`, which `variegate bench --show` reads; what they say of each strategy and
kind of adapter goes beside the menu as `effects.json`. Run it after each piece of the suite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "variegate"
sys.path.insert(0, str(ROOT / "src"))

from variegate.bench import scoreboard, suite  # noqa: E402


def main() -> None:
    done, rows = suite.rows_done(suite.home()), []
    asked = suite.cells("full")
    for cell in asked:
        if row := done.get(cell.key(cell.recipe())):
            told = {"ailment": cell.ailment.name, "strategy": cell.contender.name}
            rows.append({**row, **told, "group": cell.contender.group})
    suite.write_table(rows, PACKAGE / "bench" / suite.PUBLISHED)
    effects = scoreboard.effects(rows)
    text = json.dumps(effects, indent=1, sort_keys=True, ensure_ascii=False)
    (PACKAGE / "effects.json").write_text(text + "\n", encoding="utf8")
    print(f"{len(rows)} of {len(asked)} cells; effects of {len(effects)} on the menu")


if __name__ == "__main__":
    main()
