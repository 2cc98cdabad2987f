"""What a server's reply says: the answer's text, the reasoning, how it ended, and why there is no answer.

A reply may be of any shape. Text is taken from where text belongs and from nowhere else: no structure is ever
spelled out as an answer. A content of parts is read part by part, in order: text parts are the answer,
thinking parts the reasoning, a refusal is the model's own answer, a tool call is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from harness import finish
from harness.text import is_word, whole, without_keys

WRITTEN = -2  # in front of an answer that is more than ids
NOT_A_WORD = "not a word"  # in place of a finish reason that is none
DEEPEST = 6  # parts in parts
MOST_PARTS = 10_000
MOST_TOKENS = 2**31  # a count beyond it is none

_THOUGHT = re.compile("think|thought|reason|summary", re.IGNORECASE)
_CALL = re.compile("tool_?(?:use|call)|function_?call", re.IGNORECASE)
_TEXTS = ("text", "content", "value")  # where a part's text stands
_THOUGHTS = ("thinking", "thought", "reasoning", "text", "summary", "content", "value")
_FIELDS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thought",
    "thoughts",
    "reasoning_details",
    "thinking_blocks",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a server gave it: its ``text``, or its ``ids`` with how they ended.

    ``reasons``: the server counts tokens of reasoning and shows none of them apart.
    """

    text: str = ""
    ids: list[int] | None = None
    tokens: int = 0
    finish_reason: str | None = None
    reasoning: str | None = None
    unavailable: str | None = None
    reasons: bool = False

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
            reasons=self.reasons,
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
    said = choice.message if hasattr(choice, "message") else None
    content = _read(said.content if said is not None else choice.text)
    refusal = _text_of(getattr(said, "refusal", None))
    text = "\n\n".join(filter(None, (content.text, refusal)))
    field = next(filter(None, (_thought_of(getattr(said, name, None)) for name in _FIELDS)), "")
    reasoning = "\n\n".join(filter(None, (field, content.thought))) or None
    ended = finish_reason(choice.finish_reason)
    hidden = reasoning_tokens(usage) > 0 and reasoning is None
    called = content.called or bool(getattr(said, "tool_calls", None) or getattr(said, "function_call", None))
    unavailable = None
    if called:
        unavailable = finish.CALLED_TOOL
    elif hidden and finish.cut_off(ended) and not finish.has_text(text):
        unavailable = finish.UNFINISHED
    counted = count(getattr(usage, "completion_tokens", None))
    tokens = len(f"{reasoning or ''} {text}".split()) if counted is None else counted
    return Reply(
        text=whole(text),
        tokens=tokens,
        finish_reason=ended,
        reasoning=whole(reasoning) if reasoning is not None else None,
        unavailable=unavailable,
        reasons=hidden,
    )


def finish_reason(value: Any) -> str | None:
    """As it came, where it is a word; the type of one that is given as an object; None for none."""
    if isinstance(value, Mapping):
        value = value.get("type")
    if value in (None, ""):
        return None
    return without_keys(value) if is_word(value) else NOT_A_WORD


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


def _read(content: Any) -> _Content:
    texts, thoughts, called = list[str](), list[str](), False
    for number, (kind, value) in enumerate(_parts(content, DEEPEST)):
        if number >= MOST_PARTS:
            break
        called |= kind == "call"
        if kind == "thought":
            thoughts.append(value)
        elif kind == "text":
            texts.append(value)
    return _Content("".join(texts), "\n\n".join(filter(None, thoughts)), called)


def _text_of(content: Any) -> str:
    return _read(content).text


def _thought_of(value: Any) -> str:
    return "".join(_strings(value, _THOUGHTS, DEEPEST))


def _parts(content: Any, depth: int) -> Iterator[tuple[str, str]]:
    """("text" | "thought" | "call", its text) of each part."""
    if isinstance(content, str):
        yield "text", content
    elif isinstance(content, (list, tuple)) and depth:
        for part in content:
            yield from _parts(part, depth - 1)
    elif isinstance(content, Mapping) and depth:
        yield from _of_part(content, depth)
    elif hasattr(content, "to_dict") and depth:  # one of openai's own objects
        yield from _parts(content.to_dict(), depth)


def _of_part(part: Mapping[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    kind = part.get("type")
    kind = kind if isinstance(kind, str) else ""
    if _CALL.search(kind) and "result" not in kind:
        yield "call", ""
    elif _THOUGHT.search(kind) or part.get("thought") is True or "thinking" in part:
        yield "thought", "".join(_strings(dict(part), _THOUGHTS, depth))
    elif "refusal" in part:
        yield "text", "".join(_strings(part["refusal"], _TEXTS, depth - 1))
    elif isinstance(part.get("content"), (list, tuple, Mapping)):
        yield from _parts(part["content"], depth - 1)
    else:
        yield "text", "".join(_strings(dict(part), _TEXTS, depth))


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
