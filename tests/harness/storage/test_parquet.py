"""Guards what a Parquet file may unpack into: by its own words, and by what it turns out to hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as arrow

from harness.contracts import HarnessError
from harness.data import loading
from harness.storage import parquet
from tasks import documents

MIB = 2**20


def bomb(path: Path, rows: int = 4_000) -> Path:
    """A text of 1 MiB that every row shares: some kilobytes for ``rows`` MiB."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * MIB]))
    arrow.write_table(pa.table({"text": texts}), path, compression="zstd")
    return path


def test_rows_come_in_order_whatever_the_batches(tmp_path: Path) -> None:
    wanted = [{"n": n, "words": [str(n), "é"], "more": {"a": None}} for n in range(3 * parquet.BATCH + 1)]
    arrow.write_table(pa.Table.from_pylist(wanted), tmp_path / "rows.parquet", row_group_size=50)
    assert list(parquet.rows(tmp_path / "rows.parquet")) == wanted


def test_what_unpacks_into_gigabytes_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "LARGEST", 100 * MIB)
    path = bomb(tmp_path / "bomb.parquet")
    assert os.path.getsize(path) < 50_000
    assert parquet._declared(arrow.ParquetFile(path).metadata) < parquet.LARGEST  # its footer tells nothing
    found = []
    with pytest.raises(ValueError, match="unpacks into more than 100 MiB"):
        found += [len(row["text"]) for row in parquet.rows(path)]
    for read in (lambda: list(loading.read(str(path))[1]), lambda: documents.read_rows(path)):
        with pytest.raises(
            HarnessError, match=r"bomb\.parquet: cannot be read as Parquet \(it unpacks"
        ) as told:
            read()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["LARGEST", "MOST_ROWS"])
def test_a_files_own_words_are_enough_to_refuse_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    arrow.write_table(pa.table({"n": list(range(100))}), path)
    monkeypatch.setattr(parquet, name, 99)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no row may be read")

    monkeypatch.setattr(arrow.ParquetFile, "iter_batches", never)
    monkeypatch.setattr(parquet, "check_size", lambda *_: None)
    with pytest.raises(ValueError, match="split it"):
        list(parquet.rows(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize("ending", [".parquet", ".json", ".csv", ".jsonl"])
def test_a_pipe_is_no_data_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    with pytest.raises(HarnessError, match="no plain file"):
        documents.read_rows(path)
    with pytest.raises(HarnessError, match="no plain file"):
        list(loading.read(str(path))[1])


@pytest.mark.parametrize("ending", [".json", ".csv", ".jsonl"])
def test_what_is_read_whole_has_a_size(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"large{ending}"
    path.touch()
    os.truncate(path, 2**40)  # takes no room
    with pytest.raises(HarnessError, match="larger than 1,024 MiB"):
        documents.read_rows(path)
    if ending == ".json":
        with pytest.raises(HarnessError, match="larger than 1,024 MiB"):
            list(loading.read(str(path))[1])
