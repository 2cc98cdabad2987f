"""``harness analyze flops``: each method's training FLOPs against vanilla's, by train task and on average
(Table 2 of the LookAhead Tuning paper), with what else its training cost. Read from the run, not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.analyses.shared import mean_of_all
from harness.console.terminal import bare_table, print_whole
from harness.contracts import HarnessError
from harness.leaderboard.tables import BASELINE
from harness.run import plan, run_folder
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records

FIGURES = (
    *("train_flops", "preparation_flops", "train_tokens", "answer_tokens", "padding_tokens"),
    *("train_seconds", "preparation_seconds", "tokens_per_second", "mfu", "peak_memory_bytes"),
)
NOTES = (
    "FLOPs: of the model, by formula (training/flops.py). A forward pass takes 2 a weight and token (the",
    "output head: a token that carries loss) and 4 x heads x head size x length^2 a layer and text; a",
    "backward pass as much again for each gradient that is needed: 2 x forward where all is trained.",
    "Preparation is included: 2 a parameter and token of a rewritten answer and its prompt, and forward",
    "passes of the base model (of stored values too). Padding and recomputation are not counted.",
    "tokens: read in training; trained: those that carried loss; s and peak GB: preparation included.",
)
TIMED = "tok/s and MFU are the training loop's. MFU = (FLOPs - preparation) / (seconds x devices x peak)."
NO_SECONDS = (
    "Seconds are left out: trainings ran side by side on one machine and slowed each other down. Compare "
    "FLOPs and tokens; a run with --jobs 1 has seconds to compare."
)
SECONDS = ("train_seconds", "preparation_seconds", "tokens_per_second", "mfu")  # what a busy machine changes

Row = dict[str, Any]


def flops(out: Path) -> Row:
    """What each method's training cost in the run folder ``out``: ``rows`` as ``costs`` and ``average`` as
    ``averages`` give them, and ``notes`` on how they are counted. JSON values. Where trainings ran
    ``side_by_side``, SECONDS are None. The caller holds the run's lock.

    Raises HarnessError where ``out`` is no run, or nothing is trained in it.
    """
    config = run_folder.stored_config(out)
    cells = [cell for cell in resolve(config).cells() if cell.kind == "trained"]
    if not cells:
        raise HarnessError(f"{out}: this run trains with no method, so there is no cost to show")
    failures = run_folder.read_failures(out)
    found = [(cell, _record(out, cell, failures)) for cell in cells]
    rows = costs(found)
    alone = not side_by_side(out)
    for row in () if alone else rows:
        row |= dict.fromkeys(SECONDS)
    devices = sorted({_device(record) for _, record in found if not isinstance(record, str)})
    notes = [*NOTES, TIMED if alone else NO_SECONDS, *(f"Device: {device}" for device in devices)]
    return {
        "model": config.base_model,
        "rows": rows,
        "average": averages(rows),
        "side_by_side": not alone,
        "notes": notes,
    }


def side_by_side(out: Path) -> bool:
    """Whether trainings of a run shared a machine, so that their seconds are not comparable.

    A training's record tells how many ``jobs`` there were; for older records the run's settings do.
    """
    config = run_folder.stored_config(out)
    cells = [cell for cell in resolve(config).cells() if cell.kind == "trained"]
    recorded = [_record(out, cell, {}) for cell in cells]
    trained = [record for record in recorded if not isinstance(record, str)]
    if len(trained) < 2:
        return False
    if config.executor == "ray":  # as many as the cluster takes
        return config.jobs != 1
    cores = (records.run(out).get("hardware") or {}).get("cores")
    by_settings = plan.job_count(config, len(trained), cores if isinstance(cores, int) else 1)
    return any((record.get("jobs") or by_settings) > 1 for record in trained)


# --- figures ---------------------------------------------------------------------------------------


def costs(found: Iterable[tuple[Cell, Row | str]]) -> list[Row]:
    """One row a train task and method: means over the seeds, from each cell's record or why there is none.

    ``relative_flops``: training FLOPs over vanilla's, of the seeds that both have; ``preparation_share`` of
    the training FLOPs; ``missing``: seeds, and why each is left out. A figure that a record lacks is None.
    """
    groups: dict[tuple[str, str], dict[int, Row | str]] = {}
    for cell, record in found:
        groups.setdefault((str(cell.train_task), cell.method), {})[cell.seed or 0] = record
    rows = []
    for (task, method), by_seed in groups.items():
        done = {seed: record for seed, record in by_seed.items() if not isinstance(record, str)}
        baseline = groups.get((task, BASELINE), {})
        both = [
            (record["train_flops"], other["train_flops"])
            for seed, record in done.items()
            if not isinstance(other := baseline.get(seed, ""), str)
        ]
        row: Row = {"train_task": task, "method": method, "seeds": list(done)}
        row["missing"] = [{"seed": seed, "reason": r} for seed, r in by_seed.items() if isinstance(r, str)]
        row |= {name: mean_of_all([record.get(name) for record in done.values()]) for name in FIGURES}
        row["relative_flops"] = sum(own for own, _ in both) / sum(of for _, of in both) if both else None
        prepared = row["preparation_flops"]
        row["preparation_share"] = None if prepared is None else prepared / row["train_flops"]
        rows.append(row)
    return rows


def averages(rows: Sequence[Row]) -> list[Row]:
    """Each method's ``relative_flops`` by train task, and their mean as ``average`` where all have one."""
    by_method: dict[str, dict[str, float | None]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["train_task"]] = row["relative_flops"]
    return [
        {"method": method, "relative_flops": ratios, "average": mean_of_all(list(ratios.values()))}
        for method, ratios in by_method.items()
    ]


def _record(out: Path, cell: Cell, failures: Mapping[Path, str]) -> Row | str:
    """A cell's training.json, or why it has none to believe."""
    folder = out / cell.folder
    if not (folder / "train.done.json").exists():
        failure = failures.get(cell.folder)
        return f"failed: {failure}" if failure else "not trained yet"
    try:
        record = records.training(folder)
    except HarnessError as error:
        return str(error)
    if not record.get("train_flops"):
        return f"{folder / 'training.json'} has no train_flops"
    return record


def _device(record: Row) -> str:
    peak = record.get("peak_tflops")
    known = f"peak {peak:g} TFLOP/s" if peak else "peak not known, so no MFU (training.peak_tflops sets it)"
    return f"{record.get('processes', 1)} x {record.get('device', 'unknown')}, {known}"


Column = tuple[str, Callable[[Row], str]]


def show_flops(record: Row, console: Console) -> None:
    """Print what ``flops`` found: the paper's table, then one for each train task, made for 100 columns."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(_clean(text, console), style=style), soft_wrap=True)

    rows: list[Row] = record["rows"]
    tasks = list(dict.fromkeys(row["train_task"] for row in rows))
    say(f"What training cost: {record['model']}", "bold")
    if len(tasks) > 1:
        say("\ntraining FLOPs against vanilla\n", "bold")
        columns = [*map(_against_vanilla, tasks), ("average", lambda row: _change(row["average"]))]
        _table(record["average"], columns, console)
    for task in tasks:
        group = [row for row in rows if row["train_task"] == task]
        say(f"\ntrained on {task}\n", "bold")
        _table(group, columns_of(record), console)
        for row in group:
            for gap in row["missing"]:
                say(f"{row['method']} seed {gap['seed']} is missing: {gap['reason']}", "red")
    say("")
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    if len(seeds) > 1:
        say(f"Means over the seeds {', '.join(map(str, seeds))}.")
    for note in record["notes"]:
        say(note)


def _table(rows: Sequence[Row], columns: Sequence[Column], console: Console) -> None:
    table = bare_table()
    table.add_column("method", overflow="fold", max_width=24)
    for heading, _ in columns:
        table.add_column(_clean(heading, console), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(_clean(row["method"], console)), *(show(row) for _, show in columns))
    print_whole(table, console)


def _clean(text: str, console: Console) -> str:
    """Without what a terminal would obey or cannot show."""
    printable = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)
    return printable.encode("ascii", "replace").decode() if console.options.ascii_only else printable


def _against_vanilla(task: str) -> Column:
    return task, lambda row: _change(row["relative_flops"][task])


def _change(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.2f} %"


def _column(name: str, form: Callable[[float], str]) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else form(row[name])


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"


COLUMNS: tuple[Column, ...] = (
    ("FLOPs", _column("train_flops", "{:.3g}".format)),
    ("vs vanilla", lambda row: _change(row["relative_flops"])),
    ("prep", _column("preparation_share", "{:.1%}".format)),
    ("tokens", _column("train_tokens", _count)),
    ("trained", _column("answer_tokens", _count)),
    ("s", _column("train_seconds", "{:,.1f}".format)),
    ("tok/s", _column("tokens_per_second", "{:,.0f}".format)),
    ("MFU", _column("mfu", "{:.1%}".format)),
    ("peak GB", _column("peak_memory_bytes", lambda size: f"{size / 1e9:.2f}")),
)


def columns_of(record: Row) -> list[Column]:
    """COLUMNS, without those of time where they are not comparable."""
    timed = ("s", "tok/s", "MFU")
    return [(name, show) for name, show in COLUMNS if not (record["side_by_side"] and name in timed)]
