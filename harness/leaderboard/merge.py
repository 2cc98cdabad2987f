"""``harness leaderboard RUN RUN…``: several runs as one leaderboard, where their columns mean the same.

A column may hold figures of one task, asked and judged in one way. What that depends on is read from the
runs' records: each task's version, prompts, documents and k, each judge's identity, how answers were made.
Where runs differ in it they are not merged, unless that is wanted; then the table says what differs. Budgets
and machines may differ, and the table says so, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config import RunConfig
from harness.contracts import HarnessError, UsageError
from harness.judging import verdict_files
from harness.leaderboard import latex, markdown, publish, tables
from harness.leaderboard.tables import COSTS, METHOD_ORDER, Row
from harness.run import metrics, plan, run_folder
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records

SHOWN = 6  # differences that an error names
WITHIN = "Δ and what counts as a difference: within each run, against its own vanilla."
_OWN = ("run", *COSTS)  # columns in which the rows of one checkpoint may differ between runs
_COMPARED = ("_delta", "_delta_low", "_delta_high", "_p", "_mde")  # and these, where one run has no vanilla

Facts = dict[str, set[str]]  # what a figure depends on -> its values in a run


@dataclass(frozen=True)
class MergedRun:
    """A run to merge, its leaderboard up to date."""

    name: str
    folder: Path
    config: RunConfig
    record: Row  # run.json
    frame: pd.DataFrame
    scores: pd.DataFrame
    asked: Facts  # must be equal
    made: Facts  # may differ


@dataclass(frozen=True)
class Merged:
    frame: pd.DataFrame  # a leaderboard, with the column ``run`` in front
    scores: pd.DataFrame
    title: str
    notes: list[str]


def merge(folders: Sequence[Path], *, allow_mixed: bool = False) -> Merged:
    """The runs' rows as one leaderboard, by model, train task, method and judge.

    Differences from vanilla and their p stay those within each run. A method that several runs have is called
    ``METHOD (RUN)``; where it is one checkpoint with the same figures it stands once, and a note says so. One
    run is its own leaderboard, without the column ``run``.
    Raises UsageError for the same run twice, HarnessError where a column would mix (without ``allow_mixed``).
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{folder}: the same run is named twice")
    runs = [_read(folder, name) for folder, name in zip(folders, _names(paths), strict=True)]
    if len(runs) == 1:
        (run,) = runs
        return Merged(run.frame, run.scores, run.frame.attrs["title"], run.frame.attrs["notes"])
    mixed = differences({run.name: run.asked for run in runs})
    if mixed and not allow_mixed:
        more = f"; and {len(mixed) - SHOWN} more" if len(mixed) > SHOWN else ""
        raise HarnessError(
            f"these runs cannot share columns: {'; '.join(mixed[:SHOWN])}{more}. Name runs that were "
            "measured alike, or add --allow-mixed to print them together with what differs"
        )
    rows, notes = _rows(runs, mixed=bool(mixed))
    further = list(dict.fromkeys(task for run in runs for task in tables.further_tasks(run.frame.columns)))
    return Merged(
        frame=tables.as_frame(rows, ("run", *tables.columns(), *tables.further_columns(further))),
        scores=pd.concat([_named(run.scores, run.name) for run in runs], ignore_index=True),
        title=f"{publish.TITLE}: {', '.join(dict.fromkeys(row['model'] for row in rows))}",
        notes=[*(f"MIXED: {line}" for line in mixed), WITHIN, *notes, *_notes(runs)],
    )


def write(merged: Merged, out: Path, *, intervals: bool = False, columns: Sequence[str] = ()) -> None:
    """leaderboard.{md,csv,json,tex} and scores.csv in ``out``, which must be no run's folder."""
    if (out / "run.json").exists():
        raise UsageError(f"{out} is a run's folder, which has its own leaderboard; choose another --out")
    tables.write(merged.frame, merged.scores, out, title=merged.title, notes=merged.notes)
    markdown.write(merged.frame, out, title=merged.title, notes=merged.notes)
    latex.write(
        merged.frame, out, title=merged.title, notes=merged.notes, intervals=intervals, columns=columns
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Each run's folder name, with as many of the folders above as tell it from the others."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _read(folder: Path, name: str) -> MergedRun:
    with run_folder.open_run(folder) as config:
        publish.publish(config, folder)
        record = records.run(folder)
        asked, made = _facts(config, folder, record)
        frame, scores = tables.read(folder), tables.read_scores(folder)
        return MergedRun(name, folder, config, record, frame, scores, asked, made)


def _named(scores: pd.DataFrame, run: str) -> pd.DataFrame:
    named = scores.copy()
    named.insert(0, "run", run)
    return named


# --- whether columns mean the same -----------------------------------------------------------------


def _facts(config: RunConfig, out: Path, record: Row) -> tuple[Facts, Facts]:
    """What a run's figures depend on besides the checkpoint: what was asked, and how it was made."""
    asked: Facts = {}
    made: Facts = {}
    for cell in resolve(config).cells():
        for task in cell.tasks:
            folder = out / cell.folder / task
            if not (folder / "respond.done.json").is_file():
                continue
            try:
                _add(asked, _asked(config, record, cell, folder, task))
                _add(made, _made(records.marker(folder / "respond.done.json")["inputs"]))
            except (AttributeError, KeyError, TypeError) as error:
                raise HarnessError(f"{folder}: not a record that this version wrote ({error!r})") from error
    fixed = record.get("fixed", {})
    budget = {key: value for key, value in fixed.items() if _is_budget(key)}
    _add(made, {f"training: {key.removeprefix('training.')}": value for key, value in budget.items()})
    return asked, made


def _asked(config: RunConfig, record: Row, cell: Cell, folder: Path, task: str) -> Row:
    inputs, documents = records.marker(folder / "respond.done.json")["inputs"], records.documents(folder)
    # The documents of a prefilled task are cut by the model's own tokenizer.
    own = f" ({_model(record)[:12]})" if resolve(config).benchmark(task).prefilled else ""
    found = {
        f"{task}: version": documents["version"],
        f"{task}: prompts and scoring": inputs["task"]["content"],
        f"{task}: source": documents["source"],
        f"{task}: documents": documents["documents"],
        f"{task}: documents' content{own}": documents["sha256"],
        f"{task}: k": inputs.get("prefill_tokens"),
        "answers: engine": inputs["engine"]["name"],
        **{f"answers: {name}": inputs["responses"].get(name) for name in ("dtype", "limit", "thinking")},
    }
    for judge in config.judges:
        marker = folder / verdict_files.marker_file(judge)
        if marker.is_file():
            judged = records.marker(marker)["inputs"]
            identity = {**judged["judge"], "judged of a prefilled answer": judged["scope"]}
            found |= {f"judge {judge}: {name}": value for name, value in identity.items()}
    return found


def _made(inputs: Row) -> Row:
    engine = {f"engine's {name}": version for name, version in inputs["engine"].items() if name != "name"}
    return {**inputs["libraries"], **engine, "device": inputs["device"]}


def _is_budget(key: str) -> bool:
    data = ("train_data", "safety_data", "columns.", "mix.")
    return key.startswith(("training.", *data)) and not key.startswith(("training.device", "training.micro"))


def _model(record: Row) -> str:
    """What identifies a base model: a hash of its weights."""
    return str(record.get("fixed", {}).get("model") or record["config"]["model"])


def _add(facts: Facts, found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        facts.setdefault(name, set()).add(json.dumps(value, ensure_ascii=False, sort_keys=True).strip('"'))


def differences(facts: Mapping[str, Facts]) -> list[str]:
    """A line for each fact that runs do not share: ``hexphi_raw: documents: 8 in a, 330 in b``.

    A run without the fact (it has not the task, or not the judge) has no figure in that column.
    """
    lines = []
    for name in dict.fromkeys(name for run in facts.values() for name in run):
        values = {run: found[name] for run, found in facts.items() if name in found}
        if len({frozenset(value) for value in values.values()}) > 1:
            lines.append(f"{name}: {', '.join(f'{_short(value)} in {run}' for run, value in values.items())}")
    return lines


def _short(values: Iterable[str]) -> str:
    """Hashes by their first characters."""
    return " and ".join(f"{text[:12]}…" if len(text) == 64 else text for text in sorted(values))


# --- one table -------------------------------------------------------------------------------------


def _rows(runs: Sequence[MergedRun], *, mixed: bool) -> tuple[list[Row], list[str]]:
    """All rows in the table's order, and what a reader must know of them."""
    models = _models(runs)
    rows: list[Row] = []
    once: dict[str, None] = {}
    for run in runs:
        for row in tables.records(run.frame):
            row |= {"run": run.name, "model": models[run.name]}
            same = None if mixed else next((other for other in rows if _same(runs, row, other)), None)
            if same is None:
                rows.append(row)
            else:
                once[f"{row['method']}: one checkpoint in {same['run']} and {run.name}, shown once."] = None
                if _compared(row) > _compared(same):
                    rows[rows.index(same)] = row
    repeated = {
        place for place in map(_place, rows) if len({r["run"] for r in rows if _place(r) == place}) > 1
    }
    order = [*METHOD_ORDER, *dict.fromkeys(row["method"] for row in rows)]
    ordered: list[Row] = []
    for group in tables.grouped(rows, "model", "train_task"):
        ordered += sorted(group, key=lambda row: order.index(row["method"]))
    for row in ordered:
        if mixed or _place(row) in repeated:
            row["method"] = f"{row['method']} ({row['run']})"
    return ordered, list(once)


def _place(row: Row) -> tuple[str, ...]:
    return row["model"], row["train_task"], row["judge"], row["method"].partition(" (")[0]


def _models(runs: Sequence[MergedRun]) -> dict[str, str]:
    """Each run's base model: equal weights have one name, others of that name have the run's beside it."""
    names: dict[str, str] = {}
    for run in runs:
        names.setdefault(_model(run.record), run.config.base_model)
    return {
        run.name: f"{name} ({run.name})" if list(names.values()).count(name) > 1 else name
        for run in runs
        for name in [names[_model(run.record)]]
    }


def _same(runs: Sequence[MergedRun], row: Row, other: Row) -> bool:
    """Whether two rows are one checkpoint's, with one set of figures."""
    if any(row[name] != other[name] for name in tables.KEY) or row["run"] == other["run"]:
        return False
    further = {task for task in tables.further_tasks(row) if task in tables.further_tasks(other)}
    left_out = {*_OWN, *(f"{metric}{end}" for metric in (*metrics.names(), *further) for end in _COMPARED)}
    if any(row[name] != other[name] for name in {*row} & {*other} - left_out):
        return False
    folders = {run.name: run for run in runs}
    return _checkpoint(folders[row["run"]], row) == _checkpoint(folders[other["run"]], other)


def _checkpoint(run: MergedRun, row: Row) -> list[Any]:
    """What identifies a row's weights: those of its answers, over all seeds."""
    cells = [cell for cell in resolve(run.config).cells() if cell.method == row["method"]]
    cells = [cell for cell in cells if cell.train_task in (None, row["train_task"])]
    cells = [cell for cell in cells if cell.seed is None or row["seed"] in (tables.MEAN, str(cell.seed))]
    markers = [run.folder / cell.folder / run.config.safety.raw_task / "respond.done.json" for cell in cells]
    return [
        records.marker(marker)["inputs"].get("weights") if marker.is_file() else marker for marker in markers
    ]


def _compared(row: Row) -> int:
    return sum(value is not None for name, value in row.items() if name.endswith("_delta"))


def _notes(runs: Sequence[MergedRun]) -> list[str]:
    """The runs' own notes, each once, and in what they were made differently."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        for note in run.frame.attrs["notes"]:
            notes.setdefault(note, []).append(run.name)
    everywhere = [note for note, names in notes.items() if len(names) == len(runs)]
    some = [f"{', '.join(names)}: {note}" for note, names in notes.items() if len(names) < len(runs)]
    made = differences({run.name: run.made for run in runs})
    budget = [line.removeprefix("training: ") for line in made if line.startswith("training: ")]
    others = [line for line in made if not line.startswith("training: ")]
    lines = [f"Not trained under one budget: {'; '.join(budget)}."] if budget else []
    options = {run.name: _options(run.config) for run in runs}
    lines += [f"Methods' options differ: {line}." for line in differences(options)]
    lines += [f"Not made alike: {'; '.join(others)}."] if others else []
    return [*lines, *everywhere, *some]


def _options(config: RunConfig) -> Facts:
    facts: Facts = {}
    _add(facts, {method: config.method_options.get(method, {}) for method in plan.methods(config)})
    return facts
