"""Training rows to examples: the published row formats, checked, with file and line in every complaint.

Rows come from the train task, a file (JSON lines, JSON, Parquet) or a hub data set; more can be mixed in.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from harness.contracts import Example, HarnessError, Message, Role, TrainTask, UsageError
from harness.mini import data as mini_data
from harness.store import jsonl_lines, read_json

FIELD_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
FORMATS = "messages, prompt/completion, instruction/output or question/answer"
COLUMNS = ("prompt", "answer", "messages")  # what a column map can name
MINI = "mini"  # the mini world's own safety data


def examples(
    task: TrainTask,
    train_data: str | Path | None,
    limit: int | None,
    columns: Mapping[str, str] | None = None,
    mix: Mapping[str, float] | None = None,
) -> list[Example]:
    """The first ``limit`` training examples of a task, from its own rows or from ``train_data``, and then
    those that are mixed in: ``mix`` gives a source's share of the resulting rows, in (0, 1)."""
    if train_data is None:
        where, unit = f"train task '{task.name}'", "row"
        rows: Iterable[tuple[int, Mapping[str, Any]]] = enumerate(task.rows(), 1)
    else:
        where, (unit, rows) = str(train_data), read(str(train_data))
    found = []
    for number, row in islice(rows, limit):
        place = f"{where}, {unit} {number}"
        found.append(to_example(_renamed(row, columns or {}, place), task, place, f"{task.name}-{number}"))
    if not found:
        raise HarnessError(f"{where}: no rows; expected JSON lines with {FORMATS}")
    return found + mixed_in(task, len(found), mix or {})


def mixed_in(task: TrainTask, rows: int, mix: Mapping[str, float]) -> list[Example]:
    """Examples from each source of ``mix``, so many that they make its share of all rows. They are drawn
    without repetition, by a seed of the source's own place, so that all methods get the same."""
    own_share = 1.0 - sum(mix.values())
    if own_share <= 0 or any(share <= 0 for share in mix.values()):
        raise UsageError(f"mix: shares must be above 0 and sum to less than 1, not {dict(mix)}")
    added = []
    for place, (source, share) in enumerate(mix.items()):
        unit, found = read(source)
        available = list(found)
        wanted = round(rows * share / own_share)
        if wanted > len(available):
            raise HarnessError(
                f"{source}: a share of {share:g} needs {wanted:,} rows and there are {len(available):,}; "
                "give more rows, a smaller share, or a smaller training.max_examples"
            )
        for number, row in random.Random(f"mix {place}").sample(available, wanted):
            added.append(to_example(row, task, f"{source}, {unit} {number}", f"mix-{place}-{number}"))
    return added


def safety_examples(task: TrainTask, source: str | None) -> list[Example]:
    """Harmful requests with refusals, as conversations under the train task's system prompt: from a file or
    data set in any of the row formats, or "mini", the mini world's. Raises UsageError where there is none."""
    if source is None:
        raise UsageError(
            "a chosen method trains on safety data and there are none: "
            "set safety_data (--safety-data FILE), or leave the method out"
        )
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    if source == MINI:
        unit, rows = "row", enumerate(mini_data.safety_demonstrations(), 1)
    else:
        unit, rows = read(source)
    bare = replace(task, fields=("", ""), prompt_template="{prompt}")  # no summarizing of requests
    found = [to_example(row, bare, f"{source}, {unit} {number}", f"safety-{number}") for number, row in rows]
    if not found:
        raise HarnessError(f"{source}: no rows; expected {FORMATS}")
    return found


# --- sources ---------------------------------------------------------------------------------------


def read(source: str) -> tuple[str, Iterator[tuple[int, Mapping[str, Any]]]]:
    """What a source's units are called, and its numbered rows. Raises HarnessError where it is unreadable."""
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        return "row", _parquet(path)
    if path.suffix == ".json":
        return "row", _json(path)
    if not path.exists() and _is_hub_name(source):
        return "row", _hub(source)
    return "line", jsonl_lines(path)


def is_local(source: str) -> bool:
    return Path(source).expanduser().exists() or not _is_hub_name(source)


def _is_hub_name(source: str) -> bool:
    """``owner/name``, perhaps with ``@split``."""
    owner, slash, name = source.partition("/")
    plain = "/" not in name and not Path(name.partition("@")[0]).suffix.startswith((".json", ".txt", ".csv"))
    return bool(owner and slash and name) and plain and not source.startswith((".", "~", "/"))


def _json(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    value = read_json(path)
    if isinstance(value, dict):  # {"data": [...]}
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise HarnessError(f"{path}: expected a JSON array of objects (JSON lines are called .jsonl)")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise HarnessError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, ArrowInvalid) as error:
        raise HarnessError(f"{path}: cannot be read as Parquet ({_line(error)})") from error
    yield from enumerate(table.to_pylist(), 1)


def _hub(source: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import datasets

    name, _, split = source.partition("@")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except Exception as error:
        raise HarnessError(
            f"data set '{name}' is no local file and cannot be had from the hub: {_line(error)}"
        ) from error
    yield from enumerate(rows, 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# --- rows ------------------------------------------------------------------------------------------


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Mapping[str, Any]:
    """The row with the user's columns under known names."""
    for name, column in columns.items():
        if name not in COLUMNS:
            raise UsageError(f"columns: '{name}' is none of {', '.join(COLUMNS)}")
        if column not in row:
            raise HarnessError(f"{where}: no column '{column}'; there are {', '.join(sorted(row))}")
    if "messages" in columns:
        return {"messages": row[columns["messages"]]}
    known = {"prompt": "prompt", "answer": "completion"}
    return {known[name]: row[column] for name, column in columns.items()} or row


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
