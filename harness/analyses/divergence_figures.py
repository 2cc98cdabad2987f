"""How ``harness analyze kl`` is drawn: KL by answer token, and against the safe rates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analyses.shared import SAFE_RATES
from harness.figures import charts, looks
from harness.run.plan import SEED, shown_method

Row = dict[str, Any]


def _styles(record: Row) -> dict[str, looks.Look]:
    """The same look for a method in every panel."""
    return looks.looks([SEED, *(row["method"] for row in record["means"])])


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes (rows, columns), which share what they measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row", sharex="col")
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def curves(record: Row, paths: Sequence[Path]) -> None:
    """KL by answer token, one curve a method (mean over the seeds), a panel a train task."""
    styles = _styles(record)
    tasks = list(dict.fromkeys(row["train_task"] for row in record["means"] if row["train_task"])) or [None]
    figure, axes = _panels(1, len(tasks), (1.5 + 4 * len(tasks), 4))
    for task, one in zip(tasks, axes[0], strict=True):
        for row in record["means"]:
            if row["train_task"] in (task, None):
                points = [(p["position"], p["value"]) for p in row["positions"] if p["value"]]
                look = {**styles[row["method"]], "markersize": 4, "markevery": max(1, len(points) // 10)}
                if points:
                    one.plot(*zip(*points, strict=True), **look, label=shown_method(row["method"]))
        one.set_yscale("log")
        one.set_title(f"trained on {task}" if task else "checkpoints", fontsize=10)
        one.set_xlabel("answer token")
    axes[0][0].set_ylabel("KL(base ‖ tuned), nats")
    charts.legend(figure, *axes.flat)
    charts.save(figure, *paths)


def against_safety(record: Row, seed_rates: Mapping[str, float | None], paths: Sequence[Path]) -> None:
    """Each checkpoint's safe rates over its mean KL in the first k tokens; the base model's at KL 0."""
    styles = _styles(record)
    widths = [one["tokens"] for one in record["rows"][0]["first"]] if record["rows"] else []
    tasks = list(dict.fromkeys(row["train_task"] for row in record["rows"]))
    figure, axes = _panels(len(SAFE_RATES), max(1, len(widths)), (2 + 2.4 * max(1, len(widths)), 5.2))
    for (line, metric), (column, tokens) in itertools.product(enumerate(SAFE_RATES), enumerate(widths)):
        one = axes[line][column]
        if seed_rates[metric] is not None:
            star = {**styles[SEED], "linestyle": ""}
            one.plot(0, seed_rates[metric], **star, label=shown_method(SEED))
        for row in record["rows"]:
            if row[metric] is None:
                continue
            look = {**styles[row["method"]], "linestyle": ""}
            if len(tasks) > 1:
                fills = ("full", "none", "left", "right")
                look |= {"fillstyle": fills[tasks.index(row["train_task"]) % len(fills)]}
            one.plot(row["first"][column]["value"], row[metric], **look, label=shown_method(row["method"]))
        one.set_ylim(-4, 104)
        if line == len(SAFE_RATES) - 1:
            one.set_xlabel(f"mean KL, first {tokens} tokens")
        if column == 0:
            one.set_ylabel(f"{metric.upper()} (%)")
    marks = ("filled", "open", "left half", "right half")
    named = [f"{mark}: {task or 'own checkpoint'}" for mark, task in zip(marks, tasks, strict=False)]
    if len(tasks) > 1:
        figure.suptitle(" · ".join(named), fontsize=8)
    charts.legend(figure, *axes.flat)
    charts.save(figure, *paths)
