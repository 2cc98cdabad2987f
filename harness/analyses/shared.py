"""What the analyses of a run share: where they write, which safe rates and judge they go by, tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

from harness.config import RunConfig
from harness.console.terminal import natural_width
from harness.contracts import UsageError
from harness.run import metrics

FOLDER = "analysis"  # of a run
SAFE_RATES = metrics.judged()
WIDTH = 100  # columns that tables are made for


def safety_tasks(config: RunConfig) -> dict[str, str]:
    """The task behind each of SAFE_RATES."""
    return {one.name: task for task, one in metrics.by_task(config).items() if one.judged}


def chosen_judge(config: RunConfig, name: str | None) -> str:
    """A run's judge by name, its first without one. Raises UsageError for another."""
    if name is None or name in config.judges:
        return name or config.judges[0]
    raise UsageError(f"judge '{name}' has not judged this run; its judges: {', '.join(config.judges)}")


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """None where one is missing, or all are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def print_table(table: Table, console: Console) -> None:
    """Made for WIDTH columns: on fewer it runs over rather than lose digits."""
    table.width = min(natural_width(table, console), max(WIDTH, console.width))
    console.print(table, crop=False)
