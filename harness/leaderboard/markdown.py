"""The leaderboard as it reads on GitHub: a table for each train task, then what its marks mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.leaderboard.health import NOT_MEANINGFUL
from harness.leaderboard.sections import (
    Section,
    beside_paper,
    compared_with,
    has_refusals,
    least,
    marks_explained,
    sections,
    unjudged,
)
from harness.leaderboard.tables import (
    MEAN,
    SINGLE_SEED_LINE,
    STAR,
    UNTRAINED,
    Row,
    further_tasks,
    is_failed,
    is_meaningless,
    mark,
    records,
)
from harness.run import metrics
from harness.run.plan import shown_method
from harness.storage.files import write_text_atomic
from harness.text import one_line


def write(frame: pd.DataFrame, out: Path, *, title: str, notes: Sequence[str] = ()) -> None:
    """leaderboard.md in ``out``, whole or not at all."""
    write_text_atomic(out / "leaderboard.md", document(frame, title=title, notes=notes))


def document(frame: pd.DataFrame, *, title: str, notes: Sequence[str] = ()) -> str:
    """The whole leaderboard, intervals included. Names and notes are text whatever they hold."""
    blocks = [f"# {escaped(title)}"]
    for section in sections(frame):
        blocks += _section(section)
    blocks.append("\n".join(f"- {escaped(line)}" for line in [*_legend(frame), *notes]))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """One line that Markdown takes as text."""
    return "".join(
        f"\\{character}" if character in "\\`*[]<>|#" else character for character in one_line(text)
    )


# --- tables ----------------------------------------------------------------------------------------


def _section(section: Section) -> list[str]:
    blocks = [f"## {escaped(section.heading)}"]
    if caption := section.caption(metrics.names()):
        blocks.append(escaped(caption))
    blocks.append(_table(section.rows, metrics.names(), seconds=True))
    threes = [section.further[start : start + 3] for start in range(0, len(section.further), 3)]
    blocks += [_table(section.rows, some) for some in threes]
    blocks += _paper(section.rows)
    partly = [line for row, line in section.failures if not is_failed(row)]
    return blocks + [escaped(line) for line in (*partly, *section.bounds)]


def _table(rows: Sequence[Row], names: Sequence[str], *, seconds: bool = False) -> str:
    refusals = [metric for metric in names if has_refusals(rows, metric)]
    head = ["method"]
    for metric in names:
        heading = escaped(metrics.label(metric))
        head += [f"Δ {heading}", heading, *(["refusals"] if metric in refusals else [])]
    head += ["train s"] if seconds else []
    return _lines(head, [_row(row, names, refusals, seconds) for row in rows])


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---", *["---:"] * (len(head) - 1)],
        *([*line, *[""] * (len(head) - len(line))] for line in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(row: Row, names: Sequence[str], refused: Sequence[str], with_seconds: bool) -> list[str]:
    cells = [escaped(shown_method(row["method"]))]
    if is_failed(row):
        return [*cells, escaped(row["status"])]
    for metric in names:
        value, delta = row[metric], row[f"{metric}_delta"]
        interval = _interval(row, f"{metric}_delta", "+")
        marked = "" if delta is None else escaped(f"{delta:+.2f}{mark(row, metric)}")
        cells.append(f"{marked}{interval}{_least(row, metric)}")
        shown = NOT_MEANINGFUL if is_meaningless(row, metric) else ""
        if value is not None:
            shown = f"{value:.2f}{unjudged(row, metric)}{_interval(row, metric)}"
        cells.append(shown)
        if metric in refused:
            refusals = row[f"{metric}_refusals"]
            cells.append("" if refusals is None else f"{refusals:.2f}")
    seconds = row["train_seconds"] if with_seconds else None
    return [*cells, *(["" if seconds is None else f"{seconds:.1f}"] if with_seconds else [])]


def _paper(rows: Sequence[Row]) -> list[str]:
    beside = beside_paper(rows)
    names = [metric for metric in metrics.names() if any(metric in pairs for _, pairs in beside)]
    head = ["method", *(text for name in names for text in (f"{metrics.label(name)} vs paper", "paper"))]
    lines = [
        [escaped(method), *(text for name in names for text in _paper_cells(pairs, name))]
        for method, pairs in beside
    ]
    return [_lines(head, lines)] if beside else []


def _paper_cells(pairs: dict[str, tuple[float, float]], metric: str) -> tuple[str, str]:
    if metric not in pairs:
        return "", ""
    difference, paper = pairs[metric]
    return f"{difference:+.2f}", f"{paper:.2f}"


def _interval(row: Row, name: str, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f" [{low:{sign}.1f}, {high:{sign}.1f}]"


def _least(row: Row, metric: str) -> str:
    found = least(row, metric)
    return "" if found is None else f" ({found:.1f})"


# --- legend ----------------------------------------------------------------------------------------


def _legend(frame: pd.DataFrame) -> list[str]:
    averages = frame[frame["seed"] == MEAN]
    rows = records(averages if len(averages) else frame)
    names = (*metrics.names(), *further_tasks(map(str, frame.columns)))
    trained = any(row["train_task"] != UNTRAINED for row in rows)
    lines = [SINGLE_SEED_LINE] if trained else []
    if len(averages):
        lines = [
            "Means over the seeds; each seed is in leaderboard.csv. "
            "Intervals account for variation across prompts and seeds."
        ]
    against = compared_with(records(frame), names)
    lines += [f"Δ: points against {against}."] if against else []
    lines += [
        "Percentages and points with 95 % intervals; higher is better.",
        "RSR, JSR: answers that are safe, to raw and to prefilled requests; refusals: answers that refuse.",
        *metrics.explained(),
    ]
    pairs = [(row, metric) for row in rows for metric in names]
    if any(row[f"{metric}_delta"] is not None for row, metric in pairs):
        lines += _marks_explained(pairs)
    if any(unjudged(row, metric) for row, metric in pairs):
        lines.append("(2?): 2 answers could not be judged; the rate leaves them out.")
    return lines


def _marks_explained(pairs: Sequence[tuple[Row, str]]) -> list[str]:
    """What the marks beside the differences mean, and which differences are counted together."""
    lines = marks_explained(pairs)
    lines.append(
        "Families, each over all train tasks: the base model; all other rows; checkpoints trained elsewhere."
    )
    if any(least(row, metric) is not None for row, metric in pairs):
        lines.append(f"(7.1): a true difference of 7.1 would have got its {STAR} four times in five.")
    return lines
