"""What is built is what runs: the wheel carries its data and works away from the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = ("tests/", "tools/", "build/", ".venv/")


def _run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_carries_all_data_of_the_package_and_nothing_else(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    data = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert data <= packed
    assert {"variegate/py.typed", "variegate/bench/world/atlas.png"} <= packed
    rest = packed - data
    assert all(".dist-info/" in name for name in rest), rest


def test_the_wheel_draws_pictures_on_its_own(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "site"
    _run("-m", "pip", "install", "--quiet", "--no-deps", "--target", home, wheel)
    environment = {**os.environ, "PYTHONPATH": str(home), "VARIEGATE_CACHE": str(tmp_path / "c")}
    where = "import variegate, sys; sys.stdout.write(variegate.__file__)"
    inside = _run("-c", where, cwd=tmp_path, env=environment)
    assert Path(inside.stdout).is_relative_to(home)
    words = ["sample", "--base", "pocket", "--prompt", "a small owl", "--seeds", "2"]
    done = _run(
        *("-m", "variegate", *words, "--steps", "4", "--out", tmp_path / "out", "--json"),
        cwd=tmp_path,
        env=environment,
    )
    drawn = json.loads(done.stdout)
    assert [image["seed"] for image in drawn["images"]] == [0, 1]
    assert all(Path(image["file"]).stat().st_size > 0 for image in drawn["images"])
    assert Path(drawn["contact_sheet"]).is_file()
