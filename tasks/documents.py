"""Rows to lm-eval documents: ids, local files, and the ``{"test": Dataset}`` of a ``custom_dataset``."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError


def as_test_split(rows: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """The rows as lm-eval's test split; a row without an ``id`` gets ``<prefix>-<its number from 0>``.

    Raises HarnessError where two rows share an id, since responses and verdicts are joined by it.
    """
    import datasets  # takes a second, and a train task never needs it

    documents = [{"id": f"{prefix}-{i:04d}", **row} for i, row in enumerate(rows)]
    for document in documents:
        document["id"] = str(document["id"])
    if not documents:
        raise HarnessError(f"{prefix}: no rows to evaluate")
    if len({document["id"] for document in documents}) < len(documents):
        raise HarnessError(f"{prefix}: two rows have the same id; make the ids unique, or leave them out")
    return {"test": datasets.Dataset.from_list(documents)}


def local_file(task: str, metadata: Mapping[str, Any]) -> Path | None:
    """The file that metadata names for a task, ``{"data_files": {TASK: PATH}}``, or None."""
    files = metadata.get("data_files") or {}
    if not isinstance(files, Mapping):
        raise HarnessError(f"metadata 'data_files' must map a task to its file, not {files!r}")
    return Path(files[task]).expanduser() if task in files else None


def read_jsonl(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; blank lines are skipped. Raises HarnessError with file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise HarnessError(f"{path}, line {number}: not JSON: {error.msg}") from error
        for field in fields:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise HarnessError(f"{path}, line {number}: needs a text field '{field}'")
        rows.append(row)
    if not rows:
        raise HarnessError(f"{path}: no rows to evaluate")
    return rows
