"""The leaderboard as people and programs read it: files on disk, Markdown, and a terminal.

``write`` and ``read`` keep the frames that leaderboard.py builds, ``render`` shows one in a terminal. Frames
hold percentages with two decimals, and percentage points for differences.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.contracts import HarnessError
from harness.health import LEAST, NOT_MEANINGFUL
from harness.store import read_json, write_text_atomic
from harness.text import csv_cell, one_line

LARGEST = 1e300  # of any figure, a FLOP count included
ALPHA = 0.05  # the level of the intervals, and of the Holm-adjusted p that gives a star
METHOD_ORDER = ("seed", "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual")
BASELINE = "vanilla"
UNTRAINED = ""  # the train task of a checkpoint that was trained elsewhere
DONE = "done"
DAMAGED = "damaged"  # how the status of a row begins of which a file has changed
FAILED = "failed"  # how the status of a row begins that has no figures
MEAN = "mean"  # the seed column of a row over several seeds

METRICS = ("utility", "rsr", "jsr")
KEY = ("model", "method", "train_task", "seed", "judge")
COSTS = (
    *("train_tokens", "train_flops", "train_seconds", "peak_memory_bytes"),
    *("answer_tokens", "tokens_per_second", "mfu"),
)
HEALTH = ("health", "health_low", "health_high", "health_n", "health_of", "safe_rates")
_SAFETY_COLUMNS = ("", "_low", "_high", "_n", "_unjudged", "_refusals")
_DELTA_COLUMNS = ("_delta", "_delta_low", "_delta_high", "_p")
COLUMNS = (
    *KEY,
    *("utility_task", "utility_metric", "utility", "utility_low", "utility_high", "utility_n"),
    *(f"rsr{suffix}" for suffix in _SAFETY_COLUMNS),
    *(f"jsr{suffix}" for suffix in _SAFETY_COLUMNS),
    "jsr_k",
    *(f"{metric}{suffix}" for metric in METRICS for suffix in _DELTA_COLUMNS),
    *COSTS,
    "status",
    *(f"{metric}_mde" for metric in METRICS),
    *(f"{metric}_paper" for metric in METRICS),
    *HEALTH,
)
SCORE_COLUMNS = (
    *("model", "method", "train_task", "seed", "task", "metric", "judge", "category"),
    *("value", "low", "high", "n", "unjudged"),
)
_FURTHER_COLUMNS = (*_SAFETY_COLUMNS, *_DELTA_COLUMNS, "_mde")  # of a task that a run adds, behind its name
TEXT = {
    *KEY,
    "run",
    "health_of",
    "safe_rates",
    "utility_task",
    "utility_metric",
    "status",
    "task",
    "metric",
    "category",
}
WHOLE = {"n", "unjudged", "jsr_k", "train_tokens", "peak_memory_bytes", "answer_tokens"} | {
    f"{metric}_{count}" for metric in (*METRICS, "health") for count in ("n", "unjudged")
}
_UNROUNDED = {
    "train_flops",
    "train_seconds",
    "tokens_per_second",
    "mfu",
    *(f"{metric}_p" for metric in METRICS),
}


def further_columns(tasks: Iterable[str]) -> list[str]:
    return [f"{task}{suffix}" for task in tasks for suffix in _FURTHER_COLUMNS]


def further_tasks(columns: Iterable[str]) -> list[str]:
    """The further tasks among a leaderboard's columns."""
    names = [name for name in columns if name not in COLUMNS]
    return [name for name in names if {*further_columns([name])} <= {*names}]


def _is_whole(name: str) -> bool:
    return name in WHOLE or (name not in COLUMNS and name.endswith(("_n", "_unjudged")))


def _is_percent(name: str) -> bool:
    return not (name in TEXT or name in _UNROUNDED or _is_whole(name) or name.endswith("_p"))


SINGLE_SEED_LINE = "A single seed tests these checkpoints, not the methods in general."

Row = dict[str, Any]


# --- frames ----------------------------------------------------------------------------------------


def as_frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """One typed column for each name: text ("" where empty), whole numbers, rounded percentages."""
    typed: dict[str, pd.Series[Any]] = {}
    for name in columns:
        figures = [row.get(name) for row in rows]
        if name in TEXT:
            typed[name] = pd.Series(["" if value is None else value for value in figures], dtype=str)
        elif _is_whole(name):
            whole = [None if value is None else round(value) for value in figures]
            typed[name] = pd.Series(whole, dtype="Int64")
        else:
            numbers = pd.Series(figures, dtype=float)
            typed[name] = numbers.round(2) if _is_percent(name) else numbers
    return pd.DataFrame(typed)


def grouped(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


# --- files -----------------------------------------------------------------------------------------


def write(
    frame: pd.DataFrame, scores: pd.DataFrame, out: Path, *, title: str, notes: Sequence[str] = ()
) -> None:
    """leaderboard.csv, .json and .md and scores.csv in ``out``, each of them whole or not at all."""
    record = {"title": title, "notes": list(notes), "rows": records(frame)}
    write_text_atomic(out / "scores.csv", _csv(scores))
    write_text_atomic(out / "leaderboard.csv", _csv(frame))
    write_text_atomic(out / "leaderboard.md", markdown(frame, title=title, notes=notes))
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(out / "leaderboard.json", text + "\n")


def read(out: Path) -> pd.DataFrame:
    """The frame that ``write`` left in ``out``, its title and notes in ``frame.attrs``.

    Raises HarnessError where there is none or it isn't a leaderboard.
    """
    found = record(out)
    try:
        frame = as_frame(found["rows"], list(found["rows"][0]) if found["rows"] else COLUMNS)
    except (TypeError, ValueError, OverflowError) as error:
        raise _no_leaderboard(out, error) from error
    frame.attrs = {"title": found["title"], "notes": found["notes"]}
    return frame


def record(out: Path) -> Row:
    """The title, notes and rows (text, finite numbers) that ``write`` left. Raises HarnessError."""
    found = read_json(out / "leaderboard.json")
    try:
        if not all(isinstance(text, str) for text in (found["title"], *found["notes"])):
            raise ValueError("a title and notes are text")
        for row in found["rows"]:
            missing = [name for name in COLUMNS if name not in row and name not in HEALTH]
            if missing:
                raise ValueError(f"a row without {missing[0]}")
            for name, value in row.items():
                _check_value(name, value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _no_leaderboard(out, error) from error
    return {"title": found["title"], "notes": list(found["notes"]), "rows": list(found["rows"])}


def _no_leaderboard(out: Path, error: Exception) -> HarnessError:
    return HarnessError(
        f"{out / 'leaderboard.json'}: not a leaderboard that this version wrote ({error!r}); "
        f"harness score {out} writes it anew"
    )


def _check_value(name: str, value: Any) -> None:
    """Raises ValueError for what cannot stand in a leaderboard's column."""
    if name in TEXT:
        if not isinstance(value, str):
            raise ValueError(f"{name} is no text")
    elif value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST
    ):
        raise ValueError(f"{name} is no number")


def read_scores(out: Path) -> pd.DataFrame:
    """The scores.csv that ``write`` left in ``out``."""
    try:
        text = pd.read_csv(out / "scores.csv", dtype=str, keep_default_na=False)
        rows = [
            {name: row[name] if name in TEXT else float(row[name] or "nan") for name in SCORE_COLUMNS}
            for row in text.to_dict("records")
        ]
        return as_frame([{k: None if v != v else v for k, v in row.items()} for row in rows], SCORE_COLUMNS)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise HarnessError(f"{out / 'scores.csv'}: no scores that this version wrote ({error!r})") from error


def records(frame: pd.DataFrame) -> list[Row]:
    """A frame's rows, None where it is empty."""
    rows = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _csv(frame: pd.DataFrame) -> str:
    """Percentages with two decimals; text that a spreadsheet can't take for a formula."""
    text = {
        name: ["" if pd.isna(value) else _csv_format(name)(value) for value in frame[name]]
        for name in map(str, frame.columns)
    }
    return str(pd.DataFrame(text).rename(columns=csv_cell).to_csv(index=False, lineterminator="\n"))


def _csv_format(name: str) -> Callable[[Any], str]:
    if name in TEXT:
        return csv_cell
    if _is_percent(name) and not _is_whole(name):
        return "{:.2f}".format
    return str


def as_csv(frame: pd.DataFrame) -> str:
    """Any frame, its figures as they are."""
    texts = {
        name: frame[name].map(csv_cell)
        for name in frame.columns
        if not pd.api.types.is_numeric_dtype(frame[name])
    }
    return str(frame.assign(**texts).rename(columns=csv_cell).to_csv(index=False, lineterminator="\n"))


# --- what a table says, in Markdown and in a terminal ------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """One table: a train task under a judge (and a model, where the leaderboard has several)."""

    heading: str
    caption: str  # what was measured, on how many documents
    rows: list[Row]
    failures: list[tuple[Row, str]]  # rows without figures, or without some
    bounds: list[str]  # what the unjudged answers could change, and how many answers are whole
    further: list[str]  # tasks that the run adds


def _sections(frame: pd.DataFrame) -> Iterator[_Section]:
    """Over several seeds a table shows the means alone: the seeds are in leaderboard.csv."""
    everything = records(frame)
    for group in grouped(everything, "model", "train_task", "judge"):
        model = [group[0]["model"]] if count(everything, "model") > 1 else []
        heading = " · ".join([*model, trained_on(group[0]), f"judged by {group[0]['judge']}"])
        caption = _caption([row for row in group if row["seed"] != MEAN])
        rows = means(group)
        failures = [(row, f"{row['method']} {row['status']}") for row in rows if row["status"] != DONE]
        failures += [(row, f"{row['method']}: {line}") for row in rows if (line := unhealthy(row))]
        further = [
            task for task in further_tasks(map(str, frame.columns)) if any(has(row, task) for row in rows)
        ]
        bounds = [line for metric in ("rsr", "jsr", *further) if (line := _bounds(rows, metric))]
        bounds += filter(None, [health(rows)])
        yield _Section(heading, caption, rows, failures, bounds, further)


def trained_on(row: Row) -> str:
    """Where a row's checkpoint was trained, as part of a heading."""
    return "trained elsewhere" if row["train_task"] == UNTRAINED else f"trained on {row['train_task']}"


def has(row: Row, metric: str) -> bool:
    """Whether a row has answers to a further task."""
    return row.get(metric) is not None or row.get(f"{metric}_n") is not None


def means(group: Sequence[Row]) -> list[Row]:
    """Of each method that has several seeds the mean alone."""
    several = {row["method"] for row in group if row["seed"] == MEAN}
    return [row for row in group if row["seed"] == MEAN or row["method"] not in several]


def count(rows: Iterable[Row], name: str) -> int:
    return len({row[name] for row in rows})


def _is_failed(row: Row) -> bool:
    return str(row["status"]).startswith(FAILED)


def _caption(rows: Sequence[Row]) -> str:
    parts = []
    for metric in METRICS:
        scored = [row for row in rows if row[f"{metric}_n"] is not None]
        if not scored:
            continue
        sizes = sorted({row[f"{metric}_n"] + row.get(f"{metric}_unjudged", 0) for row in scored})
        what = f"utility {scored[0]['utility_metric']}" if metric == "utility" else metric.upper()
        if metric == "jsr" and scored[0]["jsr_k"] is not None:
            what += f" (k = {scored[0]['jsr_k']})"
        parts.append(f"{what} on {' to '.join(map(str, sizes[:1] + sizes[1:][-1:]))}")
    return " · ".join(parts)


def _bounds(rows: Iterable[Row], metric: str) -> str:
    """What the rates could be, were the unjudged answers all harmful or all safe. Mean rows leave it out."""
    ranges = []
    for row in rows:
        n, unjudged = row[f"{metric}_n"], row[f"{metric}_unjudged"]
        if not unjudged or row["seed"] == MEAN:
            continue
        if _is_meaningless(row, metric):
            continue
        safe = round(n * (row[metric] or 0) / 100)
        low, high = 100 * safe / (n + unjudged), 100 * (safe + unjudged) / (n + unjudged)
        ranges.append(f"{row['method']} {low:.1f}–{high:.1f}")
    return f"{label(metric)} were all unjudged harmful, or all safe: {', '.join(ranges)}" if ranges else ""


def unhealthy(row: Row) -> str:
    """Why a row's safe rates mean nothing, or ""."""
    if row.get("safe_rates") != NOT_MEANINGFUL:
        return ""
    of_seed = " over the seeds, and too few of one seed's" if row["seed"] == MEAN else ""
    return (
        f"safe rates are {NOT_MEANINGFUL}: {_whole(row)} of its answers to {row['health_of']} are "
        f"whole{of_seed}; at least {100 * LEAST:g} % must be"
    )


def health(rows: Iterable[Row]) -> str:
    """How many of the rows' answers are whole, and whose are the fewest; "" where that is not known."""
    known = [row for row in rows if row.get("health") is not None]
    if not known:
        return ""
    least, most = (choose(known, key=lambda row: row["health"]) for choose in (min, max))
    by = f"fewest by {least['method']}, " if least["health"] < most["health"] else ""
    return f"Whole answers to {least['health_of']} (not empty, cut off or rubbish): {by}{_whole(least)}"


def _whole(row: Row) -> str:
    low, high = row["health_low"], row["health_high"]
    between = "" if low is None or high is None else f" ({low:.1f}–{high:.1f})"
    return f"{row['health']:.1f} %{between}"


def _legend(frame: pd.DataFrame) -> list[str]:
    means = frame[frame["seed"] == MEAN]
    shown = means if len(means) else frame
    rows = records(shown)
    metrics = (*METRICS, *further_tasks(map(str, frame.columns)))
    trained = any(row["train_task"] != UNTRAINED for row in rows)
    lines = [SINGLE_SEED_LINE] if trained else []
    if len(means):
        lines = [
            "Means over the seeds; each seed is in leaderboard.csv. "
            "Intervals account for variation across prompts and seeds."
        ]
    lines += _compared_with(records(frame), metrics)
    lines += [
        "Percentages and points with 95 % intervals; higher is better.",
        "RSR, JSR: answers that are safe, to raw and to prefilled requests; refusals: answers that refuse.",
    ]
    pairs = [(row, metric) for row in rows for metric in metrics]
    if any(row[f"{metric}_delta"] is not None for row, metric in pairs):
        lines += _marks_explained(pairs)
    if (shown[[f"{metric}_unjudged" for metric in metrics if metric != "utility"]] > 0).any(axis=None):
        lines.append("(2?): 2 answers could not be judged; the rate leaves them out.")
    return lines


def _compared_with(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    compared = [row for row in rows if any(row[f"{metric}_delta"] is not None for metric in metrics)]
    here = any(row["train_task"] != UNTRAINED for row in compared)
    elsewhere = any(row["train_task"] == UNTRAINED for row in compared)
    against = f"{BASELINE} on the same prompts" if here else "the base model on the same prompts"
    also = "; checkpoints trained elsewhere: against the base model" if here and elsewhere else ""
    return [f"Δ: points against {against}{also}."] if compared else []


def _marks_explained(pairs: Sequence[tuple[Row, str]]) -> list[str]:
    """What the marks beside the differences mean, and which differences are counted together."""
    found = {mark(row, metric) for row, metric in pairs}
    lines = []
    if STAR in found:
        lines.append(
            f"{STAR}: a difference, counting all comparisons of its family (p < {ALPHA} after Holm)."
        )
    if ALONE in found:
        lines.append(
            f"{ALONE}: a difference taken alone (its interval excludes 0), but not counting its family."
        )
    lines.append(
        "Families, each over all train tasks: the base model; all other rows; checkpoints trained elsewhere."
    )
    if any(_least(row, metric) for row, metric in pairs):
        lines.append(f"(7.1): a true difference of 7.1 would have got its {STAR} four times in five.")
    return lines


def label(metric: str) -> str:
    return metric.upper() if metric in ("rsr", "jsr") else metric


def _has_refusals(rows: Iterable[Row], metric: str) -> bool:
    """Whether a metric has the refusals beside it: what is judged, that is."""
    return metric in ("rsr", "jsr") or any(row.get(f"{metric}_refusals") is not None for row in rows)


def _unjudged(row: Row, metric: str) -> str:
    count = row.get(f"{metric}_unjudged")
    return f" ({count}?)" if count else ""


def _is_meaningless(row: Row, metric: str) -> bool:
    """Whether there is a safe rate that means nothing."""
    return row.get("safe_rates") == NOT_MEANINGFUL and row[metric] is None and bool(row.get(f"{metric}_n"))


STAR, ALONE = "*", "†"


def differs(row: Row, metric: str) -> bool:
    """Whether a difference is a finding, with all comparisons of its family counted."""
    p = row.get(f"{metric}_p")
    return p is not None and p < ALPHA


def differs_alone(row: Row, metric: str) -> bool:
    """Whether its interval excludes 0, but counting the family's other comparisons it is no finding."""
    low, high = row.get(f"{metric}_delta_low"), row.get(f"{metric}_delta_high")
    excludes_0 = low is not None and high is not None and not low <= 0 <= high
    return excludes_0 and not differs(row, metric)


def is_unshown(row: Row, metric: str) -> bool:
    """Whether there is a difference that was tested and is no finding."""
    tested = row.get(f"{metric}_delta") is not None and row.get(f"{metric}_p") is not None
    return tested and not differs(row, metric)


def mark(row: Row, metric: str) -> str:
    """What stands beside a difference."""
    if differs(row, metric):
        return STAR
    return ALONE if differs_alone(row, metric) else ""


def _least(row: Row, metric: str) -> str:
    """Beside a difference that was not shown: the smallest that would have been, as in " (7.1)"."""
    least = row[f"{metric}_mde"]
    return f" ({least:.1f})" if least is not None and is_unshown(row, metric) else ""


def _beside_paper(rows: Iterable[Row]) -> list[tuple[str, dict[str, tuple[float, float]]]]:
    """By method and metric: ours minus the paper's, and the paper's. Empty where no row has such a figure."""
    found = []
    for row in rows:
        pairs = {
            metric: (row[metric] - paper, paper)
            for metric in METRICS
            if (paper := row[f"{metric}_paper"]) is not None and row[metric] is not None
        }
        if pairs:
            found.append((str(row["method"]), pairs))
    return found


def markdown(frame: pd.DataFrame, *, title: str, notes: Sequence[str] = ()) -> str:
    """The leaderboard as it reads on GitHub: a table for each train task, then what its marks mean."""
    blocks = [f"# {escaped(title)}"]
    for section in _sections(frame):
        blocks.append(f"## {escaped(section.heading)}")
        if section.caption:
            blocks.append(escaped(section.caption))
        blocks.append(_markdown_table(section.rows, METRICS, seconds=True))
        blocks.extend(_markdown_table(section.rows, some) for some in _threes(section.further))
        blocks.extend(_markdown_paper(section.rows))
        partly = [line for row, line in section.failures if not _is_failed(row)]
        blocks.extend(escaped(line) for line in (*partly, *section.bounds))
    blocks.append("\n".join(f"- {escaped(line)}" for line in [*_legend(frame), *notes]))
    return "\n\n".join(blocks) + "\n"


def _threes(tasks: Sequence[str]) -> list[Sequence[str]]:
    """As many further tasks a table as it has room for."""
    return [tasks[start : start + 3] for start in range(0, len(tasks), 3)]


def _markdown_table(rows: Sequence[Row], metrics: Sequence[str], *, seconds: bool = False) -> str:
    refusals = [metric for metric in metrics if _has_refusals(rows, metric)]
    head = ["method"]
    for metric in metrics:
        heading = escaped(label(metric))
        head += [f"Δ {heading}", heading, *(["refusals"] if metric in refusals else [])]
    head += ["train s"] if seconds else []
    return _markdown_lines(head, [_markdown_row(row, metrics, refusals, seconds) for row in rows])


def _markdown_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---", *["---:"] * (len(head) - 1)],
        *([*line, *[""] * (len(head) - len(line))] for line in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_row(row: Row, metrics: Sequence[str], refused: Sequence[str], with_seconds: bool) -> list[str]:
    if _is_failed(row):
        return [escaped(row["method"]), escaped(row["status"])]
    cells = [escaped(row["method"])]
    for metric in metrics:
        value, delta = row[metric], row[f"{metric}_delta"]
        interval = _markdown_interval(row, f"{metric}_delta", "+")
        marked = "" if delta is None else escaped(f"{delta:+.2f}{mark(row, metric)}")
        cells.append(f"{marked}{interval}{_least(row, metric)}")
        shown = NOT_MEANINGFUL if _is_meaningless(row, metric) else ""
        if value is not None:
            shown = f"{value:.2f}{_unjudged(row, metric)}{_markdown_interval(row, metric)}"
        cells.append(shown)
        if metric in refused:
            refusals = row[f"{metric}_refusals"]
            cells.append("" if refusals is None else f"{refusals:.2f}")
    seconds = row["train_seconds"] if with_seconds else None
    return [*cells, *(["" if seconds is None else f"{seconds:.1f}"] if with_seconds else [])]


def _markdown_paper(rows: Sequence[Row]) -> list[str]:
    beside = _beside_paper(rows)
    metrics = [metric for metric in METRICS if any(metric in pairs for _, pairs in beside)]
    head = ["method", *(name for metric in metrics for name in (f"{label(metric)} vs paper", "paper"))]
    lines = [
        [escaped(method), *(text for metric in metrics for text in _paper_cells(pairs, metric, 2))]
        for method, pairs in beside
    ]
    return [_markdown_lines(head, lines)] if beside else []


def _paper_cells(pairs: dict[str, tuple[float, float]], metric: str, digits: int) -> tuple[str, str]:
    if metric not in pairs:
        return "", ""
    difference, paper = pairs[metric]
    return f"{difference:+.{digits}f}", f"{paper:.{digits}f}"


def _markdown_interval(row: Row, name: str, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f" [{low:{sign}.1f}, {high:{sign}.1f}]"


def escaped(text: str) -> str:
    """One line that Markdown takes as text."""
    return "".join(
        f"\\{character}" if character in "\\`*[]<>|#" else character for character in one_line(text)
    )


# --- terminal --------------------------------------------------------------------------------------

_ASCII = str.maketrans({"Δ": "d", "†": "+", "–": "-", "·": "|", "─": "-"})


def render(frame: pd.DataFrame, console: Console, *, title: str, notes: Sequence[str] = ()) -> None:
    """Print the leaderboard: a table for each train task, made for 100 columns, and what its marks mean."""
    if console.options.ascii_only:
        buffer = io.StringIO()
        render(frame, Console(file=buffer, width=console.width, no_color=True), title=title, notes=notes)
        text = buffer.getvalue().translate(_ASCII).encode("ascii", "replace").decode()
        console.out(text, end="", highlight=False)
        return
    console.print(Text(one_line(title), style="bold"))
    for section in _sections(frame):
        console.print()
        console.print(Text(one_line(section.heading), style="bold"))
        console.print(Text(one_line(section.caption)))
        console.print()
        console.print(_fitting(section.rows, console, METRICS), crop=False)
        for some in _threes(section.further):
            console.print()
            console.print(_fitting(section.rows, console, some), crop=False)
        if beside := _beside_paper(section.rows):
            console.print()
            console.print(_paper_table(beside), crop=False)
        for row, line in section.failures:
            console.print(Text(one_line(line), style="red" if _is_failed(row) else "yellow"))
        for line in section.bounds:
            console.print(Text(one_line(line), style="yellow"))
    console.print()
    for line in [*_legend(frame), *notes]:
        console.print(Text(one_line(line)))


def _fitting(rows: Sequence[Row], console: Console, metrics: Sequence[str]) -> Table:
    """The most spacious layout that there is room for; the narrowest runs over rather than lose digits."""
    for layout in _LAYOUTS:
        table = _table(rows, layout, metrics)
        table.width = natural_width(table, console)
        if table.width <= console.width:
            break
    return table


@dataclass(frozen=True)
class _Layout:
    gap: int  # blanks between columns, next to the one that the box draws
    seconds: bool = False  # a column with the training's seconds
    refusals_below: bool = False  # refusals below the safe rate's interval, not in their own column
    stacked: bool = False  # one column a metric: the figures below the difference


_LAYOUTS = (
    _Layout(1, seconds=True),
    _Layout(1),
    _Layout(0),
    _Layout(1, refusals_below=True),
    _Layout(0, refusals_below=True),
    _Layout(1, refusals_below=True, stacked=True),
    _Layout(0, refusals_below=True, stacked=True),
)


def _table(rows: Sequence[Row], layout: _Layout, metrics: Sequence[str]) -> Table:
    """Lines of a method: what its figures differ from vanilla's and are, and the intervals below."""
    table = bare_table(layout.gap)
    table.add_column("method", overflow="fold", max_width=24)
    columns = [[Text(one_line(row["method"])) for row in rows]]

    def add(heading: str, cells: list[Text]) -> None:
        header, *cells = _right([Text(heading), *cells])
        table.add_column(header, no_wrap=True)
        columns.append(cells)

    for metric in metrics:
        safety, heading = _has_refusals(rows, metric), label(metric)
        below = layout.refusals_below and safety
        value_heading = f"{heading}\nrefusals" if below else heading
        values = [_figure(row, metric, _widest(_unjudged, rows, metric), below) for row in rows]
        deltas = [_delta(row, metric, _widest(_least, rows, metric)) for row in rows]
        if metric == metrics[0]:
            deltas = [
                Text("failed", "red") if _is_failed(r) else d for r, d in zip(rows, deltas, strict=True)
            ]
        delta_heading = f"Δ {heading}" if metric in METRICS else "Δ"
        if layout.stacked:
            pairs = zip(deltas, values, strict=True)
            add(f"{delta_heading}\n{value_heading}", [_below(delta, value) for delta, value in pairs])
            continue
        add(delta_heading, deltas)
        add(value_heading, values)
        if safety and not below:
            add("refusals", [Text(one_decimal(row[f"{metric}_refusals"])) for row in rows])
    if layout.seconds and metrics is METRICS:
        add("train s", [Text(one_decimal(row["train_seconds"])) for row in rows])
    for cells in zip(*columns, strict=True):
        table.add_row(*cells)
    return table


def _paper_table(beside: Sequence[tuple[str, dict[str, tuple[float, float]]]]) -> Table:
    metrics = [metric for metric in METRICS if any(metric in pairs for _, pairs in beside)]
    table = bare_table(1)
    table.add_column("method", overflow="fold", max_width=24)
    for metric in metrics:
        table.add_column(f"{label(metric)} vs paper", justify="right")
        table.add_column("paper", justify="right")
    for method, pairs in beside:
        cells = (text for metric in metrics for text in _paper_cells(pairs, metric, 1))
        table.add_row(Text(one_line(method)), *cells)
    return table


def bare_table(gap: int = 1) -> Table:
    """A table with a line below its head and no other; ``gap``: blanks between columns."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)


def _below(delta: Text, value: Text) -> Text:
    """One cell of both; a difference takes two lines, there or not."""
    if not value.plain:
        return delta
    return Text("\n").join([delta, value] if "\n" in delta.plain else [delta, Text(), value])


def _widest(part: Callable[[Row, str], str], rows: Sequence[Row], metric: str) -> int:
    """The width kept for what stands behind a column's figures, so that these stand under each other."""
    return max(len(part(row, metric)) for row in rows)


def _right(cells: Sequence[Text]) -> list[Text]:
    """Pad every line on the left. Rich's own right alignment strips the blank that stands for a mark."""
    split = [cell.split("\n", allow_blank=True) for cell in cells]
    width = max(line.cell_len for lines in split for line in lines)
    for lines in split:
        for line in lines:
            line.pad_left(width - line.cell_len)
    return [Text("\n").join(lines) for lines in split]


def one_decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _figure(row: Row, metric: str, suffix: int, refusals_below: bool) -> Text:
    """``suffix``: the width kept for "(2?)"."""
    if _is_failed(row):
        return Text()
    if _is_meaningless(row, metric):
        return Text(NOT_MEANINGFUL.replace(" ", "\n"), "yellow")
    if row[metric] is None:
        return Text(f"-{_unjudged(row, metric):{suffix}}")
    text = Text(f"{row[metric]:.1f}{_unjudged(row, metric):{suffix}}")
    if row[f"{metric}_low"] is not None:
        text.append(f"\n{row[f'{metric}_low']:.1f}–{row[f'{metric}_high']:.1f}", style="dim")
    if refusals_below:
        text.append(f"\n{one_decimal(row[f'{metric}_refusals']) or '-'}")
    return text


def _delta(row: Row, metric: str, suffix: int) -> Text:
    """``suffix``: the width kept for "(7.1)"."""
    delta, sign = row[f"{metric}_delta"], mark(row, metric)
    if delta is None:
        return Text()
    text = Text(f"{delta:+.1f}{sign or ' '}", style=("green" if delta > 0 else "red") if sign == STAR else "")
    text.append(f"{_least(row, metric):{suffix}}", style="dim")
    low, high = row[f"{metric}_delta_low"], row[f"{metric}_delta_high"]
    if low is not None and high is not None:
        text.append(f"\n{low:+.1f} to {high:+.1f}", style="dim")
    return text


def print_whole(table: Table, console: Console) -> None:
    """As wide as its cells: where there is no room it runs over rather than lose figures."""
    table.width = natural_width(table, console)
    console.print(table, crop=False)


def natural_width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update_width(1_000)).maximum


def say(console: Console, line: str, style: str = "") -> None:
    """A line as it stands, however long."""
    console.print(Text(line, style=style), highlight=False, soft_wrap=True)
