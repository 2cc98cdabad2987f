"""Turns of a conversation as OpenAI ({role, content}) or ShareGPT ({from, value}) write them: read whole, or
refused by turn and role; and the marks with which rows say what is not to be trained.

Nothing that changes what a conversation means is dropped: tool calls, reasoning, images and the like are
refused, since no chat template gets them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from harness.contracts import HarnessError, Message, Role
from harness.text import shown

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
# What a turn may hold beside its content that a template would show, or that stands in for the content.
CHANGING = ("tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "thinking", "audio",
            "images", "image", "videos", "video")  # fmt: skip
MARKS = ("weight", "train", "training", "trainable", "loss", "label")  # of a turn: is it learnt?
DETAILS = ("train_detail", "training_detail")  # axolotl's: which characters of a turn are learnt
TEXT_PARTS = (None, "text", "input_text", "output_text")
KNOWN = {"role", "from", "content", "value", *CHANGING, *MARKS, *DETAILS}
_SWITCHES = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Turn:
    """``trained``: what the turn's marks say, None without any; ``partly``: characters of it are marked;
    ``unused``: its other keys, which have no meaning here."""

    message: Message
    trained: bool | None
    partly: bool
    unused: frozenset[str]


def absent(value: Any) -> bool:
    """Whether a column holds nothing: tables have every column in every row."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return value != value  # NaN, pandas' empty cell
    return value is None or (isinstance(value, (Sequence, Mapping)) and not value)


def read(value: Any, field: str, where: str) -> list[Turn]:
    """The turns of a list, in any order of roles. Raises HarnessError naming ``where``, turn and role."""
    if not isinstance(value, (list, tuple)) or not value:
        raise HarnessError(f"{where}: '{field}' must be a list of {{role, content}} or {{from, value}} turns")
    return [_turn(turn, f"{where}: '{field}', turn {number}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise HarnessError(f"{where} must be {{role, content}} or {{from, value}}, not {type(turn).__name__}")
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    if role is None:
        raise HarnessError(f"{where} has no 'role' (or 'from')")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise HarnessError(f"{where} has the role {shown(role)}; {_about(role)}")
    changing = next((name for name in CHANGING if not absent(turn.get(name))), None)
    if changing:
        raise HarnessError(
            f"{where} ({known}) has '{changing}', which is not used here: put what counts into its content, "
            "or leave the row out"
        )
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    text = _content(content, f"{where} ({known})")
    if known != "system" and not text.strip():
        raise HarnessError(f"{where} ({known}) is empty")
    return Turn(
        Message(cast(Role, known), unicode(text, where)),
        trained=marked(turn, MARKS, where),
        partly=any(not absent(turn.get(name)) for name in DETAILS),
        unused=frozenset(
            str(name) for name, inner in turn.items() if name not in KNOWN and not absent(inner)
        ),
    )


def _about(role: Any) -> str:
    word = role.strip().lower() if isinstance(role, str) else ""
    if word in TOOL_ROLES:
        return "turns of tools are not used here: leave the row out, or write them as text of the others"
    if word == "developer":
        return "call it 'system' to have it as the system prompt"
    return "known are system, user (or human), assistant (or gpt)"


def _content(content: Any, where: str) -> str:
    """A text, or parts that are all text ({"type": "text", "text": …}), put together."""
    if isinstance(content, str):
        return content
    if content is None:
        raise HarnessError(f"{where} has no content")
    if not isinstance(content, (list, tuple)):
        raise HarnessError(f"{where}: its content must be a text, not {type(content).__name__}")
    return "".join(_part(part, f"{where}, part {number}") for number, part in enumerate(content, 1))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else part
    if kind in TEXT_PARTS and isinstance(text, str):
        return text
    raise HarnessError(f"{where} is {shown(kind) if kind is not None else type(part).__name__} and no text")


def unicode(text: str, where: str) -> str:
    """JSON's escapes can spell half a surrogate pair, which no tokenizer or file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HarnessError(f"{where}: not valid Unicode ({error.reason})") from error
    return text


def joined(turns: Sequence[Turn], field: str, where: str) -> tuple[Message, ...]:
    """The messages of turns that alternate and end with the assistant. Raises HarnessError as
    ``check_order`` does."""
    rule = f"{where}: '{field}' must alternate user and assistant and end with the assistant"
    check_order(turns, rule)
    if turns[-1].message.role != "assistant":
        raise HarnessError(f"{rule}; turn {len(turns)}, the last, is of role {turns[-1].message.role}")
    return tuple(turn.message for turn in turns)


def check_order(turns: Sequence[Turn], rule: str) -> None:
    """Raises HarnessError, which begins with ``rule`` and names turn and role, unless user and assistant take
    turns behind at most one system turn."""
    start = int(turns[0].message.role == "system")
    for number, turn in enumerate(turns[start:]):
        role, wanted = turn.message.role, ("user", "assistant")[number % 2]
        if role != wanted:
            told = "; a system turn comes first" if role == "system" else ""
            raise HarnessError(f"{rule}; turn {number + start + 1} is of role {role}, not {wanted}{told}")


# --- what is not to be trained ---------------------------------------------------------------------


def marked(values: Mapping[str, Any], names: Iterable[str], where: str) -> bool | None:
    """Whether marks say that something is learnt; None where there is none. Raises HarnessError for a mark
    that is neither, and for two that differ."""
    found = {name: values[name] for name in names if not absent(values.get(name))}
    switches = {name: switch(value) for name, value in found.items()}
    for name, on in switches.items():
        if on is None:
            raise HarnessError(
                f"{where}: '{name}' must be true or false (1 or 0), not {shown(found[name])}: an answer is "
                "learnt or not"
            )
    if len(set(switches.values())) > 1:
        raise HarnessError(f"{where}: {' and '.join(switches)} say different things of what is learnt")
    return next(iter(switches.values()), None)


def switch(value: Any) -> bool | None:
    """True or false however JSON, a table or a CSV file writes it; None for anything else."""
    return _SWITCHES.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None
