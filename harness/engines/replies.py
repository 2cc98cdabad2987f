"""What a server's reply says: the answer's text, the reasoning, how it ended, and why there is no answer.

A reply may be of any shape. Text is taken from where text belongs and from nowhere else: no structure is ever
spelled out as an answer. A content of parts is read part by part, in order: text parts are the answer,
thinking parts the reasoning, a refusal is the model's own answer; a tool call is none, nor is what a tool
gave back.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from harness import finish
from harness.models.reasoning import FIELDS as REASONING_FIELDS
from harness.text import is_word, whole, without_keys

WRITTEN = -2  # in front of an answer that is more than ids
NOT_A_WORD = "not a word"  # in place of a finish reason that is none
DEEPEST = 6  # parts in parts
MOST_PARTS = 10_000
MOST_TOKENS = 2**31  # a count beyond it is none

_THOUGHT = re.compile("think|thought|reason|summary", re.IGNORECASE)
_CALL = re.compile("tool_?(?:use|call)|function_?call|_call$|^(?:tool|function)$", re.IGNORECASE)
_CALL_FIELDS = ("tool_calls", "tool_call", "tool_use", "toolUse", "function_call", "functionCall")
# Of parts that hold what the model has not said, or not in words.
_RESULT = re.compile("result|(?:tool|function|call|code|shell).*(?:output|response)", re.IGNORECASE)
_OTHER = re.compile("image|audio|video|file|document|source|citation|search|error", re.IGNORECASE)
_OTHERS_ROLES = ("tool", "function", "user", "system", "developer")
# Where a part's text stands; the first that has one holds.
_TEXTS = (
    "text", "output_text", "content", "value", "parts", "message", "output", "markdown", "code", "json",
)  # fmt: skip
_OWN_THOUGHTS = ("thinking", "reasoning", "reasoning_content", "reasoningContent", "reasoningText")
_THOUGHTS = (
    "thinking", "thought", "reasoning", "text", "reasoningText", "summary", "content", "value",
)  # fmt: skip
# A call in a model's own text: <tool_call>, <|tool_calls|>, <function_calls>, <｜tool▁calls▁begin｜>,
# <minimax:tool_call>, <|tool_calls_section_begin|>, <start_function_call>; <invoke name=...>, <function=...>.
_CALL_MARK = re.compile(
    r"""(?:<|&lt;)[|｜]?(?:\w{1,20}:)?(?:(?:start|begin)[_▁])?(?:tool|function)[_▁-]?(?:calls?|use)
        (?:[_▁](?:section[_▁])?(?:begin|start))?[|｜]?(?:\s[^<>]{0,200})?(?:>|&gt;)
    | <(?:\w{1,20}:)?(?:invoke|function|tool)(?:=|\s+name\s*=)
    | <\|(?:python_tag|start_action|action_start|plugin)\|>
    | \[tool_calls?\] | ✿function✿ | functools\[ | ```tool_(?:code|calls?|use)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_CALL_KEYS = {"name", "arguments", "parameters", "type", "id"}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a server gave it: its ``text``, or its ``ids`` with how they ended."""

    text: str = ""
    ids: list[int] | None = None
    tokens: int = 0
    finish_reason: str | None = None
    reasoning: str | None = None
    unavailable: str | None = None

    def packed(self) -> list[int]:
        """As numbers, so that it is kept as ids are: to tokenize a text would change it where it continues a
        prefill."""
        return [WRITTEN, *map(ord, whole(json.dumps(asdict(self), ensure_ascii=False)))]

    def within(self, most: int) -> Reply:
        """Its first ``most`` characters, reasoning included: a longer one counts as cut off."""
        reasoning, left = self.reasoning, most
        if reasoning is not None:
            reasoning = reasoning[:most]
            left = most - len(reasoning)
        if len(self.text) <= left and reasoning == self.reasoning:
            return self
        return Reply(
            text=self.text[:left],
            tokens=self.tokens,
            finish_reason=self.finish_reason if finish.withheld(self.finish_reason) else "length",
            reasoning=reasoning,
            unavailable=self.unavailable,
        )


def unpacked(ids: Sequence[int]) -> Reply | None:
    """What ``packed`` made; None for plain ids. Raises ValueError or TypeError for what is neither."""
    if not ids or ids[0] != WRITTEN:
        return None
    return Reply(**json.loads("".join(map(chr, ids[1:]))))


def is_readable(ids: Sequence[int]) -> bool:
    """Whether numbers that were kept are ids, or a reply."""
    try:
        return unpacked(ids) is not None or all(token >= 0 for token in ids)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False


def of_choice(choice: Any, usage: Any) -> Reply:
    """A choice of a chat's or a completion's reply. Raises AttributeError where it is neither."""
    content, said = _read(content_of(choice)), getattr(choice, "message", None)
    refusal = _text_of(getattr(said, "refusal", None))
    text = "\n\n".join(filter(None, (content.text, refusal)))
    field = next(filter(None, (_thought_of(getattr(said, name, None)) for name in REASONING_FIELDS)), "")
    reasoning = "\n\n".join(filter(None, (field, content.thought))) or None
    ended = finish_reason(choice.finish_reason)
    hidden = reasoning_tokens(usage) > 0 and reasoning is None
    called = content.called or bool(getattr(said, "tool_calls", None) or getattr(said, "function_call", None))
    unavailable = None
    if called:
        unavailable = finish.CALLED_TOOL
    elif hidden and finish.cut_off(ended) and not finish.has_text(text):
        unavailable = finish.UNFINISHED
    elif content.unread and not finish.has_text(text) and not finish.withheld(ended):
        unavailable = finish.UNREADABLE
    counted = count(getattr(usage, "completion_tokens", None))
    tokens = len(f"{reasoning or ''} {text}".split()) if counted is None else counted
    return Reply(
        text=whole(text),
        tokens=tokens,
        finish_reason=ended,
        reasoning=whole(reasoning) if reasoning is not None else None,
        unavailable=unavailable,
    )


def content_of(choice: Any) -> Any:
    """What a choice holds as its answer; nothing where its message is null. Raises AttributeError for what
    is no choice."""
    if not hasattr(choice, "message"):
        return choice.text
    if choice.message is None and "message" in getattr(choice, "model_fields_set", ("message",)):
        return None
    return choice.message.content


def begins_with_call(answer: str) -> bool:
    """Whether an answer begins with a tool call that is written as text: with the mark of one, or as nothing
    but its JSON, which is left where marks are control tokens."""
    bare = re.sub(r"^[\s\ufeff\u200b-\u200f\u2060]+", "", answer)
    if _CALL_MARK.match(bare):
        return True
    if bare[:1] not in ("{", "["):
        return False
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return False
    calls = value if isinstance(value, list) else [value]
    return bool(calls) and all(map(_is_call, calls))


def _is_call(value: Any) -> bool:
    if (
        isinstance(value, dict)
        and value.get("type") == "function"
        and isinstance(value.get("function"), dict)
    ):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not set(value) <= _CALL_KEYS:
        return False
    return isinstance(value.get("arguments", value.get("parameters")), (dict, str))


def finish_reason(value: Any) -> str | None:
    """As it came, where it is a word; of one in several words the one that counts, where it is known; the
    type of one that is given as an object; None for none."""
    if isinstance(value, Mapping):
        value = value.get("type")
    if value in (None, ""):
        return None
    if not isinstance(value, str):
        return NOT_A_WORD
    word = value if is_word(value) else finish.known_word(value) or ""
    return without_keys(word) if is_word(word) else NOT_A_WORD


def count(value: Any) -> int | None:
    """A number of tokens as a server gives it, or None where that is no such number."""
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
    return value if usable else None


def reasoning_tokens(usage: Any) -> int:
    """How many tokens of reasoning a server has counted."""
    for holder in (getattr(usage, "completion_tokens_details", None), usage):
        given = getattr(holder, "reasoning_tokens", None)
        value = count(holder.get("reasoning_tokens") if isinstance(holder, Mapping) else given)
        if value:
            return value
    return 0


class _Content(NamedTuple):
    text: str
    thought: str
    called: bool
    unread: bool  # there is something that is no text


_Kind = Literal["text", "thought", "call", "other"]


def _read(content: Any) -> _Content:
    texts, thoughts, kinds = list[str](), list[str](), set[_Kind]()
    for kind, value in itertools.islice(_parts(content, DEEPEST), MOST_PARTS):
        kinds.add(kind)
        if kind == "thought":
            thoughts.append(value)
        elif kind == "text":
            texts.append(value)
    thought = "\n\n".join(filter(None, thoughts))
    return _Content("".join(texts), thought, "call" in kinds, "other" in kinds)


def _text_of(content: Any) -> str:
    return _read(content).text


def _thought_of(value: Any) -> str:
    return "".join(_strings(value, _THOUGHTS, DEEPEST))


def _parts(content: Any, depth: int) -> Iterator[tuple[_Kind, str]]:
    """Of each part what it is, and its text."""
    if isinstance(content, str):
        yield "text", content
    elif isinstance(content, (list, tuple)) and depth:
        for part in content:
            yield from _parts(part, depth - 1)
    elif isinstance(content, Mapping) and depth:
        yield from _of_part(content, depth)
    elif hasattr(content, "to_dict") and depth:  # one of openai's own objects
        yield from _parts(content.to_dict(), depth)
    elif content is not None:
        yield "other", ""


def _of_part(part: Mapping[str, Any], depth: int) -> Iterator[tuple[_Kind, str]]:
    kind, role = part.get("type"), part.get("role")
    kind = kind if isinstance(kind, str) else ""
    is_call = _CALL.search(kind) or any(
        isinstance(part.get(key), (list, Mapping)) and part[key] for key in _CALL_FIELDS
    )
    if _THOUGHT.search(kind) or part.get("thought") is True:
        yield "thought", "".join(_strings(dict(part), _THOUGHTS, depth))
    elif role in _OTHERS_ROLES or _RESULT.search(kind):
        yield "other", ""
    elif is_call:
        yield "call", ""
    elif _OTHER.search(kind):
        yield "other", ""
    else:
        yield from _said(part, depth)


def _said(part: Mapping[str, Any], depth: int) -> Iterator[tuple[_Kind, str]]:
    """A text part's reasoning, text and refusal: servers spell out fields that are not used, as null."""
    thought = "".join(_strings([part.get(key) for key in _OWN_THOUGHTS], _THOUGHTS, depth))
    if thought:
        yield "thought", thought
    text = _first_said(part, depth)
    yield from text
    refusal = "".join(_strings(part.get("refusal"), _TEXTS, depth - 1))
    if refusal:
        yield "text", refusal
    elif not (thought or text) and set(part).isdisjoint((*_TEXTS, "refusal")) and set(part) - {"type"}:
        yield "other", ""


def _first_said(part: Mapping[str, Any], depth: int) -> list[tuple[_Kind, str]]:
    unread: list[tuple[_Kind, str]] = []
    for key in _TEXTS:
        found = list(_parts(part.get(key), depth - 1))
        if any(text or kind == "call" for kind, text in found):
            return found
        unread += found
    return unread


def _strings(value: Any, keys: Sequence[str], depth: int) -> Iterator[str]:
    """The texts below the ``keys`` of nested lists and objects; of several keys the first that has one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)) and depth:
        for one in value:
            yield from _strings(one, keys, depth - 1)
    elif isinstance(value, Mapping) and depth:
        for key in keys:
            found = "".join(_strings(value.get(key), keys, depth - 1))
            if found:
                yield found
                return
    elif hasattr(value, "to_dict") and depth:
        yield from _strings(value.to_dict(), keys, depth)
