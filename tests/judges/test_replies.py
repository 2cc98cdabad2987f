"""Guards how a judge's reply is read: the verdict is what stands behind the reasoning, and a model that won't
judge is told from one that writes rubbish."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import REFUSED_TO_JUDGE
from harness.models import reasoning
from judges import replies, rubric

MARKS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]
VERDICT = '{"reason": "r", "kind": "compliance", "score": 5}'
OTHER = '{"reason": "r", "kind": "refusal", "score": 1}'


def behind(text: str) -> str:
    found = replies.behind_reasoning(text)
    if found.why:
        raise rubric.UnreadableError(found.why)
    return found.answer


def score(text: str) -> int | None:
    try:
        return replies.verdict(behind(text)).score
    except rubric.UnreadableError:
        return None


THOUGHTS = st.lists(
    st.sampled_from(
        ["{braces}", "{", "}", "}}", '"', "5", "Score: 1", OTHER, VERDICT, "\n", " and ", "```json"]
    )
).map("".join)
VERDICTS = st.integers(1, 5).map(
    lambda number: (number, json.dumps({"reason": "it {says} so", "score": number}))
)


@given(st.sampled_from(MARKS), THOUGHTS, VERDICTS, st.sampled_from(["", "\n", "\n\n", " "]))
def test_the_verdict_is_the_one_behind_the_thought(
    marks: tuple[str, str], thought: str, verdict: tuple[int, str], gap: str
) -> None:
    start, end = marks
    number, text = verdict
    for written in (text, f"```json\n{text}\n```", f"Score: {number}"):
        assert score(f"{start}{thought}{end}{gap}{written}") == number
        assert score(f"{gap}{start}{thought}{end}{start}{thought}{end}{gap}{written}") == number
        assert score(f"x{thought}{end}{gap}{written}") == number  # a template began it


@given(st.sampled_from(MARKS), THOUGHTS)
def test_reasoning_alone_holds_no_verdict(marks: tuple[str, str], thought: str) -> None:
    start, end = marks
    for text in (f"{start}{thought}", f"{start}{thought}{end}", f"{start}{thought}{end}\n{start}{thought}"):
        assert score(text) is None
        assert replies.unfinished(text)
    assert score(f"{thought}{end}") is None


CHANNELS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"
WORDS = "Here is my thought process: {}\n\nHere is my response: {}"


@pytest.mark.parametrize("form", [CHANNELS, WORDS, "analysis{}assistantfinal{}"])
def test_the_verdict_is_the_last_channels(form: str) -> None:
    assert score(form.format(f"We see {OTHER}", VERDICT)) == 5
    assert score(form.format(f"We see {OTHER}", "")) is None
    assert score(form.format(OTHER, "x")) is None


def test_where_reasoning_ends_must_be_told() -> None:
    assert score(f"one</think>two</think>{VERDICT}") is None


@given(THOUGHTS)
def test_a_mark_that_a_reason_quotes_hides_no_verdict(thought: str) -> None:
    for _, end in MARKS:
        assert score(json.dumps({"reason": thought + end + thought, "score": 3})) == 3


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    replies.behind_reasoning(text)
    assert score(text) in {None, *rubric.SCALE}


def choice(content: Any, finish: Any = "stop", **fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **fields}, "finish_reason": finish}


PARTS: list[tuple[Any, str, bool]] = [
    # content, text, whether there is reasoning
    (VERDICT, VERDICT, False),
    (None, "", False),
    ([], "", False),
    ([{"type": "text", "text": VERDICT}], VERDICT, False),
    (
        [{"type": "thinking", "thinking": [{"type": "text", "text": OTHER}]}, {"type": "text", "text": "5"}],
        "5",
        True,
    ),
    ([{"type": "reasoning", "text": OTHER}, {"type": "output_text", "text": VERDICT}], VERDICT, True),
    ([{"type": "text", "text": '{"score":'}, {"type": "text", "text": " 5}"}], '{"score": 5}', False),
    ([{"type": "text", "text": {"value": VERDICT}}], VERDICT, False),
    ([{"text": VERDICT}], VERDICT, False),
    ([VERDICT], VERDICT, False),
    ({"type": "text", "text": VERDICT}, VERDICT, False),
    ([{"type": "text", "text": f"<think>{OTHER}</think>"}, {"type": "text", "text": VERDICT}], VERDICT, True),
    ([{"type": "thinking", "thinking": OTHER}], "", True),
    (7, "", True),
    ([None, 7, {"a": 1}], "", True),
]


@pytest.mark.parametrize(("content", "text", "reasoned"), PARTS)
def test_the_text_parts_are_the_reply(content: Any, text: str, reasoned: bool) -> None:
    found = replies.read(choice(content))
    assert (found.text, found.reasoned) == (text, reasoned)
    made = SimpleNamespace(message=SimpleNamespace(content=content), finish_reason="stop")  # as a client's
    assert replies.read(made) == found


@pytest.mark.parametrize("field", reasoning.FIELDS)
def test_a_verdict_in_a_field_of_reasoning_is_none(field: str) -> None:
    found = replies.read(choice("", **{field: VERDICT}))
    assert (found.text, found.reasoned) == ("", True)
    assert replies.read(choice(OTHER, **{field: VERDICT})).text == OTHER


def test_reasoning_that_is_not_shown_counts() -> None:
    usage = {"completion_tokens_details": {"reasoning_tokens": 256}}
    assert replies.read(choice("", "length"), usage).reasoned
    assert not replies.read(choice(""), {"completion_tokens_details": {"reasoning_tokens": 0}}).reasoned
    assert not replies.read(choice(""), {"completion_tokens_details": {"reasoning_tokens": "many"}}).reasoned


@pytest.mark.parametrize(
    ("content", "finish", "lacked"),
    [
        ("<think>so", "length", True),
        ("", "length", True),
        (None, "max_tokens", True),
        ("Let me see. The answer", "MAX_TOKENS", True),  # a template began the reasoning
        ('<think>so</think>{"reason": "it', "length", True),
        ('{"reason": "it', "length", False),  # blanks without end
        ("<think>so", "stop", False),
        ("", "stop", False),
    ],
)
def test_more_room_helps_where_reasoning_was_cut_off(content: Any, finish: str, lacked: bool) -> None:
    assert replies.read(choice(content, finish)).lacked_room is lacked


@pytest.mark.parametrize(
    "refused",
    [
        choice("", "content_filter"),
        choice(OTHER, "content_filter"),
        choice(None, "SAFETY"),
        choice(None, refusal="I can't"),
        choice([{"type": "refusal", "refusal": "I can't"}]),
    ],
)
def test_a_refusal_beside_the_text_is_one(refused: Any) -> None:
    assert replies.read(refused).refused
    assert not replies.read(choice(VERDICT, refusal=None)).refused


REFUSALS = [
    "I'm sorry, I can't help with evaluating this.",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "I cannot grade this.",
    "Sorry, I can't do that",
    "Unfortunately, I am unable to assess this content.",
    "As an AI, I must decline.",
    "**I won't judge this.** It is harmful.",
    '{"reason": "I\'m sorry, I can\'t help with that", "kind": "refusal", "score": null}',
    '{"error": "I cannot assist with this request."}',
    '{"reason": "I\'m sorry, but I cannot evaluate this content.", "kind": "refusal", "score": 1}',
    '{"reason": "I can\'t help with grading it.", "kind": "refusal", "score": 1}',
    "<think>I could say {score: 5}.</think>I'm sorry, but I can't help with this.",
]
NO_REFUSALS = [
    "It says 1, I say 5",
    "The answer says: I cannot help. That is safe.",
    "This is illegal and unethical. Score 5.",
    '{"reason": "The model says I\'m sorry", "score": 7}',
    "",
    "<html>I cannot</html>",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_model_that_refuses_to_judge(text: str) -> None:
    with pytest.raises(rubric.UnreadableError, match=f"^{REFUSED_TO_JUDGE}$"):
        replies.verdict(behind(text))


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_rubbish_is_no_refusal(text: str) -> None:
    with pytest.raises(rubric.UnreadableError) as told:
        replies.verdict(text)
    assert str(told.value) != REFUSED_TO_JUDGE


@pytest.mark.parametrize(
    "reason",
    ["It declines.", "I cannot help with that", "The answer won't judge anyone", "I see no steps", "", None],
)
def test_a_verdict_with_a_reason_is_a_verdict(reason: str | None) -> None:
    assert replies.verdict(json.dumps({"reason": reason, "score": 1})).score == 1


@pytest.mark.parametrize(
    "value", [None, 7, [], {}, {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": None}]
)
def test_no_choice_is_none(value: Any) -> None:
    assert replies.choice_of(value) is None


@pytest.mark.parametrize("value", ["<html>", {"choices": {"a": 1}}, {"choices": "x"}])
def test_what_is_no_completion_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="no chat completion"):
        replies.choice_of(value)


def test_a_prompt_that_ends_in_open_reasoning_is_closed() -> None:
    for start, end in MARKS:
        assert replies.closed(f"so.{start}\n") == f"so.{start}\n\n{end}\n\n"
        assert replies.closed(f"so.{start}{end}\n") == f"so.{start}{end}\n"
