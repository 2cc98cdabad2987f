"""The stages of one cell in their order: train, respond, judge; each is skipped when done."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.run import plan
from harness.run.context import Workshop
from harness.run.plan import Cell
from harness.training import stage as training

Step = Literal["train", "respond", "judge", "leaderboard"]


def pending(shop: Workshop, cell: Cell, until: Step = "respond") -> bool:
    """Whether a cell has a training or answers that are not done, up to ``until``."""
    if cell.kind == "trained" and not training.train_stage(shop, cell).done():
        return True
    if until == "train":
        return False
    return any(unanswered(shop, one) for one in (cell, *plan.epochs(shop.config, cell)))


def unanswered(shop: Workshop, cell: Cell) -> tuple[str, ...]:
    """The tasks that a cell's checkpoint has not answered."""
    return tuple(task for task in cell.tasks if not generation.respond_stage(shop, cell, task).done())


def parts(shop: Workshop, cell: Cell) -> list[Cell]:
    """A cell as pieces of work that can be done apart: its tasks, where there is nothing to train."""
    if cell.kind == "trained":
        return [cell]
    return [replace(cell, tasks=(task,)) for task in unanswered(shop, cell)] or [cell]


def unjudged(bench: judging.Bench, cell: Cell) -> bool:
    """Whether a judge's verdicts on a cell's answers are missing. The answers are there."""
    return not all(
        judging.judged(bench, one, task, name)
        for one in (cell, *plan.epochs(bench.shop.config, cell))
        for task in judging.safety_tasks(one)
        for name in bench.shop.config.judges
    )


def run_cell(shop: Workshop, cell: Cell, label: str, until: Step = "leaderboard") -> None:
    """Train, respond, and judge with those that need no model or server, each where it is not done."""
    if cell.kind == "trained" and not training.train_stage(shop, cell).done():
        shop.release()  # the device's memory is the training's
        training.train(shop, cell, label)
    if until == "train":
        return
    for one in (cell, *plan.epochs(shop.config, cell)):
        name = f"{label} · epoch {one.epoch}" if one.epoch else label
        tasks = unanswered(shop, one)
        if tasks:
            generation.respond(shop, one, tasks, name)
        if until != "respond":
            judging.judge_cell(judging.Bench(shop), one, judging.light(shop.config.judges), name)
