"""Nothing heavy is imported until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "peft", "scipy", "matplotlib", "kornia")


def _run(code: str) -> tuple[float, list[str]]:
    """CPU seconds of the code in a fresh interpreter, and which heavy packages it loaded."""
    tail = f"""
import sys, time
print("::", time.process_time(), *[m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stdout.rsplit("::", 1)[1].split()
    return float(seconds), loaded


def test_importing_the_package_is_instant() -> None:
    seconds, loaded = _run("import variegate")
    assert loaded == []
    assert seconds < 0.3


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["variegate", *{words!r}]
from variegate.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""
    # The first start after an installation compiles; what users wait for is the next.
    seconds, loaded = min(_run(code) for _ in range(2))
    assert loaded == []
    assert seconds < 0.5


@pytest.mark.parametrize(
    "module", ["cli", "recipe", "recipes", "measurement", "catalogue", "run", "report", "doctor"]
)
def test_what_reads_folders_and_words_needs_no_torch(module: str) -> None:
    _, loaded = _run(f"import variegate.{module}")
    assert "torch" not in loaded


def test_every_public_name_resolves() -> None:
    import variegate

    for name in variegate.__all__:
        assert getattr(variegate, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    import variegate

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = variegate.nonsense
