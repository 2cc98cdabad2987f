"""A run folder: its record, run.json, whether a command may go on in it, and its lock.

A command joins a run that is there: what it names besides is added, what would change results is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from harness.config import OF_THE_RUN, CodeConfig, RunConfig, trust
from harness.contracts import HarnessError
from harness.data import benchmarks, loading
from harness.engines import select
from harness.plugins import plugin_files
from harness.run import plan
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records
from harness.storage.files import content_hash, held, odd_below, write_json_atomic
from harness.text import WEIGHTS, without_keys
from harness.version import __version__

ALIGNMENT = "alignment"  # the folder of the step that comes before a run's record
PLACE_OF_WEIGHTS = re.compile(rf"[^/]+/[^/]+/seed-\d+/(epoch-\d+/)?{WEIGHTS}")
APART = ("name", "note", "paper", "cache", "alignment", "aligned")  # what they do shows in the base model
CODE = ("methods", "judges", "tasks")  # records of files with code, by kind
GROWING = (
    "methods",
    "train_tasks",
    "seeds",
    "judges",
    "checkpoints",
    "trained_on",
    "utility_tasks",
    "safety_tasks",
    "safety_sets",
    "utility_sets",
    "code",
    "method_options",
    "variants",
    "cross_tasks",
    "jobs",
    "judging",
    "executor",
    "ray",
)


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


def failed(out: Path) -> dict[Path, str]:
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
def opened(out: Path) -> Iterator[RunConfig]:
    """Hold a run that is there: its configuration. Raises HarnessError where ``out`` is none, and makes no
    folder of it."""
    stored_config(out)
    with lock(out):
        yield stored_config(out)


def join(shop: RunContext, steps: Collection[trust.Step] = trust.ALL) -> RunConfig:
    """Start a run's record, or extend the one that is there. Another model, data or budget is refused, and
    what only the record asks for (trust.py), as far as ``steps`` would take it."""
    config, out = shop.config, shop.out
    chosen = (plan.SEED, *(name for name in plan.methods(config) if name not in config.variants))
    now = _fixed(shop)
    kept: dict[str, Any] = {}
    before = stored_config(out) if (out / "run.json").exists() else None
    if before is None:
        config = config.model_copy(update={"methods": chosen})
    else:
        record = records.run(out)
        kept = {name: record[name] for name in ("timing", "failures", "data") if name in record}
        now, differing = _compared(record, before, config, now)
        differing += _differing_rows(record["config"], before, config, chosen)
        if differing:
            raise HarnessError(
                f"{out} holds a run of another configuration; choose another --out. "
                f"What differs: {'; '.join(differing)}"
            )
        config = _extended(record["config"], before, config, chosen)
        trust.check(config, before, out, shop.config, steps)
    config = config.model_copy(update={"engine": shop.engine_name})
    trust.remember(config, out, before)
    write_json_atomic(out / "run.json", {**_record(shop, config), "fixed": now, **kept})
    return config


def _compared(
    record: dict[str, Any], before: RunConfig, config: RunConfig, now: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What all the run's answers and trainings rest on from now on, and what of it the command would change.
    What it does not name again, or names for the first time, stays or is added."""
    fixed = {"responses.part": "all", **record.get("fixed", {})}  # a run from before parts were known
    there = resolve(before)
    answered = {task for cell in there.cells() for task in cell.tasks}
    answered |= {there.benchmark(task).local_data or "" for task in answered}
    added = {f"data.{task}" for task in config.data if task not in answered}
    elsewhere = _answered_elsewhere(record)
    files = [key for key in {*now, *fixed} if key.startswith(("data.", "safety_sets.", "utility_sets."))]
    added |= {key for key in files if (key in now) != (key in fixed)}
    added -= elsewhere.keys()
    # A train task that only one of both has brings its own data along.
    shared = {*before.train_tasks} & {*config.train_tasks}
    rows = [key for key in {*now, *fixed} if key.startswith(("train_data.", "columns."))]
    brought = [key for key in rows if key.partition(".")[2] not in shared]
    added |= {*brought}
    now = {**{key: fixed[key] for key in [*files, *brought] if key in fixed}, **now}
    if fixed.get("engine") != now["engine"]:  # its settings differ because it does
        shared = {f"responses.{name}" for name in (*select.ALWAYS, "part", "validation_share")}
        added |= {key for key in {*now, *fixed} if key.startswith("responses.")} - shared
    there_now = {**elsewhere, **fixed}
    differing = [
        f"{_named(key, before, config)}: {_short(there_now.get(key))} there, {_short(now.get(key))} here"
        for key in sorted({*now, *fixed} - added)
        if fixed.get(key) != now.get(key)
    ]
    return now, differing


def _differing_rows(
    stored: dict[str, Any], before: RunConfig, config: RunConfig, chosen: Sequence[str]
) -> list[str]:
    """What the command would change of the run's methods, variants, code and checkpoints."""
    differing = []
    trained = {*stored["methods"], *(variant.method for variant in before.variants.values())}
    for method in sorted({*chosen, *config.method_options}):
        there, here = stored["method_options"].get(method, {}), config.method_options.get(method, {})
        if method in trained and there != here:
            differing.append(f"method_options.{method}: {there} there, {here} here")
    differing += _changed_variants(before, config) + _other_code(before, config)
    for name, path in config.checkpoints.items():
        there = stored["checkpoints"].get(name, path)
        if there != path:
            differing.append(f"checkpoint {name}: {there} there, {path} here (another name?)")
    return differing


def _extended(
    stored: dict[str, Any], before: RunConfig, config: RunConfig, chosen: Sequence[str]
) -> RunConfig:
    """The run's configuration with what the command adds."""
    return config.model_copy(
        update={
            "methods": _both(stored["methods"], chosen),
            "train_tasks": _both(stored["train_tasks"], config.train_tasks),
            "seeds": _both(stored["seeds"], config.seeds),
            "judges": _both(stored["judges"], config.judges),
            "checkpoints": {**stored["checkpoints"], **config.checkpoints},
            "trained_on": {**before.trained_on, **config.trained_on},
            "utility_tasks": _both(stored["utility_tasks"], config.utility_tasks),
            "safety_tasks": _both(stored["safety_tasks"], config.safety_tasks),
            "safety_sets": {**_paths(stored["safety_sets"]), **config.safety_sets},
            "utility_sets": {**before.utility_sets, **config.utility_sets},
            "code": _code(before, config),
            "data": {**_paths(stored["data"]), **config.data},
            **_joined_data(before, config),
            "method_options": {**stored["method_options"], **config.method_options},
            "variants": {**before.variants, **config.variants},
            "cross_tasks": stored["cross_tasks"] or config.cross_tasks,
        }
    )


def _record(shop: RunContext, config: RunConfig) -> dict[str, Any]:
    """What run.json says of the command, the machine and the packages."""
    return {
        "config": config.model_dump(mode="json"),
        "fixed": {},  # in its place among the keys
        "command": [*map(without_keys, sys.argv)],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "harness": __version__,
        "commit": _commit(),
        "libraries": shop.libraries,
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
    }


def _joined_data(before: RunConfig, config: RunConfig) -> dict[str, Any]:
    """What each train task of either configuration learns from: as one that knows all train tasks says it."""
    same = ("train_tasks", "train_data", "columns")
    if all(getattr(before, key) == getattr(config, key) for key in same):
        return {}
    found: dict[str, Any] = {"train_data": {}, "columns": {}}
    for one in (before, config):
        for task in one.train_tasks:
            source, columns = one.train_source(task), one.columns_of(task)
            found["train_data"] |= {task: source} if source else {}
            found["columns"] |= {task: columns} if columns else {}
    return {**found, "train_data": found["train_data"] or None}


def _named(key: str, before: RunConfig, config: RunConfig) -> str:
    """What a difference is called: a train task's own data by the task, where there are several."""
    alone = len({*before.train_tasks, *config.train_tasks}) == 1
    named = key.partition(".")[0]
    return named if alone and named in ("train_data", "columns") else key


def _changed_variants(before: RunConfig, config: RunConfig) -> list[str]:
    """What differs in variants of one name: another variant needs another name."""
    differing = []
    for name in before.variants.keys() & config.variants.keys():
        there, here = (dataclasses.asdict(one.row(name)) for one in (before, config))
        for row in (there, here):
            training = row.pop("training").model_dump(mode="json", exclude={*OF_THE_RUN})
            row |= {f"training.{key}": value for key, value in training.items()}
        differing += [
            f"variants.{name}.{key}: {value} there, {here[key]} here (another name?)"
            for key, value in there.items()
            if value != here[key]
        ]
    return sorted(differing)


def _answered_elsewhere(record: Mapping[str, Any]) -> dict[str, str]:
    """The tasks that were answered from the hub: a file given for one now would mix two sets of documents."""
    found = {}
    for task, asked in record.get("data", {}).items():
        benchmark = benchmarks.installed().get(task)
        if benchmark and benchmark.local_data and asked["source"].startswith("hub "):
            found[f"data.{benchmark.local_data}"] = asked["source"]
    return found


def _code(before: RunConfig, config: RunConfig) -> CodeConfig:
    """What is known of files with code: the run's record, and over it what the command has named."""
    records = {name: {**getattr(before.code, name), **getattr(config.code, name)} for name in CODE}
    return config.code.model_copy(update=records)


def _other_code(before: RunConfig, config: RunConfig) -> list[str]:
    """Names that stand for one file's class in the run, and for another's here."""
    lines = []
    for kind in ("methods", "judges"):
        there, here = getattr(before.code, kind), getattr(config.code, kind)
        for name in there.keys() & here.keys():
            if plugin_files.differs(there[name].model_dump(), here[name].model_dump()):
                shown = [f"{one.file}:{one.class_name}" for one in (there[name], here[name])]
                lines.append(
                    f"{kind} {name}: {shown[0]} there, {shown[1]} here (another name? NAME={shown[1]})"
                )
    return sorted(lines)


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


def _both(there: Sequence[Any], here: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys([*there, *here]))


def _paths(files: Mapping[str, str]) -> dict[str, Path]:
    return {name: Path(file) for name, file in files.items()}


def _fixed(shop: RunContext) -> dict[str, Any]:
    """What cannot change within a run folder: flat, so that a difference can be named."""
    config = shop.config
    by_content = {"model", "train_data", "columns", "mix", "safety_data", "data"}
    values = config.model_dump(mode="json", exclude={*GROWING, *by_content, *APART})
    values["training"] = config.training.identity()
    values["responses"] = select.settings_of_answers(config.responses, shop.engine_name)
    values["responses"]["part"] = config.responses.part
    if config.responses.part != "all":
        values["responses"]["validation_share"] = config.responses.validation_share
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[key] = value
    flat["model"] = content_hash(shop.seed_fingerprint)
    flat["engine"] = shop.engine_name
    flat |= _train_data(config)
    if config.safety_data:
        flat["safety_data"] = loading.source_hash(config.safety_data)
    flat |= {f"mix.{loading.source_hash(source)[:12]}": share for source, share in config.mix.items()}
    flat |= {f"safety_sets.{name}": loading.data_hash(path) for name, path in config.safety_sets.items()}
    flat |= {
        f"utility_sets.{name}": content_hash([loading.data_hash(one.file), one.metric])
        for name, one in config.utility_sets.items()
    }
    return flat | {f"data.{task}": loading.data_hash(path) for task, path in config.data.items()}


def _train_data(config: RunConfig) -> dict[str, Any]:
    """What each train task learns from that is not its own rows: ``train_data.TASK`` and ``columns.TASK``."""
    found: dict[str, Any] = {}
    for task in config.train_tasks:
        source, columns = config.train_source(task), config.columns_of(task)
        found |= {f"train_data.{task}": loading.source_hash(source)} if source else {}
        found |= {f"columns.{task}": columns} if columns else {}
    return found


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


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


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
