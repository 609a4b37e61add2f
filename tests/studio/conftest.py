from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.studio.house import House, build


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any) -> House:
    """A house that no test changes in a way that another would see."""
    return build(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build(tmp_path / "home")
