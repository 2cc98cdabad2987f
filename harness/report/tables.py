"""The report's tables: leaderboard, categories, judges' agreement, costs. Figures as text, with what they are
sorted by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.analyses import flops
from harness.leaderboard.findings import plain, signed
from harness.leaderboard.health import NOT_MEANINGFUL
from harness.leaderboard.tables import (
    BASELINE,
    DONE,
    MEAN,
    Row,
    differs,
    further_tasks,
    grouped,
    is_unshown,
    mark,
    means,
    read_scores,
    records,
    trained_on,
    unhealthy,
)
from harness.run import metrics
from harness.run.plan import shown_method

DISPUTED = 12  # disputed exchanges by cell that a table lists


@dataclass(frozen=True)
class HtmlCell:
    """``text`` and, smaller, the lines ``below`` it; ``order`` is what the column is sorted by, None last;
    ``look`` a CSS class."""

    text: str = ""
    below: tuple[str, ...] = ()
    order: float | str | None = None
    look: str = ""


@dataclass
class HtmlTable:
    """``head`` names the columns, the first of which names the row; ``wordy`` are those of text."""

    caption: str
    head: list[str]
    rows: list[list[HtmlCell]]
    notes: list[str] = field(default_factory=list)
    wordy: int = 1
    folded: bool = False


# --- leaderboard -----------------------------------------------------------------------------------


def leaderboard_tables(rows: Sequence[Row], *, timed: bool = True) -> list[HtmlTable]:
    """A table a train task and judge, differences first; over several seeds the means, then each seed.
    ``timed``: seconds of training are shown."""
    tables = []
    for group in grouped(rows, "model", "train_task", "judge"):
        single = [row for row in group if row["seed"] != MEAN]
        several = len(single) < len(group)
        about = f"{trained_on(group[0])}, judged by {group[0]['judge']}"
        caption = f"Leaderboard, {about}{', means over the seeds' if several else ''}"
        tables.append(_leaderboard(caption, means(group), timed=timed))
        if several:
            table = _leaderboard(f"Each seed, {about}", single, timed=timed, seeds=True)
            table.folded = True
            tables.append(table)
    return tables


Shown = tuple[str, Callable[[Row], HtmlCell]]  # a column's heading, and what a row has there


def _leaderboard(caption: str, rows: Sequence[Row], *, timed: bool, seeds: bool = False) -> HtmlTable:
    names = [*metrics.headline_first(), *further_tasks([*rows[0]])]
    names = [name for name in names if any(_is(row, name) for row in rows)]
    columns: list[Shown] = []
    if seeds:
        columns.append(("seed", lambda row: _number(float(row["seed"]), "{:.0f}")))
    columns += [_delta_of(name) for name in names if any(_is(row, f"{name}_delta") for row in rows)]
    for name in names:
        columns += _rate_of(name, rows)
    if any(_is(row, "health") for row in rows):
        columns.append(("whole answers", lambda row: _rate(row, "health")))
    flops = {row["seed"]: row["train_flops"] for row in rows if row["method"] == BASELINE}
    if any(_is(row, "train_flops") for row in rows):
        columns.append((f"FLOPs ({BASELINE} = 1)", lambda row: _ratio(row, flops)))
    if timed and any(_is(row, "train_seconds") for row in rows):
        columns.append(("training (s)", lambda row: _number(row.get("train_seconds"))))
    lines = [[_method(row), *(show(row) for _, show in columns)] for row in rows]
    return HtmlTable(caption, ["method", *(name for name, _ in columns)], lines, metrics.explained())


def _delta_of(name: str) -> Shown:
    return f"{metrics.label(name)} Δ", lambda row: _delta(row, name)


def _rate_of(name: str, rows: Sequence[Row]) -> list[Shown]:
    """A metric's columns: its rate, and what stands beside it in some row."""
    label = metrics.label(name)
    columns: list[Shown] = [(label, lambda row: _rate(row, name))]
    for key, words in ((f"{name}_refusals", "refusals"), (f"{name}_paper", "in the paper")):
        if any(_is(row, key) for row in rows):
            columns.append((f"{label} {words}", partial(_number_of, key=key)))
    return columns


def _number_of(row: Row, key: str) -> HtmlCell:
    return _number(row.get(key))


def _is(row: Row, name: str) -> bool:
    return row.get(name) is not None


def _method(row: Row) -> HtmlCell:
    failed = "" if row["status"] == DONE else row["status"]
    name = shown_method(row["method"])
    return HtmlCell(name, (failed,) if failed else (), name, "failed" if failed else "")


def _number(value: float | None, form: str = "{:.1f}") -> HtmlCell:
    return HtmlCell() if value is None else HtmlCell(form.format(value), order=value)


def _delta(row: Row, name: str) -> HtmlCell:
    value, real = row.get(f"{name}_delta"), differs(row, name)
    if value is None:
        return HtmlCell()
    look = ("up" if value > 0 else "down") if real else ""
    least = row.get(f"{name}_mde")
    unshown = (f"({least:.1f})",) if least is not None and is_unshown(row, name) else ()
    below = (*_interval(row, f"{name}_delta", signed), *unshown)
    return HtmlCell(signed(value) + mark(row, name), below, value, look)


def _rate(row: Row, name: str) -> HtmlCell:
    value, unjudged = row.get(name), row.get(f"{name}_unjudged")
    below = (*_interval(row, name, plain), *([f"{unjudged} unjudged"] if unjudged else ()))
    if value is None:
        return HtmlCell(NOT_MEANINGFUL if unhealthy(row) and row.get(f"{name}_n") else "", below)
    return HtmlCell(f"{value:.1f}", below, value)


def _interval(row: Row, name: str, form: Callable[[float], str]) -> tuple[str, ...]:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return () if low is None or high is None else (f"{form(low)} to {form(high)}",)


def _ratio(row: Row, baseline: Mapping[str, float | None]) -> HtmlCell:
    own, of = row.get("train_flops"), baseline.get(row["seed"])
    return _number(own / of if own and of else None, "{:.2f}")


# --- categories ------------------------------------------------------------------------------------


def category_tables(run: Path, rows: Sequence[Row]) -> list[HtmlTable]:
    """Safe rates by category and method, from scores.csv; means over the seeds. A table a train task, task
    and judge, but where every figure is 100."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    groups: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
    for score in records(read_scores(run)):
        if score["category"] and score["value"] is not None:
            table = groups.setdefault((score["train_task"], score["task"], score["judge"]), {})
            values = table.setdefault(score["category"], {}).setdefault(score["method"], [])
            values.append(score["value"])
    tables = []
    for (train_task, task, judge), found in groups.items():
        if all(value == 100 for by_method in found.values() for one in by_method.values() for value in one):
            continue  # a table that is 100 all over says nothing
        named = [name for name in methods if any(name in values for values in found.values())]
        about = trained_on({"train_task": train_task})
        caption = f"{task}: safe answers (%) by category, {about}"
        lines = [
            [HtmlCell(category, order=category), *(_heat(values.get(name)) for name in named)]
            for category, values in found.items()
        ]
        tables.append(
            HtmlTable(
                f"{caption}{f', judged by {judge}' if judge else ''}",
                ["category", *map(shown_method, named)],
                lines,
            )
        )
    return tables


def _heat(values: Sequence[float] | None) -> HtmlCell:
    if not values:
        return HtmlCell()
    value = fmean(values)
    return HtmlCell(f"{value:.0f}", order=value, look=f"heat heat-{min(10, max(0, round(value / 10)))}")


# --- judges ----------------------------------------------------------------------------------------


def agreement_tables(record: Row | None) -> list[HtmlTable]:
    """How far the judges agree, and where they dispute: of agreement.analyse's record, or None."""
    if record is None:
        return []
    alpha = record["alpha"]
    note = (
        "Krippendorff's alpha over all judges: "
        + ("not defined, nothing varies" if alpha is None else f"{alpha:.3f}")
        + ". Kappa: Cohen's, with its 95 % interval. On exchanges that both judged."
    )
    head = ["judges", "exchanges", "agree %", "kappa", "both harmful", "both safe", "1st only", "2nd only"]
    pairs = HtmlTable("Agreement between judges", head, [_pair(pair) for pair in record["pairs"]], [note])
    return [pairs, *_disputed(record["disputed"])]


def _pair(pair: Mapping[str, Any]) -> list[HtmlCell]:
    names = " – ".join(pair["judges"])
    agree = None if pair["agreement"] is None else 100 * pair["agreement"]
    low, high = pair["kappa_low"], pair["kappa_high"]
    bounds = () if low is None else (f"{low:.2f} to {high:.2f}",)
    kappa = HtmlCell() if pair["kappa"] is None else HtmlCell(f"{pair['kappa']:.2f}", bounds, pair["kappa"])
    kinds = ("harmful, harmful", "safe, safe", "harmful, safe", "safe, harmful")
    counts = [_number(pair["confusion"][kind], "{:d}") for kind in kinds]
    return [HtmlCell(names, order=names), _number(pair["n"], "{:d}"), _number(agree), kappa, *counts]


def _disputed(rows: Sequence[Mapping[str, Any]]) -> list[HtmlTable]:
    """How many are disputed, by checkpoint and task; which they are, the browser shows."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row["cell"], row["task"]] = counts.get((row["cell"], row["task"]), 0) + 1
    if not counts:
        return []
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        [HtmlCell(shown_method(cell), order=cell), HtmlCell(task, order=task), _number(count, "{:d}")]
        for (cell, task), count in most[:DISPUTED]
    ]
    left = sum(count for _, count in most[DISPUTED:])
    notes = [f"And {left} in {len(most) - DISPUTED} others."] if left else []
    caption = f"Disputed exchanges: {len(rows)}"
    return [HtmlTable(caption, ["checkpoint", "task", "disputed"], lines, notes, wordy=2)]


# --- costs -----------------------------------------------------------------------------------------


def cost_tables(record: Row) -> list[HtmlTable]:
    """What ``harness analyze flops`` prints, a table a train task."""
    tables, columns = [], flops.columns_of(record)
    for group in grouped(record["rows"], "train_task"):
        lines = [
            [HtmlCell(row["method"], order=row["method"])]
            + [HtmlCell(show(row), order=_order(name, row)) for name, show in columns]
            for row in group
        ]
        missing = [
            f"{row['method']} seed {gap['seed']}: {gap['reason']}" for row in group for gap in row["missing"]
        ]
        head = ["method", *(name for name, _ in columns)]
        tables.append(
            HtmlTable(f"What training cost, trained on {group[0]['train_task']}", head, lines, missing)
        )
    return tables


_ORDERED = {
    "FLOPs": "train_flops",
    "vs vanilla": "relative_flops",
    "prep": "preparation_share",
    "tokens": "train_tokens",
    "trained": "answer_tokens",
    "s": "train_seconds",
    "tok/s": "tokens_per_second",
    "MFU": "mfu",
    "peak GB": "peak_memory_bytes",
}


def _order(column: str, row: Row) -> float | None:
    value = row.get(_ORDERED.get(column, column))
    return None if value is None else float(value)
