"""Judging as a command does it, and how a command ended: what failed, and what a judge has still to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from harness.console.progress import Display, Reporter
from harness.contracts import HarnessError, JudgePendingError
from harness.judging import cost
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.run.plan import Cell


class CellsFailedError(HarnessError):
    """Some cells or judges failed; the others' results stand and the leaderboard is written."""


def judge_with_progress(
    session: JudgeSession, cells: Sequence[Cell], judges: Sequence[str], console: Console
) -> judging.Judged:
    """Let the judges work through all answers, and say what that took."""
    with Display(console, None, "judging") as display:
        session.ctx.reporter = Reporter(display.show)
        judged = judging.judge_all(session, cells, judges)
    for line in cost.summary(session):
        console.print(escape(line), highlight=False, soft_wrap=True)
    return judged


def raise_unfinished(judged: judging.Judged) -> None:
    """Raises CellsFailedError or JudgePendingError where judges have not finished."""
    if judged.failed:
        raise CellsFailedError("; ".join(unfinished(judged)))
    if judged.waiting:
        raise JudgePendingError("; ".join(unfinished(judged)))


def unfinished(judged: judging.Judged) -> list[str]:
    """A line for each judge that failed, and one for what has been handed on."""
    lines = [f"{name}: {line}" for name, lines in judged.waiting.items() for line in lines]
    elsewhere = f"judging goes on elsewhere; the same command collects it later. {'; '.join(lines)}"
    return [*judged.failed.values(), *([elsewhere] if lines else [])]
