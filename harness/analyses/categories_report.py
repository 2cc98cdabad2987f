"""Safe rates by category in a terminal: a table of categories by methods, and which differ from vanilla's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.analyses.categories import Row, grid_of, shown_rate
from harness.analyses.shared import FOLDER, print_table
from harness.console.terminal import bare_table
from harness.leaderboard.tables import trained_on
from harness.run.plan import shown_method

BLOCK = 9  # methods beside each other in a terminal
FOLDED = 14  # a longer category is folded behind a slash where there are many methods


def show(record: Row, out: Path, console: Console) -> None:
    """Print what ``categories`` found, made for 100 columns."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    say(f"Safe rates by category: {record['model']}, judged by {record['judge']}", "bold")
    shown = list(dict.fromkeys((row["metric"], row["train_task"]) for row in record["table"]))
    for metric, task in shown:
        say(f"\n{metric.upper()} by category (%), {trained_on({'train_task': task})}\n", "bold")
        grid = grid_of(record, task, metric)
        for table in _tables(grid):
            print_table(table, console)
        for line in _changes(grid):
            say(line)
    for reason in dict.fromkeys(gap["reason"] for gap in record["missing"]):
        gone = [gap["cell"] for gap in record["missing"] if gap["reason"] == reason]
        say(f"{', '.join(gone)} missing: {reason}", "red")
    say("")
    several = any(len(row["seeds"]) > 1 for row in record["table"])
    tests = ", ".join(f"{m.upper()} {record['comparisons'][m]}" for m in dict.fromkeys(m for m, _ in shown))
    test = "documents crossed with seeds" if several else "exact McNemar by document"
    say(
        f"*: a difference from vanilla, with all comparisons counted ({test}; Holm over categories, methods "
        f"and train tasks: {tests} comparisons; apart from them the base model, over categories and tasks)."
    )
    if several:
        say("Means over the seeds; below them the lowest and the highest seed's.")
    say("n: judged requests of a category. Intervals: categories.csv.")
    say(f"Files: {out / FOLDER / 'categories.json'}, .csv, categories-<train task>-<metric>.svg, .pdf, .png")


def _tables(grid: Mapping[str, Mapping[str, Row]]) -> Iterator[Table]:
    """Categories by methods, some methods at a time where they are many."""
    methods = list(dict.fromkeys(method for cells in grid.values() for method in cells))
    for start in range(0, len(methods), BLOCK):
        table = bare_table(0)
        table.add_column("category", overflow="fold", min_width=14)
        table.add_column("n", justify="right", no_wrap=True)
        block = methods[start : start + BLOCK]
        for method in block:
            table.add_column(Text(re.sub("[- ]", "\n", shown_method(method))), justify="right", no_wrap=True)
        for category, cells in grid.items():
            counts = sorted({row["n"] for row in cells.values()})
            n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
            tight = len(block) > 6 and len(category) > FOLDED
            name = "/\n".join(category.rsplit("/", 1)) if tight else category
            table.add_row(Text(name), n, *(_entry(cells.get(method)) for method in block))
        yield table


def _entry(row: Row | None) -> Text:
    text = Text(shown_rate(row) + ("" if row and row["changed"] else " "))
    if row and len(row["seeds"]) > 1 and row["lowest"] is not None:
        text.append(f"\n{row['lowest']:.0f}–{row['highest']:.0f}", style="dim")
    return text


def _changes(grid: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    """By method, the categories that differ from vanilla's."""
    for method in dict.fromkeys(method for cells in grid.values() for method in cells):
        for side in ("lower", "higher"):
            found = [
                f"{category} {row['delta']:+.1f}"
                for category, cells in grid.items()
                if (row := cells.get(method)) and row["changed"] == side
            ]
            if found:
                named = "" if len(found) == len(grid) else f": {', '.join(found)}"
                counted = f"{len(found)} of {len(grid)} categories"
                yield f"{shown_method(method)}: {side} than vanilla in {counted}{named}"
