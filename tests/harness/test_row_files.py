"""The same rows whatever the file is (separators, quotes, compression, byte order marks, blank lines), in
training and evaluation; and what cannot be read is named in a line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import row_files
from harness.contracts import HarnessError
from harness.data import loading
from tasks.documents import read_rows

BOM = b"\xef\xbb\xbf"
ROWS = [
    {
        "id": "1",
        "question": 'Q, x; y\t"z"\nw',
        "answer": "A" * 140_000,
    },  # the csv module's own limit: 131,072
    {"id": "", "question": "Ä?", "answer": " a | b "},
    {"id": "2", "question": "q", "answer": "a"},
]


def table(separator: str, end: str = "\r\n", quoting: Any = csv.QUOTE_MINIMAL, rows: Any = ROWS) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS).encode()
SAME = {
    "comma.csv": table(","),
    "newlines.csv": table(",", "\n"),
    "semicolon.csv": table(";"),
    "quoted.csv": table(";", quoting=csv.QUOTE_ALL),
    "tab.csv": table("\t"),
    "tab.tsv": table("\t"),
    "comma.tsv": table(","),
    "named.csv": b"sep=|\r\n" + table("|"),
    "bom.csv": BOM + table(";"),
    "bom-named.csv": BOM + b'"sep=;"\n' + table(";"),
    "spaced.csv": table(",").replace(b"id,question,answer", b"id, question ,answer "),
    "unnamed.csv": table(",", rows=[{"": n, **row} for n, row in enumerate(ROWS)]),  # pandas' index
    "blank.csv": b"\r\n \r\n" + table(",").replace(b"\r\n2,", b"\r\n\r\n  \r\n,,\r\n2,") + b"\r\n",
    "CAPITALS.CSV": table(","),
    "packed.csv.gz": gzip.compress(table(";")),
    "packed.csv.zst": zstd(table(",")),
    "packed-though-not-called-so.csv": gzip.compress(table(",")),
    "called-packed.csv.gz": table(","),
    "lines.jsonl": LINES,
    "lines.txt": LINES,
    "crlf-and-blank.jsonl": BOM + LINES.replace(b"\n", b"\r\n \r\n\r\n"),
    "packed.jsonl.gz": gzip.compress(LINES),
    "PACKED.JSONL.GZ": gzip.compress(LINES),
    "two-members.gz": gzip.compress(LINES[:99]) + gzip.compress(LINES[99:]),
    "packed.jsonl.zst": zstd(LINES),
    "two-frames.jsonl.zst": zstd(LINES[:99]) + zstd(LINES[99:]),
    "array.json": ARRAY,
    "bom.json": BOM + json.dumps(ROWS, indent=1).encode(),
    "inside.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "packed.json.gz": gzip.compress(ARRAY),
}  # fmt: skip


def trained(path: Path) -> list[Any]:
    return [row for _, row in loading.read(str(path))[1]]


def evaluated(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("read", [trained, evaluated])
@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_whatever_the_file(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(SAME[name])
    assert read(path) == ROWS


REFUSED = [
    ("wide.csv", table(",").decode().encode("utf-16"), "cannot be read: it is UTF-16"),
    ("wide.json", ARRAY.decode().encode("utf-16"), "cannot be read: it is UTF-16"),
    ("wide.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16")), "cannot be read: it is UTF-16"),
    ("wider.jsonl", LINES.decode().encode("utf-32"), "cannot be read: it is UTF-16 or UTF-32"),
    ("unmarked.jsonl", LINES.decode().encode("utf-16-le"), "it holds zero bytes: a binary file, or UTF-16"),
    ("book.csv", b"PK\x03\x04\x14\0\0\0", "it holds zero bytes: a binary file"),
    ("latin.csv", "question,answer\né,a\n".encode("latin-1"), "cannot be read: not UTF-8"),
    ("cut.jsonl.gz", gzip.compress(LINES)[:-20], "cannot be read: Compressed file ended"),
    ("cut.csv.zst", zstd(table(","))[:-20], "cannot be read: Truncated"),
    ("damaged.csv.gz", gzip.compress(LINES)[:40] + b"zzzz" + gzip.compress(LINES)[44:], "cannot be read: "),
    ("table.parquet.gz", gzip.compress(b"PAR1"), "Parquet is compressed within; unpack .gz"),
    ("open.csv", b'question,answer\nq,a\n"q,a\n', r"unexpected end of data \(behind row 1\)"),
    ("quotes.csv", b'question,answer\n"q"x,a\n', r"',' expected after '\"' \(behind row 0\)"),
    ("more.csv", b"question;answer\nq;a\nq;a;b\n", "row 2: more columns than the header has .separated"),
    ("twice.csv", b"question,answer,answer\nq,a,b\n", "its header has 'answer' twice"),
    ("array.jsonl", json.dumps(ROWS, indent=1).encode(), "line 1: not valid JSON .* array is called .json"),
    ("lines.json", LINES, "lines.json, line 2: not valid JSON .* JSON lines are called .jsonl"),
    ("object.json", b'{"a": 1}', "needs a JSON array of rows"),
    ("table.txt", b"question;answer\nq;a\n", "line 1: not valid JSON .* a table is called .csv"),
    ("deep.jsonl", b"[" * 5000, "line 1: not valid JSON .nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize("read", [trained, evaluated])
@pytest.mark.parametrize(("name", "content", "complaint"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_read_is_named(
    name: str, content: bytes, complaint: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=complaint) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content", [b"question,answer\r\n", b"question;answer", BOM, b"", b"\n\n", b"sep=;\n"]
)
def test_a_header_alone_has_no_rows(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert trained(path) == []
    with pytest.raises(HarnessError, match=r"rows\.csv: no rows to evaluate"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.csv", b"x,y\n1,2\n", "row 1"),
        ("a.csv", b"x;y\n1;2\n", "';'-separated row 1"),
        ("a.csv", b"x\ty\n1\t2\n", "tab-separated row 1"),
        ("a.csv", b"x\n1; 2\n", "row 1"),  # one column has no separator
        ("a.csv", b"x;y, z;w\n1;2;3\n", "';'-separated row 1"),
        ("a.json", b"[{}]", "row 1"),
        ("a.jsonl", b"\n{}", "line 2"),
    ],
)
def test_a_place_names_the_separator(name: str, content: bytes, place: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert [where for where, _ in read_rows(path)] == [f"{path}, {place}"]


def test_a_field_that_is_missing_at_a_rows_end_is_none(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_bytes(b"x,y,z\n1,2\n")
    assert evaluated(path) == [{"x": "1", "y": "2", "z": None}]


@pytest.mark.parametrize("read", [trained, evaluated])
@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "comma.csv"])
def test_a_small_file_does_not_unpack_into_a_large_one(
    name: str, pack: Any, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "LARGEST_FILE", len(SAME[name]))
    path = tmp_path / name
    path.write_bytes(pack(SAME[name]))
    assert read(path) == ROWS
    path.write_bytes(pack(SAME[name] + b" "))
    with pytest.raises(HarnessError, match="it unpacks into more than 0 MiB"):
        read(path)


def test_rows_are_read_as_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"question,answer\nq,a\nq,a,b\n"))
    rows = loading.read(str(path))[1]
    assert next(rows) == (1, {"question": "q", "answer": "a"})
    with pytest.raises(HarnessError, match="row 2: more columns"):
        next(rows)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@settings(deadline=None)  # files
@given(
    rows=st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}), min_size=1),
    separator=st.sampled_from(row_files.SEPARATORS),
)
def test_any_texts_come_back_from_a_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_bytes(table(separator, rows=rows))
    assert trained(path) == rows
    assert evaluated(path) == rows
