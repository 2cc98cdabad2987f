"""Parquet from outside: rows, or a ValueError in one line, before a file unpacks into more than memory holds.

A file's own words (its footer) are looked at first. They can lie: a page of 15 KB may stand for gigabytes of
one repeated value. So rows are read a few at a time, and what they take is added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.reading import check_size

LARGEST = 2 * 2**30  # bytes of values that a file may unpack into
MOST_ROWS = 20_000_000
BATCH = 64  # rows that are made before they are counted
NUMBER = 8  # bytes of a value that is no text


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, in order. Raises FileNotFoundError, and ValueError for what cannot be read and for
    what unpacks into more than ``LARGEST`` bytes or ``MOST_ROWS`` rows."""
    from pyarrow import ArrowException, parquet

    check_size(path, LARGEST)
    try:
        with parquet.ParquetFile(path) as file:
            _check_size(_declared(file.metadata), file.metadata.num_rows)
            held = count = 0
            for batch in file.iter_batches(batch_size=BATCH):
                made = batch.to_pylist()  # counted as made: Arrow may hold a value once that stands often
                held, count = held + _bytes(made), count + len(made)
                _check_size(held, count)
                yield from made
    except (OSError, ArrowException, MemoryError, OverflowError) as error:  # the last: its texts and dates
        raise ValueError(" ".join(str(error).split()) or "more than memory holds") from error


def _declared(metadata: Any) -> int:
    """Bytes that the file says it unpacks into."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
    return max(NUMBER * int(values), sum(int(group.total_byte_size) for group in groups))


def _bytes(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return NUMBER + len(value)
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return NUMBER + sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else NUMBER


def _check_size(held: int, count: int) -> None:
    if held > LARGEST:
        raise ValueError(
            f"it unpacks into more than {LARGEST // 2**20:,} MiB; split it, or leave columns out"
        )
    if count > MOST_ROWS:
        raise ValueError(f"more than {MOST_ROWS:,} rows; split it")
