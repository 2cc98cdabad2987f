"""What a command adds to a run that is there, and what it would change of it, which is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import OF_THE_RUN, CodeConfig, RunConfig
from harness.data import benchmarks
from harness.engines import select
from harness.plugins import plugin_files
from harness.run.resolve import resolve

CODE = ("methods", "judges", "tasks")  # records of files with code, by kind


def compare(
    record: dict[str, Any], before: RunConfig, config: RunConfig, now: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What all the run's answers and trainings rest on from now on, and what of it the command would change.
    What it does not name again, or names for the first time, stays or is added."""
    fixed = {"responses.part": "all", **record.get("fixed", {})}  # a run from before parts were known
    there = resolve(before)
    answered = {task for cell in there.cells() for task in cell.tasks}
    answered |= {there.benchmark(task).local_data or "" for task in answered}
    added = {f"data.{task}" for task in config.data if task not in answered}
    elsewhere = _find_answered_elsewhere(record)
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
        f"{_name(key, before, config)}: {_shorten(there_now.get(key))} there, {_shorten(now.get(key))} here"
        for key in sorted({*now, *fixed} - added)
        if fixed.get(key) != now.get(key)
    ]
    return now, differing


def list_differing_rows(
    stored: dict[str, Any], before: RunConfig, config: RunConfig, chosen: Sequence[str]
) -> list[str]:
    """What the command would change of the run's methods, variants, code and checkpoints."""
    differing = []
    trained = {*stored["methods"], *(variant.method for variant in before.variants.values())}
    for method in sorted({*chosen, *config.method_options}):
        there, here = stored["method_options"].get(method, {}), config.method_options.get(method, {})
        if method in trained and there != here:
            differing.append(f"method_options.{method}: {there} there, {here} here")
    differing += _list_differing_variants(before, config) + _list_differing_code(before, config)
    for name, path in config.checkpoints.items():
        there = stored["checkpoints"].get(name, path)
        if there != path:
            differing.append(f"checkpoint {name}: {there} there, {path} here (another name?)")
    return differing


def extend(stored: dict[str, Any], before: RunConfig, config: RunConfig, chosen: Sequence[str]) -> RunConfig:
    """The run's configuration with what the command adds."""
    return config.model_copy(
        update={
            "methods": _unite(stored["methods"], chosen),
            "train_tasks": _unite(stored["train_tasks"], config.train_tasks),
            "seeds": _unite(stored["seeds"], config.seeds),
            "judges": _unite(stored["judges"], config.judges),
            "checkpoints": {**stored["checkpoints"], **config.checkpoints},
            "trained_on": {**before.trained_on, **config.trained_on},
            "utility_tasks": _unite(stored["utility_tasks"], config.utility_tasks),
            "safety_tasks": _unite(stored["safety_tasks"], config.safety_tasks),
            "safety_sets": {**_to_paths(stored["safety_sets"]), **config.safety_sets},
            "utility_sets": {**before.utility_sets, **config.utility_sets},
            "code": _join_code(before, config),
            "data": {**_to_paths(stored["data"]), **config.data},
            **_join_data(before, config),
            "method_options": {**stored["method_options"], **config.method_options},
            "variants": {**before.variants, **config.variants},
            "cross_tasks": stored["cross_tasks"] or config.cross_tasks,
        }
    )


def _join_data(before: RunConfig, config: RunConfig) -> dict[str, Any]:
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


def _name(key: str, before: RunConfig, config: RunConfig) -> str:
    """What a difference is called: a train task's own data by the task, where there are several."""
    alone = len({*before.train_tasks, *config.train_tasks}) == 1
    named = key.partition(".")[0]
    return named if alone and named in ("train_data", "columns") else key


def _list_differing_variants(before: RunConfig, config: RunConfig) -> list[str]:
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


def _find_answered_elsewhere(record: Mapping[str, Any]) -> dict[str, str]:
    """The tasks that were answered from the hub: a file given for one now would mix two sets of documents."""
    found = {}
    for task, asked in record.get("data", {}).items():
        benchmark = benchmarks.installed().get(task)
        if benchmark and benchmark.local_data and asked["source"].startswith("hub "):
            found[f"data.{benchmark.local_data}"] = asked["source"]
    return found


def _join_code(before: RunConfig, config: RunConfig) -> CodeConfig:
    """What is known of files with code: the run's record, and over it what the command has named."""
    records = {name: {**getattr(before.code, name), **getattr(config.code, name)} for name in CODE}
    return config.code.model_copy(update=records)


def _list_differing_code(before: RunConfig, config: RunConfig) -> list[str]:
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


def _unite(there: Sequence[Any], here: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys([*there, *here]))


def _to_paths(files: Mapping[str, str]) -> dict[str, Path]:
    return {name: Path(file) for name, file in files.items()}


def _shorten(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
