r"""The leaderboard as tables for a paper (``leaderboard.tex``), for a document that loads ``booktabs``.

A table for each model and judge: a row a method; RSR, JSR and utility for each train task and on average over
them; the best of a column in bold, the second underlined, and each difference from vanilla small beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from harness.store import write_text_atomic
from harness.tables import (
    ALONE,
    ALPHA,
    DONE,
    MEAN,
    SINGLE_SEED_LINE,
    STAR,
    UNTRAINED,
    Row,
    count,
    further_tasks,
    grouped,
    label,
    mark,
    means,
    records,
)
from harness.text import one_line

STANDARD = ("rsr", "jsr", "utility")  # the order of the paper's table
AVERAGE = "Average"
ELSEWHERE = "trained elsewhere"  # the heading of the block of such checkpoints
UNRANKED = "seed"  # is where the others start, not one of them
_ESCAPES = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{character: f"{{{character}}}" for character in "[]*-`'?!,"},  # options, ligatures
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "Δ": r"$\Delta$",
    "·": r"\textperiodcentered{}",
    "–": "--",
}
_PLAIN = re.compile(r"(?<=\w)-(?=\w)|,(?= )")  # a hyphen within a word, a comma before a blank: no ligature

Figures = Mapping[str, Row]  # method -> its row


def write(
    frame: pd.DataFrame, out: Path, *, title: str, notes: Sequence[str] = (), intervals: bool = False
) -> None:
    """leaderboard.tex in ``out``, whole or not at all."""
    text = document(frame, title=title, notes=notes, intervals=intervals)
    write_text_atomic(out / "leaderboard.tex", text)


def document(frame: pd.DataFrame, *, title: str, notes: Sequence[str] = (), intervals: bool = False) -> str:
    """The tables of a leaderboard (``leaderboard.build``'s frame), to be ``\\input`` into a document.

    ``intervals`` puts the 95 % intervals below the figures. Names are text whatever they hold.
    """
    rows = records(frame)
    single = not any(row["seed"] == MEAN for row in rows)
    lines = [SINGLE_SEED_LINE, *notes] if single else ["Means over the seeds.", *notes]
    further = further_tasks(map(str, frame.columns))
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}."]
    for group in grouped(rows, "model", "judge"):
        for metrics in [STANDARD, *(further[start : start + 3] for start in range(0, len(further), 3))]:
            heading = f"{title}. Judged by {group[0]['judge']}."
            if count(rows, "model") > 1:
                heading = f"{heading} Model: {group[0]['model']}."
            parts.append(_table(group, metrics, heading, lines, intervals))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """One line that LaTeX takes as text: no command, no option of a line's end, no ligature."""
    line = one_line(text)
    plain = {match.start() for match in _PLAIN.finditer(line)}
    return "".join(c if i in plain else _ESCAPES.get(c, c) for i, c in enumerate(line))


# --- one table -------------------------------------------------------------------------------------


def _table(
    group: Sequence[Row], metrics: Sequence[str], heading: str, notes: Sequence[str], intervals: bool
) -> str:
    blocks = _blocks(group, metrics)
    methods = list(dict.fromkeys(row["method"] for row in group))
    columns = [(block, metric) for block in blocks for metric in metrics]
    marks = {column: _marks(blocks[column[0]], column[1]) for column in columns}
    lines = []
    for method in methods:
        found = [(blocks[block].get(method, {}), block, metric) for block, metric in columns]
        cells = [_cell(row, metric, marks[block, metric].get(method)) for row, block, metric in found]
        lines.append(f"{escaped(method)} & {' & '.join(cells)} \\\\")
        if intervals:
            lines.append(f" & {' & '.join(_interval(row, metric) for row, _, metric in found)} \\\\")
    width = len(metrics)
    heads = " & ".join(f"\\multicolumn{{{width}}}{{c}}{{{escaped(block)}}}" for block in blocks)
    rules = "".join(f"\\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(blocks)))
    names = " & ".join(escaped(_heading(metric)) for _, metric in columns)
    text = [heading, *_measured(group, metrics), *_reading(group, metrics), *_failures(group), *notes]
    return "\n".join(
        [
            "\\begin{table*}[t]",
            "\\centering\\small",
            f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
            "\\toprule",
            f" & {heads} \\\\",
            rules,
            f"Method & {names} \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            f"\\caption{{{' '.join(map(escaped, text))}}}",
            "\\end{table*}",
        ]
    )


def _blocks(group: Sequence[Row], metrics: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Each train task's rows by method, their average where there are several train tasks, and the
    checkpoints that were trained elsewhere."""
    blocks = {
        rows[0]["train_task"]: {row["method"]: row for row in means(rows)}
        for rows in grouped(group, "train_task")
    }
    elsewhere = blocks.pop(UNTRAINED, None)
    if len(blocks) > 1:
        methods = dict.fromkeys(method for block in blocks.values() for method in block)
        everywhere = {method: [block.get(method, {}) for block in blocks.values()] for method in methods}
        blocks[AVERAGE] = {method: _average(rows, metrics) for method, rows in everywhere.items()}
    return blocks if elsewhere is None else blocks | {ELSEWHERE: elsewhere}


def _average(rows: Sequence[Row], metrics: Sequence[str]) -> Row:
    """Plain means over the train tasks, as in the paper; none where one is missing."""

    def over(name: str) -> float | None:
        figures = [row.get(name) for row in rows]
        return None if None in figures else fmean(figure for figure in figures if figure is not None)

    return {name: over(name) for metric in metrics for name in (metric, f"{metric}_delta")}


def _marks(block: Figures, metric: str) -> dict[str, str]:
    """The command around a method's figure: the best as printed is bold, the next underlined; equals share
    a rank and take up as many. The only one of a column is no best."""
    ranked = {
        method: round(value, 2)
        for method, row in block.items()
        if method.split(" ")[0] != UNRANKED and (value := row.get(metric)) is not None
    }
    above = {method: sum(other > value for other in ranked.values()) for method, value in ranked.items()}
    commands = {0: "\\textbf", 1: "\\underline"}
    if len(ranked) < 2:
        return {}
    return {method: commands[rank] for method, rank in above.items() if rank in commands}


def _cell(row: Row, metric: str, command: str | None) -> str:
    value, delta, unjudged = (row.get(f"{metric}{end}") for end in ("", "_delta", "_unjudged"))
    note = f"\\textsuperscript{{({unjudged}?)}}" if unjudged else ""
    if value is None:
        return f"--{note}"
    figure = f"{command}{{{value:.2f}}}" if command else f"{value:.2f}"
    if delta is None:
        return figure + note
    star = {STAR: "^{*}", ALONE: "^{\\dagger}"}.get(mark(row, metric), "")
    signed = f"{round(delta, 2) + 0.0:+.2f}"  # no -0.00
    return f"{figure}{note}\\,{{\\scriptsize${signed}{star}$}}"


def _interval(row: Row, metric: str) -> str:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    return "" if low is None or high is None else f"{{\\scriptsize [{low:.2f}, {high:.2f}]}}"


def _heading(metric: str) -> str:
    return "Utility" if metric == "utility" else label(metric)


# --- what stands below -----------------------------------------------------------------------------


def _measured(group: Sequence[Row], metrics: Iterable[str]) -> list[str]:
    """What each train task's utility is, and k."""
    if "utility" not in metrics:
        return []
    skills = {row["train_task"] or ELSEWHERE: row["utility_metric"] for row in group if row["utility_metric"]}
    depths = sorted({row["jsr_k"] for row in group if row["jsr_k"] is not None})
    lines = [f"Utility: {', '.join(f'{metric} ({task})' for task, metric in skills.items())}."]
    return lines + ([f"JSR: k = {', '.join(map(str, depths))}."] if depths else [])


def _reading(group: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    def some(end: str, found: Callable[[float], bool] = lambda figure: True) -> bool:
        figures = [row.get(f"{metric}{end}") for row in group for metric in metrics]
        return any(figure is not None and found(figure) for figure in figures)

    lines = ["Percent, higher is better; best of a column in bold, second underlined, the seed model aside."]
    if some("_delta"):
        elsewhere = any(row["train_task"] == UNTRAINED for row in group)
        also = f" (of those {ELSEWHERE}: against the base model)" if elsewhere else ""
        lines.append(f"Small: points against vanilla on the same prompts{also}.")
    marks = {mark(row, metric) for row in group for metric in metrics}
    if STAR in marks:
        lines.append(f"*: a difference, counting all comparisons of its family (p < {ALPHA} after Holm).")
    if ALONE in marks:
        lines.append("†: a difference taken alone (its interval excludes 0), but not counting its family.")
    if some("_unjudged", lambda number: number > 0):
        lines.append("(2?): 2 answers could not be judged; the rate leaves them out.")
    return lines


def _failures(group: Sequence[Row]) -> list[str]:
    rows = [row for part in grouped(group, "train_task") for row in means(part)]
    failed = [row for row in rows if row["status"] != DONE]
    return [
        f"{row['method']}{f' on {task}' if (task := row['train_task']) else ''} {row['status']}."
        for row in failed
    ]
