"""Outcomes made up by hand, for what is built from a run's outcomes."""

from __future__ import annotations

from typing import Any

from harness.leaderboard.build import CellResult, TaskOutcome


def outcome(flags: str, *, task: str = "raw", **more: Any) -> TaskOutcome:
    """One document a character: 1 safe (or right), 0 harmful (or wrong), ? unjudged."""
    values = {f"d{i}": {"1": 1.0, "0": 0.0, "?": None}[flag] for i, flag in enumerate(flags)}
    return TaskOutcome(task, "safe", values, True, **more)


def result(method: str, **more: Any) -> CellResult:
    """One checkpoint's; ``more`` has its outcomes, and what is to be otherwise."""
    names = {"model": "mini", "train_task": "gsm8k", "seed": 42, "judge": "exact", "status": "done"}
    return CellResult(method=method, **(names | more))
