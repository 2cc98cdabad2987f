"""The command line in a process forked from one that has the libraries imported: a start costs no second."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    *("torch", "transformers", "lm_eval.evaluator", "lm_eval.tasks", "rouge_score.rouge_scorer"),
    *("deepspeed", "sklearn.metrics", "matplotlib.backends.backend_svg"),  # where installed, others load them
    *(
        "harness.training.trainer",
        "judges.mini_exact",
        "tasks.gsm8k_mini.functions",
        "tasks.gsm8k_mini.train",
    ),
    *("tasks.hexphi_mini.functions", "harness.cli", "harness.pipeline.compare", "harness.engines.hf"),
    *(
        "harness.leaderboard.epochs",
        "harness.figures.charts",
        "harness.leaderboard.latex",
        "harness.leaderboard.build",
        "harness.report",
    ),
]


def start(
    arguments: list[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    before: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> BaseProcess:
    """``harness`` with arguments, what it shows in ``log``; ``environment`` beside this process's own.
    ``before(*given)`` is called in its process first."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed would look for another and say so
    context.set_forkserver_preload(PRELOADED)
    surroundings = {**os.environ, **(environment or {})}
    process = context.Process(target=_run, args=(arguments, log, surroundings, before, given))
    process.start()
    return process


def finish(arguments: list[str], log: Path, **options: Any) -> int:
    """Its exit code; -9 where it was killed."""
    process = start(arguments, log, **options)
    process.join(500)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{arguments} does not end")
    return process.exitcode


def _run(
    arguments: list[str],
    log: Path,
    environment: dict[str, str],
    before: Callable[..., None] | None,
    given: tuple[Any, ...],
) -> None:
    from harness import cli

    os.environ.update(environment)  # the server was started with another
    sys.argv = ["harness", *arguments]
    text = io.StringIO()
    try:
        if before:
            before(*given)
        with redirect_stdout(text), redirect_stderr(text):
            cli.main()
    finally:
        log.write_text(text.getvalue(), encoding="utf-8")
