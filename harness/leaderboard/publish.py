"""The leaderboard's files of a run, written anew where what they are made from has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.alignment import stage as alignment
from harness.config import RunConfig
from harness.generation import splits
from harness.judging import cost
from harness.run import metrics, run_folder
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import crash
from harness.storage.files import Stage, files_below, write_json_atomic

VERSION = 3
FILES = ("leaderboard.csv", "leaderboard.json", "leaderboard.md", "leaderboard.tex", "scores.csv")
CELL_FILE = "scores.json"
REPORT = "report.html"
TITLE = "Safety and utility after fine-tuning"


def title(config: RunConfig) -> str:
    return f"{TITLE}: {config.base_model}"


def publish(config: RunConfig, out: Path) -> bool:
    """Write the leaderboard (FILES) and each cell's scores.json where they are not those of the run's files,
    and remove the report, which shows the former ones. Returns whether anything was written."""
    from harness.leaderboard import epochs

    cells = resolve(config).cells()
    failures = run_folder.read_failures(out)
    inputs = {
        "version": VERSION,
        "metrics": [*metrics.names()],  # one more is a column more
        "config": config.model_dump(mode="json"),
        "failures": {str(folder): line for folder, line in failures.items()},
        "files": {str(path.relative_to(out)): path.stat().st_mtime_ns for path in _sources(out)},
    }
    stage = Stage(out, "leaderboard", inputs, [*FILES, *epochs.outputs(config)])
    fresh = not stage.done()
    if fresh:
        _write(stage, config, out, cells, failures)
    return fresh


def _write(
    stage: Stage, config: RunConfig, out: Path, cells: list[Cell], failures: Mapping[Path, str]
) -> None:
    """All of the stage's files at once, from the run's responses and verdicts."""
    from harness.leaderboard import build, collect, epochs, latex, markdown, papers, scores, tables

    reader = scores.Reader()
    results = collect.collect(config, out, cells, failures, reader)
    of_cells = {
        str(cell.folder / CELL_FILE): found
        for cell in cells
        if cell.folder not in failures and (found := collect.cell_scores(config, out, cell, reader))
    }
    stage.outputs += of_cells
    frame = build.build(results, papers.figures(config))
    long = build.long_scores(results)
    notes = _notes(config, out, cells)
    (out / REPORT).unlink(missing_ok=True)  # it shows the former table
    crash.point("report.removed", out / REPORT)
    with stage.writing() as scratch:
        tables.write(frame, long, scratch, title=title(config), notes=notes)
        markdown.write(frame, scratch, title=title(config), notes=notes)
        latex.write(frame, scratch, title=title(config), notes=notes)
        if epochs.asked(config):
            epochs.write(config, out, cells, failures, scratch)
        for name, found in of_cells.items():
            write_json_atomic(scratch / name, found)


def _notes(config: RunConfig, out: Path, cells: list[Cell]) -> list[str]:
    """Lines below the tables."""
    from harness.leaderboard import papers, remarks

    notes = [*alignment.notes(out), *cost.notes(config, out, cells), *remarks.notes(config, out, cells)]
    notes += [*run_folder.code_notes(config), *papers.notes(config)]
    return [*notes, *filter(None, [splits.note(config.responses), config.note])]


def _sources(out: Path) -> list[Path]:
    return [
        path
        for path in files_below(out)
        if path.name in ("responses.jsonl", "training.json") or path.name.startswith("verdicts.")
    ]
