"""Rows from files of every ending and from the hub: the same rows whatever the format, and faults named."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import HarnessError
from tasks.documents import Hub, as_test_split, read_rows, texts

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@settings(deadline=None)  # imports and files
@given(rows=st.lists(st.fixed_dictionaries({"id": TEXT, "question": TEXT, "answer": TEXT}), min_size=1))
def test_every_format_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for ending in ENDINGS:
        found = read_rows(write(rows, folder / f"rows{ending}"))
        assert [texts(row, question="question", answer="answer") for row in found] == rows, ending


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"x": "y"}\n{\n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", "\n\n", r"a\.jsonl: no rows"),
        ("a.json", '[\n{"x": 1},\n]', r"a\.json, line 3: not valid JSON"),
        ("a.json", '{"x": "y"}', r"a\.json: needs a JSON array"),
        ("a.json", "[]", r"a\.json: no rows"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", r"a\.csv, row 2: more columns"),
        ("a.csv", 'x\n"open\n', r"a\.csv: cannot be read"),
        ("a.csv", "x\n", r"a\.csv: no rows"),
        ("a.parquet", "nonsense", r"a\.parquet: cannot be read as Parquet"),
        ("a.CSV", "x,y\n1,2,3\n", r"row 1: more columns"),
        ("latin.jsonl", b"\xe9\n", r"latin\.jsonl: cannot be read"),
    ],
)
def test_faults_are_named(tmp_path: Path, name: str, content: str | bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HarnessError, match=complaint) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, ending: str) -> None:
    path = write([{"x": "y"}], tmp_path / f"rows{ending}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row for _, row in read_rows(path)] == [{"x": "y"}]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(HarnessError, match="absent"):
        read_rows(tmp_path / f"absent{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    with pytest.raises(HarnessError, match="folder"):
        read_rows(tmp_path / f"folder{ending}")


def test_a_field_may_have_several_names() -> None:
    assert texts(("f, row 1", {"goal": "a", "id": 3}), request=("prompt", "goal")) == {
        "id": "3",
        "request": "a",
    }
    assert texts(("f, row 1", {"goal": "a", "id": " ", "tools": "[]"}), request="goal") == {"request": "a"}
    for name in ("system", "history", "input", "tools", "images"):
        with pytest.raises(HarnessError, match=f"^f, row 1: '{name}' is not used here"):
            texts(("f, row 1", {"goal": "a", name: "x"}), request="goal")
    for row in ({}, {"goal": None}, {"goal": 3}, {"goal": " "}, [], "goal", None, {"goal": ["a"]}):
        with pytest.raises(HarnessError, match=r"^f, row 1: needs a text field 'prompt' or 'goal'$"):
            texts(("f, row 1", row), request=("prompt", "goal"))


@settings(deadline=None)  # imports and files
@given(ids=st.lists(st.sampled_from([None, "", " ", 1, 2, "1", "x"]), max_size=4))
def test_ids_are_unique_or_refused(ids: list[Any]) -> None:
    rows = [{"text": "a"} if i is None else {"id": i, "text": "a"} for i in ids]
    own = [str(i) for i in ids if str(i or "").strip()]
    if not rows or len(set(own)) < len(own):
        with pytest.raises(HarnessError, match=r"no rows|the same id"):
            as_test_split(rows, "t")
    else:
        found = as_test_split(rows, "t")["test"]["id"]
        assert list(found) == [str(i) if str(i or "").strip() else f"t-{n:04d}" for n, i in enumerate(ids)]


class GatedError(Exception):
    """What the hub says of a data set whose licence was not accepted."""


def test_a_gated_data_set_is_one_line_that_says_what_to_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise GatedError("403 Client Error.\n\nAccess to dataset o/n is restricted.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    said = (
        r"^t: the hub data set o/n cannot be loaded \(403 Client Error\.\); accept its licence at "
        r"https://huggingface\.co/datasets/o/n and log in \(hf auth login\), or give a local copy: "
        r"--data t=FILE"
    )
    hub = Hub("o/n", "0" * 40, gated=True)
    for ask in (lambda: hub.load("test", "t"), lambda: hub.files("*.csv", "t")):
        with pytest.raises(HarnessError, match=said) as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(HarnessError, match=r"cannot be loaded \(403 Client Error\.\); give a local copy"):
        Hub("o/n", "0" * 40).load("test", "t")


def test_what_is_not_pinned_says_so(hub: Any, caplog: pytest.LogCaptureFixture) -> None:
    Hub("openai/gsm8k", "0" * 40, config="main").load("test", "t")
    assert not caplog.messages
    Hub("openai/gsm8k", None).load("test", "t")
    assert caplog.messages == ["t: openai/gsm8k is not pinned to a commit: the hub's newest files are read"]
    assert [asked["revision"] for asked in hub.asked] == ["0" * 40, None]
