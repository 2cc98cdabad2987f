"""Training rows to examples: the published row formats, checked, with file and line in every complaint.

Rows come from the train task, a file (JSON lines, JSON, Parquet) or a hub data set; more can be mixed in.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from harness import parquet
from harness.contracts import Example, HarnessError, Message, Role, TrainTask, UsageError
from harness.mini import data as mini_data
from harness.reading import check_size, json_value
from harness.store import file_hash, jsonl_lines

ALPACA = ("instruction", "output")  # with an optional column "input"
FIELD_PAIRS = (("prompt", "completion"), ALPACA, ("question", "answer"))
CONVERSATIONS = ("messages", "conversations")  # the second: ShareGPT's
FORMATS = "messages, conversations, prompt/completion, instruction/output or question/answer"
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
MINI = "mini"  # the mini world's own safety data
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>.+))?")
FILE_ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".gz", ".zst")

Row = Mapping[str, Any]
# What a row's columns hold, and which they are: a conversation, the task's own prompt and answer (its
# template applies), or a whole user turn and the answer.
Layout = tuple[Literal["conversation", "own", "turns"], tuple[str, ...]]


def examples(
    task: TrainTask,
    train_data: str | Path | None,
    limit: int | None,
    columns: Mapping[str, str] | None = None,
    mix: Mapping[str, float] | None = None,
) -> list[Example]:
    """The first ``limit`` training examples of a task, from its own rows or from ``train_data``, and behind
    them those of ``mix``, which come on top: it gives each source's share of all the resulting rows.

    ``columns`` says which of train_data's columns are the prompt (the whole user turn) and the answer, the
    messages, or the task's own two fields. Raises HarnessError, naming source and line, for a bad row.
    """
    if train_data is None:
        if columns:
            raise UsageError("columns are those of train_data and there is none: add --train-data")
        where, unit = f"train task '{task.name}'", "row"
        rows: Iterable[tuple[int, Row]] = enumerate(task.rows(), 1)
    else:
        where, (unit, rows) = str(train_data), read(str(train_data))
    layout = _chosen(columns, task) if columns else None
    found = [
        to_example(row, task, f"{where}, {unit} {number}", f"{task.name}-{number}", layout)
        for number, row in islice(rows, limit)
    ]
    if not found:
        raise HarnessError(f"{where}: no rows; expected {FORMATS}")
    return found + mixed_in(task, len(found), mix or {})


def mixed_in(task: TrainTask, rows: int, mix: Mapping[str, float]) -> list[Example]:
    """Examples from each source of ``mix``, so many that they make its share of all rows.

    They are drawn without repetition, with the hash of the source's content as seed: all methods, tasks and
    training seeds get the same rows, and a larger share holds those of a smaller one.
    """
    own_share = 1.0 - sum(mix.values())
    if not (own_share > 0 and all(share > 0 for share in mix.values())):
        raise UsageError(f"mix: shares must be above 0 and sum to less than 1, not {dict(mix)}")
    added = []
    for place, (source, share) in enumerate(mix.items()):
        unit, found = read(source)
        available = list(found)
        wanted = round(rows * share / own_share)
        if wanted > len(available):
            raise HarnessError(
                f"{source}: a share of {share:g} beside {rows:,} rows needs {wanted:,} rows and there are "
                f"{len(available):,}; give more rows, a smaller share, or a smaller training.max_examples"
            )
        if wanted == 0:
            raise HarnessError(
                f"{source}: a share of {share:g} beside {rows:,} rows is less than one row; "
                "give a larger share or more rows to train on"
            )
        shuffled = random.Random(f"mix {source_hash(source)}").sample(available, len(available))
        added += [
            to_example(row, task, f"{source}, {unit} {number}", f"mix-{place}-{number}")
            for number, row in shuffled[:wanted]
        ]
    return added


def safety_examples(task: TrainTask, source: str | None) -> list[Example]:
    """Harmful requests with refusals, as conversations under the train task's system prompt (one with a
    system turn keeps it): from a file or data set in any of the row formats, or "mini", the mini world's.

    Raises UsageError where there is none.
    """
    if source is None:
        raise UsageError(
            "a chosen method trains on safety data and there are none: "
            "set safety_data (--safety-data FILE), or leave the method out"
        )
    rows: Iterable[tuple[int, Row]]
    if source == MINI:
        unit, rows = "row", enumerate(mini_data.safety_demonstrations(), 1)
    else:
        unit, rows = read(source)
    found = []
    for index, (number, row) in enumerate(rows):
        place = f"{source}, {unit} {number}"
        layout = _recognised(row, (), place)  # no summarizing of requests
        example = to_example(row, task, place, f"safety-{index}", layout)
        found.append(replace(example, messages=_under(task.system_prompt, example.messages)))
    if not found:
        raise HarnessError(f"{source}: no rows; expected {FORMATS}")
    return found


# --- sources ---------------------------------------------------------------------------------------


def read(source: str) -> tuple[str, Iterator[tuple[int, Row]]]:
    """What a source's units are called, and its numbered rows. Raises HarnessError where it is unreadable.

    A source is a file, told by its ending (.parquet, .json, else JSON lines), or, where there is no such
    file, a hub data set: ``owner/name``, ``owner/name:config``, ``owner/name@split`` (default: train).
    """
    path = Path(source).expanduser()
    if not is_local(source):
        return "row", _hub(source)
    if path.exists() and not path.is_file():  # a pipe or device may have no end
        raise HarnessError(f"{path}: cannot be read: no plain file")
    if path.suffix.lower() == ".parquet":
        return "row", _parquet(path)
    if path.suffix.lower() == ".json":
        return "row", _json(path)
    return "line", jsonl_lines(path)


def is_local(source: str) -> bool:
    path = Path(source).expanduser()
    named = HUB_NAME.fullmatch(source) and path.suffix.lower() not in FILE_ENDINGS
    return path.exists() or not named


def source_hash(source: str) -> str:
    """What a source holds, wherever it lies: SHA-256 of a file, or of a hub data set's rows."""
    if source == MINI:
        return MINI
    if is_local(source):
        path = Path(source).expanduser()
        if not path.is_file():
            raise HarnessError(f"{path}: no such data file")
        return file_hash(path)
    digest = hashlib.sha256()
    for _, row in _hub(source):  # what is no JSON value (an image) counts by its type: it is not trained on
        digest.update(json.dumps(row, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return digest.hexdigest()


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        check_size(path)
        value = json_value(path.read_bytes())
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        hint = "JSON lines are called .jsonl"
        raise HarnessError(f"{path}: cannot be read as JSON ({_line(error)}); {hint}") from error
    if isinstance(value, dict):  # {"version": …, "data": […]}
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise HarnessError(f"{path}: expected a JSON array of objects (JSON lines are called .jsonl)")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise HarnessError(f"{path}, row {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        yield from enumerate(parquet.rows(path), 1)
    except FileNotFoundError:
        raise HarnessError(f"{path}: no such file") from None
    except ValueError as error:
        raise HarnessError(f"{path}: cannot be read as Parquet ({_line(error)})") from error


def _hub(source: str) -> Iterator[tuple[int, Row]]:
    import datasets

    named = cast(re.Match[str], HUB_NAME.fullmatch(source))
    try:
        rows = datasets.load_dataset(named["name"], named["config"], split=named["split"] or "train")
    except Exception as error:
        raise HarnessError(
            f"data set '{source}' is no file here and cannot be had from the hub ({_line(error)}); "
            "check its name and the network, or give a JSONL, JSON or Parquet file"
        ) from error
    yield from enumerate(rows, 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# --- rows ------------------------------------------------------------------------------------------


def to_example(
    row: Row, task: TrainTask, where: str, example_id: str, layout: Layout | None = None
) -> Example:
    """One row as a conversation under the task's system prompt; ``messages`` stand as they are.

    ``layout`` None: by the row's columns. Raises HarnessError naming ``where``.
    """
    kind, columns = layout or _recognised(row, task.fields, where)
    for column in columns:
        if column not in row:
            raise HarnessError(f"{where}: no column '{column}'; there are {', '.join(sorted(row))}")
    if kind == "conversation":
        return Example(example_id, _messages(row[columns[0]], columns[0], where))
    prompt, answer = (_text(row, column, where) for column in columns)
    white_space: tuple[str, str, str] | None = None
    if kind == "own":
        if task.strip:
            white_space = _outer(prompt)[1], *_outer(answer)
            prompt, answer = prompt.strip(), answer.strip()
        prompt = task.prompt_template.format(prompt=prompt)
    elif columns == ALPACA and row.get("input"):
        prompt = f"{prompt}\n\n{_text(row, 'input', where)}"
    return Example(
        example_id,
        _under(task.system_prompt, (Message("user", prompt), Message("assistant", answer))),
        white_space=white_space,
    )


def _outer(text: str) -> tuple[str, str]:
    """The white space before a text that is not blank, and behind it."""
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def _under(system_prompt: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if not system_prompt or turns[0].role == "system":
        return turns
    return (Message("system", system_prompt), *turns)


def _chosen(columns: Mapping[str, str], task: TrainTask) -> Layout:
    """The layout that the user's column map spells."""
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


def _recognised(row: Row, own: tuple[str, ...], where: str) -> Layout:
    """The layout that a row's columns spell; those that hold something come first, because a table has
    every column in every row."""
    filled = {name for name, value in row.items() if value is not None}
    for names in (filled, row.keys()):
        for name in CONVERSATIONS:
            if name in names:
                return "conversation", (name,)
        if own and set(own) <= names:
            return "own", own
        for pair in FIELD_PAIRS:
            if set(pair) <= names:
                return "turns", pair
    also = f", nor this task's {'/'.join(own)}" if own else ""
    raise HarnessError(f"{where}: fields {sorted(row)} are none of {FORMATS}{also}")


def _text(row: Row, field: str, where: str) -> str:
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


def _messages(value: Any, field: str, where: str) -> tuple[Message, ...]:
    turns = [_turn(turn, where) for turn in value] if isinstance(value, list) else [None]
    known = [turn for turn in turns if turn is not None]
    if len(known) < len(turns):
        raise HarnessError(
            f"{where}: '{field}' must be a list of {{role, content}} or {{from, value}} with known roles"
        )
    roles = [turn.role for turn in known]
    expected = ["user", "assistant"] * ((len(roles) - (roles[:1] == ["system"])) // 2)
    if not expected or roles[1 if roles[0] == "system" else 0 :] != expected:
        raise HarnessError(
            f"{where}: '{field}' must alternate user and assistant (a system turn may open them) "
            "and end with the assistant"
        )
    if not known[-1].content.strip():
        raise HarnessError(f"{where}: the last assistant turn is empty")
    return tuple(known)


def _turn(turn: Any, where: str) -> Message | None:
    """A turn as OpenAI ({role, content}) or ShareGPT ({from, value}) write it; None: neither."""
    if not isinstance(turn, dict):
        return None
    role = ROLES.get(str(turn.get("role", turn.get("from"))))
    content = turn.get("content", turn.get("value"))
    if role is None or not isinstance(content, str):
        return None
    return Message(cast(Role, role), _unicode(content, where))
