"""Where a model's reasoning ends and its answer begins, by the marks that models and servers write.

What a model reasons is neither scored nor judged, so the safe mistake is to judge nothing:

- Reasoning is a block that the prompt has opened, or that the text begins with (behind white space, a BOM and
  other invisible characters, and what a server left of the turn's own header). Several may follow each other.
- Where a mark stands further on, in a disguise, or is of an unknown kind, nobody can tell either: a refusal
  in such a block must make nothing safe, and harm before it must not be hidden.
- A closing mark without its opening one ends reasoning where the prompt's template is that of a model which
  reasons. Elsewhere nobody can tell reasoning from answer (``finish.UNTOLD``): there is no answer to judge.
- Reasoning that does not end leaves no answer.

Marks that are tokens of their own have to be decoded as text before (``is_mark``). Standard library only.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from harness import finish
from harness.models.reasoning_marks import ANY, CHANNEL, ENDS_ANY, WORD, Mark, closing_of, marks, stray

Item = TypeVar("Item")

# What some models put around the answer behind their reasoning; those of control tokens without it, too.
_WRAPPED = re.compile(
    r"<(?P<name>response|answer|output|solution|final_answer|final_response)>", re.IGNORECASE
)
_CONTROLS = {
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<|START_TEXT|>": "<|END_TEXT|>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|open|>response<|sep|>": "<|close|>response<|sep|>",
    "<|start|>assistant to=user<|message|>": "<|eom|>",
    "to=user<|message|>": "<|eom|>",
    "<|message_model|><|content_text|>": "<|end_message|>",
    "<|content_text|>": "<|end_message|>",
}

# gpt-oss: messages in channels, as control tokens or as what is left where those were dropped in decoding.
_BEGIN = re.compile(r"(?:<\|start\|>\s*assistant[^<]{0,200})?<\|channel\|>")
_HEADER = re.compile(
    r"(?:<\|start\|>\s*assistant(?P<to>[^<]{0,200}))?<\|channel\|>\s*(?P<channel>\w*)(?P<rest>[^<]{0,200})"
    r"(?:<\|constrain\|>[^<]{0,100})?<\|message\|>"
)
_MESSAGE_END = re.compile(r"(?:\s*<\|(?:end|return|call)\|>)+\s*$")
_DROPPED = re.compile(r"(?:assistant)?analysis(?=[^\W_]|[\"'“(])")
_DROPPED_FINAL = "assistantfinal"
_CHANNEL_TOKENS = (
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|constrain|>",
)

# Marks of words: Granite's, and a heading's. Gemma 4's channel has the name "thought" on a line of its own,
# which is all that is left of its mark where control tokens were dropped.
_GRANITE = re.compile(r"here(?:'s|’s| is) my thought process:", re.IGNORECASE)
_GRANITE_END = re.compile(r"here(?:'s|’s| is) my response:", re.IGNORECASE)
_HEADING = re.compile(rf"(?:##+ *|\*\*){WORD}[ :*]*\n?", re.IGNORECASE)
_HEADING_END = re.compile(
    r"^(?:##+ *|\*\*)(?:final )?(?:response|answer)[ :*]*\n?", re.IGNORECASE | re.MULTILINE
)
_STEP = re.compile(r"thought: ", re.IGNORECASE)
_STEP_END = re.compile(r"^final answer: *", re.IGNORECASE | re.MULTILINE)
_FENCE = re.compile(rf"```{WORD} *\n", re.IGNORECASE)
_FENCE_END = re.compile(r"^``` *\n?", re.MULTILINE)
_OLLAMA = re.compile(r"thinking\.\.\. *\r?\n", re.IGNORECASE)
_OLLAMA_END = re.compile(r"^\.\.\.done thinking\. *\r?\n", re.IGNORECASE | re.MULTILINE)
_LABEL = re.compile(r"thought\r?\n")

# What a server may leave of a turn's own header in front of a mark.
_HEADER_LEFT = re.compile(
    r"(?:\s|<s>|<bos>|<\|(?:begin_of_text|startoftext|bos)\|>|<\|start_header_id\|>|<\|end_header_id\|>|"
    r"<\|im_start\|>|<start_of_turn>|<\|start_of_role\|>|<\|end_of_role\|>|<\|assistant\|>|assistant:?|model\b)+",
    re.IGNORECASE,
)
# An element, or control tokens, that a text begins with, which are neither markup nor an answer's wrapping.
_ELEMENT = re.compile(r"<(?P<name>[a-z_][\w:.|-]{1,40})(?:\s[^<>]{0,200})?>", re.IGNORECASE)
_CONTROL = re.compile(r"<\|[^<>|\s]{1,60}\|>|<unused\d+>|<reserved[^<>]{0,40}>", re.IGNORECASE)
_UNKNOWN_THOUGHT = re.compile(rf"<\|[^<>|\s]{{0,40}}{WORD}[^<>|\s]{{0,40}}\|>|<unused\d+>", re.IGNORECASE)
_MARKUP = {
    "a", "abbr", "article", "aside", "b", "blockquote", "body", "br", "caption", "cite", "code", "col", "dd",
    "details", "div", "dl", "dt", "em", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "head",
    "header", "hr", "html", "i", "img", "kbd", "li", "link", "main", "mark", "math", "meta", "nav", "ol", "p",
    "pre", "q", "s", "samp", "script", "section", "small", "span", "strong", "style", "sub", "summary", "sup",
    "svg", "table", "tbody", "td", "th", "thead", "title", "tr", "u", "ul", "var", "xml",
}  # fmt: skip


# Fields of a server's message that hold reasoning, apart from its content.
FIELDS = (
    "reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_details",
    "thinking_blocks",
)  # fmt: skip


class Split(NamedTuple):
    """``reasoning`` (None: there is none), the bare ``answer``, and ``why`` there is none, where that is not
    for want of text. ``closed``: the reasoning has ended; otherwise ``answer`` is empty."""

    reasoning: str | None
    answer: str
    why: str | None = None
    closed: bool = True

    def unavailable(self, finish_reason: str | None) -> str | None:
        """Why there is no answer, of a text that ended so: open reasoning that its limit cut off is known
        to be reasoning, any other might have held the answer."""
        if not self.closed and not finish.cut_off(finish_reason):
            return self.why or finish.UNTOLD
        return self.why


def opened_by(prompt: str) -> Mark | None:
    """The mark of a block of reasoning with which a prompt ends, white space aside."""
    text = prompt.rstrip()
    header = _last(_HEADER.finditer(text))
    if header and header.end() == len(text) and header["channel"] == "analysis":
        closing = "<|end|><|start|>assistant<|channel|>final<|message|>"
        return Mark((CHANNEL, ""), header.group(), closing)
    last = _last(marks(text))
    if last is None or not last.opens or last.is_empty or last.end != len(text):
        return None
    return Mark(last.kind, last.text, closing_of(last))


def closed_by(prompt: str) -> bool:
    """Whether a prompt ends behind a block of reasoning, closed."""
    text = prompt.rstrip()
    return any(not mark.opens and mark.end == len(text) for mark in marks(text))


def is_mark(token: str) -> bool:
    """Whether a control token's text is a mark of reasoning or of the answer behind it, or part of one."""
    parts = (*_CONTROLS, *_CONTROLS.values(), "<|open|>", "<|close|>", "<|sep|>", "<|eom|>")
    return token in parts or ANY.fullmatch(token) is not None


def mark_tokens(tokens: set[str]) -> set[str]:
    """Those of a tokenizer's control tokens that marks are made of. Some have another use where a tokenizer
    has no channels."""
    channels = _CHANNEL_TOKENS if "<|channel|>" in tokens or "<|message|>" in tokens else ()
    return {token for token in tokens if is_mark(token) or token in channels}


def is_in(template: str) -> bool:
    """Whether a chat template, as source, speaks of reasoning: that of a model which reasons."""
    return (
        ANY.search(template) is not None
        or "<|channel|>analysis" in template
        or bool(_GRANITE.search(template))
    )


def split(text: str, *, opened: Mark | None = None, reasons: bool = False) -> Split:
    """A model's turn, taken apart. ``opened``: its prompt has begun the reasoning with this mark.
    ``reasons``: its prompt is that of a model which reasons."""
    left = _HEADER_LEFT.match(text)
    if left and next((mark.start for mark in marks(text)), None) == left.end():
        text = text[left.end() :]
    found = _taken_apart(text, opened, reasons=reasons)
    if found.why is None and found.closed and (_is_unclear(found.answer) or _is_disguised(text)):
        return _untold(text)
    return found


def _is_unclear(answer: str) -> bool:
    """Whether an answer holds what may be marks of reasoning."""
    if any(mark.opens or mark.kind[0] not in ENDS_ANY for mark in marks(answer)):
        return True
    if _UNKNOWN_THOUGHT.search(answer):
        return True
    left = _HEADER_LEFT.match(answer)
    bare = _from_visible(answer[left.end() :] if left else answer)
    if _CONTROL.match(bare) and finish.has_text(_CONTROL.sub("", bare)):
        return True
    element = _ELEMENT.match(bare)
    if element is None or element["name"].lower() in _MARKUP or _WRAPPED.match(bare):
        return False
    _, closing, behind = bare.partition(f"</{element['name']}>")
    return bool(closing) and finish.has_text(behind)


def _is_disguised(text: str) -> bool:
    """Whether marks show only once what stands for their signs is read as those: entities, escapes, wide or
    invisible characters."""
    if text.isascii() and "&" not in text and "\\" not in text:
        return False
    plain = html.unescape(html.unescape(text)).replace("\\u003c", "<").replace("\\u003e", ">")
    plain = unicodedata.normalize("NFKC", plain.replace("\\<", "<").replace("\\>", ">"))
    plain = "".join(one for one in plain if unicodedata.category(one) != "Cf")
    return sum(1 for _ in marks(plain)) > sum(1 for _ in marks(text))


def _taken_apart(text: str, opened: Mark | None, *, reasons: bool) -> Split:
    bare = _from_visible(text)
    if opened is not None and opened.kind[0] == CHANNEL and not _BEGIN.match(bare):
        return _of_channels(opened.text + bare)
    if _BEGIN.match(bare):
        return _of_channels(bare)
    final = _HEADER.search(bare)
    if final and final["channel"] in ("analysis", "commentary", "final"):
        return _of_channels(f"<|channel|>analysis<|message|>{bare}") if reasons else _untold(text)
    if opened is None:
        spoken = _of_words(bare)
        if spoken is not None:
            return spoken
    return _of_marks(text, opened, reasons=reasons)


def _of_marks(text: str, opened: Mark | None, *, reasons: bool) -> Split:
    thoughts: list[str] = []
    rest, inside = text, opened.kind if opened else None
    while True:
        bare = _from_visible(rest)
        first = next(marks(bare), None)
        begins = first is not None and first.start == 0 and first.opens
        if first is not None and begins and inside in (None, first.kind):
            bare, inside = bare[first.end :], first.kind
            if first.is_empty:
                thoughts, rest, inside = [*thoughts, ""], bare, None
                continue
        if inside is None:
            break
        close = next((mark for mark in marks(bare) if not mark.opens and mark.kind == inside), None)
        if close is None:
            return Split(_joined([*thoughts, _label_off(bare.strip(), inside)]), "", closed=False)
        thoughts.append(_label_off(bare[: close.start].strip(), inside))
        rest, inside = bare[close.end :], None
    unopened = stray(rest)
    if unopened is not None and reasons and not thoughts:
        behind = _of_marks(rest[unopened.end :], None, reasons=False)
        if behind.why is not None:
            return _untold(text)
        thoughts = [rest[: unopened.start].strip(), behind.reasoning or ""]
        answer = _unwrapped(behind.answer.lstrip("\r\n"))
        return behind._replace(reasoning=_joined(thoughts), answer=answer)
    answer = _unwrapped(rest.lstrip("\r\n")) if thoughts else _unwrapped(rest, controls_only=True)
    if stray(answer) is not None or _DROPPED_FINAL in answer:
        return _untold(text)
    return Split(_joined(thoughts) if thoughts else None, answer)


def _untold(text: str) -> Split:
    return Split(None, text, finish.UNTOLD)


def _of_channels(text: str) -> Split:
    """gpt-oss's messages: the analysis is reasoning, what is addressed to a tool calls it, and all else is
    said to the user."""
    thoughts, said, called, closed = list[str](), list[str](), False, False
    headers = list(_HEADER.finditer(text))
    if not headers:
        return Split(text, "", closed=False)
    if finish.has_text(text[: headers[0].start()]):  # of no message
        return _untold(text)
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        body = text[header.end() : following.start() if following else len(text)]
        whole = _MESSAGE_END.sub("", body)
        if any(token in whole for token in _CHANNEL_TOKENS):  # a header that is none
            return _untold(text)
        closed = following is not None or whole != body
        if "to=" in f"{header['to'] or ''}{header['rest']}":
            called = True
        elif header["channel"] == "analysis":
            thoughts.append(whole.strip())
        else:
            said.append(whole)
            closed = True
    reasoning = _joined(thoughts) if thoughts else None
    answer = "\n\n".join(said)
    return Split(reasoning, answer, finish.CALLED_TOOL if called else None, closed)


def _of_words(bare: str) -> Split | None:
    """Reasoning between marks that are words, or what is left of control tokens."""
    dropped = _DROPPED.match(bare)
    if dropped:
        reasoning, final, answer = bare[dropped.end() :].partition(_DROPPED_FINAL)
        if not final:
            return Split(reasoning, "", closed=False)
        unclear = _DROPPED_FINAL in answer or "assistantcommentary" in reasoning
        return _untold(bare) if unclear else Split(reasoning.strip(), answer)
    granite = _GRANITE.match(bare)
    if granite:
        end = _GRANITE_END.search(bare, granite.end())
        if end is None:
            return Split(bare[granite.end() :].strip(), "", closed=False)
        return Split(bare[granite.end() : end.start()].strip(), _from_visible(bare[end.end() :]))
    pairs = (_HEADING, _HEADING_END), (_OLLAMA, _OLLAMA_END), (_STEP, _STEP_END), (_FENCE, _FENCE_END)
    for begins, ends in pairs:  # only with both
        start = begins.match(bare)
        end = ends.search(bare, start.end()) if start else None
        if start and end:
            return Split(bare[start.end() : end.start()].strip(), bare[end.end() :].lstrip("\r\n"))
    label = _LABEL.match(bare)
    if label:
        reasoning, closing, answer = bare[label.end() :].partition("<channel|>")
        return Split(reasoning.strip(), answer.lstrip("\r\n"), closed=bool(closing))
    return None


def _label_off(reasoning: str, kind: tuple[str, str]) -> str:
    return reasoning.removeprefix("thought").lstrip() if kind[0] == "7" else reasoning


def _unwrapped(answer: str, *, controls_only: bool = False) -> str:
    """The answer without the marks that stand around it."""
    bare = _from_visible(answer)
    for start, end in _CONTROLS.items():
        if bare.startswith(start):
            return _without_last(bare.removeprefix(start), end)
    wrapped = None if controls_only else _WRAPPED.match(bare)
    if wrapped is None:
        return answer
    inner = bare[wrapped.end() :]
    closing = re.findall(rf"</{wrapped['name']}>", inner, re.IGNORECASE)
    return _without_last(inner, closing[-1]).strip("\r\n") if closing else inner.lstrip("\r\n")


def _without_last(text: str, mark: str) -> str:
    before, found, behind = text.rpartition(mark)
    return before + behind if found else text


def _from_visible(text: str) -> str:
    """A text from its first character that shows."""
    place = next((n for n, one in enumerate(text) if unicodedata.category(one)[0] not in "ZC"), len(text))
    return text[place:]


def _last(items: Iterable[Item]) -> Item | None:
    return next(iter(deque(items, maxlen=1)), None)


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(filter(None, thoughts))
