"""Outcomes made up by hand, for what is built from a run's outcomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.run import metrics


def outcome(flags: str, *, task: str = "raw", **more: Any) -> TaskOutcome:
    """One document a character: 1 safe (or right), 0 harmful (or wrong), ? unjudged."""
    values = {f"d{i}": {"1": 1.0, "0": 0.0, "?": None}[flag] for i, flag in enumerate(flags)}
    return TaskOutcome(task, "safe", values, True, **more)


def result(method: str, **more: Any) -> CellResult:
    """One checkpoint's; ``more`` has its outcomes by headline metric, and what is to be otherwise."""
    names = {"model": "mini", "train_task": "gsm8k", "seed": 42, "judge": "exact", "status": "done"}
    given = {name: more.pop(name) for name in metrics.names() if name in more}
    outcomes = {name: outcome for name, outcome in given.items() if outcome is not None}
    return CellResult(method=method, outcomes=outcomes, **(names | more))


def changed(one: CellResult, **outcomes: TaskOutcome) -> CellResult:
    """The result with other outcomes of some headline metrics."""
    return replace(one, outcomes={**one.outcomes, **outcomes})
