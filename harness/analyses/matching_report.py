"""How ``harness analyze matched`` is written, drawn and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analyses.shared import FOLDER
from harness.console.terminal import print_whole, say
from harness.figures import charts, looks
from harness.leaderboard.tables import as_csv
from harness.run.plan import SEED, shown_method
from harness.storage.files import write_json_atomic, write_text_atomic

Row = dict[str, Any]
COLUMNS = (
    *("train_task", "method", "utility", "metric", "judge", "safety", "low", "high"),
    *("delta", "delta_low", "delta_high", "reached_share", "highest_utility", "trainings", "trainings_there"),
)


def write(record: Row, out: Path) -> list[Path]:
    """``matched.json`` (all), ``matched.csv`` (a row a method) and a figure a train task in three formats;
    the paths of what was written."""
    folder = out / FOLDER
    write_json_atomic(folder / "matched.json", record)
    frame = pd.DataFrame([row for task in record["train_tasks"] for row in _rows(record, task)])
    write_text_atomic(folder / "matched.csv", as_csv(frame[[*COLUMNS]]))
    drawn = [draw(record, task, folder) for task in record["train_tasks"]]
    return [folder / "matched.json", folder / "matched.csv", *drawn]


def _rows(record: Row, task: Row) -> list[Row]:
    shared = {"train_task": task["train_task"], "utility": task["utility"]}
    shared |= {name: record[name] for name in ("metric", "judge")}
    return [
        {
            **shared,
            **{name: row[name] for name in COLUMNS if name in row},
            "trainings": len(row["trainings"]),
            "trainings_there": len(_there(row)),
        }
        for row in task["methods"]
    ]


def _there(row: Row) -> list[Row]:
    """The trainings of a method that reach the utility."""
    return [one for one in row["trainings"] if one["safety"] is not None]


def draw(record: Row, task: Row, folder: Path) -> Path:
    """One curve a method, the points behind it, and its safety at the utility where methods are compared."""
    name = record["metric"].upper()
    x = f"utility: {task['utility_metric']} of {task['utility_task']} (%)"
    title = f"Safety at matched utility, trained on {task['train_task']}"
    figure, axes = charts.canvas(title, x, f"{name} (%)", size=(7.4, 4.4))
    styles = looks.looks([SEED, *(row["method"] for row in task["methods"])])
    for row in task["methods"]:
        style = styles[row["method"]]
        points = [
            (p["utility"], p["safety"]) for one in row["trainings"] for p in one["points"] if p["epoch"]
        ]
        dots = {**style, "linestyle": "none", "markersize": 3.5, "alpha": 0.4}
        axes.plot(*zip(*points, strict=True), **dots)
        curve = row["curve"] or [(float("nan"), float("nan"))]  # for the legend
        axes.plot(*zip(*curve, strict=True), **{**style, "marker": ""})
        # A mark in the legend as well: lines alone cannot be told apart in grey.
        axes.plot([], [], **style, label=shown_method(row["method"]))
        if row["safety"] is not None:
            errors = [[row["safety"] - row["low"]], [row["high"] - row["safety"]]]
            bar = {**style, "linestyle": "none", "markersize": 8, "capsize": 3}
            axes.errorbar([task["utility"]], [row["safety"]], yerr=errors, zorder=5, **bar)
    start = task["seed_model"]
    star = {**styles[SEED], "linestyle": "none"}
    axes.plot([start["utility"]], [start["safety"]], **star, label=shown_method(SEED))
    if task["utility"] is not None:
        axes.axvline(task["utility"], color="#808080", linewidth=0.8, linestyle=":")
    charts.legend(figure, axes)
    paths = charts.files(folder, f"matched-{task['train_task']}")
    charts.save(figure, *paths)
    return paths[0]


def show(record: Row, console: Console) -> None:
    """A table a train task, and what has to be said of it."""
    for task in record["train_tasks"]:
        print_whole(_table(record, task), console)
        start = task["seed_model"]
        say(console, f"Base model: utility {start['utility']:.1f}, safety {start['safety']:.1f}.")
        if task["utility"] is not None:
            say(console, f"Compared at {task['utility']:g}: {task['rule']}.")
        for note in task["notes"]:
            say(console, note, "yellow")
    seeds = record["seeds"]
    say(
        console,
        f"Percent; 95 % intervals: bootstrap over documents{' and seeds' if len(seeds) > 1 else ''},",
    )
    say(
        console, "paired over methods. Safety is read where a training first reaches the utility, between two"
    )
    say(console, "epochs by a line, and is the mean over the learning rates that reach it.")


def _table(record: Row, task: Row) -> Table:
    at = "" if task["utility"] is None else f" at utility {task['utility']:g}"
    title = f"\n{record['metric'].upper()}{at}, trained on {task['train_task']}, judged by {record['judge']}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method")
    for heading in ("safety", "95 %", "vs vanilla", "95 %", "learning rates", "at epoch", "highest utility"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in task["methods"]:
        there = _there(row)
        epochs = [one["epoch"] for one in there]
        span = (
            ""
            if not epochs
            else f"{min(epochs):.1f}"
            if len(epochs) == 1
            else f"{min(epochs):.1f}–{max(epochs):.1f}"
        )
        table.add_row(
            Text(row["method"]),
            _figure(row["safety"], ".1f"),
            _span(row["low"], row["high"], ".1f"),
            _figure(row["delta"], "+.1f"),
            _span(row["delta_low"], row["delta_high"], "+.1f"),
            f"{len(there)} of {len(row['trainings'])}",
            span,
            f"{row['highest_utility']:.1f}",
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _span(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"
