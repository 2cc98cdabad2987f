"""Rows of a file, read the same way for training and for evaluation, with file and line in every complaint.

The ending tells the format: ``.parquet``, ``.json`` (an array), ``.csv`` and ``.tsv`` (with a header), else
JSON lines. Text may be compressed with gzip or Zstandard, which its first bytes tell.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

from harness.contracts import HarnessError
from harness.reading import LARGEST_FILE, check_size, json_value
from harness.storage import parquet
from harness.text import printable, shortened, shown

COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}  # how such a file begins
SEPARATORS = (",", ";", "\t")
FILE_ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", *COMPRESSED)
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # the byte order marks of UTF-16; UTF-32's begins as the first
_HEAD = 4096  # bytes that are looked at
_NAMED_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\r?\n?')  # a first line that spreadsheets write
_ARRAY = re.compile(r"\s*\[\s*[{\r\n]?\s*$")

Rows = Iterator[tuple[int, Any]]
Item = TypeVar("Item")


def read(path: Path) -> tuple[str, Rows]:
    """What a file's units are called ("line", "row", "';'-separated row"), and its numbered values, which
    need not be objects. Blank lines are left out. Raises HarnessError, also while it is read."""
    _check_plain(path)
    ending = form(path)
    if ending == ".parquet":
        return "row", _told(path, lambda: _parquet(path))
    if ending == ".json":
        return "row", _told(path, lambda: _json(path))
    if ending in (".csv", ".tsv"):
        (separator,) = _told(path, lambda: iter([_separator(path, ending)]))
        unit = {",": "row", "\t": "tab-separated row"}.get(separator, f"'{separator}'-separated row")
        return unit, _told(path, lambda: _table(path, separator))
    return "line", _told(path, lambda: _json_lines(path))


def records(path: Path) -> list[list[str]]:
    """The records of a table with commas and perhaps no header, those apart that are blank. Raises
    HarnessError."""
    _check_plain(path)

    def found() -> Iterator[list[str]]:
        with _text(path, newline="") as file:
            yield from _records(file, ",")

    return list(_told(path, found))


def form(path: Path) -> str:
    """The ending that tells a file's format, in small letters and without that of its compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def _check_plain(path: Path) -> None:
    try:
        if not path.exists():
            raise HarnessError(f"{path}: no such file")
        if not path.is_file():  # a pipe or device may have no end
            raise HarnessError(f"{path}: cannot be read: no plain file")
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise HarnessError(f"{printable(str(path))}: cannot be read: {shortened(error)}") from error


def _told(path: Path, read_items: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """The items, with whatever goes wrong in one line that names the file."""
    try:
        yield from read_items()
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: cannot be read: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise HarnessError(f"{path}: cannot be read: {shortened(error)}") from error


# --- bytes and text --------------------------------------------------------------------------------


def _text(path: Path, newline: str | None = None) -> IO[str]:
    """The file's text, unpacked. Raises ValueError for what is no UTF-8 text, OSError and others for a
    damaged archive, while it is read too."""
    stream = _unpacked(path)
    try:
        head = stream.peek(_HEAD)[:_HEAD]
        if head.startswith(_WIDE):
            raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
        if b"\0" in head:
            raise ValueError("it holds zero bytes: a binary file, or UTF-16; save it as UTF-8 text")
        return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)
    except BaseException:
        stream.close()
        raise


def _unpacked(path: Path) -> io.BufferedReader:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(COMPRESSED[".gz"]):
        return io.BufferedReader(_Bounded(gzip.open(path)))
    if head.startswith(COMPRESSED[".zst"]):
        import pyarrow

        return io.BufferedReader(_Bounded(pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")


class _Bounded(io.RawIOBase):
    """A stream that ends in a ValueError before a small file unpacks into more than a file may be."""

    def __init__(self, stream: Any):
        self._stream, self._left = stream, LARGEST_FILE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read(len(buffer))
        self._left -= len(found)
        if self._left < 0:
            raise ValueError(f"it unpacks into more than {LARGEST_FILE // 2**20:,} MiB; split it")
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()


# --- formats ---------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Rows:
    with _text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json_value(line)
                except ValueError as error:
                    hint = "; a JSON array is called .json" if _ARRAY.match(line) else ""
                    hint += "" if form(path) == ".jsonl" else "; a table is called .csv"
                    raise HarnessError(
                        f"{path}, line {number}: not valid JSON ({_reason(error)}){hint}"
                    ) from error


def _json(path: Path) -> Rows:
    """An array's values; of an object with one array in it (``{"version": …, "data": […]}``) that one's."""
    check_size(path)
    with _text(path) as file:
        text = file.read()
    try:
        value = json_value(text)
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise HarnessError(
            f"{path}{line}: not valid JSON ({_reason(error)}); JSON lines are called .jsonl"
        ) from error
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise HarnessError(f"{path}: needs a JSON array of rows (JSON lines are called .jsonl)")
    yield from enumerate(value, 1)


def _reason(error: ValueError) -> str:
    """Without json's own count of lines, which begins anew at each line of a file."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _parquet(path: Path) -> Rows:
    if path.suffix.lower() in COMPRESSED:
        raise ValueError(f"Parquet is compressed within; unpack {path.suffix} first")
    try:
        yield from enumerate(parquet.rows(path), 1)
    except ValueError as error:
        raise HarnessError(f"{path}: cannot be read as Parquet ({shortened(error)})") from error


def _separator(path: Path, ending: str) -> str:
    """What stands between a table's columns: as its first line says (``sep=;``), else what splits its header
    into most columns, and where none does or several do alike, what the ending is named after."""
    with _text(path, newline="") as file:
        named, _ = _opening(file)
    ordered = sorted(SEPARATORS, key=lambda separator: (separator == "\t") != (ending == ".tsv"))
    return named or max(ordered, key=lambda separator: _columns(path, separator))


def _columns(path: Path, separator: str) -> int:
    with _text(path, newline="") as file:
        try:
            return len(next(_records(file, separator), []))
        except csv.Error:
            return 0


def _opening(file: IO[str]) -> tuple[str | None, Iterable[str]]:
    """The separator that a table's first line names, if it does, and the lines of the table itself."""
    first = next(file, "")
    named = _NAMED_SEPARATOR.fullmatch(first)
    return (named[1], file) if named else (None, chain([first], file))


def _records(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """A table's records, those apart that are blank. The csv module has one limit of a field's length for the
    whole process."""
    csv.field_size_limit(LARGEST_FILE)
    records = csv.reader(lines, delimiter=separator, strict=True)
    return (record for record in records if "".join(record).strip())


def _table(path: Path, separator: str) -> Rows:
    """The rows under a header; a field that is missing at a row's end is None, and a column without a name
    (an index that pandas wrote) is left out."""
    with _text(path, newline="") as file:
        records = _records(_opening(file)[1], separator)
        header = [name.strip() for name in next(records, [])]
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise HarnessError(f"{path}: its header has {shown(twice[0])} twice; rename a column")
        number = 0
        try:
            for number, record in enumerate(records, 1):
                if len(record) > len(header):
                    raise HarnessError(
                        f"{path}, row {number}: more columns than the header has "
                        f"(separated by {separator!r}; a text that holds it needs quotes)"
                    )
                padded = [*record, *[None] * (len(header) - len(record))]
                yield number, {name: value for name, value in zip(header, padded, strict=True) if name}
        except csv.Error as error:
            raise HarnessError(f"{path}: cannot be read: {error} (behind row {number})") from error
