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
        ([{"type": "text", "text": "Yes.", "refusal": None}], "Yes.", None),
        ([{"type": "text", "text": "Yes.", "refusal": ""}], "Yes.", None),
        ([{"type": "text", "text": "Yes.", "thinking": None, "reasoning": None}], "Yes.", None),
        ([{"type": "text", "text": "Yes.", "thought": False, "tool_calls": None}], "Yes.", None),
        ([{"type": "text", "text": "Yes.", "thinking": "hm"}], "Yes.", "hm"),
        ([{"type": "text", "text": "Yes.", "refusal": "No."}], "Yes.No.", None),
        (
            [{"type": "text", "text": "Yes.", "refusal": None}, {"type": "refusal", "refusal": "No."}],
            "Yes.No.",
            None,
        ),
        ([{"type": "text", "text": None, "refusal": None}], "", None),
        ([{"type": "output_text", "output_text": "Yes."}], "Yes.", None),
        ({"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "Yes."}]}, "Yes.", "hm"),
        ({"role": "assistant", "content": "Yes.", "tool_calls": [], "function_call": {}}, "Yes.", None),
        ([{"type": "code", "code": "Yes."}], "Yes.", None),
        ([{"type": "code", "text": "Yes."}], "Yes.", None),
        ([{"type": "json", "content": "Yes."}], "Yes.", None),
        ([{"type": "markdown", "markdown": "Yes."}], "Yes.", None),
        ([{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "Yes."}], "Yes.", "hm"),
        ([{"type": "tool_result", "content": "No."}, TEXT], "Yes.", None),
        ([{"type": "image", "content": "aGk="}, TEXT], "Yes.", None),
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


@pytest.mark.parametrize(
    "content",
    [
        7,
        True,
        [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "audio", "audio": {"data": "x"}}],
        [{"type": "image", "content": "aGk="}],
        [{"type": "json", "json": {"a": "No."}}],
        [{"type": "tool_result", "content": "No."}],
        [{"type": "tool_result", "content": [{"type": "text", "text": "No."}]}],
        [{"type": "function_call_output", "output": "No."}],
        [{"role": "tool", "content": "No."}],
        [{"functionResponse": {"name": "f", "response": {"text": "No."}}}],
        [{"toolResult": {"content": [{"text": "No."}]}}],
        [{"made_up": "No."}],
    ],
    ids=str,
)
def test_content_that_is_no_text_has_its_own_reason(content: Any) -> None:
    found = chat(content)
    assert (found.text, found.reasoning, missing(found)) == ("", None, finish.UNREADABLE)
    assert "withheld" in str(missing(chat(content, "content_filter")))
    assert missing(chat(content, refusal="No.")) is None


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
        {"content": [{"functionCall": {"name": "f", "args": {}}}]},
        {"content": [TEXT, {"toolUse": {"name": "f", "input": {}}}]},
        {"content": [{"type": "web_search_call", "id": "x"}, TEXT]},
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
    assert missing(chat("", "length", usage, reasoning_content=[])) == finish.UNFINISHED
    assert missing(chat("", "length", SimpleNamespace(reasoning_tokens=0))) == finish.EMPTY_CUT


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("stop", "stop"), ("STOP", "STOP"), ("content_filter", "content_filter"), (None, None),
        ({"type": "length", "length": 9}, "length"), ({"type": None}, None), ({}, None),
        (["stop"], NOT_A_WORD), (7, NOT_A_WORD), ("two words", NOT_A_WORD), ("x" * 1000, NOT_A_WORD),
        ("\x1b[2J", NOT_A_WORD), ({"type": {"a": 1}}, NOT_A_WORD),
        ("content_filter: PROHIBITED_CONTENT", "content_filter"), ("stop (eos)", "stop"),
        ("Stop: content_filter", "content_filter"), ("the stop", NOT_A_WORD),
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
    for odd in (SimpleNamespace(finish_reason="stop"), SimpleNamespace(message="x"), {}, "x"):
        with pytest.raises(AttributeError):
            replies.of_choice(odd, None)


def test_a_message_that_is_null_is_no_text() -> None:
    for reason, says in (
        ("content_filter: PROHIBITED_CONTENT", f"{finish.WITHHELD_ANSWER} (content_filter)"),
        ("length", finish.EMPTY_CUT),
        (None, finish.EMPTY),
    ):
        choice = SimpleNamespace(message=None, finish_reason=reason)
        assert missing(replies.of_choice(choice, None)) == says
    absent = SimpleNamespace(message=None, finish_reason=None, model_fields_set=set())
    with pytest.raises(AttributeError):
        replies.of_choice(absent, None)


JSON_CALL = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{JSON_CALL}\n</tool_call>",
        f" \n\u200b<tool_call>{JSON_CALL}",
        f"&lt;tool_call&gt;{JSON_CALL}",
        f"<tool_calls>[{JSON_CALL}]</tool_calls>",
        f"[TOOL_CALLS] [{JSON_CALL}]",
        "[TOOL_CALLS]f[ARGS]{}",
        f"<|tool_call|>{JSON_CALL}",
        f"<|tool_calls|>[{JSON_CALL}]",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0",
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>f",
        "<function_calls><invoke name='f'></invoke></function_calls>",
        "<minimax:tool_call><invoke name='f'>",
        '<invoke name="f">',
        f"<function_call> {JSON_CALL}",
        f"<functioncall> {JSON_CALL}",
        "<start_function_call>call:f{}",
        "<function=f>{}</function>",
        f"<|python_tag|>{JSON_CALL}",
        "<|python_tag|>f.call(x=1)",
        f"<|START_ACTION|>[{JSON_CALL}]",
        f"functools[{JSON_CALL}]",
        "```tool_code\nf()\n```",
        JSON_CALL,
        f" [{JSON_CALL}, {JSON_CALL}]\n",
        '{"name": "f", "parameters": {}}',
        '{"type": "function", "function": {"name": "f", "arguments": "{}"}}',
    ],
)
def test_a_call_that_is_written_as_text_is_seen_where_it_begins_the_answer(text: str) -> None:
    assert replies.begins_with_call(text)
    assert not replies.begins_with_call(f"Yes. {text}")


@pytest.mark.parametrize(
    "text",
    ["", "Yes.", "{", "[]", "[1, 2]", '{"name": "Tom"}', '{"name": "Tom", "age": 3, "parameters": {}}',
     '{"arguments": {}}', "[" * 50_000, "<tool>", "<p>tool_call</p>", "tool_call", "```python\nf()\n```",
     "functions [x]", '["name"]', '{"name": "f", "arguments": 7}'],
)  # fmt: skip
def test_other_answers_are_no_calls(text: str) -> None:
    assert not replies.begins_with_call(text)


def test_what_is_longer_than_it_can_be_is_cut_and_counts_as_cut_off() -> None:
    reply = Reply("y" * 8, reasoning="r" * 4, finish_reason="stop", unavailable="u", tokens=3)
    assert reply.within(12) == reply
    assert reply.within(9) == Reply(
        "y" * 5, reasoning="r" * 4, finish_reason="length", unavailable="u", tokens=3
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
    reasoning=st.none() | st.text(), unavailable=st.none() | st.text(),
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
