"""Training examples from the train task's rows, a file or a hub data set; more can be mixed in.

Files are read by ``row_files``, a row by ``rows``; every complaint names file and line.
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
from typing import cast

from harness import row_files
from harness.contracts import Example, HarnessError, NotFetchedError, TrainTask, UsageError
from harness.mini import data as mini_data
from harness.rows import FORMATS, MARKED, Layout, Row, Unused, chosen, recognised, to_example, under
from harness.storage.files import content_hash, file_hash, files_below

MINI = "mini"  # the mini world's own safety data
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>.+))?")

Numbered = Iterable[tuple[int, Row]]


def examples(
    task: TrainTask,
    train_data: str | Path | None,
    limit: int | None,
    columns: Mapping[str, str] | None = None,
    mix: Mapping[str, float] | None = None,
    unused: Unused | None = None,
) -> list[Example]:
    """The first ``limit`` training examples of a task, from its own rows or from ``train_data``, and behind
    them those of ``mix``, which come on top: it gives each source's share of all the resulting rows.

    ``columns`` says which of train_data's columns are the prompt (the whole user turn) and the answer, the
    messages, or the task's own two fields. What is left out of the rows that were read counts in ``unused``.
    Raises HarnessError, naming source and line, for a bad row.
    """
    unused = Unused() if unused is None else unused
    if train_data is None:
        if columns:
            raise UsageError("columns are those of train_data and there is none: add --train-data")
        where, unit = f"train task '{task.name}'", "row"
        rows: Numbered = enumerate(task.rows(), 1)
    else:
        where, (unit, rows) = str(train_data), read(str(train_data))
    layout = chosen(columns, task) if columns else None
    found = _first(limit, rows, task, f"{where}, {unit}", task.name, layout, unused)
    if not found:
        raise _nothing(where, unused)
    if train_data is None:
        unused.columns.clear()  # the task's author knows its columns
    return found + mixed_in(task, len(found), mix or {}, unused)


def _first(
    limit: int | None,
    rows: Numbered,
    task: TrainTask,
    where: str,
    name: str,
    layout: Layout | None,
    unused: Unused,
) -> list[Example]:
    """The first ``limit`` examples of rows; no row behind them is read."""
    made = (
        to_example(row, task, f"{where} {number}", f"{name}-{number}", layout, unused) for number, row in rows
    )
    return list(islice((example for example in made if example is not None), limit))


def _nothing(where: str, unused: Unused) -> HarnessError:
    if unused.untrained:
        return HarnessError(f"{where}: nothing to train on; all {unused.untrained:,} are {MARKED}")
    return HarnessError(f"{where}: no rows; expected {FORMATS}")


def mixed_in(
    task: TrainTask, rows: int, mix: Mapping[str, float], unused: Unused | None = None
) -> list[Example]:
    """Examples from each source of ``mix``, so many that they make its share of all rows.

    They are drawn without repetition, with the hash of the source's content as seed: all methods, tasks and
    training seeds get the same rows, and a larger share holds those of a smaller one.
    """
    own_share = 1.0 - sum(mix.values())
    if not (own_share > 0 and all(share > 0 for share in mix.values())):
        raise UsageError(f"mix: shares must be above 0 and sum to less than 1, not {dict(mix)}")
    added: list[Example] = []
    for place, (source, share) in enumerate(mix.items()):
        unit, found = read(source)
        available = list(found)
        wanted = round(rows * share / own_share)
        if wanted == 0:
            raise HarnessError(
                f"{source}: a share of {share:g} beside {rows:,} rows is less than one row; "
                "give a larger share or more rows to train on"
            )
        shuffled = random.Random(f"mix {source_hash(source)}").sample(available, len(available))
        where, counted = f"{source}, {unit}", Unused() if unused is None else unused
        taken = _first(wanted, shuffled, task, where, f"mix-{place}", None, counted)
        if len(taken) < wanted:
            raise HarnessError(
                f"{source}: a share of {share:g} beside {rows:,} rows needs {wanted:,} rows and there are "
                f"{len(taken):,}; give more rows, a smaller share, or a smaller training.max_examples"
            )
        added += taken
    return added


def safety_examples(task: TrainTask, source: str | None, unused: Unused | None = None) -> list[Example]:
    """Harmful requests with refusals, as conversations under the train task's system prompt (one with a
    system turn keeps it): from a file or data set in any of the row formats, or "mini", the mini world's.

    Raises UsageError where there is none.
    """
    unused = Unused() if unused is None else unused
    if source is None:
        raise UsageError(
            "a chosen method trains on safety data and there are none: "
            "set safety_data (--safety-data FILE), or leave the method out"
        )
    rows: Numbered
    if source == MINI:
        unit, rows = "row", enumerate(mini_data.safety_demonstrations(), 1)
    else:
        unit, rows = read(source)
    found = []
    for index, (number, row) in enumerate(rows):
        place = f"{source}, {unit} {number}"
        layout = recognised(row, (), place)  # no summarizing of requests
        example = to_example(row, task, place, f"safety-{index}", layout, unused)
        if example is not None:
            found.append(replace(example, messages=under(task.system_prompt, example.messages)))
    if not found:
        raise _nothing(source, unused)
    if source == MINI:
        unused.columns.clear()
    return found


# --- sources ---------------------------------------------------------------------------------------


def read(source: str) -> tuple[str, Iterator[tuple[int, Row]]]:
    """What a source's units are called, and its numbered rows. Raises HarnessError where it is unreadable.

    A source is a file (``row_files``), or, where there is no such file, a hub data set: ``owner/name``,
    ``owner/name:config``, ``owner/name@split`` (default: train).
    """
    if not is_local(source):
        return "row", _hub(source)
    path = Path(source).expanduser()
    unit, values = row_files.read(path)
    return unit, _objects(values, f"{path}, {unit}")


def _objects(values: row_files.Rows, where: str) -> Iterator[tuple[int, Row]]:
    for number, value in values:
        if not isinstance(value, dict):
            raise HarnessError(f"{where} {number}: expected a JSON object, found {type(value).__name__}")
        yield number, value


def is_local(source: str) -> bool:
    path = Path(source).expanduser()
    named = HUB_NAME.fullmatch(source) and path.suffix.lower() not in row_files.FILE_ENDINGS
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


def _hub(source: str) -> Iterator[tuple[int, Row]]:
    import datasets

    named = cast(re.Match[str], HUB_NAME.fullmatch(source))
    try:
        rows = datasets.load_dataset(named["name"], named["config"], split=named["split"] or "train")
    except Exception as error:
        raise NotFetchedError(
            f"data set '{source}' is no file here and cannot be had from the hub ({_line(error)}); "
            "check its name and the network, or give a JSONL, JSON, CSV or Parquet file"
        ) from error
    yield from enumerate(rows, 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def data_hash(path: Path) -> str:
    """Of a file, or of all files of a folder with their names. Raises HarnessError where there is neither."""
    if not path.exists():
        raise HarnessError(f"{path}: no such data file")
    if path.is_file():
        return file_hash(path)
    return content_hash({str(file.relative_to(path)): file_hash(file) for file in files_below(path)})
