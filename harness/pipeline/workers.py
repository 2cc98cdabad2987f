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
from collections.abc import Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import cast

from rich.console import Console

from harness.config import RunConfig
from harness.console.progress import Display, Reporter
from harness.pipeline import forecast
from harness.pipeline.stages import Outcome, Step, attempt
from harness.plugins import plugin_files
from harness.run.context import Workshop
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
            shop = Workshop(config, out, Reporter(display.show))
            outcomes = _in_this_process(shop, todo, labels, until, debug, announce)
        else:
            outcomes = _in_workers(config, out, todo, labels, until, debug, announce, jobs, display)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                yield outcome
                left[outcome.cell.folder] -= 1
                if not left[outcome.cell.folder]:
                    display.cell_done(str(outcome.cell.folder))


def _in_this_process(
    shop: Workshop,
    todo: Sequence[Cell],
    labels: Mapping[Path, str],
    until: Step,
    debug: bool,
    announce: Sequence[Cell],
) -> Generator[Outcome, None, None]:
    settle_allocator(shop.config.training)
    if announce:
        _announce(shop, announce, 1, until)
    try:
        for cell in todo:
            yield attempt(shop, cell, labels[cell.folder], until, debug)
    finally:
        shop.release()


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
    """Each worker has a pipe of its own: one that dies takes its cell along, and no other."""
    context = multiprocessing.get_context("spawn")
    waiting = deque(todo)
    busy: dict[Connection, tuple[BaseProcess, Cell]] = {}

    def hire(announce: Sequence[Cell]) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, config, out, until, debug, announce, jobs, plugin_files.shipped()),
            daemon=True,
        )
        with _quiet_start():
            process.start()
        theirs.close()
        give(ours, process)

    def give(connection: Connection, process: BaseProcess) -> None:
        cell = waiting.popleft()
        busy[connection] = process, cell
        with contextlib.suppress(OSError):  # a worker that is gone is found by its closed pipe
            connection.send((cell, labels[cell.folder]))

    try:
        for number in range(jobs):
            hire(announce if number == 0 else ())
        while busy:
            for ready in multiprocessing.connection.wait(list(busy)):
                connection = cast(Connection, ready)
                process, cell = busy[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    del busy[connection]
                    process.join()
                    display.forget(process.pid)
                    cause = f"exit code {process.exitcode}: out of memory, or killed"
                    yield Outcome(cell, f"its worker process died ({cause})")
                    if waiting:
                        hire(())
                    continue
                if not isinstance(message, Outcome):
                    display.show(message)
                    continue
                del busy[connection]
                yield message
                if waiting:
                    give(connection, process)
                else:
                    connection.close()  # the worker takes it as the end
    finally:
        for process, _ in busy.values():
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


def _announce(shop: Workshop, todo: Sequence[Cell], jobs: int, until: Step) -> None:
    """Say how long it will take; a forecast that fails must not stop the work."""
    with contextlib.suppress(Exception):
        found = forecast.forecast(shop, todo, jobs, until)
        shop.reporter.send(("note", None, found.time()))
        if found.seconds is not None and not (found.absent or found.without_answers):
            expected: dict[str, float] = defaultdict(float)
            for cell, seconds in zip(todo, found.each, strict=True):
                expected[str(cell.folder)] += seconds
            shop.reporter.send(("forecast", None, found.seconds, dict(expected), jobs))


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
    shop = Workshop(config, out, Reporter(parent.send))
    shop.jobs = jobs
    if announce:
        _announce(shop, announce, jobs, until)
    while True:
        try:
            cell, label = parent.recv()
        except EOFError:
            shop.release()
            return
        parent.send(attempt(shop, cell, label, until, debug))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
