"""Guards files on disk: atomic writes, complaints with file and line, and stages that are done only when
every output is as it was written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import HarnessError
from harness.storage import files
from harness.storage.files import Journal, Stage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Crash(BaseException):
    """What nothing in the code under test may catch and forget."""


def crash(*arguments: Any, **options: Any) -> None:
    raise Crash


# --- files -----------------------------------------------------------------------------------------


def test_an_atomic_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text_atomic(path, "one\r\ntwo\n")
    files.write_text_atomic(path, "zwei\n")
    assert path.read_bytes() == b"zwei\n"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "f.json"
    files.write_json_atomic(path, {"old": 1})
    monkeypatch.setattr(os, step, crash)
    with pytest.raises(Crash):
        files.write_json_atomic(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_crash_while_reading_the_rows_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    files.write_jsonl_atomic(path, [{"a": 1}])

    def rows() -> Any:
        yield {"a": 2}
        raise Crash

    with pytest.raises(Crash):
        files.write_jsonl_atomic(path, rows())
    assert files.read_jsonl(path) == [{"a": 1}]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    files.write_jsonl_atomic(path, rows)
    assert files.read_jsonl(path) == rows
    assert len(path.read_bytes().split(b"\n")) == len(rows) + 1


def test_unusual_line_breaks_inside_a_text_stay_in_its_line(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c\x0cd\re\n"}]
    files.write_jsonl_atomic(tmp_path / "f.jsonl", rows)
    assert files.read_jsonl(tmp_path / "f.jsonl") == rows


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("3", "expected a JSON object, found int"),
        ('{"a": }', "not valid JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"fine": 1}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(HarnessError) as error:
        files.read_jsonl(path)
    assert str(error.value).startswith(f"{path}, line 3: {says}")
    assert "\n" not in str(error.value)


def test_missing_folders_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    for path, says in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "bytes.jsonl", "cannot be read"),
    ):
        with pytest.raises(HarnessError, match=says) as error:
            files.read_jsonl(path)
        assert str(path) in str(error.value)
    with pytest.raises(HarnessError, match="no such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(HarnessError, match="cannot be read as JSON"):
        files.read_json(tmp_path / "bytes.jsonl")


# --- hashes ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(st.text(), JSON, max_size=5), data=st.data())
def test_a_content_hash_ignores_key_order(value: dict[str, Any], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    assert files.content_hash(shuffled) == files.content_hash(value)


@settings(max_examples=60, deadline=None)
@given(one=JSON, other=JSON)
def test_a_content_hash_tells_values_apart(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (files.content_hash(one) == files.content_hash(other)) == same


def test_a_file_hash_is_its_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(b"x" * 100_000)
    assert files.file_hash(tmp_path / "a") == files.file_hash(tmp_path / "b")


# --- stages ----------------------------------------------------------------------------------------


def write_outputs(scratch: Path) -> None:
    (scratch / "folder").mkdir()
    (scratch / "folder" / "part.bin").write_bytes(b"weights")
    (scratch / "rows.jsonl").write_text('{"a": 1}\n', encoding="utf-8")


def make(folder: Path, **inputs: Any) -> Stage:
    return Stage(folder / "cell", "work", {"seed": 1, **inputs}, ["folder", "rows.jsonl"])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**files.read_json(path), **changes}), encoding="utf-8")


def test_a_journal_is_swept_once_its_stage_is_done(tmp_path: Path) -> None:
    """Not another stage's, not one that is under way, and what is no journal is left alone."""
    stage, other = make(tmp_path), make(tmp_path, seed=2)
    with Journal(other).writing([{"row": 1}]):
        pass
    files.sweep(tmp_path)  # no marker
    stage.run(write_outputs)
    files.sweep(tmp_path)  # the marker of another
    assert Journal(other).rows() == [{"row": 1}]
    other.run(write_outputs)
    Journal(other).path.write_bytes(b"\xff")
    files.sweep(tmp_path)
    assert Journal(other).path.exists()
    with Journal(other).writing([{"row": 1}]):
        pass
    files.sweep(tmp_path)
    assert not Journal(other).path.exists()
    assert other.done()


def test_a_stage_is_done_once_it_ran(tmp_path: Path) -> None:
    stage = make(tmp_path)
    assert not stage.done()
    stage.run(write_outputs)
    assert stage.done()
    assert make(tmp_path).done()
    assert set(stage.output_hashes()) == {"folder/part.bin", "rows.jsonl"}
    assert sorted(p.name for p in stage.folder.iterdir()) == ["folder", "rows.jsonl", "work.done.json"]


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    make(tmp_path).run(write_outputs)
    assert not make(tmp_path, seed=2).done()
    assert not make(tmp_path, more=None).done()


@pytest.mark.parametrize(
    "damage",
    [
        lambda cell: (cell / "rows.jsonl").write_text('{"a": 2}\n', encoding="utf-8"),  # same length
        lambda cell: (cell / "rows.jsonl").write_bytes(b'{"a'),
        lambda cell: (cell / "rows.jsonl").unlink(),
        lambda cell: (cell / "folder" / "part.bin").write_bytes(b"weightz"),
        lambda cell: (cell / "folder" / "part.bin").rename(cell / "folder" / "other.bin"),
        lambda cell: (cell / "work.done.json").unlink(),
        lambda cell: (cell / "work.done.json").write_bytes(b""),
        lambda cell: (cell / "work.done.json").write_bytes(b"[]"),
        lambda cell: (cell / "work.done.json").write_bytes(b"\xff"),
        lambda cell: (cell / "work.done.json").write_bytes(b'{"identity": "x", "outputs": null}'),
        lambda cell: edit(cell / "work.done.json", outputs={}),
        lambda cell: edit(cell / "work.done.json", inputs={"seed": 2}),
    ],
)
def test_a_damaged_stage_is_not_done_and_runs_again(tmp_path: Path, damage: Any) -> None:
    stage = make(tmp_path)
    stage.run(write_outputs)
    damage(stage.folder)
    assert not stage.done()
    stage.run(write_outputs)
    assert stage.done()


def test_large_outputs_are_checked_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASH_UP_TO_BYTES", 3)
    stage = make(tmp_path)
    stage.run(write_outputs)
    (stage.folder / "folder" / "part.bin").write_bytes(b"weight")
    assert not stage.done()


def test_the_marker_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the outputs' move and the marker leaves a stage that is not done."""
    stage = make(tmp_path)
    stage.run(write_outputs)
    before = files.write_json_atomic
    monkeypatch.setattr(files, "write_json_atomic", crash)
    with pytest.raises(Crash):
        stage.run(write_outputs)
    assert (stage.folder / "rows.jsonl").exists()
    assert not stage.done()
    monkeypatch.setattr(files, "write_json_atomic", before)
    stage.run(write_outputs)
    assert stage.done()


@pytest.mark.parametrize("moves", [0, 1])
def test_a_crash_between_two_moves_leaves_a_stage_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    stage = make(tmp_path)
    stage.run(write_outputs)
    real, done = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if len(done) == moves:
            raise Crash
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Crash):
        stage.run(write_outputs)
    monkeypatch.setattr(os, "replace", real)
    assert not stage.done()
    stage.run(write_outputs)
    assert stage.done()


def test_work_that_fails_and_what_it_leaves_behind_are_harmless(tmp_path: Path) -> None:
    stage = make(tmp_path)

    def half(scratch: Path) -> None:
        (scratch / "folder").mkdir()
        (scratch / "rows.jsonl").write_text("half", encoding="utf-8")
        (scratch / "junk").write_text("junk", encoding="utf-8")
        raise Crash

    with pytest.raises(Crash):
        stage.run(half)
    assert not stage.done()
    assert not (stage.folder / "rows.jsonl").exists()
    stage.run(write_outputs)
    assert stage.done()
    assert sorted(p.name for p in stage.folder.iterdir()) == ["folder", "rows.jsonl", "work.done.json"]


def test_an_output_that_work_forgot_is_an_error_not_a_done_stage(tmp_path: Path) -> None:
    stage = make(tmp_path)
    with pytest.raises(FileNotFoundError):
        stage.run(lambda scratch: None)
    assert not stage.done()


@given(st.lists(st.one_of(st.integers(), st.text(), st.dictionaries(st.text(), st.integers(), max_size=3))))
def test_a_list_hashed_one_by_one_is_the_list(values: list[Any]) -> None:
    one_by_one = files.ListHash()
    for value in values:
        one_by_one.add(value)
    assert one_by_one.hexdigest() == files.content_hash(values)
