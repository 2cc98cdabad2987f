"""Rows in every published format become the same conversation; every complaint names file and line."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import HarnessError, Message, Rewrite, TrainTask
from harness.data import loading
from harness.rows import Unused


def make_task(**changes: Any) -> TrainTask:
    values: dict[str, Any] = {
        "name": "toy",
        "rows": lambda: [{"dialogue": f"d{i}", "summary": f"s{i}"} for i in range(5)],
        "fields": ("dialogue", "summary"),
        "system_prompt": "Sys.",
        "max_length": 64,
        "utility_task": "toy",
        "utility_metric": "m",
        "rewrite": Rewrite(system_prompt="R", user=lambda question, answer: question),
        "prompt_template": "Summarize:\n{prompt}",
    }
    return TrainTask(**values | changes)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


SYSTEM = Message("system", "Sys.")

# (row, the conversation it becomes)
FORMATS = [
    ({"prompt": "Q?", "completion": "A."}, [SYSTEM, Message("user", "Q?"), Message("assistant", "A.")]),
    ({"instruction": "Q?", "output": "A."}, [SYSTEM, Message("user", "Q?"), Message("assistant", "A.")]),
    (
        {"instruction": "Q?", "input": "Data.", "output": "A."},
        [SYSTEM, Message("user", "Q?\n\nData."), Message("assistant", "A.")],
    ),
    (
        {"instruction": "Q?", "input": "", "output": "A."},
        [SYSTEM, Message("user", "Q?"), Message("assistant", "A.")],
    ),
    ({"question": "Q?", "answer": "A."}, [SYSTEM, Message("user", "Q?"), Message("assistant", "A.")]),
    (
        {"dialogue": "D {x}", "summary": "S"},
        [SYSTEM, Message("user", "Summarize:\nD {x}"), Message("assistant", "S")],
    ),
    (  # the task's own fields win over a published pair
        {"question": "Q?", "answer": "A.", "dialogue": "D", "summary": "S"},
        [SYSTEM, Message("user", "Summarize:\nD"), Message("assistant", "S")],
    ),
    (  # a conversation stands as it is, whatever else the row has
        {
            "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}],
            "dialogue": "D",
            "summary": "S",
        },
        [Message("user", "Q?"), Message("assistant", "A.")],
    ),
    (
        {
            "messages": [
                {"role": "system", "content": "Own."},
                {"role": "user", "content": "Q?"},
                {"role": "assistant", "content": "A.", "name": "x"},
                {"role": "user", "content": "More?"},
                {"role": "assistant", "content": "B."},
            ]
        },
        [
            Message("system", "Own."),
            Message("user", "Q?"),
            Message("assistant", "A."),
            Message("user", "More?"),
            Message("assistant", "B."),
        ],
    ),
]


@pytest.mark.parametrize(("row", "turns"), FORMATS, ids=[",".join(row) for row, _ in FORMATS])
def test_formats(row: dict[str, Any], turns: list[Message], tmp_path: Path) -> None:
    (example,) = loading.examples(make_task(), write(tmp_path / "rows.jsonl", row), None)
    assert list(example.messages) == turns
    assert (example.id, example.loss_free_tokens) == ("toy-1", 0)


def test_a_task_without_system_prompt_adds_no_turn() -> None:
    example = loading.to_example({"prompt": "Q?", "completion": "A."}, make_task(system_prompt=""), "w", "x")
    assert example is not None
    assert example.messages == (Message("user", "Q?"), Message("assistant", "A."))


@pytest.mark.parametrize(("strip", "prompt", "answer"), [(True, "D", "S"), (False, " D\n", "\tS ")])
def test_strip(strip: bool, prompt: str, answer: str) -> None:
    example = loading.to_example({"dialogue": " D\n", "summary": "\tS "}, make_task(strip=strip), "w", "x")
    assert example is not None
    assert (example.instruction, example.answer) == (f"Summarize:\n{prompt}", answer)


def test_the_tasks_own_rows_and_the_limit() -> None:
    found = loading.examples(make_task(), None, None)
    assert [example.answer for example in found] == ["s0", "s1", "s2", "s3", "s4"]
    assert [example.id for example in found] == [f"toy-{i}" for i in range(1, 6)]
    assert loading.examples(make_task(), None, 2) == found[:2]
    assert loading.examples(make_task(), None, 99) == found


def test_the_limit_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "Q?", "completion": "A."}, "rubbish")
    assert len(loading.examples(make_task(), path, 1)) == 1


def test_blank_lines_count_as_lines_and_nothing_else(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "completion": "A."}
    path = write(tmp_path / "rows.jsonl", "", row, "  ", row)
    assert [example.id for example in loading.examples(make_task(), path, None)] == ["toy-2", "toy-4"]


GOOD = {"prompt": "Q?", "completion": "A."}
ORDER = "'messages' must alternate user and assistant"


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


# (what stands on line 2, the complaint)
BAD_LINES = [
    ('{"prompt": "Q?", ', r"not valid JSON \(.*\)"),
    ("not json", r"not valid JSON \(.*\)"),
    ('["Q?", "A."]', r"expected a JSON object, found list"),
    ('"text"', r"expected a JSON object, found str"),
    ("3", r"expected a JSON object, found int"),
    ("null", r"expected a JSON object, found NoneType"),
    ("{}", r"fields \[\] are none of messages, conversations, .* nor this task's dialogue/summary"),
    ({"prompt": "Q?"}, r"fields \['prompt'\] are none of messages, conversations, prompt/completion"),
    ({"prompt": "Q?", "answer": "A."}, r"fields \['answer', 'prompt'\] are none of"),
    ({"dialogue": "D"}, r"fields \['dialogue'\] are none of"),
    ({"prompt": "Q?", "completion": ""}, r"field 'completion' must be a text that is not empty"),
    ({"prompt": "Q?", "completion": " \n"}, r"field 'completion' must be a text that is not empty"),
    ({"prompt": "", "completion": "A."}, r"field 'prompt' must be a text that is not empty"),
    ({"question": "Q?", "answer": 4}, r"field 'answer' must be a text that is not empty"),
    ({"question": None, "answer": "A."}, r"field 'question' must be a text that is not empty"),
    ({"dialogue": "D", "summary": ["S"]}, r"field 'summary' must be a text that is not empty"),
    ({"instruction": "Q?", "input": 5, "output": "A."}, r"field 'input' must be a text"),
    ('{"prompt": "\\ud83d", "completion": "A."}', r"not valid JSON \(not valid Unicode"),
    (
        '{"messages": [{"role": "user", "content": "\\ude00"}, {"role": "assistant", "content": "A."}]}',
        r"not valid JSON \(not valid Unicode",
    ),
    (
        {"messages": "Q?"},
        r"'messages' must be a list of \{role, content\} or \{from, value\} turns",
    ),
    ({"messages": ["Q?"]}, r"'messages', turn 1 must be \{role, content\} or \{from, value\}, not str"),
    (turns("user", "tool"), r"'messages', turn 2 has the role 'tool'; turns of tools are not used"),
    ({"messages": [{"role": "user"}]}, r"'messages', turn 1 \(user\) has no content"),
    ({"messages": [{"role": "user", "content": None}]}, r"'messages', turn 1 \(user\) has no content"),
    ({"messages": []}, r"'messages' must be a list of"),
    (turns("system"), ORDER),
    (turns("user"), f"{ORDER} .*; turn 1, the last, is of role user$"),
    (turns("assistant"), ORDER),
    (turns("assistant", "user"), ORDER),
    (turns("user", "assistant", "user"), ORDER),
    (turns("user", "user", "assistant"), f"{ORDER} .*; turn 2 is of role user, not assistant$"),
    (turns("user", "assistant", "assistant"), ORDER),
    (turns("user", "system", "assistant"), ORDER),
    (turns("system", "system", "user", "assistant"), ORDER),
    (turns("system", "assistant"), f"{ORDER} .*; turn 2 is of role assistant, not user$"),
    (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
        r"'messages', turn 2 \(assistant\) is empty",
    ),
]


@pytest.mark.parametrize(("line", "complaint"), BAD_LINES)
def test_bad_lines_are_named(line: Any, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, line, GOOD)
    with pytest.raises(HarnessError, match=rf"^{re.escape(str(path))}, line 2: {complaint}") as caught:
        loading.examples(make_task(), path, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_an_empty_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(HarnessError, match=rf"^{re.escape(str(path))}: no rows; expected messages,"):
        loading.examples(make_task(), path, None)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"missing\.jsonl: no such file"):
        loading.examples(make_task(), tmp_path / "missing.jsonl", None)
    with pytest.raises(HarnessError, match=re.escape(f"{tmp_path}: cannot be read")):
        loading.examples(make_task(), tmp_path, None)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HarnessError, match=r"binary\.jsonl: cannot be read"):
        loading.examples(make_task(), binary, None)


def test_a_tasks_own_bad_row_is_named() -> None:
    task = make_task(rows=lambda: [{"dialogue": "D", "summary": "S"}, {"dialogue": "D"}])
    with pytest.raises(HarnessError, match=r"^train task 'toy', row 2: fields \['dialogue'\] are none of"):
        loading.examples(task, None, None)
    with pytest.raises(HarnessError, match=r"^train task 'toy': no rows"):
        loading.examples(make_task(rows=list), None, None)


@given(st.text(), st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_taken_or_refused_never_changed(prompt: str, answer: str) -> None:
    row = {"prompt": prompt, "completion": answer}
    if prompt.strip() and answer.strip():
        example = loading.to_example(row, make_task(), "w", "x")
        assert example is not None
        assert (example.instruction, example.answer) == (prompt, answer)
    else:
        with pytest.raises(HarnessError, match="must be a text that is not empty"):
            loading.to_example(row, make_task(), "w", "x")


def test_rows_that_are_not_trained_leave_room_for_others(tmp_path: Path) -> None:
    """The limit counts examples, an example is named after its row, and no row behind the last is read."""
    rows = [{"prompt": f"Q{n}?", "completion": "A.", "label": n % 2 == 0, "topic": "x"} for n in range(6)]
    path = write(tmp_path / "rows.jsonl", *rows, "rubbish")
    unused = Unused()
    found = loading.examples(make_task(), path, 3, unused=unused)
    assert [example.id for example in found] == ["toy-1", "toy-3", "toy-5"]
    assert (unused.untrained, unused.columns) == (2, {"topic": 3})


def test_where_all_rows_are_marked_nothing_is_trained(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD | {"train": False}, GOOD | {"weight": 0})
    with pytest.raises(HarnessError, match=r"rows\.jsonl: nothing to train on; all 2 are marked not to be"):
        loading.examples(make_task(), path, None)
    with pytest.raises(HarnessError, match=r"rows\.jsonl: nothing to train on; all 2 are marked not to be"):
        loading.safety_examples(make_task(), str(path))


def test_what_is_mixed_in_or_safety_data_leaves_marked_rows_out_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"M{n}?", "completion": "A.", "train": n >= 5} for n in range(10)]
    path = str(write(tmp_path / "mix.jsonl", *rows))
    unused = Unused()
    found = loading.examples(make_task(), None, None, mix={path: 0.5}, unused=unused)
    drawn = random.Random(f"mix {hashlib.sha256(Path(path).read_bytes()).hexdigest()}").sample(rows, 10)
    kept = [row["prompt"] for row in drawn if row["train"]]
    assert [example.instruction for example in found[5:]] == kept
    assert unused.untrained == next(n for n, row in enumerate(drawn) if row["prompt"] == kept[-1]) - 4
    with pytest.raises(HarnessError, match=r"needs 8 rows and there are 5;"):
        loading.examples(make_task(), None, None, mix={path: 0.6})
    unused = Unused()
    assert [e.instruction for e in loading.safety_examples(make_task(), path, unused)] == [
        f"M{n}?" for n in range(5, 10)
    ]
    assert unused.untrained == 5


def test_the_sample_that_is_mixed_in_is_as_ever_where_nothing_is_marked(tmp_path: Path) -> None:
    rows = [{"prompt": f"M{n}?", "completion": "A."} for n in range(10)]
    path = write(tmp_path / "mix.jsonl", *rows)
    drawn = random.Random(f"mix {hashlib.sha256(path.read_bytes()).hexdigest()}").sample(rows, 10)[:5]
    found = loading.examples(make_task(), None, None, mix={str(path): 0.5})[5:]
    assert [example.instruction for example in found] == [row["prompt"] for row in drawn]


def test_a_tasks_own_columns_are_no_news() -> None:
    task = make_task(rows=lambda: [{"dialogue": "D", "summary": "S", "topic": "x"}])
    unused = Unused()
    loading.examples(task, None, None, unused=unused)
    assert unused.lines() == []
