"""How far judges agree, in a terminal: pairs, disputed exchanges, and each judge against people."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = 20  # disputed exchanges in a terminal; --json has them all


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print the figures; judges go by letters, so that their names take no columns."""
    letters = {name: string.ascii_uppercase[place % 26] for place, name in enumerate(record["judges"])}
    for name, letter in letters.items():
        counts = record["judges"][name]
        unjudged = f", {counts['unjudged']} of them unjudged" if counts["unjudged"] else ""
        console.print(Text(f"{letter}  {name}: {counts['n']} exchanges{unjudged}"), soft_wrap=True)
    if record["pairs"]:
        table = _table("\nAgreement, on exchanges that both judged")
        both = ("both\nharm", "both\nsafe", "1st\nonly", "2nd\nonly")
        for column in ("judges", "n", "agree\n%", "kappa\n95 %", *both):
            table.add_column(column, justify="right", no_wrap=True)
        for pair in record["pairs"]:
            counts = pair["confusion"]
            kinds = ("harmful, harmful", "safe, safe", "harmful, safe", "safe, harmful")
            table.add_row(
                "-".join(letters[name] for name in pair["judges"]),
                str(pair["n"]),
                _percent(pair["agreement"]),
                _kappa(pair),
                *(str(counts[kind]) for kind in kinds),
            )
        console.print(table)
        value = record["alpha"]
        shown = "not defined, nothing varies" if value is None else f"{value:.3f}"
        console.print(f"Krippendorff's alpha over all of them: {shown}", highlight=False)
    _show_disputed(record["disputed"], letters, console)
    if "labels" in record:
        _show_labels(record, letters, console)


def _show_disputed(rows: Sequence[Mapping[str, Any]], letters: Mapping[str, str], console: Console) -> None:
    if not rows:
        return
    cells = Counter((row["cell"], row["task"]) for row in rows)
    console.print(Text(f"\nDisputed: {len(rows)} exchanges", style="bold"))
    for row in rows[:SHOWN]:
        said = [letters[judge] for judge, harmful in row["harmful"].items() if harmful]
        console.print(
            Text(f"  {row['cell']} / {row['task']} / {row['exchange_id']}: harmful to {', '.join(said)}"),
            soft_wrap=True,
        )
    if len(rows) > SHOWN:
        most = ", ".join(f"{cell} / {task} {count}" for (cell, task), count in cells.most_common(3))
        console.print(
            Text(f"  and {len(rows) - SHOWN} more (--json has all); most in {most}"), soft_wrap=True
        )


def _show_labels(record: Mapping[str, Any], letters: Mapping[str, str], console: Console) -> None:
    labels = record["labels"]
    title = f"\nAgainst people: {labels['n']} labels, {labels['harmful']} of them harmful (%, 95 %)"
    table = _table(title)
    for column in ("judge", "n", "unjudged", "precision", "recall", "specificity"):
        table.add_column(column, justify="left" if column == "judge" else "right", overflow="fold")
    for row in record["accuracy"]:
        figures = [_estimate(row[name]) for name in ("precision", "recall", "specificity")]
        table.add_row(letters[row["judge"]], str(row["n"]), str(row["unjudged"]), *figures)
    console.print(table)
    table = _table("\nSafe rates corrected for the judge's errors (Rogan-Gladen, 95 %)")
    for column in ("judge", "cell / task", "n", "judged safe", "corrected"):
        text = column in ("judge", "cell / task")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in record["corrected"]:
        interval = "" if row["low"] is None else f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        table.add_row(
            letters[row["judge"]],
            Text(f"{row['cell']} / {row['task']}"),
            str(row["n"]),
            _percent(row["safe"]),
            "-" if row["corrected"] is None else f"{_percent(row['corrected'])}{interval}",
        )
    console.print(table)
    console.print(
        "The correction takes a judge to err equally often in every cell. -: it finds no more harm in "
        "harmful answers than in safe ones, or one kind has no label.",
        highlight=False,
        soft_wrap=True,
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _kappa(pair: Mapping[str, Any]) -> str:
    if pair["kappa"] is None:
        return "-"
    interval = "" if pair["kappa_low"] is None else f"\n{pair['kappa_low']:.2f}–{pair['kappa_high']:.2f}"
    return f"{pair['kappa']:.2f}{interval}"


def _estimate(record: Mapping[str, Any]) -> str:
    if record["value"] is None:
        return "-"
    return f"{_percent(record['value'])} [{_percent(record['low'])}, {_percent(record['high'])}]"
