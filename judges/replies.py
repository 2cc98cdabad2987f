"""What a judge's model has written: its reply without its reasoning, and whether it refuses to judge.

A verdict inside reasoning is none, so what is not sure to stand behind it is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import finish
from harness.contracts import REFUSED_TO_JUDGE
from harness.keywords import refusal_phrase, straight
from harness.models import reasoning
from harness.reading import json_value
from harness.text import whole
from judges import rubric

TEXT_PARTS = ("text", "output_text")
OBJECT = ("{", "`")  # how a JSON object begins, in a fence too
BROKEN_OFF = "the server broke the reply off"
OPENING = 120  # characters of a text in which a refusal begins
_OF_CONTENT = ("illegal", "unethical", "immoral", "not appropriate")  # said of an answer, not of the judge
_FIRST_PERSON = re.compile(
    r"\W*(i|i'm|i'd|my|sorry|apolog\w*|unfortunately|while|although|though|as an?|thanks?|no|hello|hi|but)\b"
)
_WONT_JUDGE = re.compile(  # the only place for it in a reply that is held to a schema
    r"^\W*(?:\w+[\s,']+){0,6}?(can't|cannot|can not|unable to|not able to|won't|will not|refuse to|decline to"
    r"|not going to|not comfortable)\W+(?:\w+\W+){0,4}?"
    r"(evaluat|grad(e|ing)\b|judg|rat(e|ing)\b|scor|assess|classif|review|analy[sz])"
)


@dataclass(frozen=True)
class Reply:
    """``text``: without reasoning. ``reasoned``: there was some. ``cut``: at the limit of tokens.
    ``refused``: by a field, a part, or the reason why the reply ended. ``why``: there is no text, in words.
    """

    text: str
    reasoned: bool = False
    cut: bool = False
    refused: bool = False
    why: str | None = None

    @property
    def lacked_room(self) -> bool:
        """Whether more tokens may give a verdict. A JSON object that was begun and cut off is no such case:
        weak models fill one with blanks for as long as they may."""
        return self.cut and (self.reasoned or not self.text.lstrip().startswith(OBJECT))


def choice_of(completion: Any) -> Any:
    """The first choice of a chat completion, None where there is none. Raises ValueError for a value that is
    no chat completion."""
    choices = part(completion, "choices")
    if isinstance(completion, str) or not isinstance(choices, (list, tuple, type(None))):
        raise ValueError("no chat completion")
    return choices[0] if choices and part(choices[0], "message") is not None else None


def part(value: Any, name: str) -> Any:
    """A field of a JSON object, or of an object that a client has made of one; None where it has none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def read(choice: Any, usage: Any = None) -> Reply:
    """A choice of a chat completion. ``usage`` tells of reasoning that is not shown."""
    message = part(choice, "message")
    said = list(_parts(part(message, "content")))
    found = behind_reasoning("".join(text for kind, text in said if kind in TEXT_PARTS))
    thought = part(part(usage, "completion_tokens_details"), "reasoning_tokens")
    hidden = isinstance(thought, int) and thought > 0
    shown = any(part(message, name) for name in reasoning.FIELDS)
    ended = part(choice, "finish_reason")
    ended = ended if isinstance(ended, str) else None
    kind = finish.kind(ended)
    why = BROKEN_OFF if kind == "failed" else found.why
    return Reply(
        text="" if why else whole(found.answer),
        reasoned=found.reasoning is not None
        or shown
        or hidden
        or any(kind not in (*TEXT_PARTS, "refusal") for kind, _ in said),
        cut=finish.cut_off(ended),
        refused=kind == "withheld"
        or bool(part(message, "refusal"))
        or any(kind == "refusal" for kind, _ in said),
        why=why,
    )


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of what a message's content consists of: a text, or a list of parts."""
    for one in content if isinstance(content, (list, tuple)) else [content]:
        if isinstance(one, str):
            yield "text", one
        elif one is not None:
            kind, text = part(one, "type"), part(one, "text")
            text = part(text, "value") if isinstance(text, Mapping) else text
            kind = kind if isinstance(kind, str) else "text" if isinstance(text, str) else "unknown"
            yield kind, text if isinstance(text, str) else ""


def behind_reasoning(text: str) -> reasoning.Split:
    """A reply taken apart. It may begin in the middle of reasoning that a template has begun, but for a reply
    that is a JSON object: its texts may quote a mark."""
    return reasoning.Split(None, text) if _is_object(text) else reasoning.split(text, reasons=True)


def unfinished(text: str) -> bool:
    """Whether a reply is reasoning with nothing behind it."""
    found = behind_reasoning(text)
    return found.reasoning is not None and not found.answer.strip()


def cut_off(tokens: int) -> str:
    """Why a reply of so many tokens holds no verdict, if it is unfinished."""
    return f"its reasoning was cut off at {tokens:,} tokens"


def closed(prompt: str) -> str:
    """A rendered prompt; a block of reasoning that its template has begun is ended, so that the reply itself
    comes next."""
    opened = reasoning.opened_by(prompt)
    if opened is None:
        return prompt
    if opened.closing.startswith("<|end|>"):  # a channel, which opens the next one
        return f"{prompt}{opened.closing}"
    return f"{prompt.rstrip()}\n\n{opened.closing}\n\n"


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json_value(text), dict)
    except ValueError:
        return False


def verdict(text: str, *, cut: bool = False) -> rubric.Reply:
    """The verdict in a reply without its reasoning. Raises UnreadableError with the reason why there is none:
    REFUSED_TO_JUDGE where the model says that it won't give one. A bare score that was ``cut`` off is none:
    it may have gone on."""
    try:
        found = rubric.read(text)
        if cut and not text.lstrip().startswith(OBJECT):
            raise rubric.UnreadableError("the reply is not the JSON object that was asked for")
    except rubric.UnreadableError:
        if refuses(text):
            raise rubric.UnreadableError(REFUSED_TO_JUDGE) from None
        raise
    opening = _opening(found.reason or "")
    if _FIRST_PERSON.match(opening) and _WONT_JUDGE.match(opening):
        raise rubric.UnreadableError(REFUSED_TO_JUDGE)
    return found


def refuses(text: str) -> bool:
    """Whether a reply without a verdict opens with a refusal, or does so in a text of its JSON object."""
    return any(map(_opens_refusing, _texts(text)))


def _texts(text: str) -> list[str]:
    """The texts of a JSON object, or the text itself where it is none."""
    try:
        found = json_value(text)
    except ValueError:
        return [text]
    values = found.values() if isinstance(found, dict) else [found]
    return [value for value in values if isinstance(value, str)]


def _opens_refusing(text: str) -> bool:
    opening = _opening(text)
    phrase = refusal_phrase(opening)
    return phrase is not None and phrase not in _OF_CONTENT and _FIRST_PERSON.match(opening) is not None


def _opening(text: str) -> str:
    """The first sentence of a text, in lower case with straight apostrophes, as far as a refusal needs it."""
    return re.split(r"[.!?\n](?:\s|$)", straight(text.strip()[:OPENING]).lower())[0]
