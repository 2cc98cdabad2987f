"""What is left of each cell, by a probe: of the base model's loading, its trainings and its answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from harness.engines import select
from harness.generation import stage as generation
from harness.pipeline import stages
from harness.pipeline.probing import base_model
from harness.pipeline.probing.answer_probe import AnswerProbe
from harness.pipeline.probing.effort import Effort
from harness.pipeline.probing.task_probe import TaskProbe
from harness.pipeline.probing.time_budget import OutOfTimeError, TimeBudget
from harness.pipeline.probing.training_probe import TrainingProbe
from harness.pipeline.stages import Step
from harness.run import plan
from harness.run.context import RunContext
from harness.training import stage as training

MOST_FLOPS_S = {"cpu": 2e11, "cuda": 2e15}  # of a core, of a device: no machine is faster
ANSWERING_SHARE = 0.4  # of what training leaves of the time: for the speed of answers, before any are read
ANSWERING_ALONE = 0.7  # where nothing is trained
AGAIN_S = 1.0  # what must be left for training to be timed once more


class Probe:
    """Measures each kind of work once, with the base model, and scales it to a cell's size."""

    def __init__(self, ctx: RunContext, until: Step, budget: TimeBudget):
        self.ctx, self.until, self.budget = ctx, until, budget
        self.without_answers: str | None = None  # what answers at a speed that the probe does not know
        self.model: Any = None
        self.load_s = 0.0
        self.answers = AnswerProbe(ctx, budget)
        self.tasks = TaskProbe(ctx, self.answers)
        self.training = TrainingProbe(ctx, self.answers)

    def measure(self, todo: Sequence[plan.Cell], jobs: int, parameters: int) -> list[Effort]:
        """What is left of each cell, in their order. Raises OutOfTimeError where nothing can be said, and
        NotProbedError."""
        trained = [cell for cell in todo if needs_training(self.ctx, cell)]
        answers = any(self._tasks_to_answer(cell, cell) for cell in todo)
        if not (trained or answers):
            return [Effort()] * len(todo)
        self.budget.jobs = jobs
        flops = 6 * parameters * self.training.tokens(trained)
        self.budget.justify(flops / _fastest(self.ctx.device))
        self.model, self.load_s = base_model.load(self.ctx, self.budget)
        rewrites = any(self.ctx.method(cell.method).prepares_with == "rewrites" for cell in trained)
        if trained:
            self.training.measure_speed(self.model, trained, alone=not (answers or rewrites))
        if answers or rewrites:
            self._measure_answers()
        found = [self._measure_cell(cell) for cell in todo]
        if self.training.speed and self.budget.left() > AGAIN_S:
            with contextlib.suppress(OutOfTimeError):
                self.training.speed.measure(self.budget)
            found = [self._measure_cell(cell) for cell in todo]
        return found

    def _tasks_to_answer(self, cell: plan.Cell, piece: plan.Cell) -> tuple[str, ...]:
        """The tasks that a part of a cell (itself, or the weights after an epoch) has to answer with an
        engine that the probe knows."""
        if self.until == "train":
            return ()
        engine = generation.engine_name(self.ctx, cell)
        if not select.engine_class(engine).like_transformers:
            self.without_answers = engine
            return ()
        return piece.tasks if needs_training(self.ctx, cell) else stages.unanswered(self.ctx, piece)

    def _measure_answers(self) -> None:
        """How fast answers come. Raises torch.OutOfMemoryError."""
        share = ANSWERING_SHARE if self.training.speed else ANSWERING_ALONE
        if not self.answers.measure_speed(self.model, share):
            self.without_answers = self.ctx.engine_name

    def _measure_cell(self, cell: plan.Cell) -> Effort:
        """All that is left of one cell, the weights in the middle of its training included."""
        total = Effort()
        if needs_training(self.ctx, cell):
            total += self.training.measure(cell) + Effort(seconds=self.load_s)
        if self.until == "train":
            return total
        for one in (cell, *plan.epochs(self.ctx.config, cell)):
            total += Effort(seconds=self.load_s)
            for name in self._tasks_to_answer(cell, one) if self.answers.speed else ():
                total += self.tasks.measure(name)
        return total


def needs_training(ctx: RunContext, cell: plan.Cell) -> bool:
    """Whether a cell's training is not done yet."""
    return cell.kind == "trained" and not training.train_stage(ctx, cell).done()


def _fastest(device: str) -> float:
    """FLOP/s that no machine exceeds: what takes long even so may be looked at for longer."""
    return MOST_FLOPS_S["cpu"] * (os.cpu_count() or 1) if device == "cpu" else MOST_FLOPS_S["cuda"]
