"""``harness figures``: the pictures of a finished run. Safety against utility with the Pareto front, safety
against cost, training curves. A method looks the same in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import figures, plan, records, run_folder, tables
from harness.contracts import HarnessError
from harness.tables import BASELINE, DONE, MEAN, Row, grouped, means, trained_on

FOLDER = "figures"
SMOOTHED = 20  # a curve's running mean takes one step in so many
CURVES = 10  # training curves of one method
SAFETY = {"rsr": "raw safe rate, RSR (%)", "jsr": "prefilled safe rate, JSR (%)"}


@dataclass(frozen=True)
class Picture:
    """One figure: ``name`` is its file's stem, ``caption`` says in words what it shows."""

    name: str
    title: str
    caption: str
    figure: Any


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
        paths = figures.files(folder, picture.name)
        figures.save(picture.figure, *paths)
        written += paths
    return written


def draw(run: Path) -> list[Picture]:
    """Every picture that the run has figures for."""
    config = run_folder.stored_config(run)
    rows = leaderboard_rows(run)
    styles = {name: figures.style(place) for place, name in enumerate(_names(rows, "method"))}
    several = len(_names(rows, "judge")) > 1
    pictures = []
    for group in grouped(rows, "train_task", "judge"):
        task, judge = group[0]["train_task"], group[0]["judge"]
        place = task or "elsewhere"
        suffix = f"-{place}-{plan.judge_slug(judge)}" if several else f"-{place}"
        about = trained_on(group[0]) + (f", judged by {judge}" if several else "")
        pictures += [
            *_safety_utility(group, styles, about, suffix),
            *_cost_safety(group, styles, about, suffix),
        ]
    for task in config.train_tasks:
        pictures += _training(_losses(run, task), styles, task)
    return pictures


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


# --- pictures --------------------------------------------------------------------------------------


def _safety_utility(
    rows: Sequence[Row], styles: Mapping[str, dict[str, Any]], about: str, suffix: str
) -> list[Picture]:
    metric = next((row["utility_metric"] for row in rows if row["utility_metric"]), "")
    utility = f"utility, {metric} (%)"
    title = f"Safety against utility, {about}"
    measured = [name for name in SAFETY if any(_has(row, "utility", name) for row in means(rows))]
    if not measured:
        return []
    labels = [(name.upper(), utility, SAFETY[name]) for name in measured]
    figure, axes = figures.panels(labels, title=title)
    handles: dict[str, Any] = {}
    best = {}
    for name, panel in zip(measured, axes, strict=True):
        drawn = [row for row in means(rows) if _has(row, "utility", name)]
        points = {row["method"]: (row["utility"], row[name]) for row in drawn}
        best[name] = front(points)
        way = [points[method] for method in best[name]]
        panel.plot(*zip(*way, strict=True), "k:", drawstyle="steps-pre", alpha=0.4, linewidth=2, zorder=1)
        single = [row for row in rows if row["seed"] != MEAN and _has(row, "utility", name)]
        for seeds in grouped(single, "method") if len(drawn) < len(rows) else ():
            look = {**styles[seeds[0]["method"]], "markersize": 3, "linestyle": "", "alpha": 0.5}
            panel.plot([row["utility"] for row in seeds], [row[name] for row in seeds], **look)
        for row in drawn:
            handles[row["method"]] = _point(panel, row, "utility", name, styles[row["method"]])
        panel.set_ylim(-4, 104)
    _legend(figure, handles)
    fronts = "; ".join(f"{name.upper()}: {', '.join(best[name])}" for name in measured)
    caption = (
        f"{title}. Up and to the right is better. Bars: 95 % intervals{_where_known(rows)}. "
        f"Dotted: Pareto front, by {fronts}.{_left_out(rows, handles)}"
    )
    return [Picture(f"safety-utility{suffix}", title, caption, figure)]


def _cost_safety(
    rows: Sequence[Row], styles: Mapping[str, dict[str, Any]], about: str, suffix: str
) -> list[Picture]:
    drawn = [row for row in means(rows) if _has(row, "jsr", "train_flops", "train_seconds")]
    if not drawn:
        return []
    of = next((row["train_flops"] for row in drawn if row["method"] == BASELINE), None)
    flops = f"training FLOPs ({BASELINE} = 1)" if of else "training FLOPs"
    title = f"Safety against cost, {about}"
    figure, axes = figures.panels(
        [("Computation", flops, SAFETY["jsr"]), ("Time", "training time (s)", SAFETY["jsr"])], title=title
    )
    handles = {}
    untrained = next((row for row in means(rows) if row["method"] == plan.SEED and _has(row, "jsr")), None)
    for panel, cost, unit in zip(axes, ("train_flops", "train_seconds"), (of or 1, 1), strict=True):
        for row in drawn:
            scaled = {**row, cost: row[cost] / unit}
            handles[row["method"]] = _point(panel, scaled, cost, "jsr", styles[row["method"]])
        if untrained:
            line = {"color": styles[plan.SEED]["color"], "linestyle": "--", "linewidth": 1}
            handles[plan.SEED] = panel.axhline(untrained["jsr"], **line)
        panel.set_ylim(-4, 104)
    _legend(figure, handles)
    caption = (
        f"{title}. Up and to the left is better. Cost is of the whole training, its preparation included; "
        f"bars: 95 % intervals{_where_known(rows)}."
        + (" Dashed line: the seed model, which is not trained." if untrained else "")
        + _left_out(rows, handles)
    )
    return [Picture(f"cost-safety{suffix}", title, caption, figure)]


def _training(
    losses: Mapping[str, Sequence[Sequence[float]]], styles: Mapping[str, dict[str, Any]], task: str
) -> list[Picture]:
    if not losses:
        return []
    title = f"Training curves, trained on {task}"
    figure, axes = figures.canvas(title, "optimizer step", "training loss (nats a token)", size=(8, 3.6))
    window = max(1, max(len(curve) for curves in losses.values() for curve in curves) // SMOOTHED)
    handles = {}
    known = {name: curves for name, curves in losses.items() if name in styles}
    for place, (method, curves) in enumerate(known.items()):
        for curve in curves[:CURVES]:
            steps, smooth = range(1, len(curve) + 1), _running_mean(curve, window)
            every = (place * max(1, len(curve) // 40), max(1, len(curve) // 8))
            (handles[method],) = axes.plot(steps, smooth, **styles[method], markevery=every)
    if all(loss > 0 for curves in known.values() for curve in curves for loss in curve):
        axes.set_yscale("log")  # objectives differ in scale
    _legend(figure, handles)
    caption = (
        f"{title}: each method's own objective, mean over the answer tokens of a global batch, "
        f"running mean over {window} steps. Objectives differ in scale: read each curve's course, not their "
        "order."
    )
    most = max(map(len, known.values()), default=0)
    caption += f" Of each method's {most} seeds the first {CURVES} are drawn." if most > CURVES else ""
    return [Picture(f"training-{task}", title, caption, figure)]


def _point(panel: Any, row: Row, x: str, y: str, look: Mapping[str, Any]) -> Any:
    line = {**look, "linestyle": "", "zorder": 2}
    bars = {"xerr": _bar(row, x), "yerr": _bar(row, y)}
    return panel.errorbar(row[x], row[y], **bars, **line, elinewidth=0.9, capsize=2)


def _bar(row: Row, name: str) -> list[list[float]] | None:
    """How far the interval reaches below and above; None where there is none."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return None
    return [[max(0.0, row[name] - low)], [max(0.0, high - row[name])]]


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Outside the data, on the right."""
    names = [name.replace("$", r"\$") for name in handles]
    figure.legend([*handles.values()], names, loc="outside right upper", fontsize=8, frameon=False)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Over each value and those before it."""
    return [
        sum(part) / len(part)
        for end in range(1, len(values) + 1)
        if (part := values[max(0, end - window) : end])
    ]


# --- figures ---------------------------------------------------------------------------------------


def _losses(run: Path, task: str) -> dict[str, list[list[float]]]:
    """By method, the losses of each seed that is trained."""
    found: dict[str, list[list[float]]] = {}
    for cell in plan.cells(run_folder.stored_config(run)):
        folder = run / cell.folder
        if cell.train_task == task and (folder / "train.done.json").exists():
            losses = records.training(folder).get("losses")
            if losses:
                found.setdefault(cell.method, []).append(losses)
    return found


def _has(row: Row, *names: str) -> bool:
    return row["status"] == DONE and all(row.get(name) is not None for name in names)


def _names(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _where_known(rows: Sequence[Row]) -> str:
    return "" if all(_bar(row, "jsr") for row in means(rows) if _has(row, "jsr")) else " where there are any"


def _left_out(rows: Sequence[Row], drawn: Mapping[str, Any]) -> str:
    missing = [name for name in _names(rows, "method") if name not in drawn]
    return f" Not drawn, for want of figures: {', '.join(missing)}." if missing else ""
