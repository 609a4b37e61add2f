"""Features as files, read back as written, and refused when they are no table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from variegate.errors import FeaturesError
from variegate.measure import read_features, write_features

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
PROMPTS = ["an owl", "an owl", 'a "cat", dog', "h\u00fchner"]


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet"])
@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_what_is_written_is_read(name: str, prompts: list[str] | None, tmp_path: Path) -> None:
    file = tmp_path / "folder" / name
    write_features(file, ROWS, prompts)
    table = read_features(file)
    assert np.array_equal(table.rows, ROWS)
    assert table.prompts == (None if prompts is None else tuple(prompts))


def test_a_prompt_of_several_lines_stays_one_line(tmp_path: Path) -> None:
    write_features(tmp_path / "rows.npy", ROWS[:1], ["an owl\nat sea\u2028today"])
    assert read_features(tmp_path / "rows.npy").prompts == ("an owl at sea today",)


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet"])
def test_no_file_and_another_file_are_told_apart(name: str, tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="no features at"):
        read_features(tmp_path / name)
    (tmp_path / name).write_bytes(b"something else entirely")
    with pytest.raises(FeaturesError, match="is no"):
        read_features(tmp_path / name)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FeaturesError, match="no table of numbers"):
        read_features(tmp_path / "rows.npy")


def test_prompts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="3 prompts for 4 rows"):
        write_features(tmp_path / "rows.npy", ROWS, PROMPTS[:3])
    write_features(tmp_path / "rows.npy", ROWS, PROMPTS)
    (tmp_path / "rows.txt").write_text("one\n", encoding="utf8")
    with pytest.raises(FeaturesError, match=r"1 lines and rows\.npy 4 rows"):
        read_features(tmp_path / "rows.npy")


def test_a_parquet_of_other_columns_or_ragged_rows_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"x": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(FeaturesError, match="no column `features`; it has x"):
        read_features(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"features": [[1.0], [1.0, 2.0]]}), tmp_path / "y.parquet")
    with pytest.raises(FeaturesError, match="differ in length"):
        read_features(tmp_path / "y.parquet")


def test_rows_written_without_prompts_leave_none_of_an_older_table(tmp_path: Path) -> None:
    write_features(tmp_path / "rows.npy", ROWS, PROMPTS)
    write_features(tmp_path / "rows.npy", ROWS)
    assert read_features(tmp_path / "rows.npy").prompts is None


@pytest.mark.parametrize("table", [np.array(["a", "b"]), np.float32(1), np.zeros((2, 2, 2))])
def test_what_is_no_table_of_numbers_is_refused(table: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table)
    with pytest.raises(FeaturesError, match="no table of numbers"):
        read_features(tmp_path / "rows.npy")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    for act in (read_features, lambda file: write_features(file, ROWS)):
        with pytest.raises(FeaturesError, match=r"expected \.npy or \.parquet"):
            act(tmp_path / "rows.csv")
