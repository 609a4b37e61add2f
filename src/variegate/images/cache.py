"""Where features and other things that can be computed again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$VARIEGATE_CACHE, else $XDG_CACHE_HOME/variegate, else ~/.cache/variegate."""
    if own := os.environ.get("VARIEGATE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "variegate"
    return Path.home() / ".cache" / "variegate"
