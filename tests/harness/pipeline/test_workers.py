"""Guards how cells are run: how many jobs, a failure as one line beside others that succeed, its traceback on
file, and workers that leave Ctrl-C to their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import config
from harness.contracts import HarnessError
from harness.pipeline import stages, workers
from harness.run import plan
from harness.run.context import CLOCK, RunContext


@pytest.mark.parametrize(
    ("overrides", "cells", "jobs"),
    [
        ({"jobs": 3}, 9, 3),
        ({"jobs": 3}, 2, 2),
        ({"threads": 1}, 99, os.cpu_count() or 1),
        ({"threads": 10_000}, 9, 1),
        ({"threads": None}, 9, 1),
        ({"threads": 1, "training.device": "auto"}, 9, 1),
    ],
)
def test_as_many_jobs_as_asked_or_as_the_cores_hold(overrides: dict[str, Any], cells: int, jobs: int) -> None:
    assert plan.job_count(config.load(None, overrides), cells) == jobs


def test_cores_of_another_machine_decide_for_its_runs() -> None:
    on_cpu = config.load("mini", {"threads": 2})
    assert [plan.job_count(on_cpu, 9, cores) for cores in (1, 2, 8)] == [1, 1, 4]


def test_a_worker_knows_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a training records whether its seconds are its own."""
    seen: list[int] = []

    class Parent:
        def __init__(self) -> None:
            self.work = [("cell", "label")]

        def recv(self) -> Any:
            if not self.work:
                raise EOFError
            return self.work.pop()

        def send(self, _: Any) -> None:
            pass

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back afterwards
    monkeypatch.setattr(workers.multiprocessing, "parent_process", lambda: SimpleNamespace(sentinel=0))
    monkeypatch.setattr(workers, "_end_with", lambda sentinel: None)
    monkeypatch.setattr(workers.plugin_files, "take", lambda named: None)
    monkeypatch.setattr(workers, "attempt", lambda ctx, *_: seen.append(ctx.jobs))
    workers._serve(Parent(), config.load(), tmp_path, "train", False, (), 3, None)  # type: ignore[arg-type]
    assert seen == [3]
    assert RunContext(config.load(), tmp_path).jobs == 1


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    run_context = RunContext(config.load(), tmp_path)
    monkeypatch.setattr(run_context, "import_libraries", lambda **what: None)
    return run_context


def attempt(
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    debug: bool = False,
    cell: plan.Cell | None = None,
) -> stages.Outcome:
    def run_cell(*_: Any) -> None:
        ctx.clock["training"] += 0.25
        if error:
            raise error

    monkeypatch.setattr(stages, "run_cell", run_cell)
    return stages.attempt(ctx, cell or plan.cells(ctx.config)[0], "", "leaderboard", debug)


def test_an_unforeseen_failure_is_one_line_with_its_traceback_on_file(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = ctx.out / "seed" / "error.log"
    failed = attempt(ctx, monkeypatch, ValueError("two\nlines")).failure
    assert failed == "ValueError: two lines (traceback: seed/error.log in the run's folder)"
    assert "raise error" in log.read_text(encoding="utf-8")
    assert attempt(ctx, monkeypatch, None).failure is None
    assert not log.exists()  # mended
    assert capsys.readouterr() == ("", "")


def test_parts_of_a_cell_keep_their_tracebacks_apart(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan.cells(ctx.config)[0]
    parts = [replace(whole, tasks=(task,)) for task in whole.tasks[:3]]
    errors = [ValueError("first"), ValueError("second"), None]
    failed = [
        attempt(ctx, monkeypatch, error, cell=part).failure for part, error in zip(parts, errors, strict=True)
    ]
    for part, error, failure in zip(parts[:2], errors, failed, strict=False):
        log = f"seed/{part.tasks[0]}/error.log"
        assert f"(traceback: {log} " in (failure or "")
        assert f"ValueError: {error}" in (ctx.out / log).read_text(encoding="utf-8")
    assert len([*ctx.out.rglob("error.log")]) == 2
    trained = replace(plan.cells(ctx.config)[-1], tasks=whole.tasks[:1])
    attempt(ctx, monkeypatch, ValueError("third"), cell=trained)
    assert (ctx.out / trained.folder / "error.log").exists()


def test_a_foreseen_failure_is_its_own_line(ctx: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        attempt(ctx, monkeypatch, HarnessError("the cause and the mend")).failure == "the cause and the mend"
    )
    assert not (ctx.out / "seed").exists()


def test_debug_shows_the_traceback_and_goes_on(
    ctx: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (ValueError("x"), HarnessError("y")):
        assert attempt(ctx, monkeypatch, error, debug=True).failure
        assert "Traceback" in capsys.readouterr().err


def test_each_cells_clock_starts_at_nothing(ctx: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # a cell's clock starts at nothing
        clock = attempt(ctx, monkeypatch, None).clock
        assert clock["training"] == 0.25
        assert set(clock) == set(CLOCK)


def test_a_worker_leaves_ctrl_c_to_its_parent_and_the_users_script_alone() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    before, main = signal.getsignal(signal.SIGINT), sys.modules["__main__"]
    with workers._quiet_start():
        assert not hasattr(sys.modules["__main__"], "__file__")
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGINT) == before
    assert sys.modules["__main__"] is main
