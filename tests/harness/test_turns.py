"""Turns are read whole, or refused by their number and role."""

from __future__ import annotations

from typing import Any

import pytest

from harness.contracts import HarnessError
from harness.turns import absent, joined, read, switch

ROLES = [
    ("user", "user"), ("User", "user"), (" HUMAN ", "user"), ("prompter", "user"), ("system", "system"),
    ("assistant", "assistant"), ("GPT", "assistant"), ("chatgpt", "assistant"), ("bot", "assistant"),
    ("model", "assistant"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "known"), ROLES)
@pytest.mark.parametrize(("role_key", "text_key"), [("role", "content"), ("from", "value")])
def test_roles_have_several_names(role: str, known: str, role_key: str, text_key: str) -> None:
    none = {"role": None, "from": None, "content": None, "value": None}  # as tables have it
    (turn,) = read([none | {role_key: role, text_key: " x "}], "messages", "w")
    assert (turn.message.role, turn.message.content) == (known, " x ")


def test_parts_that_are_text_are_put_together() -> None:
    parts = [{"type": "text", "text": "Look "}, {"type": "text", "text": "here.", "image_url": None}, " Now."]
    (turn,) = read([{"role": "user", "content": parts}], "messages", "w")
    assert turn.message.content == "Look here. Now."


REFUSED = [
    ("Q?", r"turn 2 must be \{role, content\} or \{from, value\}, not str"),
    ({"content": "x"}, "turn 2 has no 'role'"),
    ({"role": "developer", "content": "x"}, "turn 2 has the role 'developer'; call it 'system'"),
    ({"role": "Developer", "content": "x"}, "turn 2 has the role 'Developer'; call it 'system'"),
    ({"role": "tool", "content": "x"}, "turn 2 has the role 'tool'; turns of tools are not used"),
    ({"from": "function_call", "value": "{}"}, "turn 2 has the role 'function_call'; turns of tools"),
    ({"from": "observation", "value": "x"}, "turn 2 has the role 'observation'; turns of tools"),
    ({"role": "critic", "content": "x"}, r"turn 2 has the role 'critic'; known are system, user"),
    ({"role": 3, "content": "x"}, "turn 2 has the role '3'"),
    ({"role": ["user"], "content": "x"}, r"turn 2 has the role \(list\)"),
    ({"role": "x" * 41, "content": "x"}, r"turn 2 has the role \(41 characters\)"),
    ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, r"\(assistant\) has 'tool_calls'"),
    ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "has 'function_call'"),
    ({"role": "assistant", "content": None, "refusal": "No."}, "has 'refusal'"),
    ({"role": "assistant", "content": "x", "reasoning_content": "Hm."}, "has 'reasoning_content'"),
    ({"role": "assistant", "content": None}, r"turn 2 \(assistant\) has no content"),
    ({"role": "assistant", "content": 3}, r"turn 2 \(assistant\): its content must be a text, not int"),
    ({"role": "assistant", "content": " \n"}, r"turn 2 \(assistant\) is empty"),
    ({"role": "user", "content": []}, r"turn 2 \(user\) is empty"),
    ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]},
     r"turn 2 \(user\), part 2 is 'image_url' and no text"),
    ({"role": "user", "content": [{"type": "input_audio"}]}, "part 1 is 'input_audio' and no text"),
    ({"role": "user", "content": [3]}, "part 1 is int and no text"),
    ({"role": "user", "content": "\ud83d"}, "turn 2: not valid Unicode"),
]  # fmt: skip


@pytest.mark.parametrize(("turn", "complaint"), REFUSED)
def test_what_is_no_text_of_a_known_role_is_named(turn: Any, complaint: str) -> None:
    with pytest.raises(HarnessError, match=f"^w: 'messages', .*{complaint}") as caught:
        read([{"role": "user", "content": "x"}, turn], "messages", "w")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [None, "Q?", {}, [], {"role": ["user"], "content": ["x"]}, 3])
def test_what_is_no_list_of_turns_is_named(value: Any) -> None:
    with pytest.raises(HarnessError, match=r"^w: 'messages' must be a list of \{role, content\}"):
        read(value, "messages", "w")


ORDERS = [
    ("ua", None), ("sua", None), ("uaua", None),
    ("u", "turn 1, the last, is of role user"), ("uau", "turn 3, the last, is of role user"),
    ("a", "turn 1 is of role assistant, not user"), ("uua", "turn 2 is of role user, not assistant"),
    ("sa", "turn 2 is of role assistant, not user"), ("s", "turn 1, the last, is of role system"),
    ("usa", "turn 2 is of role system, not assistant; a system turn comes first"),
    ("ssua", "turn 2 is of role system, not user; a system turn comes first"),
    ("uaa", "turn 3 is of role assistant, not user"),
]  # fmt: skip


@pytest.mark.parametrize(("order", "complaint"), ORDERS)
def test_order_is_named_by_turn_and_role(order: str, complaint: str | None) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    turns = read([{"role": names[letter], "content": letter} for letter in order], "messages", "w")
    if complaint is None:
        assert "".join(message.content for message in joined(turns, "messages", "w")) == order
        return
    with pytest.raises(HarnessError) as caught:
        joined(turns, "messages", "w")
    assert str(caught.value).startswith("w: 'messages' must alternate user and assistant")
    assert str(caught.value).endswith(f"; {complaint}")


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, (), float("nan")])
def test_what_holds_nothing_is_absent(value: Any) -> None:
    assert absent(value)


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "[]", "null", [None], {"a": None}])
def test_what_holds_something_is_not(value: Any) -> None:
    assert not absent(value)


SWITCHES = [
    (True, True), (1, True), (1.0, True), ("1", True), ("True", True), ("true ", True), ("1.0", True),
    (False, False), (0, False), (0.0, False), ("0", False), ("FALSE", False), ("0.0", False),
    (2, None), (0.5, None), (-1, None), ("yes", None), ("", None), (None, None), ([], None), ("safe", None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "on"), SWITCHES)
def test_switches_however_they_are_written(value: Any, on: bool | None) -> None:
    assert switch(value) is on
