"""Guards that a run survives: killed at any moment, the same command leads to the leaderboard of a run that
was never killed; no worker outlives its parent; a worker that dies takes only its own cell along."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from forked import finish

from harness.storage import crash
from harness.storage.files import read_json

FLAGS = ["compare", "--methods", "vanilla,lookahead-true"]


def file_count(folder: Path) -> int:
    return sum(len(files) + len(folders) for _, folders, files in os.walk(folder))  # others are writing there


def holds(folder: Path, names: set[str]) -> bool:
    return any(names.intersection(files) for _, _, files in os.walk(folder))


METHODS = [
    *("vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual"),
    *("ptst", "safety-mixing", "lisa"),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_in_mid_training_the_same_command_ends_with_the_same_weights(
    method: str, tmp_path: Path, small: Callable[..., list[str]]
) -> None:
    """kill -9 once a resume state is there: bit for bit the uninterrupted run's checkpoint."""
    changes = {"training.max_examples": 24, "training.batch_size": 2, "training.save_steps": 3}
    flags = ["train", method, *small(**changes)]
    cell = Path("gsm8k-mini") / method / "seed-42"

    log = tmp_path / "log.txt"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {crash.AT: "state.marked checkpoint-3"}
    assert finish([*flags, "--out", str(killed)], log, environment=environment) == -signal.SIGKILL
    assert not (killed / cell / "checkpoint").exists()
    for out in (killed, whole):
        assert finish([*flags, "--out", str(out)], log) == 0, log.read_text(encoding="utf-8")
    records = [read_json(out / cell / "training.json") for out in (killed, whole)]
    assert [bool(record["resumed_at_step"]) for record in records] == [True, False]
    assert records[0]["losses"] == records[1]["losses"]
    one, two = ((out / cell / "checkpoint" / "model.safetensors").read_bytes() for out in (killed, whole))
    assert one == two
    assert not (killed / cell / ".training").exists()


# --- worker processes ------------------------------------------------------------------------------


@contextmanager
def compare_with_workers(out: Path, flags: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command with two jobs, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *FLAGS, "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has its children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # git, say, that has ended meanwhile
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What the condition gives once it holds; the command must be alive until then."""
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return found


def responses(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("responses.jsonl")}


@pytest.mark.slow
def test_a_killed_worker_costs_its_cell_alone_and_two_jobs_give_the_values_of_one(
    tmp_path: Path, small: Callable[..., list[str]], small_run: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    with compare_with_workers(out, small(jobs=2)) as process:
        # Each worker begins with a cell: the one that trains has a scratch folder to be known by.
        wait_for(lambda: (out / "seed").exists() and len(workers_of(process)) == 2, process)
        wait_for(lambda: holds(out, {"responses.jsonl", "training.json"}), process)
        workers_of(process)[1].kill()
        shown, errors = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "failed: its worker process died (exit code -9: out of memory, or killed)" in shown
    assert (
        errors
        == "Error: 1 of 3 cells failed; the others are done. The same command tries the failed ones again.\n"
    )
    reference = responses(small_run)
    assert len(responses(out)) >= 6
    assert command(*FLAGS, "--out", out, *small()).code == 0
    found = responses(out)
    assert len(found) == 9
    assert found == {name: reference[name] for name in found}


def test_no_worker_outlives_a_killed_parent_and_the_run_can_go_on(
    tmp_path: Path, small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    with compare_with_workers(out, small(jobs=2)) as process:
        workers = wait_for(lambda: len(found := workers_of(process)) == 2 and found, process)
        time.sleep(random.Random(1).uniform(0.5, 2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=120)
        assert alive == []
    with FileLock(out / ".lock", timeout=0):
        pass


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_no_traceback(tmp_path: Path, small: Callable[..., list[str]]) -> None:
    out = tmp_path / "run"
    with compare_with_workers(out, small(jobs=2)) as process:
        workers = wait_for(lambda: len(found := workers_of(process)) == 2 and found, process)
        wait_for(lambda: file_count(out) > 3, process)  # cells have begun
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        _, errors = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(workers, timeout=120)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted. The same command goes on where this one stopped."
    assert alive == []


def interrupted_at(moment: str) -> None:
    """Let this process get a Ctrl-C at a named moment (harness/storage/crash.py)."""
    from harness.storage import crash

    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have it ignored

    def passed(name: str, path: Path) -> None:
        if f"{name} {path.name}" == moment:
            os.kill(os.getpid(), signal.SIGINT)

    crash.point = passed


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        ("compare --methods seed", "journal.row .respond.journal.jsonl"),  # in the middle of lm-eval
        *(
            pytest.param(arguments, moment, marks=pytest.mark.slow)
            for arguments, moment in (
                ("compare --methods seed", "text.replaced run.json"),
                ("compare --methods seed", "stage.worked judge-mini-exact.done.json"),
                ("compare --methods seed", "stage.worked leaderboard.done.json"),
                ("compare --methods seed", "text.written report.html"),
                ("train sdft", "journal.row .generated.journal.jsonl"),  # of the rewrites
                ("train sdft", "state.marked checkpoint-2"),
                ("train sdft", "training.collected checkpoint"),
            )
        ),
    ],
)
def test_ctrl_c_at_any_stage_is_one_line_and_the_same_command_goes_on(
    arguments: str, moment: str, tmp_path: Path, small: Callable[..., list[str]]
) -> None:
    changes = {"training.max_examples": 8, "training.batch_size": 2, "training.save_steps": 2}
    out, log = tmp_path / "run", tmp_path / "log.txt"
    flags = [*arguments.split(), "--out", str(out), *small(**changes, **{"responses.limit": 1})]
    environment = {"HARNESS_CACHE": str(tmp_path / "cache")}
    ended = finish(flags, log, environment=environment, before=interrupted_at, given=(moment,))
    shown = log.read_text(encoding="utf-8")
    assert ended == 130, shown
    assert shown.endswith("\nInterrupted. The same command goes on where this one stopped.\n")
    for word in ("Traceback", "failed", "Error"):
        assert word not in shown
    with FileLock(out / ".lock", timeout=0):  # nobody holds it
        pass
    assert finish(flags, log, environment=environment) == 0, log.read_text(encoding="utf-8")
