"""``harness analyze``: what a finished run's files tell beyond its leaderboard. Nothing is computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import comparison, plan
from harness.contracts import HarnessError
from harness.store import read_json

BASELINE = "vanilla"
MEASURED = (
    *("train_flops", "preparation_flops", "train_tokens", "answer_tokens", "padding_tokens"),
    *("train_seconds", "preparation_seconds", "tokens_per_second", "mfu", "peak_memory_bytes"),
)
FOOTNOTES = (
    "FLOPs: model FLOPs by formula, preparation included (rewriting by the seed model, its "
    "log-probabilities), "
    "neither padding nor recomputation; x: relative to vanilla on the same train task.",
    "MFU: model FLOPs of the training loop over the device's dense peak; - where the peak is not known.",
)


def flops(out: Path) -> list[dict[str, Any]]:
    """What each method's training cost, a row for each train task and method: MEASURED as means over seeds,
    and ``relative_flops``, its FLOPs over vanilla's (paper, table 2). ``missing`` counts unfinished seeds.

    Raises HarnessError where the folder is no run or nothing in it was trained.
    """
    config = comparison.stored_config(out)
    cells = [cell for cell in plan.cells(config) if cell.kind == "trained"]
    if not cells:
        raise HarnessError(f"{out}: no method was trained in this run")
    records: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for cell in cells:
        try:
            record = read_json(out / cell.folder / "training.json")
        except HarnessError:
            record = None
        records.setdefault((cell.train_task or "", cell.method), []).append(record)
    rows = []
    for (train_task, method), found in records.items():
        done = [record for record in found if record is not None]
        row: dict[str, Any] = {"train_task": train_task, "method": method, "seeds": len(done)}
        row["missing"] = len(found) - len(done)
        for name in MEASURED:
            values = [record[name] for record in done if record.get(name) is not None]
            row[name] = mean(values) if values else None
        rows.append(row)
    for row in rows:
        base = next(
            (r for r in rows if r["train_task"] == row["train_task"] and r["method"] == BASELINE), None
        )
        known = base is not None and base["train_flops"] and row["train_flops"]
        row["relative_flops"] = row["train_flops"] / base["train_flops"] if known and base else None
    return rows


def show_flops(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The rows as a table a train task, within 100 columns."""
    for train_task in dict.fromkeys(row["train_task"] for row in rows):
        table = Table(
            title=f"\nTraining cost, trained on {train_task}",
            title_justify="left",
            box=None,
            header_style="bold",
            padding=(0, 1, 0, 0),
        )
        table.add_column("method")
        headings = ("x", "TFLOPs", "prepar.", "tokens", "trained", "seconds", "tokens/s", "MFU", "peak GB")
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in (row for row in rows if row["train_task"] == train_task):
            name = row["method"] + (f" ({row['missing']} missing)" if row["missing"] else "")
            share = _ratio(row["preparation_flops"], row["train_flops"])
            table.add_row(
                name,
                _text(row["relative_flops"], "{:.3f}"),
                _text(row["train_flops"], "{:,.2f}", 1e-12),
                _text(share, "{:.0%}"),
                _text(row["train_tokens"], "{:,.0f}"),
                _text(row["answer_tokens"], "{:,.0f}"),
                _text(row["train_seconds"], "{:,.1f}"),
                _text(row["tokens_per_second"], "{:,.0f}"),
                _text(row["mfu"], "{:.1%}"),
                _text(row["peak_memory_bytes"], "{:.2f}", 1e-9),
            )
        console.print(table)
    console.print()
    for line in FOOTNOTES:
        console.print(line, highlight=False)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _text(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else form.format(value * scale)
