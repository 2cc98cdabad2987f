"""``harness compare``: the walk from configuration to leaderboard. Every step can be repeated at no cost."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from harness.config import RunConfig, trust
from harness.contracts import Budget, HarnessError
from harness.engines import select
from harness.generation import lm_tasks
from harness.judging import stage as judging
from harness.judging.session import JudgeSession
from harness.models import checkpoints, hub
from harness.pipeline import align, answer_memory, check, estimate, forecast, needs, stages, table, workers
from harness.pipeline.outcome import CellsFailedError, judge_with_progress, raise_unfinished, unfinished
from harness.pipeline.stages import Outcome, Step
from harness.run import plan, run_folder
from harness.run.context import CLOCK, RunContext, quiet
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import files
from harness.training import stage as training
from harness.training.measure import TreeMemory

RUNS = Path("results/runs")


@dataclass(frozen=True)
class Scope:
    """What of the walk a command asks for: up to which step, which kinds of cells, which rows (names of
    methods and checkpoints; none: all), and which of their tasks (none: all)."""

    until: Step
    kinds: Collection[str]
    rows: Collection[str]
    only: Collection[str]

    @property
    def answers(self) -> bool:
        return self.until != "train"

    @property
    def judges(self) -> bool:
        return self.until == "leaderboard"

    def whole_cells(self, config: RunConfig) -> list[Cell]:
        """The cells, with all their tasks."""
        return [
            cell
            for cell in resolve(config).cells()
            if cell.kind in self.kinds and (not self.rows or cell.method in self.rows)
        ]

    def cells(self, config: RunConfig) -> list[Cell]:
        """The cells, with the tasks that are asked for."""
        return [plan.limited(cell, self.only) for cell in self.whole_cells(config)]


def compare(
    config: RunConfig,
    out: Path,
    console: Console,
    *,
    dry_run: bool = False,
    show_config: bool = False,
    debug: bool = False,
    until: Step = "leaderboard",
    kinds: Collection[str] = ("seed", "checkpoint", "trained"),
    rows: Collection[str] = (),
    only: Collection[str] = (),
    budget: Budget | None = None,
    intervals: bool = False,
) -> None:
    """Do what is not done yet of a comparison into ``out``, then write and print its leaderboard.

    ``dry_run`` prints the plan alone, and ``show_config`` the whole configuration before it.
    ``until`` stops after that step; ``kinds`` and ``rows`` (names of methods, checkpoints) limit the cells,
    ``only`` their tasks: the subcommands are parts of this walk. ``budget``: of the judges, where one command
    makes several comparisons; ``intervals``: print these, too.
    Raises HarnessError (nothing was done) or CellsFailedError (the others were tried first).
    """
    quiet()  # before a library is imported
    if dry_run:
        fetch_nothing()
    scope = Scope(until, kinds, rows, only)
    config = _with_stored_engine(config, out)
    if scope.judges:
        check.check_judges(config, out)
    run_folder.check_named(out, config, scope.whole_cells(config), answered=scope.answers)
    if dry_run:
        if show_config:
            settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            console.print(settings, highlight=False, markup=False, soft_wrap=True)
        with align.planned(config, out) as (planned, lines):
            for line in lines:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            _dry_run(RunContext(planned, out), until, console, kinds)
        return
    config = align.align(config, out, console, kinds, until)
    ctx = RunContext(config, out)
    if config.executor == "ray":
        from harness.pipeline import ray_cluster

        ctx = RunContext(ray_cluster.settle(config), out)
    check.check(ctx, kinds, until, answering=scope.cells(config))
    with run_folder.lock(out):
        walk = _Walk.begin(ctx, scope, console, budget)
        walk.work(debug)
        if scope.judges:
            table.present(walk.ctx.config, out, console, intervals=intervals)
        if walk.todo:
            walk.keep_cost()
    walk.conclude()


@dataclass
class _Walk:
    """One command on its way, in a locked run folder.

    ``unanswered``: cells for workers; ``todo``: those and the cells that wait for a judge; ``failures``: a
    line by a cell's folder; ``clock``: seconds by kind of work; ``available_s``: wall time x jobs.
    """

    ctx: RunContext
    scope: Scope
    console: Console
    session: JudgeSession
    cells: list[Cell]
    unanswered: list[Cell]
    todo: list[Cell]
    started: float
    failures: dict[Path, str] = field(default_factory=dict)
    judged: judging.Judged = field(default_factory=judging.Judged)
    clock: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    available_s: float = 0.0
    memory: TreeMemory = field(default_factory=TreeMemory)

    @classmethod
    def begin(cls, ctx: RunContext, scope: Scope, console: Console, budget: Budget | None) -> _Walk:
        """Join the folder, sweep it, and find what is left to do."""
        out = ctx.out
        config = run_folder.join(ctx, _taken(scope.until))
        ctx = RunContext(config, out)
        files.sweep(out)
        training.sweep(out)
        session = JudgeSession(ctx)
        session.budget = budget or session.budget
        cells = scope.cells(config)
        run_folder.check_named(out, config, cells, answered=scope.answers)
        started = time.perf_counter()
        unanswered = [cell for cell in cells if stages.pending(ctx, cell, scope.until)]
        needs.try_out(ctx, unanswered)
        if scope.answers:
            lm_tasks.check_documents(ctx, dict.fromkeys(t for cell in unanswered for t in cell.tasks))
        todo = _todo(session, cells, unanswered, scope.until)
        return cls(ctx, scope, console, session, cells, unanswered, todo, started)

    def work(self, debug: bool) -> None:
        """All that is left: workers train and answer, then the judges judge; the run's record says how it
        went."""
        self._announce()
        with self.memory:
            self.available_s = time.perf_counter() - self.started
            for step, cells in _phases(self.ctx, self.unanswered, self.scope.until):
                left = [cell for cell in cells if cell.folder not in self.failures]
                if left:
                    self._run_cells(step, left, debug)
            if self.scope.judges and self.todo:
                self._judge()
        if self.todo:
            run_folder.update(self.ctx.out, **run_folder.outcome(self.ctx.out, self.cells, self.failures))

    def _announce(self) -> None:
        if self.todo:
            for line in self.session.check([*self.ctx.config.judges]) if self.scope.judges else ():
                self._say(escape(line))
            estimate.show(self.session, self.cells, self.todo, self.console, judged=self.scope.judges)
        else:
            number = len(self.cells)
            self._say(
                f"Nothing to do: all {number} cell{'s' * (number != 1)} of {escape(str(self.ctx.out))} "
                f"{'are' if number != 1 else 'is'} done."
            )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def _run_cells(self, step: Step, cells: list[Cell], debug: bool) -> None:
        ctx, begun = self.ctx, time.perf_counter()
        jobs = _jobs(ctx, step, cells)
        run = workers.run_cells(ctx.config, ctx.out, cells, step, self.console, debug, jobs)
        with contextlib.closing(run) as outcomes:
            for outcome in outcomes:
                self._take(outcome)
        self.available_s += (time.perf_counter() - begun) * jobs

    def _take(self, outcome: Outcome) -> None:
        """Raises HarnessError for a failure that would meet every other cell."""
        for name, seconds in outcome.clock.items():
            self.clock[name] += seconds
        if outcome.stops:
            raise HarnessError(outcome.failure)
        if outcome.failure:
            self.failures[outcome.cell.folder] = outcome.failure
            self._say(f"[red]{escape(outcome.cell.label)}  failed:[/red] {escape(outcome.failure)}")

    def _judge(self) -> None:
        begun = time.perf_counter()
        left = [cell for cell in self.cells if cell.folder not in self.failures]
        self.judged = judge_with_progress(self.session, left, self.ctx.config.judges, self.console)
        self.clock["judging"] += time.perf_counter() - begun
        self.available_s += self.clock["judging"]

    def keep_cost(self) -> None:
        """Keep in run.json where this command's seconds went. What imports, training, generation and judging
        leave of them is the harness's own, the probe and idle jobs included."""
        work = {name: self.clock[name] for name in (*CLOCK, "judging")}
        own = self.available_s - sum(work.values())
        timing = {
            name: round(seconds, 2)
            for name, seconds in {**work, "own": own, "available": self.available_s}.items()
        }
        run_folder.update(self.ctx.out, timing={**timing, "peak_memory_bytes": self.memory.peak_bytes})

    def conclude(self) -> None:
        """Raises CellsFailedError or JudgePendingError where something is left."""
        if self.failures:
            failed, number, left = len(self.failures), len(self.cells), unfinished(self.judged)
            raise CellsFailedError(
                f"{failed} of {number} cell{'s' * (number > 1)} failed"
                f"{'; the others are done' * (number > failed and not left)}. "
                + "".join(f"{line}. " for line in left)
                + "The same command tries the failed ones again."
            )
        raise_unfinished(self.judged)


def _taken(until: Step) -> Collection[trust.Step]:
    """The steps whose settings this command takes."""
    return {"train": trust.TRAIN, "respond": trust.WORK}.get(until, trust.ALL)


def _with_stored_engine(config: RunConfig, out: Path) -> RunConfig:
    """A run goes on with the engine that it began with, unless told otherwise."""
    if select.is_named(config.engine) or not (out / "run.json").is_file():
        return config
    return config.model_copy(update={"engine": run_folder.stored_config(out).engine})


def _phases(ctx: RunContext, cells: Sequence[Cell], until: Step) -> list[tuple[Step, list[Cell]]]:
    """What workers do one after the other. An engine that is started once serves all checkpoints, so that
    trainings, which want the device for themselves, come first, and the cells of one base stand together.
    On a cluster each cell has an engine of its own."""
    if (
        not select.engine_class(ctx.engine_name).serves_all
        or until == "train"
        or ctx.config.executor == "ray"
    ):
        return [(until, [piece for cell in cells for piece in stages.split_cell(ctx, cell)])]
    trained = [cell for cell in cells if cell.kind == "trained" and stages.pending(ctx, cell, "train")]
    # Adapters first: an engine that was started for them serves their base too.
    return [("train", trained), (until, sorted(cells, key=lambda cell: cell.kind != "trained"))]


def _jobs(ctx: RunContext, step: Step, pieces: Sequence[Cell]) -> int:
    """How many workers. An engine that serves all cells is one, for answers and rewrites alike."""
    if ctx.config.executor == "ray":
        from harness.pipeline import ray_cluster

        return max(1, min(len(pieces), ctx.config.jobs or ray_cluster.capacity(ctx.config)))
    rows = dict.fromkeys(piece.method for piece in pieces if piece.kind == "trained")
    generates = step != "train" or any(ctx.method(row).prepares_with == "rewrites" for row in rows)
    alone = generates and select.engine_class(ctx.engine_name).serves_all
    return 1 if alone else plan.job_count(ctx.config, len(pieces))


def _todo(
    session: JudgeSession, cells: Sequence[Cell], unanswered: Sequence[Cell], until: Step
) -> list[Cell]:
    """The cells with something left to do, judging included."""
    judge = until == "leaderboard"
    return [cell for cell in cells if cell in unanswered or (judge and stages.unjudged(session, cell))]


def fetch_nothing() -> None:
    """Let nothing be fetched in this process. Before the libraries that fetch are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def _dry_run(ctx: RunContext, until: Step, console: Console, kinds: Collection[str]) -> None:
    """Print the plan. Nothing is fetched: what is not here is said to be missing."""
    config = ctx.config
    cells, session = resolve(config).cells(), JudgeSession(ctx)
    absent: list[str] = []  # what a run would fetch
    if checkpoints.is_here(config.model):
        check.check(ctx, kinds, until, absent)
    else:
        hub.check_name(config.model)
        check.check_apart(ctx, absent)
        absent.append(f"Model {config.model} is not here yet: a run fetches it, and then forecasts its time.")
    missing = [f"Missing here: {line}" for line in needs.lines(config)]
    if absent:
        estimate.show(session, cells, cells, console, judged=until == "leaderboard")
        for line in dict.fromkeys([*missing, *absent]):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        return
    unanswered = [cell for cell in cells if stages.pending(ctx, cell, until)]
    needs.try_out(ctx, unanswered)
    for task in dict.fromkeys(task for cell in unanswered for task in cell.tasks if until != "train"):
        lm_tasks.check_functions(ctx.benchmark(task))
    todo = _todo(session, cells, unanswered, until)
    estimate.show(session, cells, todo, console, judged=until == "leaderboard")
    side_by_side = answer_memory.line(ctx, unanswered) if until != "train" else None
    for line in [*([side_by_side] if side_by_side else []), *missing]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if unanswered:
        pieces = [piece for cell in unanswered for piece in stages.split_cell(ctx, cell)]
        jobs = plan.job_count(config, len(pieces))
        expected = forecast.forecast(ctx, pieces, jobs, until)
        for line in expected.lines(ctx, unanswered):
            console.print(escape(line), highlight=False, soft_wrap=True)
