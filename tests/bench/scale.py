"""What the harness itself costs when runs are large: many cells, many responses. Their own work is tiny.

    make bench
    python tests/bench/scale.py --cells 1000 --jobs 1
    python tests/bench/scale.py --responses 100000

Cells: real plan, stages with their markers, judge, leaderboard and report; training and answering are stubs
that write small files, and their time is taken out. Responses: a real task of that many documents, answered
by an engine that needs no time, judged by refusal phrases, scored. Each measurement is a process of its own;
memory is its peak. A finished run is then printed, reported and scored anew by commands of their own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported

DOCUMENTS = 8  # of a tiny task
HARNESS = Path(sys.executable).with_name("harness")


class Clock:
    """Seconds by name; ``within(name)`` wraps a function so that its calls are counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            with self.of(name):
                return function(*given, **named)

        return timed


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# --- many cells --------------------------------------------------------------------------------------


def stubs(clock: Clock) -> None:
    """Training and answering that only write small files, in stages with their real identities."""
    import random

    import made_run

    from harness.generation import stage as generation
    from harness.judging import stage as judging
    from harness.pipeline import table
    from harness.run import context
    from harness.storage.files import write_json_atomic, write_jsonl_atomic, write_text_atomic
    from harness.training import stage as training

    def train(ctx: Any, cell: Any, label: str) -> None:
        def work(scratch: Path) -> None:
            write_json_atomic(scratch / "checkpoint" / "config.json", str(cell.folder))
            write_json_atomic(scratch / "training.json", made_run.training(cell, random.Random(1)))
            write_text_atomic(scratch / "loss.svg", "<svg/>")

        training.train_stage(ctx, cell).run(work)

    def respond(ctx: Any, cell: Any, tasks: Any, label: str) -> None:
        for task in tasks:
            safety, draws = task in cell.safety_tasks, random.Random(f"{cell.folder} {task}")
            rows = [made_run.answer(task, n, ("made",) * safety, None, 0.5, draws) for n in range(DOCUMENTS)]

            def work(scratch: Path, rows: Any = rows) -> None:
                write_jsonl_atomic(scratch / "responses.jsonl", rows)
                record = {"source": "stub", "version": "1", "documents": DOCUMENTS, "sha256": ""}
                write_json_atomic(scratch / "task.json", record)

            generation.respond_stage(ctx, cell, task).run(work)

    training.train, generation.respond = clock.within("stubs", train), clock.within("stubs", respond)
    judging.judge_cell = clock.within("judging", judging.judge_cell)
    table.present = clock.within("leaderboard and report", table.present)
    context.RunContext.import_libraries = clock.within(  # type: ignore[method-assign]
        "imports", context.RunContext.import_libraries
    )


def many_cells(cells: int, jobs: int, answer: Connection) -> None:
    from rich.console import Console

    from harness import config
    from harness.pipeline import compare
    from harness.run import plan

    clock = Clock()
    stubs(clock)
    if jobs > 1:  # workers that inherit the stubs
        context = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        seeds = max(1, round(cells / 8))
        values = {"train_tasks": "gsm8k-mini", "seeds": list(range(seeds)), "jobs": jobs}
        recipe = config.load(None, {**values, "training.max_examples": 8})
        count = len(plan.cells(recipe))
        with clock.of("whole"):
            compare.compare(recipe, Path(folder) / "run", Console(quiet=True))
        first = dict(clock.seconds)
        clock.seconds.clear()
        with clock.of("again"):
            compare.compare(recipe, Path(folder) / "run", Console(quiet=True))
        for command in ("leaderboard", "report", "score"):
            with clock.of(command):
                subprocess.run([HARNESS, command, Path(folder) / "run"], check=True, capture_output=True)
    answer.send((count, first, dict(clock.seconds), peak_mb()))


# --- many responses ----------------------------------------------------------------------------------


def many_responses(count: int, answer: Connection) -> None:
    from rich.console import Console

    from harness import config
    from harness.engines.hf import HFEngine
    from harness.pipeline import compare

    def instant(engine: Any, prompts: Any, request: Any) -> list[list[int]]:
        ids = engine.tokenizer.convert_tokens_to_ids(engine.tokenizer.tokenize("I cannot help with that."))
        return [[*ids, min(engine.stop_ids)] for _ in prompts]

    HFEngine.generate = instant  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        requests, out = Path(folder) / "requests.jsonl", Path(folder) / "run"
        with requests.open("w", encoding="utf-8") as file:
            for number in range(count):
                turn = {"role": "user", "content": f"Request {number}: how is nonsense number {number} done?"}
                file.write(json.dumps({"id": str(number), "messages": [turn]}) + "\n")
        values = {"methods": "seed", "train_tasks": "gsm8k-mini", "judges": "keyword"}
        recipe = config.load(None, {**values, "safety_sets": {"many": requests}, "jobs": 1})
        before, clock = peak_mb(), Clock()
        with clock.of("whole"):
            compare.compare(recipe, out, Console(quiet=True))
        rows = sum(1 for _ in (out / "seed/many/verdicts.keyword.jsonl").open(encoding="utf-8"))
        size = (out / "seed/many/responses.jsonl").stat().st_size / 1e6
    answer.send((rows, clock.seconds["whole"], before, peak_mb(), size))


# --- printing ----------------------------------------------------------------------------------------


def measured(work: Callable[..., None], *given: Any) -> Any:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(*given, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--only", choices=["cells", "responses"])
    options = parser.parse_args()
    if options.only != "responses":
        for cells in (options.cells // 10, options.cells):
            count, first, second, memory = measured(many_cells, cells, options.jobs)
            parts = ("stubs", "judging", "imports", "leaderboard and report")
            alone = options.jobs == 1  # workers keep their clocks to themselves
            own = first["whole"] - (sum(first.get(name, 0.0) for name in parts) if alone else 0.0)
            print(
                f"{count} cells, {options.jobs} job{'s' * (not alone)}: {first['whole']:.1f} s in all, "
                f"planning and scheduling {1000 * own / count:.1f} ms a cell"
                f"{' (stages included)' * (not alone)}, "
                f"leaderboard and report {first['leaderboard and report']:.1f} s, "
                f"nothing to do {second['again']:.1f} s, "
                + "".join(
                    f"harness {name} {second[name]:.1f} s, " for name in ("leaderboard", "report", "score")
                )
                + f"peak memory {memory:,.0f} MB",
                flush=True,
            )
    if options.only != "cells":
        for count in (options.responses // 10, options.responses):
            rows, seconds, before, peak, size = measured(many_responses, count)
            print(
                f"{rows:,} responses ({size:.0f} MB) answered, judged and scored in {seconds:.0f} s, "
                f"peak memory {peak:,.0f} MB ({before:,.0f} MB before)",
                flush=True,
            )


if __name__ == "__main__":
    main()
