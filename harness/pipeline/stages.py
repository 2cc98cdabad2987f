"""The stages of one cell in their order: train, respond, judge; each is skipped when done, and what fails
becomes the cell's outcome."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.contracts import HarnessError
from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.plugins import plugin_code
from harness.run import plan
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.storage import disk
from harness.storage.disk import DiskFullError
from harness.storage.files import fresh
from harness.text import shortened, shown_traceback
from harness.training import stage as training

Step = Literal["train", "respond", "judge", "leaderboard"]


@dataclass
class Outcome:
    """How a cell went: one line if it failed, and its seconds by kind of work."""

    cell: Cell
    failure: str | None = None
    stops: bool = False  # a failure that no other cell would be spared
    clock: dict[str, float] = field(default_factory=dict)


def pending(ctx: RunContext, cell: Cell, until: Step = "respond") -> bool:
    """Whether a cell has a training or answers that are not done, up to ``until``."""
    if cell.kind == "trained" and not training.train_stage(ctx, cell).done():
        return True
    if until == "train":
        return False
    return any(unanswered(ctx, one) for one in (cell, *plan.epochs(ctx.config, cell)))


def unanswered(ctx: RunContext, cell: Cell) -> tuple[str, ...]:
    """The tasks that a cell's checkpoint has not answered."""
    return tuple(task for task in cell.tasks if not generation.respond_stage(ctx, cell, task).done())


def split_cell(ctx: RunContext, cell: Cell) -> list[Cell]:
    """A cell as pieces of work that can be done apart: its tasks, where there is nothing to train."""
    if cell.kind == "trained":
        return [cell]
    return [replace(cell, tasks=(task,)) for task in unanswered(ctx, cell)] or [cell]


def unjudged(session: JudgeSession, cell: Cell) -> bool:
    """Whether a judge's verdicts on a cell's answers are missing. The answers are there."""
    return not all(
        judging.is_judged(session, one, task, name)
        for one in (cell, *plan.epochs(session.ctx.config, cell))
        for task in one.safety_tasks
        for name in session.ctx.config.judges
    )


def run_cell(ctx: RunContext, cell: Cell, label: str, until: Step = "leaderboard") -> None:
    """Train, respond, and judge with those that need no model or server, each where it is not done."""
    if cell.kind == "trained" and not training.train_stage(ctx, cell).done():
        ctx.release()  # the device's memory is the training's
        training.train(ctx, cell, label)
    if until == "train":
        return
    for one in (cell, *plan.epochs(ctx.config, cell)):
        name = f"{label} · epoch {one.epoch}" if one.epoch else label
        tasks = unanswered(ctx, one)
        if tasks:
            generation.respond(ctx, one, tasks, name)
        if until != "respond":
            judging.judge_cell(JudgeSession(ctx), one, judging.pick_light(ctx.config.judges), name)


def attempt(ctx: RunContext, cell: Cell, label: str, until: Step, debug: bool) -> Outcome:
    """Run one cell; its failure becomes one line, with the traceback in an error.log."""
    piece = cell.kind != "trained" and len(cell.tasks) == 1  # other parts may be under way
    place = cell.folder / (cell.tasks[0] if piece else "") / "error.log"
    log = ctx.out / place
    failure, full = None, False
    try:
        ctx.import_libraries()
        if cell.kind == "trained":
            training.import_trainer(ctx)
        run_cell(ctx, cell, label, until)
        log.unlink(missing_ok=True)
    except (Exception, SystemExit) as error:  # the second: of a plugin, and not how this command ends
        if debug:
            print(shown_traceback(), file=sys.stderr)
        refused = disk.refusal(error)
        failure, full = str(refused or error), isinstance(refused, DiskFullError)
        if not (refused or isinstance(error, HarnessError)):
            fresh(log).write_text(shown_traceback(), encoding="utf-8")
            said = plugin_code.told(error) or f"{type(error).__name__}: {shortened(error, 200)}"
            failure = f"{said} (traceback: {place} in the run's folder)"
        with contextlib.suppress(Exception):  # it may be the engine's process that died
            ctx.release()  # the next cell gets another
    clock, ctx.clock = ctx.clock, dict.fromkeys(ctx.clock, 0.0)
    return Outcome(cell, failure, full, clock)
