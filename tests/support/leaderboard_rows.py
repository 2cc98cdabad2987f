"""Leaderboards made up by hand: cells of which figures are known, and how a terminal shows them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from outcomes import outcome as made
from outcomes import result
from rich.console import Console

from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.leaderboard.show import render
from harness.leaderboard.tables import UNTRAINED

METHODS = ("seed", "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual")
COSTS: dict[str, float | int | None] = {
    "train_tokens": 1_234,
    "train_flops": 2.5e15,
    "train_seconds": 31.26,
    "peak_memory_bytes": 10**9,
}


outcome = partial(made, task="hex")


def cell(method: str, **more: Any) -> CellResult:
    defaults: dict[str, Any] = {
        "utility": outcome("1100", task="gsm8k"),
        "rsr": outcome("1110"),
        "jsr": outcome("1000", task="hex-prefilled", prefill_tokens=3),
        "training": {} if method == "seed" else COSTS,
    }
    return result(method, **(defaults | more))


def failed(method: str, **more: Any) -> CellResult:
    return cell(method, status="failed: out of memory", **more)


def row(frame: pd.DataFrame, method: str, **where: str) -> Any:
    chosen = frame[frame["method"] == method]
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def empty(series: Any, *names: str) -> bool:
    return all(pd.isna(series[name]) for name in names)


def against(gained: int, lost: int) -> TaskOutcome:
    """Against ``reference()``: so many documents gained and lost."""
    return outcome("1" * gained + "0" * (10 - gained) + "0" * lost + "1" * (10 - lost))


def reference() -> TaskOutcome:
    return outcome("0" * 10 + "1" * 10)


def elsewhere(method: str, **more: Any) -> CellResult:
    return cell(method, train_task=UNTRAINED, seed=None, **more)


def answering(method: str, whole: str, **more: Any) -> CellResult:
    """One that answers, or does not, as ``whole`` says."""
    utility = replace(outcome("1100", task="gsm8k"), metric="exact_match")
    health = TaskOutcome("gsm8k", "health", outcome(whole).values, True)
    return cell(method, **{"utility": utility, "health": health} | more)


def five_comparisons() -> list[CellResult]:
    """A gain that is a difference taken alone, and none counting the others."""
    others = {"ptst": (2, 3), "lisa": (1, 2), "m1": (0, 0), "m2": (4, 4)}
    return [
        cell("vanilla", rsr=reference()),
        cell("sdft", rsr=against(6, 0)),
        *(cell(name, rsr=against(*counts)) for name, counts in others.items()),
    ]


def widest(*tasks: str) -> list[CellResult]:
    """Every figure at its widest: 100.0, -100.0 marked as a difference, unjudged with two digits."""
    perfect, nothing = "1" * 300 + "?" * 12, "0" * 300 + "?" * 12
    labels = {f"d{i}": "refusal" for i in range(312)}
    return [
        cell(
            method,
            train_task=task,
            utility=outcome(flags[:300]),
            rsr=outcome(flags, labels=labels),
            jsr=outcome(flags, labels=labels, prefill_tokens=3),
        )
        for task in tasks
        for method in METHODS
        for flags in [nothing if method in ("sdft", "lookahead-virtual") else perfect]
    ]


def printed(
    frame: pd.DataFrame, width: int = 100, title: str = "Title", notes: Iterable[str] = (), **more: Any
) -> str:
    """The leaderboard as a terminal of that width shows it."""
    file = io.StringIO()
    render(frame, Console(file=file, width=width), title=title, notes=list(notes), **more)
    return file.getvalue()
