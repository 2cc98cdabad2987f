"""A row is used whole, refused by what is wrong with it, or left out and counted: never trained otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Example, HarnessError, Message, Rewrite, TrainTask
from harness.rows import Unused, to_example

TASK = TrainTask(
    name="toy",
    rows=list,
    fields=("question", "answer"),
    system_prompt="Sys.",
    max_length=64,
    utility_task="toy",
    utility_metric="m",
    rewrite=Rewrite(system_prompt="R", user=lambda question, answer: question),
)
Turn = dict[str, Any]


def ask(content: Any = "Q?", **more: Any) -> Turn:
    return {"role": "user", "content": content, **more}


def say(content: Any = "A.", **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def made(row: dict[str, Any], unused: Unused | None = None) -> Example | None:
    return to_example(row, TASK, "f, line 1", "x", unused=unused)


def spelled(row: dict[str, Any]) -> list[tuple[str, str]]:
    example = made(row)
    assert example is not None
    return [(message.role[0], message.content) for message in example.messages]


SHAREGPT = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
ALPACA = {"instruction": "Q?", "output": "A."}
OWN, TASKS = ("s", "Own."), ("s", "Sys.")
ONE = [("u", "Q?"), ("a", "A.")]
PAST = [("u", "q"), ("a", "a"), ("u", "r"), ("a", "b")]

USED = [
    ({"conversations": SHAREGPT, "system": "Own.", "tools": ""}, [OWN, *ONE]),
    ({"conversations": SHAREGPT, "system": None, "tools": "[]"}, ONE),
    ({"conversations": SHAREGPT, "system_prompt": "Own."}, [OWN, *ONE]),
    ({"messages": [{"role": "system", "content": "Own."}, ask(), say()], "system": "Own."}, [OWN, *ONE]),
    ({"messages": [{"role": "system", "content": ""}, ask(), say()], "system": "Own."}, [OWN, *ONE]),
    ({**ALPACA, "system": "Own."}, [OWN, *ONE]),
    ({**ALPACA, "system": " ", "history": [], "input": None}, [TASKS, *ONE]),
    ({**ALPACA, "history": [["q", "a"], ["r", "b"]]}, [TASKS, *PAST, *ONE]),
    ({**ALPACA, "history": '[["q", "a"], ["r", "b"]]', "system": "Own."}, [OWN, *PAST, *ONE]),
    ({**ALPACA, "input": "[]"}, [TASKS, ("u", "Q?\n\n[]"), ("a", "A.")]),
    ({"question": "Q?", "answer": "A.", "system": "Own.", "history": [["q", "a"], ["r", "b"]]},
     [OWN, *PAST, *ONE]),
    ({"prompt": [ask()], "completion": [say()]}, ONE),
    ({"prompt": [{"role": "system", "content": "Own."}, ask()], "completion": [say()]}, [OWN, *ONE]),
    ({"prompt": [ask()], "completion": [say()], "system": "Own."}, [OWN, *ONE]),
    ({"messages": [], "prompt": "Q?", "completion": "A."}, [TASKS, *ONE]),  # a table's empty column
    ({"prompt": "Q?", "completion": "A.", "label": True, "weight": 1, "train": "true"}, [TASKS, *ONE]),
    ({"prompt": "Q?", "completion": "A.", "label": "", "weight": None, "train": float("nan")}, [TASKS, *ONE]),
    ({"prompt": "Q?", "completion": "A.", "label": "safe"}, [TASKS, *ONE]),
    ({"messages": [ask("q"), say("a", weight=0), ask("r"), say("b", weight=1)]}, PAST),
    ({"messages": [ask("q", train=False), say("a", train=False), ask("r"), say("b")]}, PAST),
]  # fmt: skip


@pytest.mark.parametrize(("row", "turns"), USED)
def test_what_a_row_says_is_used(row: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    assert spelled(row) == turns


NOT_USED = "is not used here and changes what the row means"
REFUSED = [
    ({"conversations": SHAREGPT, "tools": '[{"name": "f"}]'}, f"f, line 1: 'tools' {NOT_USED}"),
    ({"messages": [ask(), say()], "tools": [{"type": "function"}]}, f"'tools' {NOT_USED}"),
    ({"messages": [ask(), say()], "functions": [{"name": "f"}]}, f"'functions' {NOT_USED}"),
    ({"messages": [ask(), say()], "images": ["a.png"]}, f"'images' {NOT_USED}"),
    ({"prompt": "Q?", "completion": "A.", "tools": [{}]}, f"'tools' {NOT_USED}"),
    ({"question": "Q?", "answer": "A.", "context": "Paris"}, f"'context' {NOT_USED}"),
    ({"conversations": [{"from": "system", "value": "Other."}, *SHAREGPT], "system": "Own."}, "keep one"),
    ({**ALPACA, "system": "Own.", "system_prompt": "Other."}, "system and system_prompt differ"),
    ({**ALPACA, "system": ["Own."]}, "field 'system' must be a text that is not empty, not of type list"),
    ({**ALPACA, "history": [["q"]]}, "'history', pair 1 must be two texts"),
    ({**ALPACA, "history": [["q", "a"], ["r", ""]]}, "'history', pair 2 must be two texts"),
    ({**ALPACA, "history": "earlier"}, "'history' must be a list of"),
    ({**ALPACA, "history": {"q": "a"}}, "'history' must be a list of"),
    ({"messages": [ask(), say()], "history": [["q", "a"]]}, "'history' beside 'messages'"),
    ({"prompt": [ask()], "completion": "A."}, "of 'prompt' and 'completion' one is a list of turns"),
    ({"prompt": "Q?", "completion": [say()]}, "of 'prompt' and 'completion' one is a list of turns"),
    ({"prompt": [ask(), say()], "completion": [say()]}, "turn 3 is of role assistant, not user"),
    ({"prompt": [ask()], "completion": [{"role": "tool", "content": "x"}]}, "'completion', turn 1 has the"),
    ({"prompt": "Q?", "chosen": "A.", "rejected": "B."}, "rows of preferences have no one answer"),
    ({"goal": "Q?", "target": "A."}, "--columns prompt=goal,answer=target"),
    ({"goal|target": "Q?|A."}, "this is one column: a table's separators are comma, semicolon and tab"),
    ({"prompt": "Q?", "completion": "A.", "label": 0}, "'label' '0' may say that the answer is not"),
    ({"prompt": "Q?", "completion": "A.", "label": "1"}, "'label' '1' may say that the answer is not"),
    ({"prompt": "Q?", "completion": "A.", "weight": 0.5}, "'weight' must be true or false .*, not '0.5'"),
    ({"prompt": "Q?", "completion": "A.", "train": "maybe"}, "'train' must be true or false .*, not 'maybe'"),
    ({"prompt": "Q?", "completion": "A.", "weight": 1, "label": False}, "weight and label say different"),
    ({"messages": [ask(), say(weight=0.5)]}, "turn 2: 'weight' must be true or false"),
    ({"messages": [ask(), say(weight=1, train=False)]}, "turn 2: weight and train say different things"),
    ({"messages": [ask(), say(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}])]},
     "turn 2: an answer cannot be learnt in part"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "complaint"), REFUSED)
def test_what_is_not_used_is_refused_by_its_name(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint) as caught:
        made(row)
    assert str(caught.value).startswith("f, line 1: ")
    assert str(caught.value).isprintable()


UNTRAINED = [
    {"messages": [ask(), say(weight=0)]},
    {"messages": [ask(), say(weight=0.0)]},
    {"messages": [ask(), say(weight="0")]},
    {"messages": [ask("q"), say("a", weight=1), ask(), say(weight=0)]},
    {"messages": [ask(), say(train=False)]},
    {"messages": [ask(), say(label=False)]},
    {"messages": [ask(), say(loss=False)]},
    {"messages": [ask(), say(train=False, train_detail=[{"train": False}])]},
    {"messages": [ask(), say(weight=1)], "weight": 0},
    {"conversations": SHAREGPT, "train": False},
    {"conversations": SHAREGPT, "kto_tag": False},
    {"prompt": [ask()], "completion": [say()], "label": False},
    {"prompt": [ask()], "completion": [say(weight=0)]},
    {"prompt": "Q?", "completion": "A.", "label": False},
    {"prompt": "Q?", "completion": "A.", "label": "False"},  # as CSV has it
    {"question": "Q?", "answer": "A.", "weight": "0.0"},
    {**ALPACA, "train": "false"},
]


@pytest.mark.parametrize("row", UNTRAINED)
def test_an_answer_that_is_marked_is_left_out_and_counted(row: dict[str, Any]) -> None:
    unused = Unused()
    assert made(row, unused) is None
    assert (unused.untrained, unused.other_turns, dict(unused.columns)) == (1, 0, {})
    assert unused.lines() == ["rows left out, marked not to be trained (weight, train, label): 1"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ask(train=True), say(), ask(), say(train=True)]},
        {"messages": [ask(), say(weight=1), ask(), say()]},
        {"prompt": [ask()], "completion": [say(), ask(), say()]},
    ],
)
def test_further_turns_that_are_to_be_trained_are_told(row: dict[str, Any]) -> None:
    unused = Unused()
    assert made(row, unused) is not None
    assert unused.lines() == ["rows that mark further turns: 1; the last answer alone is learnt"]


def test_columns_without_a_meaning_are_told() -> None:
    unused = Unused()
    rows = [
        {"prompt": "Q?", "completion": "A.", "topic": "x", "id": 3, "empty": None, "label": "safe"},
        {"messages": [ask(name="Bob"), say()], "topic": "y", "prompt": "Q?"},
        {"messages": [ask(), say()], "k" * 41: 1, "\x1b[2J": 1},
    ]
    for row in rows:
        assert made(row, unused) is not None
    assert unused.columns == {
        "topic": 2, "label": 1, "name of a turn": 1, "prompt": 1, "k" * 41: 1, "\x1b[2J": 1
    }  # fmt: skip
    (line,) = unused.lines()
    assert line.startswith("not used of the rows: 'topic', ")
    assert "(41 characters)" in line  # a header that is a text is not shown
    assert line.isprintable()


def test_the_users_own_columns_keep_what_the_row_says() -> None:
    layout = ("turns", ("q", "a"))
    row = {"q": "Q?", "a": "A.", "system": "Own.", "history": [["x", "y"]], "context": "no matter"}
    unused = Unused()
    example = to_example(row, TASK, "w", "x", layout, unused)  # type: ignore[arg-type]
    assert example is not None
    assert [message.content for message in example.messages] == ["Own.", "x", "y", "Q?", "A."]
    assert unused.columns == {"context": 1}
    assert to_example(row | {"weight": 0}, TASK, "w", "x", layout) is None  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match="w: no column 'b'; there are 'a', 'context', 'history'"):
        to_example(row, TASK, "w", "x", ("turns", ("q", "b")))


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.text(max_size=3),
    st.lists(st.one_of(st.text(max_size=2), st.lists(st.text(max_size=2), max_size=2)), max_size=2),
    st.lists(st.fixed_dictionaries({}, optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "User", 3]),
        "content": st.one_of(st.none(), st.text(max_size=2), st.lists(st.text(max_size=2), max_size=2)),
        "weight": st.one_of(st.none(), st.integers(0, 2)),
    }), max_size=3),
)  # fmt: skip
NAMES = ("messages", "conversations", "prompt", "completion", "question", "answer", "system", "history",
         "tools", "weight", "train", "label", "input", "instruction", "output")  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), CELLS))
def test_any_row_is_used_left_out_or_refused_in_a_line(row: dict[str, Any]) -> None:
    unused, refused = Unused(), ""
    try:
        example = made(row, unused)
    except HarnessError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("f, line 1: ")
        assert refused.isprintable()
        return
    if example is None:
        assert unused.untrained == 1
        return
    assert isinstance(example.messages[-1], Message)
    assert example.messages[-1].role == "assistant"
    assert example.answer.strip()
    assert example.instruction.strip()
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        assert example.messages[0] == Message("system", system)
