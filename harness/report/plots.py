"""``harness figures``: the pictures of a finished run. Safety against utility with every method's name,
safety against cost, training curves. A method looks the same in all of them (looks.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analyses import flops
from harness.contracts import HarnessError
from harness.figures import charts, looks
from harness.figures.charts import Picture
from harness.figures.labels import Label, place_labels, shortened
from harness.leaderboard import tables
from harness.leaderboard.tables import BASELINE, DONE, MEAN, Row, grouped, means, trained_on
from harness.report import curves
from harness.run import metrics, plan, run_folder
from harness.run.plan import shown_method

FOLDER = "figures"
OVERVIEW = "overview-"  # how the names of the pictures that a report opens with begin
MARKED = (plan.SEED, BASELINE)  # what the others are read against
UTILITY, JSR = metrics.UTILITY.name, metrics.JSR.name
Looks = Mapping[str, looks.Look]
Limits = tuple[float, float]


def write(run: Path, out: Path | None = None) -> list[Path]:
    """Each picture of a run as SVG, PDF and PNG in ``out`` (the run's ``figures/``): the files' paths.

    Raises HarnessError where there is nothing to draw.
    """
    folder = out or run / FOLDER
    written: list[Path] = []
    pictures = draw(run)
    if not pictures:
        raise HarnessError(f"{run}: no method has figures to draw yet (harness leaderboard {run})")
    for picture in pictures:
        paths = charts.files(folder, picture.name)
        charts.save(picture.figure, *paths)
        written += paths
    return written


def draw(run: Path) -> list[Picture]:
    """Every picture that the run has figures for."""
    return [*overview(leaderboard_rows(run)).values(), *evidence(run)]


def evidence(run: Path) -> list[Picture]:
    """All but those that a run opens with."""
    config = run_folder.stored_config(run)
    rows = leaderboard_rows(run)
    styles = _choose_styles(rows)
    several = len(_list_names(rows, "judge")) > 1
    timed = not flops.side_by_side(run)
    pictures: list[Picture] = []
    for group in grouped(rows, "train_task", "judge"):
        task, judge = group[0]["train_task"], group[0]["judge"]
        place = task or "elsewhere"
        suffix = f"-{place}-{plan.judge_slug(judge)}" if several else f"-{place}"
        about = trained_on(group[0]) + (f", judged by {judge}" if several else "")
        pictures += [
            *_draw_safety_utility(group, styles, about, suffix),
            *_draw_cost_safety(group, styles, about, suffix, timed=timed),
        ]
    for task in config.train_tasks:
        pictures += curves.training(run, task, styles)
    return pictures


def overview(rows: Sequence[Row]) -> dict[str, Picture]:
    """By train task what a run opens with: safety (JSR; RSR where nothing is prefilled) against utility by
    its first judge. The base model and vanilla are marked, and every point carries its name. Axes reach
    equally far in all train tasks."""
    styles = _choose_styles(rows)
    rows = [row for row in rows if row["judge"] == rows[0]["judge"]]
    metric = _headline(rows)
    if not metric:
        return {}  # nothing judged, or no rows at all
    drawn = [row for row in means(rows) if _has(row, UTILITY, metric)]
    reach = {name: _find_limits(drawn, name) for name in (UTILITY, metric)}
    found = {}
    for group in grouped(rows, "train_task"):
        draw_it = _overview if any(_has(row, UTILITY, metric) for row in means(group)) else _safety_alone
        if any(_has(row, metric) for row in means(group)):
            found[group[0]["train_task"]] = draw_it(group, metric, styles, reach)
    return found


def leaderboard_rows(run: Path) -> list[Row]:
    """The rows of a run's leaderboard.json. Raises HarnessError where there is none that can be read."""
    rows: list[Row] = tables.record(run)["rows"]
    return rows


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those that no other surpasses in one value without falling behind in the other (Pareto), by the first
    value; more is better in both."""

    def surpassed(one: tuple[float, float]) -> bool:
        return any(other[0] >= one[0] and other[1] >= one[1] and other != one for other in points.values())

    return sorted((name for name, point in points.items() if not surpassed(point)), key=points.__getitem__)


# --- what a run opens with ---------------------------------------------------------------------------


def _headline(rows: Sequence[Row]) -> str:
    return next((name for name in metrics.headlines() if any(_has(row, name) for row in rows)), "")


def _overview(rows: Sequence[Row], metric: str, styles: Looks, reach: Mapping[str, Limits]) -> Picture:
    about, place = trained_on(rows[0]), rows[0]["train_task"] or "elsewhere"
    figure, panel = charts.canvas("", _label_utility(rows), metrics.axis(metric), size=(4.5, 3.9))
    _limit_axes(panel, x=reach[UTILITY], y=reach[metric])
    drawn = _draw_points(figure, panel, rows, UTILITY, metric, styles)
    charts.legend(figure, panel, below=True)
    vanilla = next((row for row in drawn if row["method"] == BASELINE), None)
    if vanilla:
        line = {"color": "#b0b0b0", "linewidth": 0.9, "linestyle": "--", "zorder": 0}
        panel.axvline(vanilla[UTILITY], **line)
        panel.axhline(vanilla[metric], **line)
    title = f"Safety against utility, {about}"
    better = " Higher is safer, further right is more useful than vanilla (dashed)." if vanilla else ""
    text = f"{title}.{better} Bars: 95 % intervals{_where_known(drawn, metric, UTILITY)}."
    text += _single_seeds(rows)
    return Picture(
        f"{OVERVIEW}{place}", title, text + _name_left_out(rows, _list_names(drawn, "method")), figure
    )


def _safety_alone(rows: Sequence[Row], metric: str, styles: Looks, reach: Mapping[str, Limits]) -> Picture:
    """Of rows without a utility: safe rates below each other."""
    about, place = trained_on(rows[0]), rows[0]["train_task"] or "elsewhere"
    drawn = [row for row in means(rows) if _has(row, metric)]
    size = (4.5, 1.2 + 0.34 * len(drawn))
    figure, panel = charts.canvas("", metrics.axis(metric), "", size=size)
    names = [shortened(shown_method(row["method"])) for row in drawn]
    panel.set_yticks(range(len(drawn)), names)
    panel.invert_yaxis()
    _limit_axes(panel, x=_find_limits(drawn, metric))
    for place_, row in enumerate(drawn):
        look = {**styles[row["method"]], "linestyle": ""}
        bars = {"xerr": _measure_bar(row, metric), **charts.faint_bars(look)}
        panel.errorbar(row[metric], place_, **bars, **look)
    title = f"Safety, {about}"
    text = f"{title}. Further right is safer. Bars: 95 % intervals{_where_known(drawn, metric)}."
    return Picture(
        f"{OVERVIEW}{place}", title, text + _name_left_out(rows, _list_names(drawn, "method")), figure
    )


def _limit_axes(panel: Any, *, x: Limits | None = None, y: Limits | None = None) -> None:
    """How far an axis reaches, with ticks between 0 and 100 alone."""
    for axis, reach, limits in ((panel.xaxis, panel.set_xlim, x), (panel.yaxis, panel.set_ylim, y)):
        if limits:
            reach(*limits)
            low, high = max(0.0, limits[0]), min(100.0, limits[1])
            axis.set_ticks([tick for tick in axis.get_ticklocs() if low <= tick <= high])


def _find_limits(rows: Sequence[Row], name: str) -> Limits:
    """How far an axis of percentages reaches: every interval, with room for names."""
    bounds = [
        row[key] for row in rows for key in (name, f"{name}_low", f"{name}_high") if row.get(key) is not None
    ]
    if not bounds:
        return (-4.0, 104.0)
    low, high = min(bounds), max(bounds)
    room = max(0.12 * (high - low), 5.0)
    return max(-4.0, low - room), min(104.0, high + room)


# --- pictures --------------------------------------------------------------------------------------


def _draw_safety_utility(rows: Sequence[Row], styles: Looks, about: str, suffix: str) -> list[Picture]:
    title = f"Safety against utility, {about}"
    drawn = [row for row in means(rows) if _has(row, UTILITY)]
    measured = [name for name in metrics.judged() if any(_has(row, UTILITY, name) for row in drawn)]
    flat = [name for name in measured if all(_full(row[name]) for row in drawn if _has(row, name))]
    if len(flat) < len(measured):  # a panel on which all is at 100 shows nothing
        measured = [name for name in measured if name not in flat]
    if not measured:
        return []
    several = len(measured) > 1
    size = (8.6, 4.2) if several else (5.2, 4.2)
    x = _label_utility(rows)
    labels = [(metrics.label(name) if several else "", x, metrics.axis(name)) for name in measured]
    figure, axes = charts.panels(labels, title=title, size=size)
    best = {}
    for name, panel in zip(measured, axes, strict=True):
        mine = [row for row in drawn if _has(row, name)]
        points = {row["method"]: (row[UTILITY], row[name]) for row in mine}
        best[name] = front(points)
        way = [points[method] for method in best[name]]
        path = {"color": "#808080", "linestyle": ":", "linewidth": 1.6, "zorder": 1}
        panel.plot(*zip(*way, strict=True), drawstyle="steps-pre", **path)
        _limit_axes(panel, x=_find_limits(mine, UTILITY), y=_find_limits(mine, name))
    names = [
        row["method"]
        for name, panel in zip(measured, axes, strict=True)
        for row in _draw_points(figure, panel, rows, UTILITY, name, styles)
    ]
    charts.legend(figure, *axes, below=True)
    fronts = "; ".join(f"{metrics.label(name)}: {_list_methods(best[name])}" for name in measured)
    same = "".join(
        f" {metrics.label(name)} is 100.0 % for all and not drawn." for name in flat if name not in measured
    )
    caption = (
        f"{title}. Up and to the right is better. Bars: 95 % intervals"
        f"{_where_known(drawn, UTILITY, *measured)}. Dotted: Pareto front, by {fronts}."
        f"{same}{_single_seeds(rows)}{_name_left_out(rows, names)}"
    )
    return [Picture(f"safety-utility{suffix}", title, caption, figure)]


def _draw_points(
    figure: Any, panel: Any, rows: Sequence[Row], x: str, y: str, styles: Looks, *, unit: float = 1.0
) -> list[Row]:
    """Each method's mark with its interval bars and its name; where there is no room for a name, it stands in
    the legend that the figure gets. ``unit``: what x is divided by. Returns the rows that were drawn."""
    drawn = [{**row, x: row[x] / unit} for row in means(rows) if _has(row, x, y)]
    several = {row["method"] for row in rows if row["seed"] == MEAN}
    single = [row for row in rows if row["seed"] != MEAN and row["method"] in several and _has(row, x, y)]
    for seeds in grouped(single, "method"):
        look = {**styles[seeds[0]["method"]], "markersize": 3, "linestyle": "", "alpha": 0.5}
        panel.plot([row[x] / unit for row in seeds], [row[y] for row in seeds], **look)
    handles = {row["method"]: _draw_point(panel, row, x, y, styles[row["method"]]) for row in drawn}
    small = [(row[x] / unit, row[y]) for row in single]
    first = sorted(drawn, key=lambda row: row["method"] not in MARKED)
    labels = [_make_label(row, x, y, styles, small) for row in first]
    crowded = {label.text for label in place_labels(figure, panel, labels)}
    for name, handle in handles.items():
        if shown_method(name) in crowded:
            handle.set_label(shown_method(name))
    return drawn


def _make_label(row: Row, x: str, y: str, styles: Looks, small: Sequence[tuple[float, float]]) -> Label:
    """A method's name, which keeps off its own bars and the ``small`` marks of single seeds."""
    across, up = _measure_bar(row, x), _measure_bar(row, y)
    bars = [(*point, *point) for point in small]
    if across:
        bars.append((row[x] - across[0][0], row[y], row[x] + across[1][0], row[y]))
    if up:
        bars.append((row[x], row[y] - up[0][0], row[x], row[y] + up[1][0]))
    weight = "bold" if row["method"] in MARKED else "normal"
    name, colour = shown_method(row["method"]), styles[row["method"]]["color"]
    return Label((row[x], row[y]), name, tuple(bars), weight=weight, colour=colour)


def _draw_cost_safety(
    rows: Sequence[Row], styles: Looks, about: str, suffix: str, *, timed: bool
) -> list[Picture]:
    """``timed``: seconds are drawn too."""
    needed = (JSR, "train_flops", *(["train_seconds"] if timed else []))
    drawn = [row for row in means(rows) if _has(row, *needed)]
    if not drawn:
        return []
    of = next((row["train_flops"] for row in drawn if row["method"] == BASELINE), None)
    computation = f"training FLOPs ({BASELINE} = 1)" if of else "training FLOPs"
    title = f"Safety against cost, {about}"
    safety = metrics.axis(JSR)
    labels = [("Computation" if timed else "", computation, safety)]
    labels += [("Time", "training time (s)", safety)] if timed else []
    figure, axes = charts.panels(labels, title=title, size=(8.6, 4.2) if timed else (5.2, 4.2))
    untrained = next((row for row in means(rows) if row["method"] == plan.SEED and _has(row, JSR)), None)
    costs = (("train_flops", of or 1.0), ("train_seconds", 1.0))
    for panel, (cost, unit) in zip(axes, costs, strict=False):
        _frame_costs(panel, [row[cost] / unit for row in drawn])
        if untrained:
            line = {"color": looks.BLACK, "linestyle": "--", "linewidth": 1}
            panel.axhline(untrained[JSR], **line, zorder=0)
    for panel, (cost, unit) in zip(axes, costs, strict=False):
        trained = [row for row in rows if _has(row, *needed)]
        _draw_points(figure, panel, trained, cost, JSR, styles, unit=unit)
    charts.legend(figure, *axes, below=True)
    names = [*_list_names(drawn, "method"), *([plan.SEED] if untrained else [])]
    caption = (
        f"{title}. Up and to the left is better. Costs are of the whole training, with its preparation; "
        f"bars: 95 % intervals{_where_known(drawn, JSR)}."
        + (" Dashed line: the base model, which is not trained." if untrained else "")
        + ("" if timed else f" {flops.NO_SECONDS.partition('.')[0]}.")
        + _name_left_out(rows, names)
    )
    return [Picture(f"cost-safety{suffix}", title, caption, figure)]


def _frame_costs(panel: Any, costs: Sequence[float]) -> None:
    """How far the axes of safe rates against these costs reach: all points, with room for names."""
    room = max(0.15 * (max(costs) - min(costs)), 0.05 * max(costs)) or 1.0
    panel.set_xlim(min(costs) - room, max(costs) + 2 * room)
    _limit_axes(panel, y=(-4.0, 104.0))


def _draw_point(panel: Any, row: Row, x: str, y: str, look: looks.Look) -> Any:
    line = {**look, "linestyle": "", "zorder": 3 if row["method"] in MARKED else 2}
    bars = {"xerr": _measure_bar(row, x), "yerr": _measure_bar(row, y)}
    return panel.errorbar(row[x], row[y], **bars, **line, **charts.faint_bars(look))


def _measure_bar(row: Row, name: str) -> list[list[float]] | None:
    """How far the interval reaches below and above; None where there is none."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return None
    return [[max(0.0, row[name] - low)], [max(0.0, high - row[name])]]


# --- figures ---------------------------------------------------------------------------------------


def _has(row: Row, *names: str) -> bool:
    return row["status"] == DONE and all(row.get(name) is not None for name in names)


def _list_names(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _choose_styles(rows: Sequence[Row]) -> dict[str, looks.Look]:
    return looks.looks(_list_names(rows, "method"))


def _label_utility(rows: Sequence[Row]) -> str:
    metric = next((found for row in rows if (found := row[f"{UTILITY}_metric"])), "")
    return f"utility, {metric} (%)"


def _full(value: float) -> bool:
    return f"{value:.1f}" == "100.0"


def _list_methods(names: Iterable[str]) -> str:
    return ", ".join(map(shown_method, names))


def _where_known(rows: Sequence[Row], *metrics: str) -> str:
    known = all(_measure_bar(row, name) for row in rows for name in metrics if _has(row, name))
    return "" if known else " where there are any"


def _single_seeds(rows: Sequence[Row]) -> str:
    return " Small marks: single seeds." if any(row["seed"] == MEAN for row in rows) else ""


def _name_left_out(rows: Sequence[Row], drawn: Iterable[str]) -> str:
    there = set(drawn)
    missing = [name for name in _list_names(rows, "method") if name not in there]
    return f" Not drawn, because figures are missing: {_list_methods(missing)}." if missing else ""
