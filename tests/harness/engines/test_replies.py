"""Guards what is taken from a server's reply: text where text belongs, and never a structure's spelling."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import finish
from harness.engines import replies
from harness.engines.replies import NOT_A_WORD, Reply


def chat(content: Any = None, finish_reason: Any = "stop", usage: Any = None, **fields: Any) -> Reply:
    message = SimpleNamespace(content=content, **fields)
    return replies.of_choice(SimpleNamespace(message=message, finish_reason=finish_reason), usage)


def missing(reply: Reply) -> str | None:
    return finish.missing(reply.text, reply.finish_reason, reply.reasoning, reply.unavailable)


TEXT, THOUGHT = {"type": "text", "text": "Yes."}, {"type": "thinking", "thinking": "hm"}
NESTED = {"type": "thinking", "thinking": [{"type": "text", "text": "7 and "}, {"type": "text", "text": "5"}]}


@pytest.mark.parametrize(
    ("content", "text", "thought"),
    [
        ("Yes.", "Yes.", None),
        (None, "", None),
        ([], "", None),
        ({}, "", None),
        (7, "", None),
        (True, "", None),
        (["Ye", "s."], "Yes.", None),
        ([TEXT], "Yes.", None),
        (TEXT, "Yes.", None),
        ([{"text": "Yes."}], "Yes.", None),
        ([{"type": "output_text", "text": "Yes.", "annotations": []}], "Yes.", None),
        ([{"type": "text", "text": {"value": "Yes.", "annotations": [1]}}], "Yes.", None),
        ([{"type": "message", "content": [TEXT]}], "Yes.", None),
        ([THOUGHT, TEXT], "Yes.", "hm"),
        ([TEXT, THOUGHT, TEXT], "Yes.Yes.", "hm"),
        ([NESTED, TEXT], "Yes.", "7 and 5"),
        ([THOUGHT, NESTED, TEXT], "Yes.", "hm\n\n7 and 5"),
        ([NESTED], "", "7 and 5"),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, TEXT], "Yes.", "hm"),
        ([{"type": "reasoning", "text": "hm"}, TEXT], "Yes.", "hm"),
        ([{"text": "hm", "thought": True}, {"text": "Yes."}], "Yes.", "hm"),
        ([{"type": "redacted_thinking", "data": "x9"}, TEXT], "Yes.", None),
        ([{"type": "refusal", "refusal": "No."}], "No.", None),
        (
            [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "audio", "audio": {"data": "x"}}],
            "",
            None,
        ),
        ([[TEXT]], "Yes.", None),
        ([None, 7, {"type": 7, "text": 7}, {"type": ["x"]}, TEXT], "Yes.", None),
    ],
    ids=str,
)
def test_text_parts_are_the_answer_and_thinking_parts_the_reasoning(
    content: Any, text: str, thought: str | None
) -> None:
    found = chat(content)
    assert (found.text, found.reasoning, found.unavailable) == (text, thought, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning": "", "reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning": {"content": "hm"}},
        {"reasoning": [{"type": "text", "text": "hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
    ],
    ids=str,
)
def test_a_field_of_its_own_is_reasoning(fields: dict[str, Any]) -> None:
    assert (chat("Yes.", **fields).text, chat("Yes.", **fields).reasoning) == ("Yes.", "hm")
    assert missing(chat(None, "length", **fields)) == finish.UNFINISHED
    assert chat([THOUGHT, TEXT], **fields).reasoning == "hm\n\nhm"


@pytest.mark.parametrize("empty", ["", None, [], {}, 7, [{"type": "reasoning.encrypted", "data": "x"}]])
def test_an_empty_field_is_no_reasoning(empty: Any) -> None:
    assert chat("Yes.", reasoning_content=empty).reasoning is None


def test_a_refusal_is_the_models_own_answer() -> None:
    assert chat(None, refusal="No.").text == "No."
    assert chat("", refusal="No.").text == "No."
    assert chat("Well.", refusal="No.").text == "Well.\n\nNo."
    assert missing(chat(None, refusal="No.")) is None
    assert missing(chat(None, refusal=None)) == finish.EMPTY


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"content": [TEXT, {"type": "tool_use", "name": "f", "input": {}}]},
        {"content": [{"type": "function_call", "name": "f"}]},
    ],
    ids=str,
)
@pytest.mark.parametrize("reason", ["stop", "tool_calls", None])
def test_a_tool_call_is_no_answer(fields: dict[str, Any], reason: str | None) -> None:
    assert missing(chat(**{"content": "Let me look.", **fields}, finish_reason=reason)) == finish.CALLED_TOOL


def test_no_tool_call_is_none() -> None:
    assert missing(chat("Yes.", tool_calls=[], function_call=None)) is None


@pytest.mark.parametrize(
    "usage",
    [
        SimpleNamespace(completion_tokens_details={"reasoning_tokens": 256}),
        SimpleNamespace(completion_tokens_details=SimpleNamespace(reasoning_tokens=256)),
        SimpleNamespace(reasoning_tokens=256),
    ],
)
def test_reasoning_that_is_only_counted(usage: Any) -> None:
    assert missing(chat("", "length", usage)) == finish.UNFINISHED
    assert missing(chat("", "stop", usage)) == finish.EMPTY
    assert missing(chat("Yes.", "length", usage)) is None
    assert chat("Yes.", "stop", usage).reasons
    assert not chat("Yes.", "stop", usage, reasoning="hm").reasons
    assert not chat("Yes.", "stop", SimpleNamespace(reasoning_tokens=0)).reasons


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("stop", "stop"), ("STOP", "STOP"), ("content_filter", "content_filter"), (None, None),
        ({"type": "length", "length": 9}, "length"), ({"type": None}, None), ({}, None),
        (["stop"], NOT_A_WORD), (7, NOT_A_WORD), ("two words", NOT_A_WORD), ("x" * 1000, NOT_A_WORD),
        ("\x1b[2J", NOT_A_WORD), ({"type": {"a": 1}}, NOT_A_WORD),
    ],
)  # fmt: skip
def test_how_it_ended_is_kept_as_it_came_where_it_is_a_word(given: Any, kept: str | None) -> None:
    assert chat("Yes.", given).finish_reason == kept


@pytest.mark.parametrize("counted", [-1, 10**30, True, 1.5, "7", None, [1]])
def test_a_count_that_is_none_is_our_own(counted: Any) -> None:
    usage = SimpleNamespace(completion_tokens=counted)
    assert chat("two words", usage=usage, reasoning="one").tokens == 3
    assert chat("two words", usage=SimpleNamespace(completion_tokens=9)).tokens == 9


def test_a_completions_choice_is_read_alike() -> None:
    found = replies.of_choice(SimpleNamespace(text="Yes.", finish_reason=None), None)
    assert found == Reply("Yes.", tokens=1)
    for odd in (SimpleNamespace(finish_reason="stop"), SimpleNamespace(message=None), {}, "x"):
        with pytest.raises(AttributeError):
            replies.of_choice(odd, None)


def test_what_is_longer_than_it_can_be_is_cut_and_counts_as_cut_off() -> None:
    reply = Reply("y" * 8, reasoning="r" * 4, finish_reason="stop", unavailable="u", reasons=True, tokens=3)
    assert reply.within(12) == reply
    assert reply.within(9) == Reply(
        "y" * 5, reasoning="r" * 4, finish_reason="length", unavailable="u", reasons=True, tokens=3
    )
    assert (reply.within(3).text, reply.within(3).reasoning) == ("", "rrr")
    assert Reply("y" * 8, finish_reason="content_filter").within(3).finish_reason == "content_filter"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "thinking", "content", "refusal", "summary", "thought", "x"]),
            inner | st.sampled_from(["text", "thinking", "tool_use", "reasoning"]),
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(content=VALUES, reason=VALUES, field=VALUES, refusal=VALUES)
def test_no_shape_crashes_or_is_spelled_out(content: Any, reason: Any, field: Any, refusal: Any) -> None:
    found = chat(content, reason, reasoning=field, refusal=refusal)
    assert not any(sign in found.text + (found.reasoning or "") for sign in ("{'", "['", "None", "True"))
    if not finish.has_text(found.text):
        assert missing(found) is not None
    kept = replies.unpacked(json.loads(json.dumps(found.packed())))
    assert kept == found


def test_what_lies_deep_is_left_out() -> None:
    content: Any = "Yes."
    for _ in range(5_000):
        content = [content]
    assert chat(content).text == ""


@given(
    text=st.text(), ids=st.none() | st.lists(st.integers(0, 2**31)), reason=st.none() | st.text(),
    reasoning=st.none() | st.text(), unavailable=st.none() | st.text(), reasons=st.booleans(),
)  # fmt: skip
def test_a_packed_reply_is_read_again(**fields: Any) -> None:
    fields["finish_reason"] = fields.pop("reason")
    reply = Reply(**fields)
    packed = reply.packed()
    assert packed[0] == replies.WRITTEN
    assert replies.unpacked(packed) == reply
    assert replies.is_readable(packed)


@pytest.mark.parametrize(
    "odd", [[-1, 2, 1, 65], [-2], [-2, 65], [-2, -5], [-2, 2**40], [-2, *map(ord, '{"x": 1}')], [5, -7]]
)
def test_numbers_that_are_neither_ids_nor_a_reply_are_not_read(odd: list[int]) -> None:
    assert not replies.is_readable(odd)
    assert replies.is_readable([])
    assert replies.is_readable([5, 7])
    assert replies.unpacked([5, 7]) is None
