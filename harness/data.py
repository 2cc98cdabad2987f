"""Training rows to examples: the published row formats, checked, with file and line in every complaint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

from harness.contracts import Example, HarnessError, Message, Role, TrainTask
from harness.store import jsonl_lines

FIELD_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
FORMATS = "messages, prompt/completion, instruction/output or question/answer"


def examples(task: TrainTask, train_data: Path | None, limit: int | None) -> list[Example]:
    """The first ``limit`` training examples of a task, from its own rows or from the user's file."""
    if train_data is None:
        where, unit = f"train task '{task.name}'", "row"
        rows: Iterable[tuple[int, Mapping[str, Any]]] = enumerate(task.rows(), 1)
    else:
        where, unit = str(train_data), "line"
        rows = jsonl_lines(train_data)
    found = [
        to_example(row, task, f"{where}, {unit} {number}", f"{task.name}-{number}")
        for number, row in islice(rows, limit)
    ]
    if not found:
        raise HarnessError(f"{where}: no rows; expected JSON lines with {FORMATS}")
    return found


def to_example(row: Mapping[str, Any], task: TrainTask, where: str, example_id: str) -> Example:
    """One row as a conversation under the task's system prompt. Raises HarnessError naming ``where``."""
    if "messages" in row:
        return Example(example_id, _messages(row["messages"], where))
    if set(task.fields) <= row.keys():
        prompt, answer = (_text(row, field, where) for field in task.fields)
        if task.strip:
            prompt, answer = prompt.strip(), answer.strip()
        prompt = task.prompt_template.format(prompt=prompt)
    else:
        pair = next((pair for pair in FIELD_PAIRS if set(pair) <= row.keys()), None)
        if pair is None:
            raise HarnessError(
                f"{where}: fields {sorted(row)} are none of {FORMATS}, "
                f"nor this task's {'/'.join(task.fields)}"
            )
        prompt, answer = (_text(row, field, where) for field in pair)
        if pair[0] == "instruction" and row.get("input"):
            prompt = f"{prompt}\n\n{_text(row, 'input', where)}"
    turns = [Message("user", prompt), Message("assistant", answer)]
    return Example(
        example_id, (Message("system", task.system_prompt), *turns) if task.system_prompt else tuple(turns)
    )


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise HarnessError(f"{where}: field '{field}' must be a text that is not empty")
    return _unicode(value, where)


def _unicode(text: str, where: str) -> str:
    """JSON's escapes can spell half a surrogate pair, which no tokenizer or file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HarnessError(f"{where}: not valid Unicode ({error.reason})") from error
    return text


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not all(
        isinstance(turn, dict)
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
        for turn in value
    ):
        raise HarnessError(f"{where}: 'messages' must be a list of {{role, content}} with known roles")
    roles = [turn["role"] for turn in value]
    expected = ["user", "assistant"] * ((len(roles) - (roles[:1] == ["system"])) // 2)
    if not expected or roles[1 if roles[0] == "system" else 0 :] != expected:
        raise HarnessError(
            f"{where}: 'messages' must alternate user and assistant (a system turn may open them) "
            "and end with the assistant"
        )
    if not value[-1]["content"].strip():
        raise HarnessError(f"{where}: the last assistant turn is empty")
    return tuple(Message(cast(Role, turn["role"]), _unicode(turn["content"], where)) for turn in value)
