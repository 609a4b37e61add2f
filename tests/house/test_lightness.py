"""Nothing heavy is imported until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "diffusers", "transformers", "peft", "scipy", "matplotlib", "kornia", "optuna"),
    *("numpy", "PIL", "pyarrow", "jinja2", "starlette", "safetensors", "accelerate", "ray"),
)


def _loaded(code: str) -> list[str]:
    """Which heavy packages the code loads in a fresh interpreter: what waiting is made of."""
    tail = f"""
import sys
print("::", *[m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    return done.stdout.rsplit("::", 1)[1].split()


def test_importing_the_package_is_instant() -> None:
    assert _loaded("import variegate") == []


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
    assert _loaded(code) == []


@pytest.mark.parametrize(
    "module", ["cli", "recipe", "recipes", "measurement", "catalogue", "run", "report", "doctor"]
)
def test_what_reads_folders_and_words_needs_no_torch(module: str) -> None:
    assert "torch" not in _loaded(f"import variegate.{module}")


def test_every_public_name_resolves() -> None:
    import variegate

    for name in variegate.__all__:
        assert getattr(variegate, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    import variegate

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = variegate.nonsense
