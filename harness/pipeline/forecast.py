"""What a run will take on this machine: tokens, time and disk, from a short probe of the real thing.

The probe prepares some of each method's data, asks each task for some of its documents, and times pieces of
what then follows: of an optimizer step and of a batch of answers (probing/). It asks only for what the
command will do, and takes at most the larger of 5 seconds and 5 % of the time that it foretells, never over
30 seconds. It is a forecast, not a promise: tuned models answer at other lengths than the base model, and a
machine that others use is slower.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.pipeline import estimate
from harness.pipeline.probing import base_model
from harness.pipeline.probing.base_model import NotProbedError
from harness.pipeline.probing.effort import Effort
from harness.pipeline.probing.probe import Probe, needs_training
from harness.pipeline.probing.time_budget import OutOfTimeError, TimeBudget
from harness.pipeline.stages import Step
from harness.run import plan
from harness.run.context import RunContext
from harness.training import stage as training

TABLE_S = 3.0  # leaderboard and report


@dataclass
class Forecast:
    """Of all cells. ``seconds``: until the last of ``jobs`` workers is done; None where it was not probed."""

    jobs: int
    seconds: float | None = None
    total: Effort = field(default_factory=Effort)
    absent: tuple[str, ...] = ()  # tasks whose documents cannot be had now
    without_answers: str | None = None  # what answers at a speed that the probe does not know
    why: str = ""  # it was not probed
    each: tuple[float, ...] = ()  # seconds of each cell, as they were given

    def lines(self, ctx: RunContext, todo: Sequence[plan.Cell]) -> list[str]:
        """Time, tokens and disk, a line each."""
        known = estimate.architecture(ctx)
        size, rest = self.total.disk, ""
        if self.seconds is None and known:
            size, rest = estimate.checkpoints_bytes(ctx, todo, known), " for checkpoints"
        trained = sum(cell.kind == "trained" for cell in todo)
        if known and trained:
            more = estimate.state_bytes(known) * min(self.jobs, trained)
            rest += f", up to {estimate.gigabytes(more)} more while trainings run"
        place, free = estimate.disk_at(ctx.out)
        disk = f"Disk: about {estimate.gigabytes(size)}{rest}; {estimate.gigabytes(free)} are free at {place}"
        return [self.time(), *([self.tokens()] if self.seconds is not None else []), disk]

    def time(self) -> str:
        """The line about time."""
        if self.seconds is None:
            return f"Estimated time: not probed ({self.why})"
        side_by_side = f", {self.jobs} jobs side by side" if self.jobs > 1 else ""
        engine = self.without_answers
        what = f" for training; how fast {engine} answers is not probed" if engine else ""
        what += f" without {', '.join(sorted(self.absent))} (not downloaded)" if self.absent else ""
        seconds = estimate.duration(self.seconds)
        return f"Estimated time: about {seconds}{what} (by a short probe{side_by_side})"

    def tokens(self) -> str:
        """The line about tokens."""
        trained, read, written = map(_abbreviate, (self.total.trained, self.total.read, self.total.written))
        pieces = [f"{trained} trained"] if self.total.trained else []
        if self.total.read:
            pieces.append(f"{read} read and {written} written in answers")
        return f"Estimated tokens: {', '.join(pieces) or 'none'}"


def _abbreviate(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def forecast(
    ctx: RunContext,
    todo: Sequence[plan.Cell],
    jobs: int,
    until: Step = "leaderboard",
    budget: TimeBudget | None = None,
) -> Forecast:
    """Probe this machine for what is left of ``todo`` up to the step ``until``, and add up. Raises what the
    work itself would raise. ``budget``: its time, from when the libraries are there, which the work needs."""
    import torch

    start = time.perf_counter()
    trains = any(needs_training(ctx, cell) for cell in todo)
    ctx.import_libraries()
    if trains:
        training.import_trainer(ctx)
    imports_s = time.perf_counter() - start
    budget = budget or TimeBudget()
    known = estimate.architecture(ctx)
    try:
        if known:
            base_model.check_size(ctx, known.parameters)
        probe = Probe(ctx, until, budget)
        efforts = probe.measure(todo, jobs, known.parameters if known else 0)
    except NotProbedError as error:
        return Forecast(jobs, why=str(error))
    except OutOfTimeError:
        return Forecast(jobs, why=f"a look at it takes over {budget.allowed_s:.0f} s")
    except torch.OutOfMemoryError:
        return Forecast(jobs, why="one device alone does not hold it")
    table_s = TABLE_S if until == "leaderboard" else 0.0
    return Forecast(
        jobs,
        seconds=_find_end(efforts, jobs, imports_s) + table_s,
        total=sum(efforts, Effort()),
        absent=tuple(probe.tasks.absent),
        without_answers=probe.without_answers,
        each=tuple(effort.seconds for effort in efforts),
    )


def _find_end(efforts: Sequence[Effort], jobs: int, begin_s: float) -> float:
    """When the last of ``jobs`` workers is done, which take the cells in their order."""
    free = [begin_s] * jobs
    for effort in efforts:
        heapq.heapreplace(free, free[0] + effort.seconds)
    return max(free)
