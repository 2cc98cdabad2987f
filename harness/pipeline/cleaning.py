"""What ``harness clean`` removes of a run: what its plan says the harness wrote there, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.analyses.shared import FOLDER
from harness.config import RunConfig, trust
from harness.contracts import HarnessError, UsageError
from harness.data import benchmarks
from harness.leaderboard import epochs, publish
from harness.plugins import registry
from harness.report import plots
from harness.run import plan, run_folder
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import crash, files, records


def weights(run: Path, config: RunConfig) -> list[Path]:
    """The checkpoints of a run's trainings, and what unfinished trainings left."""
    folders = [run / cell.folder for cell in resolve(config).cells() if cell.kind == "trained"]
    parts = ("checkpoint", "epoch-*/checkpoint", ".training")
    return sorted(found for folder in folders for part in parts for found in folder.glob(part))


def whole(run: Path, config: RunConfig) -> list[Path]:
    """All that the harness wrote into a run folder, its record last."""
    folders = {
        run / FOLDER,
        run / run_folder.ALIGNMENT,
        run / plots.FOLDER,
        *(run / cell.folder.parts[0] for cell in resolve(config).cells()),
    }
    names = (*publish.FILES, *epochs.outputs(config), publish.REPORT, "leaderboard.done.json")
    files = {run / name for name in names}
    return [*sorted(path for path in folders | files if path.exists()), run / "run.json"]


def without(config: RunConfig, rows: Sequence[str], tasks: Sequence[str]) -> RunConfig:
    """A run's configuration without some rows, or without some tasks. Raises UsageError for what the run has
    not, and for what its other figures are measured by."""
    for name in rows:
        config = _without_row(config, name)
    for name in tasks:
        config = _without_task(config, name)
    return config


def _without_row(config: RunConfig, name: str) -> RunConfig:
    known = [*plan.methods(config), *config.checkpoints]
    if name == plan.SEED:
        raise UsageError("the base model's row stays: others are measured against it (--all removes the run)")
    if name not in known:
        raise registry.unknown("row", name, known)
    variants = {one: variant for one, variant in config.variants.items() if one != name}
    methods = tuple(one for one in config.methods if one != name)
    used = {*methods, *(variant.method for variant in variants.values())}
    code = config.code.model_copy(
        update={"methods": {one: record for one, record in config.code.methods.items() if one in used}}
    )
    return config.model_copy(
        update={
            "code": code,
            "methods": methods or (plan.SEED,),
            "variants": variants,
            "checkpoints": {one: place for one, place in config.checkpoints.items() if one != name},
            "trained_on": {one: task for one, task in config.trained_on.items() if one != name},
            "method_options": {one: given for one, given in config.method_options.items() if one in used},
        }
    )


def _without_task(config: RunConfig, name: str) -> RunConfig:
    groups = benchmarks.groups()
    gone = {name, *groups.get(name, ())}
    further = [one for one in plan.further(config) if one in gone]
    if name in config.train_tasks:
        if len(config.train_tasks) == 1:
            raise UsageError(f"'{name}' is the run's only train task: --all removes the run")
        rest = tuple(one for one in config.train_tasks if one != name)
        sources = {one: source for one in rest if (source := config.train_source(one))}
        columns = {one: found for one in rest if (found := config.columns_of(one))}
        trained_on = {one: task for one, task in config.trained_on.items() if task != name}
        config = config.model_copy(
            update={"train_tasks": rest, "train_data": sources or None, "columns": columns}
            | {"trained_on": trained_on}
        )
    elif not further:
        asked = {task for cell in resolve(config).cells() for task in cell.tasks}
        if name in asked:
            raise UsageError(f"'{name}' stays: the rates or the utility of the run's rows come from it")
        raise registry.unknown("task of the run", name, [*config.train_tasks, *plan.further(config)])
    lists: dict[str, Any] = {}
    for key in ("utility_tasks", "safety_tasks"):
        members = [one for given in getattr(config, key) for one in groups.get(given, [given])]
        touched = gone.intersection(members)
        lists[key] = tuple(one for one in members if one not in gone) if touched else getattr(config, key)
    for key in ("safety_sets", "utility_sets"):
        lists[key] = {one: given for one, given in getattr(config, key).items() if one not in gone}
    tasks = {one: record for one, record in config.code.tasks.items() if one not in gone}
    lists["code"] = config.code.model_copy(update={"tasks": tasks})
    config = config.model_copy(update=lists)
    read = _files(config)
    return config.model_copy(update={"data": {one: config.data[one] for one in config.data if one in read}})


def _files(config: RunConfig) -> set[str]:
    """The names under which a configuration's tasks read local files."""
    tasks = {task for cell in resolve(config).cells() for task in cell.tasks}
    return {resolve(config).benchmark(task).local_data or "" for task in tasks}


def is_interrupted(run: Path, config: RunConfig, rows: Sequence[str], tasks: Sequence[str]) -> bool:
    """Whether these rows or tasks have left the run's record, and its leaderboard is still to be made."""
    there = {*plan.methods(config), *config.checkpoints, *config.train_tasks, *plan.further(config)}
    unmarked = not (run / "leaderboard.done.json").exists() and (run / "leaderboard.csv").exists()
    return unmarked and not there.intersection([*rows, *tasks])


def list_removed(run: Path, before: RunConfig, after: RunConfig) -> list[Path]:
    """What lies in a run folder for rows and answers that only ``before`` has."""
    left = {cell.folder: cell for cell in resolve(after).cells()}
    found: list[Path] = []
    for cell in resolve(before).cells():
        if cell.folder not in left:
            found.append(run / cell.folder)
        else:
            found += _answers(
                run, before, cell, [one for one in cell.tasks if one not in left[cell.folder].tasks]
            )
    return [path for path in dict.fromkeys(found) if path.exists()]


def again(run: Path, config: RunConfig, rows: Sequence[str], tasks: Sequence[str]) -> list[Path]:
    """What some rows trained for a train task, or answered to another task: the run goes on to have both."""
    without(config, [row for row in rows if row != plan.SEED], ())
    groups = benchmarks.groups()
    members = [member for task in tasks for member in groups.get(task, [task])]
    cells = [cell for cell in resolve(config).cells() if cell.method in rows]
    known = [*config.train_tasks, *(task for cell in cells for task in cell.tasks)]
    for name in members:
        if name not in known:
            raise registry.unknown("task of the run", name, known)
    found: list[Path] = []
    for cell in cells:
        if cell.train_task in members:
            found.append(run / cell.folder)
        elif cell.train_task is None or not {*members} & {*config.train_tasks}:
            found += _answers(run, config, cell, [task for task in cell.tasks if task in members])
    return [path for path in dict.fromkeys(found) if path.exists()]


def _answers(run: Path, config: RunConfig, cell: Cell, tasks: Iterable[str]) -> list[Path]:
    parts = (cell, *plan.epochs(config, cell))
    return [run / one.folder / task for task in tasks for one in parts]


def forget(run: Path, before: RunConfig, after: RunConfig) -> None:
    """Let a run's record, which is held, no longer have what was taken out."""
    record, folders = records.run(run), {str(cell.folder) for cell in resolve(after).cells()}
    tasks = {task for cell in resolve(after).cells() for task in cell.tasks}
    names = {"data": _files(after)}
    names |= {"safety_sets": {*after.safety_sets}, "utility_sets": {*after.utility_sets}}
    names |= {key: {*after.train_tasks} for key in ("train_data", "columns")}
    fixed = {
        key: value
        for key, value in record.get("fixed", {}).items()
        if key.partition(".")[2] in names.get(key.partition(".")[0], {key.partition(".")[2]})
    }
    trust.remember(after, run, before)
    run_folder.update(
        run,
        config=after.model_dump(mode="json"),
        fixed=fixed,
        failures={place: line for place, line in record.get("failures", {}).items() if place in folders},
        data={task: asked for task, asked in record.get("data", {}).items() if task in tasks},
    )


def unmark(run: Path) -> None:
    """Let a run's leaderboard count no more: it is to be made anew."""
    (run / "leaderboard.done.json").unlink(missing_ok=True)
    crash.point("scores.unmarked", run / "leaderboard.done.json")


def size(targets: Iterable[Path]) -> int:
    """In bytes; of a link that of the link."""
    return sum(file.lstat().st_size for target in targets for file in files.files_below(target))


def remove(run: Path, targets: Sequence[Path]) -> None:
    """Remove files and folders of a run, which is held; of a link the link alone. Raises HarnessError, before
    anything is removed, where one of them does not really lie in the run."""
    home = run.resolve()
    for target in targets:
        if target.parent.resolve() != home / target.parent.relative_to(run):
            raise HarnessError(f"{target} leads out of the run: nothing is removed")
    for target in targets:
        files.remove(target)
        crash.point("part.removed", target)


def remove_empty(run: Path) -> None:
    """Remove what is left of a run that was removed; files of the user's own stay."""
    (run / ".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run.rmdir()
