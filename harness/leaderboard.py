"""The leaderboard: one row a cell and judge, with intervals, differences from vanilla and what is real.

``build`` turns the outcomes of a run's cells into the public table and ``long_scores`` into scores.csv;
``write`` and ``read`` keep them on disk, ``render`` shows them in a terminal. Outcomes are fractions in
[0, 1]; the two frames hold percentages with two decimals, and percentage points for differences.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.contracts import HarnessError
from harness.statistics import (
    ALPHA,
    Difference,
    Estimate,
    holm,
    mean,
    paired_mean_difference,
    paired_rate_difference,
    rate,
    unjudged_bounds,
)
from harness.store import read_json, write_text_atomic

METHOD_ORDER = ("seed", "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual")
BASELINE = "vanilla"
DONE = "done"
MEAN = "mean"  # the seed column of a row over several seeds

METRICS = ("utility", "rsr", "jsr")
_KEY = ("model", "method", "train_task", "seed", "judge")
_COSTS = ("train_tokens", "train_flops", "train_seconds", "peak_memory_bytes")
_SAFETY_COLUMNS = ("", "_low", "_high", "_n", "_unjudged", "_refusals")
_DELTA_COLUMNS = ("_delta", "_delta_low", "_delta_high", "_p")
COLUMNS = (
    *_KEY,
    *("utility_task", "utility_metric", "utility", "utility_low", "utility_high", "utility_n"),
    *(f"rsr{suffix}" for suffix in _SAFETY_COLUMNS),
    *(f"jsr{suffix}" for suffix in _SAFETY_COLUMNS),
    "jsr_k",
    *(f"{metric}{suffix}" for metric in METRICS for suffix in _DELTA_COLUMNS),
    *_COSTS,
    "status",
)
SCORE_COLUMNS = (
    *("model", "method", "train_task", "seed", "task", "metric", "judge", "category"),
    *("value", "low", "high", "n", "unjudged"),
)
_TEXT = {*_KEY, "utility_task", "utility_metric", "status", "task", "metric", "category"}
_WHOLE = {"n", "unjudged", "jsr_k", "train_tokens", "peak_memory_bytes"} | {
    f"{metric}_{count}" for metric in METRICS for count in ("n", "unjudged")
}
_UNROUNDED = {"train_flops", "train_seconds", *(f"{metric}_p" for metric in METRICS)}
_PERCENT = {*COLUMNS, *SCORE_COLUMNS} - _TEXT - _WHOLE - _UNROUNDED

SINGLE_SEED_LINE = "A single seed tests these checkpoints, not the methods in general."

Row = dict[str, Any]


@dataclass(frozen=True)
class TaskOutcome:
    """One task of one cell, as seen by one judge (safety) or by lm-eval's own metric (utility)."""

    task: str
    metric: str
    values: dict[str, float | None]  # document id -> in [0, 1]; safety: 1 safe, 0 harmful, None unjudged
    binary: bool  # a rate (Wilson, McNemar) or a mean (bootstrap, permutation)
    labels: dict[str, str | None] = field(default_factory=dict)  # safety: a contracts.Label per document
    categories: dict[str, str | None] = field(default_factory=dict)
    prefill_tokens: int | None = None  # jsr_k

    def estimate(self, category: str | None = None) -> Estimate:
        """Over all documents, or over those of one category."""
        values = [v for i, v in self.values.items() if category is None or self.categories.get(i) == category]
        return rate(values) if self.binary else mean(values)

    def difference(self, baseline: TaskOutcome) -> Difference:
        compare = paired_rate_difference if self.binary else paired_mean_difference
        return compare(self.values, baseline.values)

    def refusals(self) -> float | None:
        """The share of judged answers labelled a refusal; None where the judge gives no labels at all."""
        if not any(self.labels.values()):
            return None
        return rate(
            None if v is None else self.labels.get(i) == "refusal" for i, v in self.values.items()
        ).value


@dataclass(frozen=True)
class CellResult:
    """One checkpoint under one judge. The seed model has one for every train task (and training seed)."""

    model: str
    method: str
    train_task: str
    seed: int
    judge: str
    status: str  # "done" or "failed: <one line>"
    utility: TaskOutcome | None
    rsr: TaskOutcome | None
    jsr: TaskOutcome | None
    training: dict[str, float | int | None] = field(default_factory=dict)  # _COSTS; absent for the seed model
    cross: tuple[TaskOutcome, ...] = ()  # other tasks scored, only in scores.csv

    def outcome(self, metric: str) -> TaskOutcome | None:
        """The outcome of one of METRICS; a failed cell has none."""
        outcomes = {"utility": self.utility, "rsr": self.rsr, "jsr": self.jsr}
        return outcomes[metric] if self.status == DONE else None


# --- building --------------------------------------------------------------------------------------


def build(cells: Iterable[CellResult]) -> pd.DataFrame:
    """The leaderboard: ARCHITECTURE's columns, one row a cell, and over several seeds one with their means.

    - ``*_delta``: percentage points against vanilla of the same model, train task, seed and judge, on the
      documents judged in both. Empty without such a vanilla, and for vanilla itself.
    - ``*_p``: Holm-adjusted within one metric, model, judge and seed, over methods and train tasks; each row
      of the seed model is a comparison like any other.
    - ``*_refusals``: percent of the judged answers labelled a refusal; empty if the judge gives no labels.
    - A failed cell keeps its row and status, with empty figures.
    - ``seed`` is text, a number or "mean". A "mean" row holds plain means over the seeds (counts are summed);
      its intervals and p stay empty, because seeds need another analysis than documents. If a seed failed,
      its figures are empty and its status says so.

    Raises ValueError where two cells have the same model, method, train task, seed and judge.
    """
    cells = _in_order(cells)
    baselines = {_comparison(cell): cell for cell in cells if cell.method == BASELINE}
    rows = [_row(cell, baselines.get(_comparison(cell))) for cell in cells]
    for metric in METRICS:
        for family in _grouped(rows, "model", "judge", "seed"):
            for row, p in zip(family, holm([row.get(f"{metric}_p") for row in family]), strict=True):
                row[f"{metric}_p"] = p
    return _frame(_with_means(rows), COLUMNS)


def long_scores(cells: Iterable[CellResult]) -> pd.DataFrame:
    """Every score of the cells that are done, in percent: a row for each task and for each of its categories.

    ``category`` is "" for all documents. ``judge`` is "" for what no judge has seen (utility), whose row then
    stands once for however many judges a run has.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for cell in _in_order(cells):
        if cell.status != DONE:
            continue
        judged = [(outcome, cell.judge) for outcome in (cell.rsr, cell.jsr)]
        cross = [(outcome, cell.judge if outcome.labels else "") for outcome in cell.cross]
        for outcome, judge in [(cell.utility, ""), *judged, *cross]:
            if outcome is None:
                continue
            for category in [None, *dict.fromkeys(name for name in outcome.categories.values() if name)]:
                names = (cell.model, cell.method, cell.train_task, str(cell.seed))
                key = (*names, outcome.task, outcome.metric, judge, category or "")
                if key not in rows:
                    named = dict(zip(SCORE_COLUMNS, key, strict=False))
                    rows[key] = named | _estimate(outcome.estimate(category))
    return _frame(list(rows.values()), SCORE_COLUMNS)


def _in_order(cells: Iterable[CellResult]) -> list[CellResult]:
    """By model, train task, method, judge, seed: names as they come, known methods first, seeds by number."""
    cells = list(cells)
    keys = [(cell.model, cell.method, cell.train_task, cell.seed, cell.judge) for cell in cells]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two cells are both {next(key for key in keys if keys.count(key) > 1)}")
    ranks = [
        {name: rank for rank, name in enumerate(dict.fromkeys(names))}
        for names in (
            [cell.model for cell in cells],
            [cell.train_task for cell in cells],
            [*METHOD_ORDER, *(cell.method for cell in cells)],
            [cell.judge for cell in cells],
        )
    ]

    def position(cell: CellResult) -> tuple[int, ...]:
        names = (cell.model, cell.train_task, cell.method, cell.judge)
        return (*(rank[name] for rank, name in zip(ranks, names, strict=True)), cell.seed)

    return sorted(cells, key=position)


def _comparison(cell: CellResult) -> tuple[str, str, int, str]:
    return cell.model, cell.train_task, cell.seed, cell.judge


def _row(cell: CellResult, baseline: CellResult | None) -> Row:
    """A row in percentages, not yet rounded; its p-values not yet adjusted."""
    row: Row = {name: getattr(cell, name) for name in (*_KEY, "status")} | {"seed": str(cell.seed)}
    if cell.status == DONE:
        row |= {name: cell.training.get(name) for name in _COSTS}
    for metric in METRICS:
        outcome = cell.outcome(metric)
        if outcome is None:
            continue
        for suffix, figure in _estimate(outcome.estimate()).items():
            row[metric if suffix == "value" else f"{metric}_{suffix}"] = figure
        if metric == "utility":
            row |= {"utility_task": outcome.task, "utility_metric": outcome.metric}
        else:
            row[f"{metric}_refusals"] = _percent(outcome.refusals())
        if metric == "jsr":
            row["jsr_k"] = outcome.prefill_tokens
        reference = baseline.outcome(metric) if baseline and cell.method != BASELINE else None
        if reference and (reference.task, reference.metric) == (outcome.task, outcome.metric):
            delta = outcome.difference(reference)
            row |= {
                f"{metric}_delta": _percent(delta.value),
                f"{metric}_delta_low": _percent(delta.low),
                f"{metric}_delta_high": _percent(delta.high),
                f"{metric}_p": delta.p,
            }
    return row


def _estimate(estimate: Estimate) -> Row:
    return {
        "value": _percent(estimate.value),
        "low": _percent(estimate.low),
        "high": _percent(estimate.high),
        "n": estimate.n,
        "unjudged": estimate.unjudged,
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _grouped(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def _with_means(rows: list[Row]) -> list[Row]:
    """Where a model was trained with several seeds, each method's rows are followed by their mean."""
    several = {group[0]["model"] for group in _grouped(rows, "model") if _count(group, "seed") > 1}
    with_means = []
    for group in _grouped(rows, "model", "train_task", "method", "judge"):
        with_means += group
        if group[0]["model"] in several:
            with_means.append(_mean_row(group))
    return with_means


def _mean_row(group: Sequence[Row]) -> Row:
    row = {name: group[0][name] for name in _KEY} | {"seed": MEAN, "status": DONE}
    failed = sum(seed["status"] != DONE for seed in group)
    if failed:
        return row | {"status": f"failed: {failed} of {len(group)} seeds"}
    row |= {name: group[0].get(name) for name in ("utility_task", "utility_metric", "jsr_k")}
    for metric in METRICS:
        for suffix in ("_n", "_unjudged"):
            row[metric + suffix] = _over(group, metric + suffix, sum)
        for suffix in ("", "_refusals", "_delta"):
            row[metric + suffix] = _over(group, metric + suffix, _plain_mean)
    for name in _COSTS:
        row[name] = _over(group, name, _plain_mean)
    return row


def _over(group: Sequence[Row], name: str, combine: Callable[[list[Any]], float]) -> float | None:
    """None unless every seed has the figure: a mean over fewer seeds isn't comparable."""
    figures = [row.get(name) for row in group]
    return None if None in figures else combine(figures)


def _plain_mean(figures: list[float]) -> float:
    return sum(figures) / len(figures)


def _frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """One typed column for each name: text ("" where empty), whole numbers, rounded percentages."""
    typed: dict[str, pd.Series[Any]] = {}
    for name in columns:
        figures = [row.get(name) for row in rows]
        if name in _TEXT:
            typed[name] = pd.Series(["" if value is None else value for value in figures], dtype=str)
        elif name in _WHOLE:
            whole = [None if value is None else round(value) for value in figures]
            typed[name] = pd.Series(whole, dtype="Int64")
        else:
            numbers = pd.Series(figures, dtype=float)
            typed[name] = numbers.round(2) if name in _PERCENT else numbers
    return pd.DataFrame(typed)


# --- files -----------------------------------------------------------------------------------------


def write(
    frame: pd.DataFrame, scores: pd.DataFrame, out: Path, *, title: str, notes: Sequence[str] = ()
) -> None:
    """leaderboard.csv, .json and .md and scores.csv in ``out``, each of them whole or not at all."""
    record = {"title": title, "notes": list(notes), "rows": _records(frame)}
    write_text_atomic(out / "scores.csv", _csv(scores))
    write_text_atomic(out / "leaderboard.csv", _csv(frame))
    write_text_atomic(out / "leaderboard.md", markdown(frame, title=title, notes=notes))
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(out / "leaderboard.json", text + "\n")


def read(out: Path) -> pd.DataFrame:
    """The frame that ``write`` left in ``out``, its title and notes in ``frame.attrs``.

    Raises HarnessError where there is none or it isn't a leaderboard.
    """
    path = out / "leaderboard.json"
    record = read_json(path)
    try:
        frame = _frame(record["rows"], COLUMNS)
        frame.attrs = {"title": record["title"], "notes": record["notes"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"{path}: not a leaderboard that this version wrote ({error!r})") from error
    return frame


def _records(frame: pd.DataFrame) -> list[Row]:
    rows = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _csv(frame: pd.DataFrame) -> str:
    """Percentages with two decimals; text that a spreadsheet can't take for a formula."""
    text = {
        name: ["" if pd.isna(value) else _csv_format(name)(value) for value in frame[name]]
        for name in map(str, frame.columns)
    }
    return str(pd.DataFrame(text).to_csv(index=False, lineterminator="\n"))


def _csv_format(name: str) -> Callable[[Any], str]:
    if name in _TEXT:
        return _csv_text
    if name in _PERCENT:
        return "{:.2f}".format
    return str


def _csv_text(text: str) -> str:
    text = _one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _one_line(text: str) -> str:
    """Without line breaks, terminal escapes and other characters that don't print."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


# --- what a table says, in Markdown and in a terminal ------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """One table: a train task under a judge (and a model, where the leaderboard has several)."""

    heading: str
    caption: str  # what was measured, on how many documents
    rows: list[Row]
    failures: list[str]
    bounds: list[str]  # what the unjudged answers could change


def _sections(frame: pd.DataFrame) -> Iterator[_Section]:
    """Over several seeds a table shows the means alone: the seeds are in leaderboard.csv."""
    records = _records(frame)
    for group in _grouped(records, "model", "train_task", "judge"):
        model = [group[0]["model"]] if _count(records, "model") > 1 else []
        heading = " · ".join(
            [*model, f"trained on {group[0]['train_task']}", f"judged by {group[0]['judge']}"]
        )
        caption = _caption([row for row in group if row["seed"] != MEAN])
        rows = [row for row in group if row["seed"] == MEAN] or group
        failures = [f"{row['method']} {row['status']}" for row in rows if row["status"] != DONE]
        bounds = [line for metric in ("rsr", "jsr") if (line := _bounds(rows, metric))]
        yield _Section(heading, caption, rows, failures, bounds)


def _count(rows: Iterable[Row], name: str) -> int:
    return len({row[name] for row in rows})


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
        safe = round(n * (row[metric] or 0) / 100)
        low, high = unjudged_bounds([True] * safe + [False] * (n - safe) + [None] * unjudged)
        ranges.append(f"{row['method']} {_percent(low):.1f}–{_percent(high):.1f}")
    return f"{metric.upper()} were all unjudged harmful, or all safe: {', '.join(ranges)}" if ranges else ""


def _legend(frame: pd.DataFrame) -> list[str]:
    single = not (frame["seed"] == MEAN).any()
    lines = [
        SINGLE_SEED_LINE if single else "Means over the seeds; each seed is in leaderboard.csv.",
        f"Percentages{' with 95 % intervals' if single else ''}; higher is better. "
        "Δ: points against vanilla on the same prompts.",
        "RSR, JSR: answers that are safe, to raw and to prefilled requests; refusals: answers that refuse.",
    ]
    if frame[[f"{metric}_p" for metric in METRICS]].notna().any(axis=None):
        lines.append(
            f"*: p < {ALPHA}, two-sided, after Holm (rates: exact McNemar; means: paired permutation)."
        )
    if (frame[["rsr_unjudged", "jsr_unjudged"]] > 0).any(axis=None):
        lines.append("(2?): 2 answers could not be judged; the rate leaves them out.")
    return lines


def _unjudged(row: Row, metric: str) -> str:
    count = row.get(f"{metric}_unjudged")
    return f" ({count}?)" if count else ""


def _mark(row: Row, metric: str) -> str:
    p = row[f"{metric}_p"]
    return "*" if p is not None and p < ALPHA else ""


def markdown(frame: pd.DataFrame, *, title: str, notes: Sequence[str] = ()) -> str:
    """The leaderboard as it reads on GitHub: a table for each train task, then what its marks mean."""
    blocks = [f"# {_escaped(title)}"]
    head = ["method", "utility", "Δ", "RSR", "refusals", "Δ", "JSR", "refusals", "Δ", "train s"]
    for section in _sections(frame):
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *map(_markdown_row, section.rows)]
        blocks.append(f"## {_escaped(section.heading)}")
        if section.caption:
            blocks.append(_escaped(section.caption))
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        blocks.extend(_escaped(line) for line in section.bounds)
    blocks.append("\n".join(f"- {_escaped(line)}" for line in [*_legend(frame), *notes]))
    return "\n\n".join(blocks) + "\n"


def _markdown_row(row: Row) -> list[str]:
    if row["status"] != DONE:
        return [_escaped(row["method"]), _escaped(row["status"]), *[""] * 8]
    cells = [_escaped(row["method"])]
    for metric in METRICS:
        value, delta = row[metric], row[f"{metric}_delta"]
        cells.append(
            "" if value is None else f"{value:.2f}{_unjudged(row, metric)}{_markdown_interval(row, metric)}"
        )
        if metric != "utility":
            refusals = row[f"{metric}_refusals"]
            cells.append("" if refusals is None else f"{refusals:.2f}")
        interval = _markdown_interval(row, f"{metric}_delta", "+")
        cells.append("" if delta is None else _escaped(f"{delta:+.2f}{_mark(row, metric)}") + interval)
    seconds = row["train_seconds"]
    return [*cells, "" if seconds is None else f"{seconds:.1f}"]


def _markdown_interval(row: Row, name: str, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f" [{low:{sign}.1f}, {high:{sign}.1f}]"


def _escaped(text: str) -> str:
    """One line that Markdown takes as text."""
    return "".join(
        f"\\{character}" if character in "\\`*[]<>|#" else character for character in _one_line(text)
    )


# --- terminal --------------------------------------------------------------------------------------

_ASCII = str.maketrans({"Δ": "d", "–": "-", "·": "|", "─": "-"})


def render(frame: pd.DataFrame, console: Console, *, title: str, notes: Sequence[str] = ()) -> None:
    """Print the leaderboard: a table for each train task, made for 100 columns, and what its marks mean."""
    if console.options.ascii_only:
        buffer = io.StringIO()
        render(frame, Console(file=buffer, width=console.width, no_color=True), title=title, notes=notes)
        text = buffer.getvalue().translate(_ASCII).encode("ascii", "replace").decode()
        console.out(text, end="", highlight=False)
        return
    console.print(Text(_one_line(title), style="bold"))
    for section in _sections(frame):
        console.print()
        console.print(Text(_one_line(section.heading), style="bold"))
        console.print(Text(_one_line(section.caption)))
        console.print()
        console.print(_fitting(section.rows, console), crop=False)
        for line in section.failures:
            console.print(Text(_one_line(line), style="red"))
        for line in section.bounds:
            console.print(Text(_one_line(line), style="yellow"))
    console.print()
    for line in [*_legend(frame), *notes]:
        console.print(Text(_one_line(line)))


def _fitting(rows: Sequence[Row], console: Console) -> Table:
    """The most spacious layout that there is room for; the narrowest runs over rather than lose digits."""
    for layout in _LAYOUTS:
        table = _table(rows, layout)
        table.width = console.measure(table, options=console.options.update_width(1_000)).maximum
        if table.width <= console.width:
            break
    return table


@dataclass(frozen=True)
class _Layout:
    gap: int  # blanks between columns, next to the one that the box draws
    seconds: bool = False  # a column with the training's seconds
    refusals_below: bool = False  # refusals below the safe rate's interval, not in their own column


_LAYOUTS = (
    _Layout(1, seconds=True),
    _Layout(1),
    _Layout(0),
    _Layout(1, refusals_below=True),
    _Layout(0, refusals_below=True),
)


def _table(rows: Sequence[Row], layout: _Layout) -> Table:
    """Two lines a method: the figures, and their intervals below."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, layout.gap, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("method", overflow="fold", max_width=24)
    columns = [[Text(_one_line(row["method"])) for row in rows]]

    def add(heading: str, cells: list[Text]) -> None:
        header, *cells = _right([Text(heading), *cells])
        table.add_column(header, no_wrap=True)
        columns.append(cells)

    for metric in METRICS:
        safety = metric != "utility"
        below = layout.refusals_below and safety
        suffix = max(len(_unjudged(row, metric)) for row in rows)
        heading = metric.upper() if safety else metric
        add(
            f"{heading}\nrefusals" if below else heading,
            [_figure(row, metric, suffix, below) for row in rows],
        )
        if safety and not below:
            add("refusals", [Text(_number(row[f"{metric}_refusals"])) for row in rows])
        add("Δ ", [_delta(row, metric) for row in rows])
    if layout.seconds:
        add("train s", [Text(_number(row["train_seconds"])) for row in rows])
    for cells in zip(*columns, strict=True):
        table.add_row(*cells)
    return table


def _right(cells: Sequence[Text]) -> list[Text]:
    """Pad every line on the left. Rich's own right alignment strips the blank that stands for a mark."""
    split = [cell.split("\n", allow_blank=True) for cell in cells]
    width = max(line.cell_len for lines in split for line in lines)
    for lines in split:
        for line in lines:
            line.pad_left(width - line.cell_len)
    return [Text("\n").join(lines) for lines in split]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _figure(row: Row, metric: str, suffix: int, refusals_below: bool) -> Text:
    """``suffix``: the width kept for "(2?)", so that a column's figures stand under each other."""
    if row["status"] != DONE:
        return Text("failed" if metric == "utility" else "", style="red")
    if row[metric] is None:
        return Text("-")
    text = Text(f"{row[metric]:.1f}{_unjudged(row, metric):{suffix}}")
    if row[f"{metric}_low"] is not None:
        text.append(f"\n{row[f'{metric}_low']:.1f}–{row[f'{metric}_high']:.1f}", style="dim")
    if refusals_below:
        text.append(f"\n{_number(row[f'{metric}_refusals']) or '-'}")
    return text


def _delta(row: Row, metric: str) -> Text:
    delta, mark = row[f"{metric}_delta"], _mark(row, metric)
    if delta is None:
        return Text()
    return Text(f"{delta:+.1f}{mark or ' '}", style=("green" if delta > 0 else "red") if mark else "")
