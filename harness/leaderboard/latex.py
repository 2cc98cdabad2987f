r"""The leaderboard as tables for a paper (``leaderboard.tex``), for a document that loads ``booktabs``.

A table for each model and judge, as wide as a page of ``article``: safe rates and utility across, the methods
down, for each train task and on average over them. The best of a column is bold, the second underlined, and
each difference from vanilla stands small beside its figure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from harness.contracts import UsageError
from harness.leaderboard.sections import marks_explained
from harness.leaderboard.tables import (
    ALONE,
    DONE,
    MEAN,
    SINGLE_SEED_LINE,
    STAR,
    UNTRAINED,
    Row,
    count,
    further_tasks,
    grouped,
    mark,
    means,
    records,
)
from harness.run import metrics
from harness.run.plan import shown_method
from harness.storage.files import write_text_atomic
from harness.text import one_line

AVERAGE = "Average"
ELSEWHERE = "trained elsewhere"  # the heading of the block of such checkpoints
UNRANKED = "seed"  # is where the others start, not one of them
WIDTH = 3  # metrics that a page of `article` has room for, each with its difference
LINES = 34  # of a table, with which its caption still fits the page
NAME = 22  # characters of a name that fit a line
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


def write(
    frame: pd.DataFrame,
    out: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    intervals: bool = False,
    columns: Sequence[str] = (),
) -> None:
    """leaderboard.tex in ``out``, whole or not at all."""
    text = document(frame, title=title, notes=notes, intervals=intervals, columns=columns)
    write_text_atomic(out / "leaderboard.tex", text)


def document(
    frame: pd.DataFrame,
    *,
    title: str,
    notes: Sequence[str] = (),
    intervals: bool = False,
    columns: Sequence[str] = (),
) -> str:
    """The tables of a leaderboard (``leaderboard.build``'s frame), to be ``\\input`` into a document.

    ``intervals`` puts the 95 % intervals below the figures; ``columns`` chooses metrics (``rsr``, ``jsr``,
    ``utility``, further tasks). Names are text whatever they hold. Raises UsageError for an unknown column.
    """
    rows = records(frame)
    single = not any(row["seed"] == MEAN for row in rows)
    lines = [SINGLE_SEED_LINE, *notes] if single else ["Means over the seeds.", *notes]
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}."]
    for group in grouped(rows, "model", "judge"):
        for names in _columns(further_tasks(map(str, frame.columns)), columns):
            heading = f"{title}. Judged by {group[0]['judge']}."
            if count(rows, "model") > 1:
                heading = f"{heading} Model: {group[0]['model']}."
            parts += _tables(group, names, heading, lines, intervals)
    return "\n\n".join(parts) + "\n"


def _columns(further: Sequence[str], chosen: Sequence[str]) -> list[Sequence[str]]:
    """The metrics of each table: no more than a page has room for."""
    known = [*metrics.as_papers_have_them(), *further]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UsageError(f"--columns {unknown[0]}: there are {', '.join(known)}")
    tables = [[*dict.fromkeys(chosen)]] if chosen else [[*metrics.as_papers_have_them()], [*further]]
    return [some[start : start + WIDTH] for some in tables for start in range(0, len(some), WIDTH)]


def escaped(text: str) -> str:
    """One line that LaTeX takes as text: no command, no option of a line's end, no ligature."""
    line = one_line(text)
    plain = {match.start() for match in _PLAIN.finditer(line)}
    return "".join(c if i in plain else _ESCAPES.get(c, c) for i, c in enumerate(line))


# --- one table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """The lines of one train task, of their average, or of the checkpoints trained elsewhere."""

    heading: str
    rows: dict[str, Row]  # method -> its row

    def pages(self, names: Sequence[str], intervals: bool) -> Iterator[_Page]:
        """Its lines below its heading, on as many pages as they need."""
        marks = {metric: _marks(self.rows, metric) for metric in names}
        span = 1 + 2 * len(names)
        heading = f"\\multicolumn{{{span}}}{{l}}{{\\emph{{{escaped(self.heading)}}}}} \\\\"
        page = _Page([heading], 1)
        for method, row in self.rows.items():
            cells = [_cell(row, metric, marks[metric].get(method)) for metric in names]
            added = _Page([f"{_name(method)} & {' & '.join(cells)} \\\\"], _height(method))
            found = [_interval(row, metric) for metric in names]
            if intervals and any(found):
                spanned = [f"\\multicolumn{{2}}{{c}}{{{interval}}}" for interval in found]
                added += _Page([f" & {' & '.join(spanned)} \\\\"], 1)
            if page.height + added.height > LINES:
                yield page
                page = _Page([heading], 1)
            page += added
        yield page


@dataclass(frozen=True)
class _Page:
    lines: list[str]
    height: int  # in lines as printed

    def __add__(self, other: _Page) -> _Page:
        return _Page(self.lines + other.lines, self.height + other.height)


def _tables(
    group: Sequence[Row], names: Sequence[str], heading: str, notes: Sequence[str], intervals: bool
) -> list[str]:
    """As many tables as pages are needed; what their figures mean stands below the last."""
    pages: list[_Page] = []
    for block in _blocks(group, names):
        for page in block.pages(names, intervals):
            if pages and pages[-1].height + page.height <= LINES:
                pages[-1] += _Page(["\\midrule"], 0) + page
            else:
                pages.append(page)
    text = [*_measured(group, names), *_reading(group, names), *_failures(group), *notes]
    captions = [[f"{heading} (continued below)"]] * (len(pages) - 1) + [[heading, *text]]
    first = f"p{{{NAME / 2:g}em}}" if any(_height(row["method"]) > 1 for row in group) else "l"
    return [_table(page.lines, names, caption, first) for page, caption in zip(pages, captions, strict=True)]


def _table(lines: Sequence[str], names: Sequence[str], caption: Sequence[str], first: str) -> str:
    heads = " & ".join(f"\\multicolumn{{2}}{{c}}{{{escaped(metrics.heading(metric))}}}" for metric in names)
    return "\n".join(
        [
            "\\begin{table*}[t]",
            "\\centering\\small",
            f"\\begin{{tabular}}{{{first}{'r@{}l' * len(names)}}}",
            "\\toprule",
            f"Method & {heads} \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            f"\\caption{{{' '.join(map(escaped, caption))}}}",
            "\\end{table*}",
        ]
    )


def _name(method: str) -> str:
    """A method's name; a long one may be broken, for which it needs places."""
    shown = one_line(shown_method(method))
    if len(shown) <= NAME:
        return escaped(shown)
    pieces = re.findall(r"[^-_./ ]{1,16}[-_./ ]*|[-_./ ]+", shown)
    return "\\allowbreak{}".join(map(escaped, pieces))


def _height(method: str) -> int:
    """Of a name as printed, in lines: capitals are wide, and breaks leave some room."""
    shown = one_line(shown_method(method))
    return 1 if len(shown) <= NAME else math.ceil(len(shown) / (NAME / 2))


def _blocks(group: Sequence[Row], names: Sequence[str]) -> list[_Block]:
    """Each train task's rows, their average where there are several train tasks, and the checkpoints that
    were trained elsewhere."""
    blocks = {
        rows[0]["train_task"]: {row["method"]: row for row in means(rows)}
        for rows in grouped(group, "train_task")
    }
    elsewhere = blocks.pop(UNTRAINED, None)
    found = [_Block(task, rows) for task, rows in blocks.items()]
    if len(blocks) > 1:
        methods = dict.fromkeys(method for block in blocks.values() for method in block)
        everywhere = {method: [block.get(method, {}) for block in blocks.values()] for method in methods}
        found.append(_Block(AVERAGE, {name: _average(rows, names) for name, rows in everywhere.items()}))
    return found if elsewhere is None else [*found, _Block(ELSEWHERE, elsewhere)]


def _average(rows: Sequence[Row], names: Sequence[str]) -> Row:
    """Plain means over the train tasks, as in the paper; none where one is missing."""

    def over(name: str) -> float | None:
        figures = [row.get(name) for row in rows]
        return None if None in figures else fmean(figure for figure in figures if figure is not None)

    return {name: over(name) for metric in names for name in (metric, f"{metric}_delta")}


def _marks(block: Mapping[str, Row], metric: str) -> dict[str, str]:
    """The command around a method's figure: the best as printed is bold, the next underlined; equals share
    a rank and take up as many. Where all are equal, none is best."""
    ranked = {
        method: round(value, 2)
        for method, row in block.items()
        if method.split(" ")[0] != UNRANKED and (value := row.get(metric)) is not None
    }
    above = {method: sum(other > value for other in ranked.values()) for method, value in ranked.items()}
    commands = {0: "\\textbf", 1: "\\underline"}
    if len(set(ranked.values())) < 2:
        return {}
    return {method: commands[rank] for method, rank in above.items() if rank in commands}


def _cell(row: Row, metric: str, command: str | None) -> str:
    """Two columns: the figure, and its difference."""
    value, delta, unjudged = (row.get(f"{metric}{end}") for end in ("", "_delta", "_unjudged"))
    note = f"\\textsuperscript{{({unjudged}?)}}" if unjudged else ""
    if value is None:
        return f"--{note} &"
    figure = f"{command}{{{value:.2f}}}" if command else f"{value:.2f}"
    if delta is None:
        return f"{figure}{note} &"
    star = {STAR: "^{*}", ALONE: "^{\\dagger}"}.get(mark(row, metric), "")
    signed = f"{round(delta, 2) + 0.0:+.2f}"  # no -0.00
    return f"{figure}{note} & \\,{{\\scriptsize${signed}{star}$}}"


def _interval(row: Row, metric: str) -> str:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    return "" if low is None or high is None else f"{{\\scriptsize [{low:.2f}, {high:.2f}]}}"


# --- what stands below -----------------------------------------------------------------------------


def _measured(group: Sequence[Row], names: Collection[str]) -> list[str]:
    """What each train task's utility is, and k."""
    lines = []
    for metric in (one for one in metrics.METRICS if one.name in names):
        if metric.task is None:
            column = f"{metric.name}_metric"
            skills = {row["train_task"] or ELSEWHERE: row[column] for row in group if row[column]}
            found = ", ".join(f"{skill} ({task})" for task, skill in skills.items())
            lines.append(f"{metrics.heading(metric.name)}: {found}.")
        depths = {row[f"{metric.name}_k"] for row in group} - {None} if metric.prefilled else set()
        if depths:
            lines.append(f"{metric.label}: k = {', '.join(map(str, sorted(depths)))}.")
    return lines


def _reading(group: Sequence[Row], names: Sequence[str]) -> list[str]:
    def some(end: str, found: Callable[[float], bool] = lambda figure: True) -> bool:
        figures = [row.get(f"{metric}{end}") for row in group for metric in names]
        return any(figure is not None and found(figure) for figure in figures)

    lines = ["Percent, higher is better; best of a column in bold, second underlined, the base model aside."]
    if some("_delta"):
        elsewhere = any(row["train_task"] == UNTRAINED for row in group)
        also = f" (of those {ELSEWHERE}: against the base model)" if elsewhere else ""
        lines.append(f"Small: points against vanilla on the same prompts{also}.")
    lines += [f"{one.label}: {one.about}." for one in map(metrics.of, names) if one and one.about]
    lines += marks_explained((row, metric) for row in group for metric in names)
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
