"""One self-contained HTML page from the files of a run, for an artist to read and to share.

Reads run folders only: nothing here needs torch, a model or a network.
"""

from __future__ import annotations

from variegate.report.comparison import write_comparison
from variegate.report.page import write_report
from variegate.report.picking import write_picked
from variegate.report.scoreboard import write_scoreboard
from variegate.report.tuning import write_tuning

__all__ = [
    "write_comparison",
    "write_picked",
    "write_report",
    "write_scoreboard",
    "write_tuning",
]
