"""Guards what a full or read-only disk does to a command: one clear line, exit 1, what is done stays, and
the same command goes on once the disk is mended. On small file systems, where root may mount them."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config import load
from harness.contracts import HarnessError
from harness.pipeline import stages
from harness.run import plan
from harness.run.context import RunContext
from harness.storage import disk
from harness.storage.disk import DiskFullError

Run = Callable[..., Any]
FLAGS = ["compare", "--methods", "vanilla,sdft"]


class Mounted:
    """A file system in memory: of another size, or read-only, at a word."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, *options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)],
            check=True,
            capture_output=True,
        )

    def again(self, *options: str) -> None:
        subprocess.run(
            ["mount", "-o", ",".join(("remount", *options)), str(self.folder)],
            check=True,
            capture_output=True,
        )


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    place = Mounted(tmp_path / "mounted")
    place.folder.mkdir()
    try:
        place.mount("size=1m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("requires root that may mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place.folder)], check=True)


# --- no space --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("16k", {}),  # the answers
        ("2m", {}),  # a checkpoint, by safetensors
        ("12m", {"training.save_steps": 1}),  # a resume state, by torch
        ("2m", {"jobs": 2}),
    ],
    ids=["answers", "checkpoint", "state", "workers"],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    size: str, changes: dict[str, Any], mounted: Mounted, tmp_path: Path, command: Run, small: Run,
    values: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    flags = [
        *small(**{"training.max_examples": 8, "training.batch_size": 4, "responses.limit": 4, **changes})
    ]
    out = mounted.folder / "run"
    mounted.again(f"size={size}")
    ended = command(*FLAGS, "--out", out, *flags)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended
    assert "no space left on the disk; what is done stays, and the same command goes on once" in ended.err
    assert "traceback" not in ended.out
    done = {path: path.stat().st_mtime_ns for path in out.rglob("respond.done.json")}
    mounted.again("size=300m")
    ended = command(*FLAGS, "--out", out, *flags)
    assert ended.code == 0, ended.err
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert command(*FLAGS, "--out", tmp_path / "whole", *flags).code == 0
    assert values(out) == values(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_cache_is_one_line_and_the_same_command_goes_on(
    mounted: Mounted, tmp_path: Path, command: Run, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(mounted.folder / "cache"))
    mounted.again("size=4k")
    arguments = ["train", "sdft", "--out", tmp_path / "run", *small()]
    ended = command(*arguments)
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended
    assert "no space left on the disk" in ended.err
    mounted.again("size=20m")
    assert command(*arguments).code == 0


# --- not to be written -----------------------------------------------------------------------------


def test_a_read_only_run_and_cache_are_one_line(
    mounted: Mounted, tmp_path: Path, command: Run, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.again("ro")
    ended = command(*FLAGS, "--out", mounted.folder / "run", *small())
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended
    assert "cannot be written (Read-only file system); choose another --out" in ended.err
    monkeypatch.setenv("HARNESS_CACHE", str(mounted.folder / "cache"))
    ended = command(*FLAGS, "--out", tmp_path / "run", *small())
    assert (ended.code, ended.err.count("\n")) == (1, 1), ended
    assert f"{mounted.folder}: cannot be written; name another cache: --set cache=DIR" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["cache", "seed", "gsm8k-mini", "seed/hexphi_raw-mini"])
def test_a_file_where_a_folder_belongs_is_one_line(
    place: str, tmp_path: Path, command: Run, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    assert command("compare", "--methods", "seed", "--out", out, *small()).code == 0
    file = tmp_path / "cache" if place == "cache" else out / place
    if file.is_dir():
        file.rename(tmp_path / "aside")
    file.write_text("mine", encoding="utf-8")
    ended = command("compare", "--methods", "vanilla", "--out", out, *small())
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert str(file) in ended.out + ended.err
    assert "traceback" not in ended.out + ended.err
    assert file.read_text(encoding="utf-8") == "mine"
    file.unlink()
    assert command("compare", "--methods", "vanilla", "--out", out, *small()).code == 0


# --- what counts as such ---------------------------------------------------------------------------


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter: file write failed"),
        sqlite3.OperationalError("database or disk is full"),
        caused(ValueError("some library's own"), OSError(errno.ENOSPC, "No space left on device")),
    ],
)  # fmt: skip
def test_a_full_disk_is_known_by_whatever_says_it(error: Exception) -> None:
    assert isinstance(disk.refusal(error), DiskFullError)


def test_other_errors_are_not_the_disks() -> None:
    assert disk.refusal(ValueError("x")) is None
    assert disk.refusal(OSError("can't load tokenizer for 'x'")) is None  # transformers raise it so
    assert disk.refusal(ConnectionRefusedError(111, "Connection refused")) is None
    refused = disk.refusal(PermissionError(errno.EACCES, "Permission denied", "a/b"))
    assert str(refused) == "a/b: cannot be written or read (Permission denied)"
    assert not isinstance(refused, DiskFullError)


def test_no_further_cell_is_tried_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = RunContext(load(), tmp_path)
    monkeypatch.setattr(ctx, "import_libraries", lambda **what: None)

    def full(*about: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.json")

    monkeypatch.setattr(stages, "run_cell", full)
    outcome = stages.attempt(ctx, plan.cells(ctx.config)[0], "", "leaderboard", False)
    assert outcome.stops
    assert outcome.failure is not None
    assert outcome.failure.startswith("x.json: no space left on the disk;")
    assert not [*tmp_path.rglob("error.log")]


def test_a_folder_is_looked_at_and_not_made(tmp_path: Path) -> None:
    disk.check_writable(tmp_path / "a" / "b", "the mend")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("", encoding="utf-8")
    with pytest.raises(HarnessError, match=r"a is a file and no folder; the mend"):
        disk.check_writable(tmp_path / "a" / "b", "the mend")
