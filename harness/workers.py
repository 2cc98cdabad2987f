"""Cells side by side: each worker process runs whole cells, one after the other.

Small models on a CPU gain nothing from more threads, and lose much where cores are shared; a process a core
uses the machine. A worker ends itself when its parent is gone, so that a killed run leaves nobody writing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import estimate
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.plan import Cell
from harness.progress import Display, Reporter
from harness.stages import Step, Workshop, run_cell

_worker: Workshop | None = None  # of this worker process


@dataclass
class Outcome:
    """How a cell went: one line if it failed, and its seconds by kind of work."""

    cell: Cell
    failure: str | None = None
    clock: dict[str, float] = field(default_factory=dict)


def job_count(config: RunConfig, cells: int) -> int:
    """How many workers: as many as asked for, or as the cores hold when the recipe fixes their threads."""
    wanted = config.jobs
    if wanted is None:
        on_cpu = config.training.device == "cpu"
        wanted = (os.cpu_count() or 1) // config.threads if config.threads and on_cpu else 1
    return max(1, min(wanted, cells))


def run_cells(
    config: RunConfig, out: Path, todo: Sequence[Cell], until: Step, console: Console, debug: bool
) -> Iterator[Outcome]:
    """Run the cells, in this process or in workers, and yield their outcomes as they come."""
    labels = {cell.folder: f"[{number}/{len(todo)}] {cell.label}" for number, cell in enumerate(todo, 1)}
    jobs = job_count(config, len(todo))
    with Display(console, len(todo)) as display:
        if jobs == 1:
            shop = Workshop(config, out, Reporter(display.show))
            _announce(shop, todo, jobs)
            for cell in todo:
                yield _attempt(shop, cell, labels[cell.folder], until, debug)
                display.cell_done()
            return
        context = multiprocessing.get_context("spawn")
        events: Any = context.Queue()
        listener = threading.Thread(target=_listen, args=(events, display), daemon=True)
        listener.start()
        pool = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_start_worker, initargs=(config, out, events)
        )
        try:
            pool.submit(_announce_from_worker, todo, jobs)
            futures = {pool.submit(_work, cell, labels[cell.folder], until, debug): cell for cell in todo}
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield Outcome(futures[future], "a worker process died (out of memory, or killed)")
                display.cell_done()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            events.put(None)
            listener.join(timeout=5)


def _announce(shop: Workshop, todo: Sequence[Cell], jobs: int) -> None:
    """Say how long it will take; a forecast that fails must not stop the work."""
    with contextlib.suppress(Exception):
        shop.reporter.send(("note", None, estimate.forecast(shop, todo, jobs)))


def _announce_from_worker(todo: Sequence[Cell], jobs: int) -> None:
    assert _worker is not None
    _announce(_worker, todo, jobs)


def _listen(events: Any, display: Display) -> None:
    while (event := events.get()) is not None:
        display.show(event)


def _start_worker(config: RunConfig, out: Path, events: Any) -> None:
    global _worker
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if config.threads:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
    _worker = Workshop(config, out, Reporter(events.put))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _work(cell: Cell, label: str, until: Step, debug: bool) -> Outcome:
    assert _worker is not None
    return _attempt(_worker, cell, label, until, debug)


def _attempt(shop: Workshop, cell: Cell, label: str, until: Step, debug: bool) -> Outcome:
    """Run one cell; its failure becomes one line, with the traceback in the cell's error.log."""
    log = shop.out / cell.folder / "error.log"
    shop.clock = dict.fromkeys(shop.clock, 0.0)
    start, failure = time.perf_counter(), None
    try:
        shop.import_libraries()
        run_cell(shop, cell, label, until)
        log.unlink(missing_ok=True)
    except HarnessError as error:
        failure = str(error)
    except Exception as error:
        if debug:
            raise
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (traceback: {log})"
    own = time.perf_counter() - start - sum(shop.clock.values())
    return Outcome(cell, failure, {**shop.clock, "harness": own})
