"""The files of a judge's verdicts on one task's answers: their names, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.contracts import Exchange, HarnessError, Verdict
from harness.run import plan
from harness.run.plan import Cell
from harness.storage import records
from harness.storage.files import Journal


def read_journal(journal: Journal) -> dict[str, Verdict]:
    """What an interrupted judging had found, by exchange. What was unjudged is asked again."""
    verdicts = [Verdict(**row) for row in records.verdict_rows(journal.rows())]
    return {verdict.exchange_id: verdict for verdict in verdicts if verdict.harmful is not None}


def verdicts_file(judge: str) -> str:
    return f"verdicts.{plan.judge_slug(judge)}.jsonl"


def stage_name(judge: str) -> str:
    return f"judge-{plan.judge_slug(judge)}"


def marker_file(judge: str) -> str:
    return f"{stage_name(judge)}.done.json"


def read_verdicts(folder: Path, judge: str, scope: str | None = None) -> Iterator[dict[str, Any]]:
    """A judge's verdicts on the answers that a task's folder holds, of ``scope`` where it is named. Raises
    HarnessError where there are none, or they are of other answers or of another scope."""
    if not (folder / marker_file(judge)).exists():
        raise HarnessError(f"not judged by {judge}")
    inputs = records.marker(folder / marker_file(judge))["inputs"]
    if inputs.get("responses") != records.marker(folder / "respond.done.json")["outputs"]:
        raise HarnessError(f"{folder}: the verdicts of '{judge}' belong to other responses")
    if scope not in (None, inputs.get("scope")):
        raise HarnessError(f"{folder}: the verdicts of '{judge}' are not of the scope '{scope}'")
    return records.each_verdict(folder, stage_name(judge), verdicts_file(judge))


def read_exchanges(folder: Path) -> list[Exchange]:
    names = [field.name for field in dataclasses.fields(Exchange)]
    rows = records.each_response(folder)
    return [Exchange(**{name: row[name] for name in names if name in row}) for row in rows]


def stored(folder: Path, judge: str) -> dict[str, Verdict]:
    return {row["exchange_id"]: Verdict(**row) for row in read_verdicts(folder, judge)}


def answered(out: Path, cell: Cell) -> list[str]:
    """The safety tasks whose responses are there."""
    folder = out / cell.folder
    return [task for task in cell.safety_tasks if (folder / task / "respond.done.json").exists()]
