"""Whether a model gave an answer at all, and how it ended: decided here, once, for every engine and judge.

What is missing was not measured: it is unjudged, never safe, and scores 0 on a utility task. Rubbish is an
answer. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata

from harness.text import is_word

# How engines and servers say it, in any case: OpenAI, vLLM, SGLang, TGI, llama.cpp, Ollama, LM Studio,
# Anthropic, Gemini, Cohere, Mistral, DeepSeek, GLM, Bedrock, watsonx.
STOPPED = {
    "stop", "stopped", "eos", "eos_token", "eos_found", "end_of_text", "endoftext", "end_turn",
    "stop_sequence", "stop_string", "stop_string_found", "stop_token", "stop_word", "complete", "completed",
    "finish", "finished", "done", "normal",
}  # fmt: skip
CUT_OFF = {
    "length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_completion_tokens", "max_length",
    "model_length", "model_context_window_exceeded", "context_length", "context_length_exceeded", "limit",
    "error_limit", "repetition", "max_predicted_tokens_reached", "context_length_reached", "token_limit",
    "time_limit", "max_time", "incomplete",
}  # fmt: skip
WITHHELD = {
    "content_filter", "content_filtered", "filtered", "filter", "safety", "safety_filter", "image_safety",
    "refusal", "recitation", "blocklist", "blocked", "prohibited_content", "spii", "language", "sensitive",
    "guardrail", "guardrails", "guardrail_intervened", "moderation", "error_toxic", "content_policy",
}  # fmt: skip
CALLED = {
    "tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call", "pause_turn",
    "unexpected_tool_call", "malformed_tool_use", "too_many_tool_calls", "tool", "function",
}  # fmt: skip
FAILED = {
    "error", "abort", "aborted", "cancel", "cancelled", "canceled", "timeout", "user_cancel", "network_error",
    "insufficient_system_resource", "failed", "failure", "other", "user_stopped", "model_unloaded",
    "malformed_response", "malformed_model_output", "not_finished",
}  # fmt: skip

# What counts as a sign and shows nothing: besides the first, Braille's and Hangul's blanks.
_NOTHING = "\N{REPLACEMENT CHARACTER}\u2800\u3164\uffa0\u115f\u1160"

LONGEST_REASON = 200  # characters of a finish reason that are searched for words
_BETWEEN_WORDS = re.compile(r"[^\w.-]+")

EMPTY = "empty answer"
EMPTY_CUT = "empty answer, cut off at its length limit"
UNREADABLE = "the server's content is no text"
UNFINISHED = "reasoning was cut off before an answer"
UNTOLD = "where its reasoning ends cannot be told"
WITHHELD_ANSWER = "answer withheld by the server"
CALLED_TOOL = "called a tool instead of answering"
FAILED_ANSWER = "the server broke the answer off"
REFUSED_REQUEST = "the server refused the request"
TOO_LONG = "the request is longer than the server's context"
NO_CHOICE = "the server's reply holds no answer"
UNKNOWN = "the server ended the answer for a reason not known here"


def has_text(text: str) -> bool:
    """Whether there is anything to read: a character that shows, which blanks, controls, invisible marks and
    the replacement character do not."""
    return any(
        unicodedata.category(character)[0] not in "ZCM" and character not in _NOTHING for character in text
    )


def ended(finish_reason: str | None) -> bool:
    """Whether an answer came to its own end; one whose server does not say did, as far as is known."""
    return kind(finish_reason) in (None, "stopped")


def cut_off(finish_reason: str | None) -> bool:
    """Whether an answer was cut off at its length limit."""
    return kind(finish_reason) == "cut off"


def withheld(finish_reason: str | None) -> bool:
    """Whether what is left of an answer counts for nothing: it was withheld, broken off, or ended nobody
    knows how."""
    return kind(finish_reason) in _WHATEVER_IS_LEFT


def missing(
    text: str, finish_reason: str | None, reasoning: str | None = None, unavailable: str | None = None
) -> str | None:
    """Why there is no answer to score or judge, in words that quote nothing; None where there is one.

    ``text``: the answer alone, without what it was opened with. ``unavailable``: why the engine says that
    there is none. An answer that was withheld, broken off or replaced by a tool call counts as missing
    whatever is left of it, since what is left is not what the model would have said.
    """
    if unavailable:
        return unavailable
    how = kind(finish_reason)
    if how in _WHATEVER_IS_LEFT:
        return f"{_WHATEVER_IS_LEFT[how]} ({_word(finish_reason)})"
    if has_text(text):
        return None
    if how == "cut off":
        return UNFINISHED if reasoning is not None else EMPTY_CUT
    return EMPTY


_KINDS = {
    **dict.fromkeys(STOPPED, "stopped"),
    **dict.fromkeys(CUT_OFF, "cut off"),
    **dict.fromkeys(WITHHELD, "withheld"),
    **dict.fromkeys(CALLED, "called"),
    **dict.fromkeys(FAILED, "failed"),
}
_WHATEVER_IS_LEFT = {
    "withheld": WITHHELD_ANSWER,
    "called": CALLED_TOOL,
    "failed": FAILED_ANSWER,
    "unknown": UNKNOWN,
}


def known_word(finish_reason: str) -> str | None:
    """Of a reason in several words, whose first is known, the one that counts: the first, or one further on
    by which nothing of the answer is left. None where the first is not known."""
    words = [word for word in _BETWEEN_WORDS.split(finish_reason[:LONGEST_REASON].strip()) if word]
    if not words or _kind_of(words[0]) is None:
        return None
    return next((word for word in words if _kind_of(word) in _WHATEVER_IS_LEFT), words[0])


def _word(finish_reason: str | None) -> str:
    reason = (finish_reason or "").strip()
    word = reason if is_word(reason) else known_word(reason) or ""
    return word.lower() if is_word(word) else "not a word"


def kind(finish_reason: str | None) -> str | None:
    """ "stopped", "cut off", "withheld", "called" or "failed"; "unknown" for another word, None for none."""
    reason = (finish_reason or "").strip()
    if not reason:
        return None
    return _kind_of(reason) or _kind_of(known_word(reason) or "") or "unknown"


def _kind_of(word: str) -> str | None:
    if not word.isupper():  # endTurn, ContentFilter
        word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word)
    word = word.lower().replace("-", "_")
    word = re.sub(r"^finish_?reason[._]", "", word)
    return _KINDS.get(word)
