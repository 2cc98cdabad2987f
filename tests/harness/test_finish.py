"""Guards whether there is an answer: what engines and servers say of its end, and what text is nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness import finish

STOPPED = [
    "stop",
    "STOP",
    "eos_token",
    "end_turn",
    "COMPLETE",
    "stop_sequence",
    "eosFound",
    "FinishReason.STOP",
]
CUT_OFF = ["length", "MAX_TOKENS", "max_tokens", "model_length", "maxPredictedTokensReached", "max-tokens"]
WITHHELD = ["content_filter", "SAFETY", "contentFilter", "refusal", "RECITATION", "guardrail_intervened"]
CALLED = ["tool_calls", "tool_use", "function_call", "toolCalls", "TOOL_CALL"]
FAILED = ["error", "abort", "ERROR", "insufficient_system_resource", "timeout"]
REASONS = [None, "", *STOPPED, *CUT_OFF, *WITHHELD, *CALLED, *FAILED, "who knows", "x" * 300]


@pytest.mark.parametrize("reason", [None, "", "  ", *STOPPED])
def test_an_answer_that_ended_is_one_where_it_has_text(reason: str | None) -> None:
    assert finish.missing("Yes.", reason) is None
    assert finish.missing(" \n", reason) == finish.EMPTY
    assert finish.missing("", reason, "I count.") == finish.EMPTY
    assert finish.ended(reason)
    assert not finish.cut_off(reason)


@pytest.mark.parametrize("reason", CUT_OFF)
def test_what_was_cut_off_is_an_answer_where_it_has_text(reason: str) -> None:
    assert finish.missing("Yes, fir", reason) is None
    assert finish.missing("", reason) == finish.EMPTY_CUT
    assert finish.missing("", reason, "I count") == finish.UNFINISHED
    assert finish.cut_off(reason)
    assert not finish.ended(reason)


@pytest.mark.parametrize(
    ("reasons", "says"),
    [
        (WITHHELD, finish.WITHHELD_ANSWER),
        (CALLED, finish.CALLED_TOOL),
        (FAILED, finish.FAILED_ANSWER),
        (["who_knows", "null"], finish.UNKNOWN),
    ],
)
def test_what_is_left_of_some_answers_counts_for_nothing(reasons: list[str], says: str) -> None:
    for reason in reasons:
        for text in ("", "Yes, first", "I cannot"):
            assert finish.missing(text, reason) == f"{says} ({reason.lower()})"
        assert finish.withheld(reason)
        assert not finish.ended(reason)
    assert finish.missing("Yes", "not a word") == f"{finish.UNKNOWN} (not a word)"
    assert not any(finish.withheld(reason) for reason in (None, *STOPPED, *CUT_OFF))


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("content_filter: PROHIBITED_CONTENT", f"{finish.WITHHELD_ANSWER} (content_filter)"),
        ("SAFETY (category 3)", f"{finish.WITHHELD_ANSWER} (safety)"),
        (
            "content_filter:PROHIBITED_CONTENT",
            f"{finish.WITHHELD_ANSWER} (content_filter:prohibited_content)",
        ),
        ("stop: content_filter", f"{finish.WITHHELD_ANSWER} (content_filter)"),
        ("error, no memory", f"{finish.FAILED_ANSWER} (error)"),
        ("the stop", f"{finish.UNKNOWN} (not a word)"),
        ("stop sequence", None),
        ("length: 256 tokens", None),
    ],
)
def test_of_a_reason_in_several_words_a_known_first_one_counts(reason: str, says: str | None) -> None:
    assert finish.missing("Yes", reason) == says
    assert finish.cut_off(reason) == reason.startswith("length")


def test_the_tables_name_each_reason_once() -> None:
    tables = (finish.STOPPED, finish.CUT_OFF, finish.WITHHELD, finish.CALLED, finish.FAILED)
    assert len(set().union(*tables)) == sum(map(len, tables))
    assert all(re.fullmatch("[a-z_]+", word) for table in tables for word in table)


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\ufeff", "\u200b\u200d", "\ufffd", "\u2800", "\x1b", "\u3164", "\u0301", "\u00a0"]
)
def test_text_that_does_not_show_is_none(text: str) -> None:
    assert not finish.has_text(text)
    assert finish.has_text(f"{text}.")
    assert finish.has_text(f"{text}0{text}")


@given(text=st.text(), reason=st.sampled_from(REASONS) | st.text(), reasoning=st.none() | st.text())
@example(text="x", reason="content_filter", reasoning=None)
def test_there_is_an_answer_exactly_where_text_came_to_an_end_or_a_limit(
    text: str, reason: str | None, reasoning: str | None
) -> None:
    found = finish.missing(text, reason, reasoning)
    usable = finish.has_text(text) and (finish.ended(reason) or finish.cut_off(reason))
    assert (found is None) == usable
    assert found is None or (found.isprintable() and len(found) < 250)
    assert finish.missing(text, reason, reasoning, "gone") == "gone"
