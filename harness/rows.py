"""One training row to a conversation: the published formats, checked; every complaint names the row's place.

A row's own system prompt and history are used; tools, images and documents are refused. A row whose answer is
marked as not to be trained (``weight`` 0, ``train`` or ``label`` false) is left out and counted, and columns
that have no meaning here are named.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.contracts import Example, HarnessError, Message, TrainTask, UsageError
from harness.reading import json_value
from harness.text import is_word, shown
from harness.turns import Turn, absent, joined, marked, read, switch, unicode

ALPACA = ("instruction", "output")  # with an optional column "input"
FIELD_PAIRS = (("prompt", "completion"), ALPACA, ("question", "answer"))
CONVERSATIONS = ("messages", "conversations")  # the second: ShareGPT's
FORMATS = "messages, conversations, prompt/completion, instruction/output or question/answer"
SYSTEM = ("system", "system_prompt")
HISTORY = "history"  # LLaMA-Factory's: [[question, answer], …]
# What changes how a conversation is read, and is not used here.
CHANGING = ("tools", "functions", "documents", "images", "image", "videos", "video", "audios", "audio",
            "chat_template_kwargs")  # fmt: skip
CONTEXT = "context"  # what a question is about, unless the user has named the columns
MARKS = ("weight", "train", "kto_tag")  # of a row: is its answer learnt?
LABEL = "label"  # KTO's, if it is true or false; it may be any other thing
MARKED = "marked not to be trained (weight, train, label)"
WITHOUT_MEANING = {"id", "conversation_id", "prompt_id"}

Row = Mapping[str, Any]
# What a row's columns hold, and which they are: a conversation, the task's own prompt and answer (its
# template applies), or a whole user turn and the answer.
Layout = tuple[Literal["conversation", "own", "turns"], tuple[str, ...]]


@dataclass
class Unused:
    """What of the rows is not trained: ``untrained`` rows, whose answer is marked so; rows that mark
    ``other_turns`` too as to be trained; ``columns`` (and keys of turns) without a meaning, by rows."""

    untrained: int = 0
    other_turns: int = 0
    columns: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """What a user is told."""
        columns = _named(name for name, _ in self.columns.most_common())
        told = [
            (self.untrained, f"rows left out, {MARKED}: {self.untrained:,}"),
            (
                self.other_turns,
                f"rows that mark further turns: {self.other_turns:,}; the last answer alone is learnt",
            ),
            (len(self.columns), f"not used of the rows: {columns}"),
        ]
        return [line for count, line in told if count]


def to_example(
    row: Row,
    task: TrainTask,
    where: str,
    example_id: str,
    layout: Layout | None = None,
    unused: Unused | None = None,
) -> Example | None:
    """One row as a conversation under the task's system prompt, or its own; ``messages`` stand as they are.
    None for a row whose answer is marked as not to be trained; ``unused`` counts that and what is not used.

    ``layout`` None: by the row's columns. Raises HarnessError naming ``where``.
    """
    unused = Unused() if unused is None else unused
    kind, columns = layout or recognised(row, task.fields, where)
    _check_there(row, columns, where)
    check_changing(row, where, columns=columns)
    said = _trained(row, columns, where)
    system = own_system(row, where, columns)
    turns = _turns(row, kind, columns, where)
    white_space: tuple[str, str, str] | None = None
    if turns is not None:
        messages, said = _conversation(turns, columns, where, said)
        messages = _with_system(system, messages, where)
        if not _empty(row.get(HISTORY)):
            raise HarnessError(f"{where}: '{HISTORY}' beside '{columns[0]}' of turns; put it among the turns")
    else:
        prompt, answer, white_space = _prompt_and_answer(row, task, kind, columns, where)
        pairs = (Message("user", prompt), Message("assistant", answer))
        messages = under(system or task.system_prompt, (*_history(row, columns, where), *pairs))
    if said is False:
        unused.untrained += 1
        return None
    if turns is not None:
        completion = row[columns[-1]] if len(columns) > 1 else []  # TRL learns all answers in it
        unused.other_turns += len(completion) > 1 or any(turn.trained or turn.partly for turn in turns[:-1])
        unused.columns.update({f"{key} of a turn" for turn in turns for key in turn.unused})
    unused.columns.update(_unused(row, columns))
    return Example(example_id, messages, white_space=white_space)


def _check_there(row: Row, columns: Iterable[str], where: str) -> None:
    for column in columns:
        if column not in row:
            raise HarnessError(
                f"{where}: no column {shown(column)}; there are {_named(sorted(map(str, row)))}"
            )


def under(system_prompt: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns under a system prompt, unless they have one."""
    if not system_prompt or turns[0].role == "system":
        return turns
    return (Message("system", system_prompt), *turns)


def chosen(columns: Mapping[str, str], task: TrainTask) -> Layout:
    """The layout that the user's column map spells. Raises UsageError."""
    kinds: list[Layout] = [
        ("own", task.fields),
        ("turns", ("prompt", "answer")),
        ("conversation", ("messages",)),
    ]
    for kind, names in kinds:
        if columns.keys() == set(names):
            return kind, tuple(columns[name] for name in names)
    raise UsageError(
        f"columns: name prompt and answer, or messages, or this task's {' and '.join(task.fields)}; "
        f"not {', '.join(columns)}"
    )


def recognised(row: Row, own: tuple[str, ...], where: str) -> Layout:
    """The layout that a row's columns spell; those that hold something come first, because a table has
    every column in every row. Raises HarnessError."""
    filled = {name for name, value in row.items() if not absent(value)}
    layout = _layout(filled, own) or _layout(row.keys(), own)
    if layout is not None:
        check_changing(row, where, (CONTEXT,), layout[1])
        return layout
    also = f", nor this task's {'/'.join(own)}" if own else ""
    raise HarnessError(
        f"{where}: fields [{_named(sorted(map(str, row)))}] are none of {FORMATS}{also}{_hint(row)}"
    )


def _layout(names: Set[str], own: tuple[str, ...]) -> Layout | None:
    for name in CONVERSATIONS:
        if name in names:
            return "conversation", (name,)
    if own and set(own) <= names:
        return "own", own
    pair = next((pair for pair in FIELD_PAIRS if set(pair) <= names), None)
    return ("turns", pair) if pair else None


def _hint(row: Row) -> str:
    """How to fix a row of no known format."""
    if {"chosen", "rejected"} <= row.keys():
        return "; rows of preferences have no one answer to learn: keep the chosen one"
    if len(row) == 1 and any(mark in str(next(iter(row))) for mark in ",;\t|"):
        return "; this is one column: a table's separators are comma, semicolon and tab"
    if len(row) > 1:
        names = list(row) if len(row) == 2 and all(map(is_word, row)) else ["NAME", "NAME"]
        return (
            f"; rename columns, or for training data name them: --columns prompt={names[0]},answer={names[1]}"
        )
    return ""


def _named(names: Iterable[Any], most: int = 12) -> str:
    found = list(map(str, names))
    return ", ".join(map(shown, found[:most])) + (
        f" and {len(found) - most} more" if len(found) > most else ""
    )


# --- parts of a row --------------------------------------------------------------------------------


def _turns(row: Row, kind: str, columns: tuple[str, ...], where: str) -> list[Turn] | None:
    """The turns of a conversation, or of a prompt and a completion that are lists of them (TRL's
    conversational form); None for texts."""
    if kind == "conversation":
        return read(row[columns[0]], columns[0], where)
    lists = [isinstance(row[column], list) for column in columns]
    if kind == "own" or not any(lists):
        return None
    if not all(lists):
        raise HarnessError(
            f"{where}: of '{columns[0]}' and '{columns[1]}' one is a list of turns, one is not: give texts "
            "or lists in both"
        )
    return [turn for column in columns for turn in read(row[column], column, where)]


def _conversation(
    turns: list[Turn], columns: tuple[str, ...], where: str, said: bool | None
) -> tuple[tuple[Message, ...], bool | None]:
    """The messages of turns, and whether the answer is learnt, as the row's or the last turn's marks say."""
    name = " + ".join(columns)
    messages = joined(turns, name, where)
    if said is False or turns[-1].trained is False:
        return messages, False
    if turns[-1].partly:
        raise HarnessError(
            f"{where}: '{name}', turn {len(turns)}: an answer cannot be learnt in part (train_detail): leave "
            "the row out, or learn the whole answer"
        )
    return messages, turns[-1].trained


def _with_system(system: str, messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """A row's own system prompt above its turns. Raises HarnessError where both have one."""
    own = messages[0].content if messages[0].role == "system" else None
    if system and own is not None and own.strip() and own.strip() != system.strip():
        raise HarnessError(f"{where}: a system turn and another system prompt in a column; keep one")
    if system and own is not None:
        messages = messages[1:]
    return under(system, messages)


def _prompt_and_answer(
    row: Row, task: TrainTask, kind: str, columns: tuple[str, ...], where: str
) -> tuple[str, str, tuple[str, str, str] | None]:
    """The user turn and the answer, and the white space that the task strips off them (Example)."""
    prompt, answer = (_text(row, column, where) for column in columns)
    white_space = None
    if kind == "own":
        if task.strip:
            white_space = _outer(prompt)[1], *_outer(answer)
            prompt, answer = prompt.strip(), answer.strip()
        prompt = task.prompt_template.format(prompt=prompt)
    elif columns == ALPACA and not absent(row.get("input")):
        prompt = f"{prompt}\n\n{_text(row, 'input', where)}"
    return prompt, answer, white_space


def _outer(text: str) -> tuple[str, str]:
    """The white space before a text that is not blank, and behind it."""
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def own_system(row: Row, where: str, columns: tuple[str, ...] = ()) -> str:
    """A row's own system prompt; empty where it has none. Raises HarnessError."""
    found = {_text(row, name, where) for name in SYSTEM if name not in columns and not absent(row.get(name))}
    if len(found) > 1:
        raise HarnessError(f"{where}: {' and '.join(SYSTEM)} differ; keep one")
    return found.pop() if found else ""


def _history(row: Row, columns: tuple[str, ...], where: str) -> Iterator[Message]:
    """The turns before a row's prompt, from pairs of question and answer (as JSON in a CSV file)."""
    value = None if HISTORY in columns else row.get(HISTORY)
    if _empty(value):
        return
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json_value(value)
    if not isinstance(value, (list, tuple)):
        raise HarnessError(f"{where}: '{HISTORY}' must be a list of [question, answer] pairs")
    for number, pair in enumerate(value, 1):
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not (whole and all(isinstance(text, str) and text.strip() for text in pair)):
            raise HarnessError(f"{where}: '{HISTORY}', pair {number} must be two texts: question, answer")
        question, answer = (unicode(text, where) for text in pair)
        yield Message("user", question)
        yield Message("assistant", answer)


def check_changing(
    row: Row, where: str, names: Iterable[str] = CHANGING, columns: tuple[str, ...] = ()
) -> None:
    """Raises HarnessError for a filled column among ``names``, unless it is one of ``columns``."""
    found = next((name for name in names if name not in columns and not _empty(row.get(name))), None)
    if found:
        raise HarnessError(
            f"{where}: '{found}' is not used here and changes what the row means: put it into the prompt, "
            "or remove the column or the row"
        )


def _empty(value: Any) -> bool:
    """Whether a list or object, which may be written as JSON, holds nothing."""
    return absent(value) or (isinstance(value, str) and value.strip() in ("[]", "{}", "null"))


def _trained(row: Row, columns: tuple[str, ...], where: str) -> bool | None:
    """Whether a row's own marks say that its answer is learnt; None where there is none."""
    label = None if LABEL in columns else row.get(LABEL)
    if switch(label) is not None and str(label).strip().lower() not in ("true", "false"):
        raise HarnessError(
            f"{where}: '{LABEL}' {shown(label)} may say that the answer is not to be learnt, or be a class: "
            "write true or false, or rename the column"
        )
    names = [name for name in MARKS if name not in columns]
    return marked(row, names if switch(label) is None else [*names, LABEL], where)


def _unused(row: Row, columns: tuple[str, ...]) -> set[str]:
    """Filled columns without a meaning here."""
    used = {*columns, *SYSTEM, *MARKS, HISTORY, *CHANGING, *WITHOUT_MEANING}
    used |= {"input"} if columns == ALPACA else set()
    used |= {LABEL} if switch(row.get(LABEL)) is not None else set()
    return {str(name) for name, value in row.items() if name not in used and not absent(value)}


def _text(row: Row, name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        other = "" if isinstance(value, str) else f", not of type {type(value).__name__}"
        raise HarnessError(f"{where}: field {shown(name)} must be a text that is not empty{other}")
    return unicode(value, where)
