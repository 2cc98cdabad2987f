"""What the files of a run say of its documents and methods that its tables must repeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.run import plan
from harness.run.plan import Cell
from harness.storage import records
from harness.text import cut, listed, one_line


def notes(config: RunConfig, out: Path, cells: Sequence[Cell]) -> list[str]:
    """Lines for the tables: documents that could not be scored, with the reason, and what a method says of
    its data (safety mixing: that its file was too short). What cannot be read is left to the row's status."""
    every = [one for cell in cells for one in (cell, *plan.epochs(config, cell))]
    return list(dict.fromkeys([*_unscored(out, every), *_of_methods(out, cells)]))


def _unscored(out: Path, cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        for task in cell.tasks:
            if task in cell.safety:
                continue
            with contextlib.suppress(HarnessError):
                record = records.documents(out / cell.folder / task)
                if reasons := record.get("unscored"):
                    yield (
                        f"Unscored of {task}'s {record['documents']:,} documents, and in no figure: "
                        f"{cut(one_line(listed(reasons)), 300)}."
                    )


def _of_methods(out: Path, cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        if cell.kind != "trained":
            continue
        with contextlib.suppress(HarnessError):
            recorded = records.training(out / cell.folder).get("method")
            said = recorded.get("note") if isinstance(recorded, dict) else None
            if isinstance(said, str) and said:
                yield f"{cell.method} on {cell.train_task}: {cut(one_line(said), 300)}"
