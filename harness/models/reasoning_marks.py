"""The marks that models and servers write around a model's reasoning, and where a text has them.

Marks that are words, and gpt-oss's channels, are read in reasoning.py. Standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

WORD = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
# <think>, <thinking>, <thought>, <reasoning>, <reason>, and with a model's own name in it: <seed:think>,
# <mm:think>, <ifm|think_fast>, <longcat_think>, <think:6124c78e>. Attributes may follow.
_TAG = rf"(?:[\w.-]{{1,40}}[:|_])?{WORD}(?:[:|_][\w.:-]{{1,60}})?"
_ATTRIBUTES = r"(?:\s[^<>]{0,200})?"
_OWNER, _OF = r"(?:\w{1,20}:)?", rf"_(?:of_)?{WORD}(?::\w{{1,20}})?"
_MARKS = (  # (opening, closing); a closing mark's "/" or its like is what ``closing_of`` makes of the first
    (rf"(?:<|&lt;)\s?{_TAG}{_ATTRIBUTES}/?(?:>|&gt;)", rf"(?:<|&lt;)\s?/\s?{_TAG}\s?(?:>|&gt;)"),
    (rf"\[{WORD}\]", rf"\[/{WORD}\]"),  # Mistral
    (rf"◁{WORD}▷", rf"◁/{WORD}▷"),  # Kimi
    (rf"<\|{WORD}\|>", rf"<\|/{WORD}\|>"),
    # Cohere's <|START_THINKING|>, <|begin_of_thought|>, <|plamo:begin_think:plamo|>
    (rf"<\|{_OWNER}(?:begin|start){_OF}\|>", rf"<\|{_OWNER}end{_OF}\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|open\|>\s*think\s*<\|sep\|>", r"<\|close\|>\s*think\s*<\|sep\|>"),  # Kimi K3
    (r"<\|channel>", r"<channel\|>"),  # Gemma 4
    (r"(?:<\|start\|>assistant\s*)?to=self<\|message\|>", r"<\|eom\|>"),
    (r"(?:<\|message_model\|>)?<\|content_thinking\|>", r"<\|end_message\|>"),
    (
        r"<details\b[^<>]{0,100}\stype=[\"']?reasoning\b[^<>]{0,200}>(?:\s*<summary>[^<>]{0,200}</summary>)?",
        r"</details>",
    ),
    (rf"<\|{WORD}_(?:start|begin)\|>", rf"<\|{WORD}_(?:end|stop)\|>"),
    (r"<unused94>(?:thought\s)?", r"<unused95>"),  # MedGemma
)
ANY = re.compile(
    "|".join(f"(?P<o{n}>{start})|(?P<c{n}>{end})" for n, (start, end) in enumerate(_MARKS)), re.IGNORECASE
)
_NAMED = re.compile(_TAG, re.IGNORECASE)
_TAGS, CHANNEL = "0", "harmony"
ENDS_ANY = ("8", "9", "10")  # whose closing marks end other things, too


class Mark(NamedTuple):
    """An opening mark: its kind, as it is written, and the closing mark that belongs to it."""

    kind: tuple[str, str]
    text: str
    closing: str


class Found(NamedTuple):
    """A mark in a text: an opening or a closing one, from ``start`` to ``end``."""

    kind: tuple[str, str]
    opens: bool
    start: int
    end: int
    text: str

    @property
    def is_empty(self) -> bool:
        """Whether it is a block without content in itself: <think/>."""
        return self.opens and self.text.endswith(("/>", "/&gt;"))


def marks(text: str) -> Iterator[Found]:
    """The marks in a text, looked for as far as they are asked for: some readers want the first of many
    thousands."""
    if not any(sign in text for sign in "<[&◁"):  # every mark has one of them
        return
    for match in ANY.finditer(text):
        group = str(match.lastgroup)
        found = match.group()
        named = _NAMED.search(found) if group[1:] in ("0", "1", "2", "3") else None
        kind = group[1:], named.group().lower() if named else ""
        yield Found(kind, group[0] == "o", match.start(), match.end(), found)


def stray(text: str) -> Found | None:
    """The first closing mark before which its opening one is missing."""
    open_marks: Counter[tuple[str, str]] = Counter()
    for mark in marks(text):
        if mark.is_empty or mark.kind[0] in ENDS_ANY:
            continue
        if mark.opens:
            open_marks[mark.kind] += 1
        elif not open_marks[mark.kind]:
            return mark
        else:
            open_marks[mark.kind] -= 1
    return None


def closing_of(mark: Found) -> str:
    number, text = mark.kind[0], mark.text
    if number == _TAGS:
        named = _NAMED.search(text)
        return f"</{named.group() if named else 'think'}>"
    if number in ("1", "2", "3"):
        return re.sub(r"^(\[|◁|<\|)", r"\1/", text)
    if number == "4":
        return re.sub("begin|start", "end", re.sub("BEGIN|START", "END", text))
    return {
        "5": "<|inner_suffix|>", "6": "<|close|>think<|sep|>", "7": "<channel|>", "8": "<|eom|>",
        "9": "<|end_message|>", "10": "</details>", "11": "<|think_end|>", "12": "<unused95>",
    }[number]  # fmt: skip
