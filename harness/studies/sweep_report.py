"""What a sweep found, as files, figures and tables.

Points are those of ``sweep_points.collect``; one whose metric is None is a gap in a figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.terminal import bare_table
from harness.figures import charts, looks
from harness.figures.labels import Label, along, place_labels
from harness.leaderboard import tables
from harness.run import metrics
from harness.run.plan import shown_method
from harness.storage.files import write_json_atomic, write_text_atomic
from harness.studies.sweep_points import BUDGET, DEPTHS, METRICS, Point, shown

NAMES = {name: metrics.label(name) for name in METRICS}
COUNTS = ("_n", "_unjudged", "_k", "tokens", "epoch")  # how columns of whole numbers end
LABEL = 24  # letters of a text below an axis


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """``sweep-<name>.{json,csv}`` (a budget's: ``budget``), and figures a train task, by the first judge."""
    stem = BUDGET if record["sweep"] == BUDGET else f"sweep-{record['sweep']}"
    frame = pd.DataFrame([*record["points"], *record["references"]])
    counts = [name for name in map(str, frame.columns) if name.endswith(COUNTS)]
    frame = frame.astype(dict.fromkeys(counts, "Int64"))
    files = [folder / f"{stem}.json", folder / f"{stem}.csv"]
    write_json_atomic(files[0], dict(record))
    write_text_atomic(files[1], tables.as_csv(frame))
    for task in dict.fromkeys(point["train_task"] for point in record["points"]):
        for kind, figure in _figures(record, task).items():
            paths = charts.files(folder, f"{stem}-{task}{kind}")
            charts.save(figure, *paths)
            files += paths
    return files


def _figures(record: Mapping[str, Any], train_task: str) -> dict[str, Any]:
    """A train task's figures, by how their files' names go on."""
    judge = record["judges"][0]
    where = f"trained on {train_task}, judged by {judge}"
    points, references = (shown(record[part], train_task, judge) for part in ("points", "references"))
    if record["sweep"] == DEPTHS:
        return {"": by_depth(points, record["axis"], where)}
    if record["sweep"] == BUDGET:
        return {f"-{rate}": by_utility(points, references, rate, where) for rate in metrics.judged()}
    return {"": by_value(points, references, record["axis"], where)}


# --- figures ---------------------------------------------------------------------------------------


def by_value(points: Sequence[Point], references: Sequence[Point], axis: str, where: str) -> Any:
    """Utility, RSR and JSR of each value, a panel each; the base model and vanilla as horizontal lines."""
    labels = [(name, axis, "%") for name in NAMES.values()]
    figure, panels = charts.panels(labels, title=f"Utility and safety: {where}", size=(11, 3.8))
    values = list(dict.fromkeys(point["value"] for point in points))
    named = any(isinstance(value, str) for value in values)
    place = {value: number if named else value for number, value in enumerate(values)}
    methods = list(dict.fromkeys(point["method"] for point in points))
    styles = looks.looks([*methods, *(reference["row"] for reference in references)])
    for metric, axes in zip(NAMES, panels, strict=True):
        ticks = [_short(str(value)) for value in values]
        turned = {"rotation": 25, "ha": "right", "fontsize": 8} if named else {}
        axes.set_xticks([place[value] for value in values], ticks, **turned)
        for method in methods:
            mine = [point for point in points if point["method"] == method]
            xs = [place[point["value"]] for point in mine]
            _curve(axes, mine, xs, metric, styles[method], shown_method(method))
        for reference in references:
            if reference[metric] is not None:
                look = {key: styles[reference["row"]][key] for key in ("color", "linestyle")}
                axes.axhline(reference[metric], linewidth=1.1, label=shown_method(reference["row"]), **look)
    charts.legend(figure, *panels)
    return figure


def by_depth(points: Sequence[Point], axis: str, where: str) -> Any:
    """JSR over k, one curve a row."""
    title = f"Depth of the attack: {where}"
    figure, axes = charts.canvas(title, axis, "prefilled safe rate, JSR (%)", size=(7.4, 4.2))
    axes.set_xticks(sorted({point["value"] for point in points}))
    styles = looks.looks(point["row"] for point in points)
    for row, look in styles.items():
        mine = [point for point in points if point["row"] == row]
        _curve(axes, mine, [point["value"] for point in mine], "jsr", look, shown_method(row))
    charts.legend(figure, axes)
    return figure


def by_utility(points: Sequence[Point], references: Sequence[Point], safety: str, where: str) -> Any:
    """A safe rate against utility, one curve a method and learning rate through its epochs. Beside each point
    stand its epoch and, at the last, the learning rate, as far as there is room."""
    title = f"Safety at each utility: {where}"
    figure, axes = charts.canvas(title, "utility (%)", f"{NAMES[safety]} (%)", size=(7.6, 4.6))
    done = [point for point in [*references, *points] if point["utility"] is not None]
    styles = looks.looks(point["method"] for point in done)
    labels = []
    for way in tables.grouped([{"learning_rate": None, "epoch": 0, **point} for point in done],
                              "method", "learning_rate"):  # fmt: skip
        method = way[0]["method"]
        mine = sorted(way, key=lambda point: point["epoch"])
        look = {**styles[method], "xerr": _bars(mine, "utility")}
        _curve(axes, mine, [point["utility"] for point in mine], safety, look, shown_method(method))
        labels += _budgets(mine, safety, str(styles[method]["color"]))
    charts.legend(figure, axes)
    place_labels(figure, axes, sorted(labels, key=lambda label: -len(label.text)), fontsize=7.5)
    return figure


def _budgets(way: Sequence[Point], safety: str, colour: str) -> list[Label]:
    """What stands beside the points of one training: epochs, and at its end the learning rate."""
    known = [point for point in way if point[safety] is not None]
    curve = along([(point["utility"], point[safety]) for point in known])
    labels = []
    for point in known:
        x, y = point["utility"], point[safety]
        text = f"{point['epoch']}"
        if point["learning_rate"] is None:
            text = shown_method(point["row"])
        elif point is known[-1]:
            text = f"lr {point['learning_rate']:g}, epoch {text}"
        across, up = (
            (_reach(point, name, "low"), _reach(point, name, "high")) for name in ("utility", safety)
        )
        bars = [(x - across[0], y, x + across[1], y), (x, y - up[0], x, y + up[1])]
        labels.append(Label((x, y), text, [*curve, *bars], colour=colour))
    return labels


def _curve(
    axes: Any, points: Sequence[Point], xs: Sequence[float], metric: str, look: looks.Look, label: str
) -> None:
    """A curve with interval bars. A point without a value is a gap."""
    values = [math.nan if point[metric] is None else point[metric] for point in points]
    bars = {"yerr": _bars(points, metric), **charts.faint_bars(look)}
    axes.errorbar(xs, values, label=label, **bars, **look)


def _bars(points: Sequence[Point], metric: str) -> list[list[float]]:
    """How far the intervals reach below and above the values: nowhere where there is none."""
    return [[_reach(point, metric, end) for point in points] for end in ("low", "high")]


def _reach(point: Point, metric: str, end: str) -> float:
    limit = point[f"{metric}_{end}"]
    return 0.0 if limit is None else abs(limit - point[metric])


def _short(text: str) -> str:
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


# --- terminal --------------------------------------------------------------------------------------


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print a table for each train task and judge."""
    everything = [*record["references"], *record["points"]]
    for task in dict.fromkeys(point["train_task"] for point in record["points"]):
        for judge in record["judges"]:
            points = shown(everything, task, judge)
            title = f"\nsweep {record['sweep']}: trained on {task}, judged by {judge}\n"
            console.print(Text(title, style="bold"), soft_wrap=True)
            console.print(
                _depth_table(points) if record["sweep"] == DEPTHS else _table(record["axis"], points)
            )
            for line in dict.fromkeys(
                f"{shown_method(p['row'])} {p['status']}" for p in points if p["status"] != tables.DONE
            ):
                console.print(Text(line, style="red"), soft_wrap=True)
    means = any(point["seed"] == tables.MEAN for point in everything)
    console.print(Text("\nMeans over the seeds." if means else "\nPercentages with 95 % intervals."))
    for note in record["notes"]:
        console.print(Text(note), soft_wrap=True)


def _table(axis: str, points: Sequence[Point]) -> Table:
    """A row a point. Texts stand in quotes, so that their blanks are seen."""
    known = {name for point in points for name in point}
    coordinates = [name for name in ("value", "tokens", "learning_rate", "epoch") if name in known]
    several = "value" not in known or len({point["method"] for point in points if "value" in point}) > 1
    names = ["method"] * several + [
        axis if name == "value" else name.replace("_", " ") for name in coordinates
    ]
    table = _grid(*names, *NAMES.values(), left=several + 1)
    for point in points:
        where = [_coordinate(point.get(name)) for name in coordinates]
        where = [shown_method(point["method"]), *where] if several else where
        where[0] = where[0] or shown_method(point["row"])  # a reference has no value
        table.add_row(*map(Text, where), *(Text(_figure(point, metric)) for metric in METRICS))
    return table


def _depth_table(points: Sequence[Point]) -> Table:
    depths = list(dict.fromkeys(point["value"] for point in points))
    table = _grid("JSR", *(f"k = {depth}" for depth in depths), left=1)
    for row in dict.fromkeys(point["row"] for point in points):
        by_depth = {point["value"]: point for point in points if point["row"] == row}
        table.add_row(Text(shown_method(row)), *(Text(_figure(by_depth[depth], "jsr")) for depth in depths))
    return table


def _grid(*headings: str, left: int) -> Table:
    """``left``: how many columns are not figures."""
    table = bare_table()
    for number, heading in enumerate(headings):
        name = number < left
        table.add_column(heading, justify="left" if name else "right", overflow="fold", no_wrap=not name)
    return table


def _coordinate(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else f"{value:g}"


def _figure(point: Point, metric: str) -> str:
    """The value, and below it the interval."""
    value, low, high = (point[f"{metric}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return f"{value:.1f}" if low is None else f"{value:.1f}\n{low:.1f}-{high:.1f}"
