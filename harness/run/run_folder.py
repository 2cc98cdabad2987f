"""A run folder: its record, run.json, whether a command may go on in it (joining.py), and its lock.

A command joins a run that is there: what it names besides is added, what would change results is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import config as configuration
from harness.config import RunConfig, trust
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.plugins import plugin_files
from harness.run import joining, plan
from harness.run.context import RunContext
from harness.run.fixed import find_fixed
from harness.run.plan import Cell
from harness.storage import records
from harness.storage.files import held, odd_below, write_json_atomic
from harness.text import WEIGHTS, without_keys
from harness.version import __version__

ALIGNMENT = "alignment"  # the folder of the step that comes before a run's record
PLACE_OF_WEIGHTS = re.compile(rf"[^/]+/[^/]+/seed-\d+/(epoch-\d+/)?{WEIGHTS}")


def stored_config(out: Path) -> RunConfig:
    """The configuration of a run folder. Raises HarnessError where there is none."""
    record = records.run(out)
    try:
        return RunConfig.model_validate(record["config"])
    except ValueError as error:
        raise HarnessError(
            f"{out / 'run.json'}: not a run's record ({' '.join(str(error).split())[:200]})"
        ) from error


def taken_config(out: Path, overrides: Mapping[str, Any], steps: Collection[trust.Step]) -> RunConfig:
    """A run's configuration for a command that goes on with it, ``overrides`` (dotted keys) laid over it.
    Raises UsageError where only the run asks for what acts on this machine, as far as ``steps`` take it."""
    stored = stored_config(out)
    config = configuration.changed(stored, overrides, f"{out / 'run.json'}")
    trust.check(config, stored, out, overrides.keys(), steps)
    return config


def read_failures(out: Path) -> dict[Path, str]:
    """Why cells of a run failed in its last command, by folder."""
    stored = records.run(out).get("failures", {})
    return {Path(folder): line for folder, line in stored.items()}


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a run folder: a second command on it stops with one line."""
    if out.is_file():
        raise HarnessError(f"{out} is a file; --out needs a folder")
    if out.is_dir() and not (out / "run.json").exists():
        own = {path.name for path in out.iterdir() if path.name.startswith(".")} | {ALIGNMENT}
        foreign = sorted({path.name for path in out.iterdir()} - own)
        if foreign:
            raise HarnessError(f"{out} holds other files ({foreign[0]}) and no run; choose another --out")
    for path in odd_below(out):
        if not path.is_symlink():
            raise HarnessError(f"{path} is no plain file or folder; remove it")
        if not PLACE_OF_WEIGHTS.fullmatch(path.relative_to(out).as_posix()):
            raise HarnessError(
                f"{path} is a link, through which a run could write elsewhere; put what it leads to in its "
                f"place (only a training's folder {WEIGHTS} may be a link)"
            )
    with held(out, "another harness command is at work on this run; wait for it to end"):
        yield


@contextlib.contextmanager
def open_run(out: Path) -> Iterator[RunConfig]:
    """Hold a run that is there: its configuration. Raises HarnessError where ``out`` is none, and makes no
    folder of it."""
    stored_config(out)
    with lock(out):
        yield stored_config(out)


def join(ctx: RunContext, steps: Collection[trust.Step] = trust.ALL) -> RunConfig:
    """Start a run's record, or extend the one that is there. Another model, data or budget is refused, and
    what only the record asks for (trust.py), as far as ``steps`` would take it."""
    config, out = ctx.config, ctx.out
    chosen = (plan.SEED, *(name for name in plan.methods(config) if name not in config.variants))
    now = find_fixed(ctx)
    kept: dict[str, Any] = {}
    before = stored_config(out) if (out / "run.json").exists() else None
    if before is None:
        config = config.model_copy(update={"methods": chosen})
    else:
        record = records.run(out)
        kept = {name: record[name] for name in ("timing", "failures", "data") if name in record}
        now, differing = joining.compare(record, before, config, now)
        differing += joining.list_differing_rows(record["config"], before, config, chosen)
        if differing:
            raise HarnessError(
                f"{out} holds a run of another configuration; choose another --out. "
                f"What differs: {'; '.join(differing)}"
            )
        config = joining.extend(record["config"], before, config, chosen)
        trust.check(config, before, out, ctx.config, steps)
    config = config.model_copy(update={"engine": ctx.engine_name})
    trust.remember(config, out, before)
    write_json_atomic(out / "run.json", {**_record(ctx, config), "fixed": now, **kept})
    return config


def _record(ctx: RunContext, config: RunConfig) -> dict[str, Any]:
    """What run.json says of the command, the machine and the packages."""
    return {
        "config": config.model_dump(mode="json"),
        "fixed": {},  # in its place among the keys
        "command": [*map(without_keys, sys.argv)],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "harness": __version__,
        "commit": _commit(),
        "libraries": ctx.libraries,
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
    }


def code_notes(config: RunConfig) -> list[str]:
    """What a table says of files with code: which text is behind a row, a judge or a column."""
    parts = [
        f"{kind} {name} ({Path(one.file).name}:{one.class_name}, SHA-256 {one.sha256[:12]}…)"
        for kind, records in (("method", config.code.methods), ("judge", config.code.judges))
        for name, one in records.items()
    ]
    parts += [f"task {name} (folder {Path(one.folder).name})" for name, one in config.code.tasks.items()]
    parts += [f"task {name} ({one.file.name}, {one.metric})" for name, one in config.utility_sets.items()]
    return [f"From files: {', '.join(parts)}."] if parts else []


def check_named(out: Path, config: RunConfig, cells: Sequence[Cell], *, answered: bool = True) -> None:
    """Raises HarnessError where cells need code of files that only the run's record names, that of their
    tasks where these are to be ``answered``."""
    lacking: dict[str, None] = {}
    here = benchmarks.of_folders()
    for cell in cells:
        method = config.row(cell.method).method if cell.kind == "trained" else ""
        if method in config.code.methods and not plugin_files.found("method", method):
            lacking[plugin_files.option("method", method, config.code.methods[method].model_dump())] = None
        for task in cell.tasks if answered else ():
            if task in config.code.tasks and task not in here:
                lacking[f"--task-dir {config.code.tasks[task].folder}"] = None
    if lacking:
        raise HarnessError(
            f"{out} has rows or tasks of files with code, and only the command line may name these: add "
            f"{' '.join(lacking)}"
        )


def outcome(out: Path, cells: Sequence[Cell], failures: Mapping[Path, str]) -> dict[str, Any]:
    """What a command adds to the record: failures of its cells in place of their former ones, documents."""
    record, tried = records.run(out), {str(cell.folder) for cell in cells}
    left = {folder: line for folder, line in record.get("failures", {}).items() if folder not in tried}
    now = {str(folder): line for folder, line in failures.items()}
    return {"failures": left | now, "data": record.get("data", {}) | _documents(out, cells)}


def _documents(out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """Of each task that was asked: where its documents come from, how many there were, and their hash. A
    prefilled task's depend on a checkpoint's tokenizer: the first cell's are shown."""
    found: dict[str, Any] = {}
    for cell in cells:
        for task in cell.tasks:
            folder = out / cell.folder / task
            if task not in found and (folder / "task.json").is_file():
                record = records.documents(folder)
                found[task] = {name: record[name] for name in ("source", "version", "documents", "sha256")}
    return found


def update(out: Path, **values: Any) -> None:
    write_json_atomic(out / "run.json", {**records.run(out), **values})


def _commit() -> str | None:
    try:
        here = Path(__file__).parent
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
