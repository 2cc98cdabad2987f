"""Each epoch's checkpoint scored: how utility and safety move while a method trains.

Methods differ in how fast they learn; their safety is to be compared where their utility is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.config import RunConfig
from harness.figures import charts
from harness.leaderboard import build, collect
from harness.leaderboard.tables import SCORE_COLUMNS, as_csv
from harness.run import plan
from harness.run.resolve import resolve
from harness.storage.files import write_text_atomic

FILE = "epochs.csv"


def asked(config: RunConfig) -> bool:
    """Whether a run scores its epochs; one that trains nothing has none."""
    return config.eval_every_epoch and any(cell.kind == "trained" for cell in resolve(config).cells())


def outputs(config: RunConfig) -> list[str]:
    """The files that ``write`` makes."""
    return [FILE, *(f"epochs-{task}.svg" for task in config.train_tasks)] if asked(config) else []


def ends(config: RunConfig, cells: Sequence[plan.Cell]) -> list[tuple[int, list[plan.Cell]]]:
    """Each epoch from 1, with the cells of what is trained, as they are at its end."""
    ways = [[*plan.epochs(config, cell), cell] for cell in cells if cell.kind == "trained"]
    longest = max(map(len, ways), default=0)
    return [(epoch, [way[epoch - 1] for way in ways if epoch <= len(way)]) for epoch in range(1, longest + 1)]


def write(
    config: RunConfig, out: Path, cells: Sequence[plan.Cell], failures: Mapping[Path, str], folder: Path
) -> None:
    """``epochs.csv``, long: scores.csv's columns and ``epoch``; and a figure for each train task."""
    frames = []
    for epoch, found in ends(config, cells):
        results = collect.collect(config, out, found, failures)
        frames.append(build.long_scores(results).assign(epoch=epoch))
    frame = pd.concat(frames)[[*SCORE_COLUMNS, "epoch"]]
    write_text_atomic(folder / FILE, as_csv(frame))
    for task in config.train_tasks:
        title = f"Utility and safety by epoch, trained on {task}"
        charts.trajectories(_ways(frame, config, task), title, folder / f"epochs-{task}.svg")


def _ways(frame: pd.DataFrame, config: RunConfig, train_task: str) -> dict[str, list[tuple[float, float]]]:
    """(utility, JSR) of each method by epoch, mean over seeds, by the run's first judge."""
    task = resolve(config).train_task(train_task)
    mine = frame[(frame["train_task"] == train_task) & (frame["category"].fillna("") == "")]
    utility = mine[(mine["task"] == task.utility_task) & (mine["metric"] == task.utility_metric)]
    jsr = mine[(mine["task"] == config.safety.prefill_task) & (mine["judge"] == config.judges[0])]
    means = [part.groupby(["method", "epoch"], sort=False)["value"].mean() for part in (utility, jsr)]
    both = pd.concat(means, axis=1, keys=["utility", "jsr"]).dropna()
    ways: dict[str, list[tuple[float, float]]] = {}
    names = both.index.get_level_values("method")
    for method, of_utility, of_jsr in zip(names, both["utility"], both["jsr"], strict=True):
        ways.setdefault(str(method), []).append((float(of_utility), float(of_jsr)))
    return ways


def render(config: RunConfig, out: Path, console: Console) -> None:
    """Utility and JSR of each method, epoch by epoch, a table a train task."""
    frame = pd.read_csv(out / FILE, dtype={"seed": str, "category": str, "judge": str})
    for train_task in config.train_tasks:
        table = Table(
            title=f"\nBy epoch, trained on {train_task}: utility / JSR (%)",
            title_justify="left",
            box=None,
            header_style="bold",
            padding=(0, 2, 0, 0),
        )
        table.add_column("method")
        ways = _ways(frame, config, train_task)
        for epoch in range(1, max(map(len, ways.values()), default=0) + 1):
            table.add_column(f"epoch {epoch}", justify="right")
        for method, way in ways.items():
            table.add_row(Text(method), *(f"{utility:.1f} / {jsr:.1f}" for utility, jsr in way))
        console.print(table)
