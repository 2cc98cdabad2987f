"""Cells side by side: each worker process runs whole cells, one after the other.

Small models on a CPU gain nothing from more threads, and lose much where cores are shared; a process a core
uses the machine. A worker ends itself when its parent is gone, so that a killed run leaves nobody writing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rich.console import Console

from harness.config import RunConfig
from harness.console.progress import Display, Reporter
from harness.pipeline import forecast
from harness.pipeline.stages import Outcome, Step, attempt
from harness.plugins import plugin_files
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.training.job import settle_allocator


def run_cells(
    config: RunConfig, out: Path, todo: Sequence[Cell], until: Step, console: Console, debug: bool, jobs: int
) -> Generator[Outcome, None, None]:
    """Run the cells, in this process, in workers or on a cluster, and yield their outcomes as they come."""
    left = Counter(cell.folder for cell in todo)  # parts of each cell
    places = {folder: n for n, folder in enumerate(left, 1)}
    labels = {cell.folder: f"[{places[cell.folder]}/{len(places)}] {cell.label}" for cell in todo}
    training = any(cell.kind == "trained" for cell in todo)  # else the bars' own forecast will do
    announce = () if console.quiet or not training else todo
    with Display(console, len(left), "trainings" if until == "train" else "cells") as display:
        if config.executor == "ray":
            from harness.pipeline import ray_cluster

            outcomes = ray_cluster.run_cells(config, out, todo, labels, until, debug, display)
        elif jobs == 1:
            ctx = RunContext(config, out, Reporter(display.show))
            outcomes = _in_this_process(ctx, todo, labels, until, debug, announce)
        else:
            outcomes = _in_workers(config, out, todo, labels, until, debug, announce, jobs, display)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                yield outcome
                left[outcome.cell.folder] -= 1
                if not left[outcome.cell.folder]:
                    display.cell_done(str(outcome.cell.folder))


def _in_this_process(
    ctx: RunContext,
    todo: Sequence[Cell],
    labels: Mapping[Path, str],
    until: Step,
    debug: bool,
    announce: Sequence[Cell],
) -> Generator[Outcome, None, None]:
    settle_allocator(ctx.config.training)
    if announce:
        _announce(ctx, announce, 1, until)
    try:
        for cell in todo:
            yield attempt(ctx, cell, labels[cell.folder], until, debug)
    finally:
        ctx.release()


def _in_workers(
    config: RunConfig,
    out: Path,
    todo: Sequence[Cell],
    labels: Mapping[Path, str],
    until: Step,
    debug: bool,
    announce: Sequence[Cell],
    jobs: int,
    display: Display,
) -> Generator[Outcome, None, None]:
    def arguments(end: Connection, said: Sequence[Cell]) -> tuple[Any, ...]:
        return end, config, out, until, debug, said, jobs, plugin_files.shipped()

    pool, waiting = _Pool(arguments, labels), deque(todo)
    try:
        for number in range(jobs):
            pool.give(pool.hire(announce if number == 0 else ()), waiting.popleft())
        while pool.busy:
            for connection in pool.ready():
                message = pool.hear(connection)
                if not isinstance(message, Outcome | _Died):
                    display.show(message)
                elif isinstance(message, _Died):
                    display.forget(message.pid)
                    yield message.outcome
                    if waiting:
                        pool.give(pool.hire(()), waiting.popleft())
                else:
                    yield message
                    if waiting:
                        pool.give(connection, waiting.popleft())
                    else:
                        pool.dismiss(connection)
    finally:
        pool.end()


@dataclass(frozen=True)
class _Died:
    """A worker's process is gone; ``outcome`` says so of its cell."""

    pid: int | None
    outcome: Outcome


class _Pool:
    """Worker processes. Each has a pipe of its own: one that dies takes its cell along, and no other.

    ``arguments``: those of ``_serve``, for its end of the pipe and what it is to announce."""

    def __init__(
        self, arguments: Callable[[Connection, Sequence[Cell]], tuple[Any, ...]], labels: Mapping[Path, str]
    ):
        self._arguments, self._labels = arguments, labels
        self._processes: dict[Connection, BaseProcess] = {}
        self.busy: dict[Connection, Cell] = {}

    def hire(self, announce: Sequence[Cell]) -> Connection:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        process = spawning.Process(target=_serve, args=self._arguments(theirs, announce), daemon=True)
        with _quiet_start():
            process.start()
        theirs.close()
        self._processes[ours] = process
        return ours

    def give(self, connection: Connection, cell: Cell) -> None:
        self.busy[connection] = cell
        with contextlib.suppress(OSError):  # a worker that is gone is found by its closed pipe
            connection.send((cell, self._labels[cell.folder]))

    def ready(self) -> list[Connection]:
        """Wait until workers have something to say, or are gone."""
        return cast(list[Connection], multiprocessing.connection.wait(list(self.busy)))

    def hear(self, connection: Connection) -> Any:
        """What a worker says: how its cell went, which ends that, or an event on the way."""
        try:
            message = connection.recv()
        except (EOFError, OSError):
            process, cell = self._processes.pop(connection), self.busy.pop(connection)
            process.join()
            cause = f"exit code {process.exitcode}: out of memory, or killed"
            return _Died(process.pid, Outcome(cell, f"its worker process died ({cause})"))
        if isinstance(message, Outcome):
            del self.busy[connection]
        return message

    def dismiss(self, connection: Connection) -> None:
        """Let a worker end: it takes its closed pipe for that."""
        del self._processes[connection]
        connection.close()

    def end(self) -> None:
        """Stop those that are still at work."""
        for process in self._processes.values():
            process.terminate()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """A worker started here leaves Ctrl-C to its parent, and does not run the user's script again; what the
    libraries leave behind when it is ended early (a lock of tqdm's) is removed without a warning."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    warnings = os.environ.get("PYTHONWARNINGS")
    ignored = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{warnings},{ignored}" if warnings else ignored
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if warnings is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


def _announce(ctx: RunContext, todo: Sequence[Cell], jobs: int, until: Step) -> None:
    """Say how long it will take; a forecast that fails must not stop the work."""
    with contextlib.suppress(Exception):
        found = forecast.forecast(ctx, todo, jobs, until)
        ctx.reporter.send(("note", None, found.time()))
        if found.seconds is not None and not (found.absent or found.without_answers):
            expected: dict[str, float] = defaultdict(float)
            for cell, seconds in zip(todo, found.each, strict=True):
                expected[str(cell.folder)] += seconds
            ctx.reporter.send(("forecast", None, found.seconds, dict(expected), jobs))


def _serve(
    parent: Connection,
    config: RunConfig,
    out: Path,
    until: Step,
    debug: bool,
    announce: Sequence[Cell],
    jobs: int,
    named: plugin_files.Shipment,
) -> None:
    """A worker's life: cells come in, what happens and how each went goes out."""
    process = multiprocessing.parent_process()
    assert process is not None
    threading.Thread(target=_end_with, args=(process.sentinel,), daemon=True).start()
    plugin_files.take(named)
    if config.threads:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    settle_allocator(config.training)
    ctx = RunContext(config, out, Reporter(parent.send))
    ctx.jobs = jobs
    if announce:
        _announce(ctx, announce, jobs, until)
    while True:
        try:
            cell, label = parent.recv()
        except EOFError:
            ctx.release()
            return
        parent.send(attempt(ctx, cell, label, until, debug))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
